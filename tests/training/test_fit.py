"""Training end to end on a tiny data set: identical twice, identical through an interruption."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file
from samples import SMALL, draw_part

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.layouts import normal_images
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.nets.builtin import builtin_local_net, builtin_teacher, start_global_net
from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher
from glance_fast.progress import Reporter
from glance_fast.training import fit as training
from glance_fast.training import variants as variants_module
from glance_fast.training.fit import split
from glance_fast.training.masked import global_stage
from glance_fast.training.symmetry import Symmetry

fit = partial(training.fit, device="cpu")


class Stop(Exception):
    """What breaks a training off."""


def break_off(paths, run, config, reporter, **more):
    """Begin a training, and stop it at its first step."""

    def stop(stage, done):
        raise Stop

    reporter.step = stop
    with pytest.raises(Stop):
        fit(paths, run, config, reporter=reporter, **more)


COMMAND = [sys.executable, "-c", "from glance_fast.cli import main; main()"]


def train_command(parts, out, small, *more):
    settings = [f"--set={key}={value}" for key, value in small.items()]
    return [*COMMAND, "train", str(parts), "--out", str(out), *settings, *more]


@pytest.mark.parametrize("kind", ["run_folder", "masked_run"])
def test_run_folder_holds_what_is_promised(kind, request):
    run_folder = request.getfixturevalue(kind)
    names = sorted(p.name for p in run_folder.iterdir())
    assert names == ["calibration.json", "config.toml", "log.csv", "model.safetensors", "normal.safetensors"]
    calibration = json.loads((run_folder / "calibration.json").read_text())
    # All of the normal images are calibrated on, those that were trained on too.
    assert np.isfinite(calibration["threshold"]) and len(calibration["scores"]) == 12
    assert len(set(calibration["trained_on"])) == 12
    stages = {line.split(",")[0] for line in (run_folder / "log.csv").read_text().splitlines()[1:]}
    assert stages == {"local-32", "global-32"}


@pytest.mark.parametrize("kind", ["run_folder", "masked_run"])
def test_two_runs_with_one_seed_are_identical(parts, kind, tmp_path, small, masked, reporter, request):
    run_folder = request.getfixturevalue(kind)
    settings = masked if kind == "masked_run" else small
    fit(normal_images(parts), tmp_path / "again", Config(**settings), reporter=reporter)
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        run_folder / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "again/calibration.json").read_text() == (run_folder / "calibration.json").read_text()


def test_another_seed_gives_another_model(parts, run_folder, tmp_path, small, reporter):
    fit(normal_images(parts), tmp_path / "other", Config(**small, seed=1), reporter=reporter)
    one, other = (load_file(run / "model.safetensors") for run in (run_folder, tmp_path / "other"))
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_what_the_threshold_promises_is_said(parts, tmp_path, small, capsys):
    said = Reporter(Console(width=300))
    fit(normal_images(parts), tmp_path / "run", Config(**small, false_alarms=0.2), reporter=said)
    out = capsys.readouterr().out
    assert "threshold: a share of 0.2 of good photographs or less will lie above it (from 12;" in out
    calibration = json.loads((tmp_path / "run/calibration.json").read_text())
    assert sum(score > calibration["threshold"] for score in calibration["scores"]) == 1


# More steps than the other tests have, so that there is something to interrupt.
TO_INTERRUPT = {"steps": 40, "checkpoint_minutes": 0.0}
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", params=["surround", "pyramid"])
def uninterrupted(parts, tmp_path_factory, request):
    """A net, and the run folder of a training of it that nobody interrupted."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    command = train_command(parts, run, {**SMALL, "net": request.param, **TO_INTERRUPT})
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return request.param, run


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "killed"])
def test_interrupted_and_resumed_is_identical(parts, tmp_path, small, how, uninterrupted):
    net, whole = uninterrupted
    small |= {"net": net, **TO_INTERRUPT}
    environment = {**os.environ, **ONE_THREAD}
    out = tmp_path / "parts"
    process = subprocess.Popen(train_command(parts, out, small), env=environment, stderr=subprocess.PIPE)
    checkpoint, deadline = out / "checkpoint/global-32.safetensors", time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0, "it finished before it could be interrupted"
    if how == signal.SIGINT:
        assert process.returncode == 130 and b"--resume goes on" in said
    assert not (out / "model.safetensors").exists() and checkpoint.exists()

    resumed = subprocess.run(train_command(parts, out, {}, "--resume"), env=environment, capture_output=True)
    assert resumed.returncode == 0, resumed.stderr.decode()
    for name in ("model.safetensors", "calibration.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_unreadable_images_are_named_and_left_out(parts, tmp_path, small, capsys):
    shutil.copytree(parts / "train/good", tmp_path / "good")
    (tmp_path / "good/text.png").write_text("not an image")
    (tmp_path / "good/empty.jpg").touch()
    reporter = Reporter(Console(width=200))
    fit(normal_images(tmp_path / "good"), tmp_path / "run", Config(**small), reporter=reporter)
    said = capsys.readouterr().out
    assert "left out" in said and "text.png" in said and "empty.jpg" in said
    assert (tmp_path / "run/model.safetensors").exists()


def test_too_few_images_are_refused(parts, tmp_path, small, reporter):
    paths = normal_images(parts)[:7]
    with pytest.raises(UserError, match="7 usable images; at least 8"):
        fit(paths, tmp_path / "run", Config(**small), reporter=reporter)


def test_copies_of_few_images_are_refused(parts, tmp_path, small, reporter):
    for number in range(20):
        shutil.copy(normal_images(parts)[number % 7], tmp_path / f"{number}.png")
    expected = "20 usable images, but only 7 different ones among them; at least 8 are needed"
    with pytest.raises(UserError, match=expected):
        fit(normal_images(tmp_path), tmp_path / "run", Config(**small), reporter=reporter)


def test_resume_on_other_images_is_refused(parts, tmp_path, small, reporter):
    run = tmp_path / "run"
    paths = normal_images(parts)

    break_off(paths, run, Config(**small), reporter)
    with pytest.raises(UserError, match="begun with other images"):
        fit(paths[1:], run, Config(**small), reporter=reporter)
    with pytest.raises(UserError, match="begun with other settings"):
        fit(paths, run, Config(**small, lambda_t=0.5), reporter=reporter)


@pytest.mark.parametrize("own", ["local_nets", "teacher"])
def test_resume_with_other_nets_is_refused(parts, tmp_path, small, reporter, own):
    torch.manual_seed(0)
    Student(32).save(tmp_path / "own.safetensors", {})
    nets = {"local_nets": [tmp_path / "own.safetensors"], "teacher": Teacher().eval().requires_grad_(False)}
    words = {"local_nets": "begun with other Local-Nets", "teacher": "begun with another teacher"}[own]
    paths, given = normal_images(parts), {own: nets[own]}
    for name, first, then in (("with", given, {}), ("without", {}, given)):
        break_off(paths, tmp_path / name, Config(**small), reporter, **first)
        with pytest.raises(UserError, match=f"{name}: was {words}; give the same, or"):
            fit(paths, tmp_path / name, Config(**small), reporter=reporter, **then)
        break_off(paths, tmp_path / name, Config(**small), reporter, **first)
    # An earlier version did not note nets: it may go on with the built-in ones.
    notes = tmp_path / "without/checkpoint/images.json"
    before = json.loads(notes.read_text())
    notes.write_text(json.dumps({name: before[name] for name in ("images", "sha256", "config")}))
    with pytest.raises(UserError, match=words):
        fit(paths, tmp_path / "without", Config(**small), reporter=reporter, **given)
    break_off(paths, tmp_path / "without", Config(**small), reporter)


def test_a_training_that_was_not_begun_leaves_no_settings_to_the_next(parts, tmp_path, small, reporter):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(Config().to_toml())

    break_off(normal_images(parts), run, Config(**small), reporter)
    assert (run / "config.toml").read_text() == Config(**small).to_toml()


def test_copies_are_made_once_and_only_where_they_are_needed(parts, tmp_path, small, reporter, monkeypatch):
    made = []

    def counted(cache, indices, count, config, symmetry, name, progress=None, inside=None):
        made.append(name)
        return variants_module.make_variants(cache, indices, count, config, symmetry, name, progress, inside)

    monkeypatch.setattr("glance_fast.training.copies.make_variants", counted)
    small |= {"image_size": 128, "patch": [32, 64], "stride": [16, 32], "steps": 1}
    names = {}
    for net, finetune in (("surround", 1), ("surround", 0), ("pyramid", 1), ("pyramid", 0)):
        made.clear()
        config = Config(**small | {"net": net, "finetune_steps": finetune})
        fit(normal_images(parts), tmp_path / f"{net}{finetune}", config, reporter=reporter)
        names[net, finetune] = sorted(made)
    assert names == {
        ("surround", 1): ["held out", "turned variants", "variants"],
        ("surround", 0): ["held out", "variants"],
        ("pyramid", 1): ["turned variants", "variants"],
        ("pyramid", 0): [],
    }


@pytest.mark.parametrize("net", ["surround", "pyramid"])
def test_a_learning_rate_is_advised_only_where_there_is_one(parts, tmp_path, small, reporter, net):
    advice = {}

    def seen(stage, done):
        advice[stage.name] = stage.advice

    reporter.step = seen
    config = Config(**small | {"net": net, "learning_rate": 0.004})
    fit(normal_images(parts), tmp_path / "run", config, reporter=reporter)
    assert advice == {"local-32": "", "global-32": "lower the learning rate (`learning_rate=0.0004`)"}


@pytest.mark.parametrize("net", ["surround", "pyramid"])
def test_streamed_images_give_the_model_that_held_ones_give(tmp_path, small, reporter, net):
    rng = np.random.default_rng(0)
    for i in range(90):  # 90 images of 64x64 are just over 1 MiB
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    small |= {"net": net, "steps": 2, "finetune_steps": 0}
    models = []
    for name, mib in (("held", 64), ("streamed", 1)):
        fit(normal_images(tmp_path), tmp_path / name, Config(**small, cache_mib=mib), reporter=reporter)
        models.append((tmp_path / name / "model.safetensors").read_bytes())
    assert models[0] == models[1]


def test_split_holds_out_the_share_asked_for(small):
    train, held_out = split(np.arange(40), Config(**small))
    assert len(held_out) == 10 and len(np.union1d(train, held_out)) == 40


def test_distortion_head_tells_stained_from_clean_outside_training_too(tmp_path, masked):
    # BatchNorm's running statistics must fit what scoring feeds it: clean patches alone.
    rng = np.random.default_rng(0)
    for i in range(18):
        Image.fromarray(draw_part(rng)).save(tmp_path / f"{i:02}.png")
    config = Config(**{**masked, "steps": 60, "batch": 8})
    scale = Glance(config).scales[0]
    scale.local.load_state_dict(builtin_local_net(32).local.state_dict())
    cache, images = ImageCache(normal_images(tmp_path), config.image_size), np.arange(18)
    stage = global_stage(scale, 0, config, cache, images[:9], images[9:], Symmetry(False, False), bf16=False)
    optimizer = torch.optim.AdamW(stage.groups)
    for module in stage.modules.values():
        module.train()
    for number in range(config.steps):
        optimizer.zero_grad()
        stage.step(number)[0].backward()
        optimizer.step()
    for module in stage.modules.values():
        module.eval()
    with torch.inference_mode():
        assert stage.validate()["held_out_distortion"] < 0.62, "chance is 0.69"


def test_only_stained_copies_are_turned_beyond_what_the_category_allows(
    parts, tmp_path, small, reporter, monkeypatch
):
    class Seen(Exception):
        pass

    def asked(teacher, clean, stained, *more):
        raise Seen(clean, stained)

    def near(one, other):
        return np.abs(one.astype(int) - other).mean((-3, -2, -1))

    monkeypatch.setattr("glance_fast.training.copies.Targets", asked)
    monkeypatch.setattr(variants_module, "stain_image", lambda image, *_: (image, np.zeros((64, 64), bool)))
    small |= {"image_size": 64, "symmetry": "none", "shift": 0, "brightness": 0.0}
    with pytest.raises(Seen) as caught:
        fit(normal_images(parts), tmp_path / "run", Config(**small), reporter=reporter)
    clean, stained = caught.value.args
    with ImageCache(normal_images(parts), (64, 64)) as cache:
        images = cache.batch(range(len(cache)))
    assert all(near(copy, images).min() < 1 for copy in clean)
    upright = np.array([near(copy, images).min() < 1 for copy in stained])
    assert 0 < upright.sum() < len(upright), "an eighth of them, on average"
    poses = [np.rot90(images, k, (1, 2)) for k in range(4)]
    poses = np.concatenate([*poses, *(p[:, :, ::-1] for p in poses)])
    assert all(near(copy, poses).min() < 1 for copy in stained)


def test_a_teacher_of_ones_own_is_what_local_net_is_fine_tuned_by(parts, tmp_path, small, reporter):
    small |= {"steps": 1, "finetune_steps": 20}
    torch.manual_seed(0)
    given = {"none": None, "same": builtin_teacher(), "other": Teacher().eval().requires_grad_(False)}
    locals_ = {}
    for name, teacher in given.items():
        fit(normal_images(parts), tmp_path / name, Config(**small), reporter=reporter, teacher=teacher)
        weights = load_file(tmp_path / name / "model.safetensors")
        locals_[name] = {k: v for k, v in weights.items() if k.startswith("scales.0.local.")}
    assert all(np.array_equal(locals_["none"][k], v) for k, v in locals_["same"].items())
    assert any(not np.array_equal(locals_["none"][k], v) for k, v in locals_["other"].items())


def test_a_masked_net_starts_from_the_built_in_weights(parts, tmp_path, masked, reporter):
    masked |= {"width": 64, "steps": 1, "finetune_steps": 0, "learning_rate": 1e-7}
    stems = {}
    for pretrained in (True, False):
        run = tmp_path / str(pretrained)
        fit(normal_images(parts), run, Config(**masked, pretrained=pretrained), reporter=reporter)
        stems[pretrained] = load_file(run / "model.safetensors")["scales.0.global_net.stem.weight"]
    net = Glance(Config(**masked)).scales[0].global_net
    assert start_global_net(net)
    start = net.stem.weight.detach().numpy()
    np.testing.assert_allclose(stems[True], start, atol=1e-5)
    assert np.abs(stems[False] - start).max() > 0.01
