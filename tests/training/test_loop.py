"""The loop: schedule, checkpoints, a resume that changes nothing, damaged checkpoints."""

import os
import pickle
import signal
import struct

import pytest
import torch
from damage import Readings, damaged
from safetensors.torch import load_file, save
from torch import nn

from glance_fast.data.files import NOTES, read_tensors
from glance_fast.errors import UserError
from glance_fast.training import loop
from glance_fast.training.loop import Log, Stage, one_cycle, remember, run_stage
from glance_fast.training.sampling import step_generator


def make_stage(steps: int = 20, stop_at: int | None = None, rate: float = 1e-2) -> Stage:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))

    def step(number):
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        x = torch.randn(16, 4, generator=step_generator(0, "toy", number))
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {"imitation": 1.0, "compactness": 2.0}

    groups = [{"params": list(net.parameters()), "lr": rate, "weight_decay": 0.0}]
    return Stage("toy", steps, {"net": net}, groups, step, 16, lambda: {"held_out_loss": 0.5, "r2": 0.25})


def run(stage, folder, minutes=100.0):
    run_stage(stage, folder, Log(folder / "log.csv"), lambda stage, done: None, minutes)
    return stage.modules["net"].state_dict()


def assert_same(a, b):
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    whole = run(make_stage(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(make_stage(stop_at=7), tmp_path / "parts")
    resumed = run(make_stage(), tmp_path / "parts")
    assert_same(whole, resumed)
    columns = [line.split(",")[:2] for line in (tmp_path / "whole/log.csv").read_text().splitlines()]
    assert columns == [line.split(",")[:2] for line in (tmp_path / "parts/log.csv").read_text().splitlines()]


@pytest.mark.parametrize("later", [False, True])
def test_torchrun_sends_two_signals_for_one_and_a_later_one_cuts(tmp_path, monkeypatch, later):
    stage, signals = make_stage(), [signal.SIGINT, signal.SIGTERM]
    step = stage.step

    def stopped(number):
        if number == 5:
            for one in signals:
                os.kill(os.getpid(), one)
        return step(number)

    stage.step = stopped
    if later:
        monkeypatch.setattr(loop, "PATIENCE", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(stage, tmp_path)
    path = tmp_path / "toy.safetensors"
    assert path.exists() != later
    assert later or read_tensors(path, "")[1]["step"] == 6


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("local-32", ("imitation", "compactness")),
        ("global-32", ("inconsistency", "distortion")),
        ("global", ("inconsistency", "distortion")),
    ],
)
def test_the_log_of_an_earlier_version_goes_on(tmp_path, stage, parts):
    path = tmp_path / "log.csv"
    path.write_text(
        "stage,step,seconds,images_per_second,loss,first,second,held_out_loss,held_out_second,r2\n"
        f"{stage},5,1.5,20,0.9,0.25,0.125,0.75,0.5,0.0625\n{stage},9,2,20,0.8,1,2,3,4,5\n"
    )
    log = Log(path)
    log.rewind(stage, 5)
    log.add({"stage": stage, "step": 10, "loss": 0.5, parts[0]: 0.3})
    before, after = Log(path).rows
    assert [before[name] for name in (*parts, "held_out_distortion", "r2")] == [
        "0.25",
        "0.125",
        "0.5",
        "0.0625",
    ]
    assert (before["step"], after["step"], after[parts[0]]) == ("5", "10", "0.3")
    assert not {"first", "second", "held_out_second"} & set(path.read_text().splitlines()[0].split(","))
    others = {"imitation", "compactness", "inconsistency", "distortion"} - set(parts)
    assert {before[name] for name in others} == {""}


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    whole = run(make_stage(), tmp_path / "whole")

    class Killed(Exception):
        pass

    def report(stage, done):
        if done == 13:
            raise Killed

    with pytest.raises(Killed):
        run_stage(make_stage(), tmp_path / "killed", Log(tmp_path / "killed/log.csv"), report, 0.0)
    assert_same(whole, run(make_stage(), tmp_path / "killed"))


def test_a_finished_stage_is_not_run_again(tmp_path):
    first = run(make_stage(), tmp_path)
    stage = make_stage()
    stage.step = None
    assert_same(first, run(stage, tmp_path))


def test_other_number_of_steps_is_refused(tmp_path):
    run(make_stage(), tmp_path)
    with pytest.raises(UserError, match="made for 20 steps, not 30"):
        run(make_stage(30), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "truncated"])
def test_damaged_checkpoint_is_named(tmp_path, damage):
    run(make_stage(), tmp_path)
    path = tmp_path / "toy.safetensors"
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.raises(UserError, match=r"toy\.safetensors: damaged, or not .*remove it to train"):
        run(make_stage(), tmp_path)


@pytest.mark.parametrize("kind", ["header", "all"])
def test_a_checkpoint_damaged_by_chance_is_read_or_named(tmp_path, kind):
    with pytest.raises(KeyboardInterrupt):
        run(make_stage(stop_at=7), tmp_path)
    path, log = tmp_path / "toy.safetensors", (tmp_path / "log.csv").read_bytes()
    whole, readings = path.read_bytes(), Readings()
    within = 8 + struct.unpack("<Q", whole[:8])[0] if kind == "header" else None
    first = struct.unpack("<Q", whole[:8])[0] + 8
    weights = [
        whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for place in range(first, len(whole), 99)
    ]
    for data in (*damaged(whole, 1, 20, within), *weights, whole):
        path.write_bytes(data)
        (tmp_path / "log.csv").write_bytes(log)
        said = readings("", run, make_stage(), tmp_path)
        # Weights of which a bit is wrong may be so large that their loss is not finite.
        assert not said or str(path) in said or "diverged" in said
    assert not said, "the last is as it was"
    readings.tell(f"checkpoint, {kind}")
    assert readings.refused > 60


DEEP = "[" * 100_000
NOTES_OF_NONE = (
    *("", "{", "[]", "null", DEEP, '{"step":' * 100_000, '{"step": 7}', '{"step": "x", "steps": 20}'),
    *('{"step": null, "steps": 20}', '{"step": 1e999, "steps": 20}', '{"step": NaN, "steps": 20}'),
    *('{"step": [], "steps": 20}', '{"step": "' + "x" * 9999 + '", "steps": 20}'),
)


@pytest.mark.parametrize("notes", NOTES_OF_NONE, ids=lambda notes: ascii(notes[:24]))
def test_notes_of_a_checkpoint_that_are_none_are_named(tmp_path, notes):
    with pytest.raises(KeyboardInterrupt):
        run(make_stage(stop_at=7), tmp_path)
    path, readings = tmp_path / "toy.safetensors", Readings()
    path.write_bytes(save(load_file(path), {NOTES: notes}))
    assert "damaged checkpoint; remove it" in readings(path, run, make_stage(), tmp_path)


@pytest.mark.parametrize(
    "name",
    ["optimizer/x/y", "optimizer/0", "optimizer/0/a/b", "net/x\n" + "k" * 9999, "x", "optimizer/99/step"],
)
def test_a_foreign_tensor_in_a_checkpoint_is_read_or_named(tmp_path, name):
    with pytest.raises(KeyboardInterrupt):
        run(make_stage(stop_at=7), tmp_path)
    path, readings = tmp_path / "toy.safetensors", Readings()
    notes = {NOTES: '{"step": 7, "steps": 20}'}
    path.write_bytes(save(load_file(path) | {name: torch.zeros(1)}, notes))
    readings(path, run, make_stage(), tmp_path)


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return self.place.touch, ()


def test_a_pickled_checkpoint_is_not_unpickled(tmp_path):
    run(make_stage(), tmp_path)
    path, readings = tmp_path / "toy.safetensors", Readings()
    for data in (pickle.dumps(Trap(tmp_path / "sprung")), None):
        if data is None:
            torch.save({"net/0.weight": Trap(tmp_path / "sprung")}, path)
        else:
            path.write_bytes(data)
        assert readings(path, run, make_stage(), tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_log_damaged_by_chance_is_read_or_named(tmp_path):
    run(make_stage(), tmp_path)
    path, readings = tmp_path / "log.csv", Readings()

    def read():
        log = Log(path)
        log.rewind("toy", 5)
        log.add({"stage": "toy", "step": 6})

    for data in (
        *damaged(path.read_bytes(), 1, 20),
        *(b"stage,step\nlocal,x\n", b"a,b\n1,2\n", b"\xff\xfe\n", b"stage,step\nlocal\n", b"first\n1\n"),
        *(b"stage,step\n" + b"x" * 200_000 + b",1\n", b"stage,step\ntoy," + b"9" * 10_000 + b"\n"),
    ):
        path.write_bytes(data)
        readings(path, read)
    readings.tell("log")
    assert readings.refused > 20


def test_divergence_is_said(tmp_path):
    stage = make_stage()
    stage.step = lambda number: (torch.tensor(float("nan"), requires_grad=True), {})
    with pytest.raises(UserError, match=r"diverged at step 0 of toy$"):
        run(stage, tmp_path)
    stage.advice = "do this"
    with pytest.raises(UserError, match=r"diverged at step 0 of toy; do this$"):
        run(stage, tmp_path)


def test_what_a_training_is_begun_with_is_kept(tmp_path):
    path = tmp_path / "work/begun.json"
    remember(path, {"seed": 1, "teacher": None}, {}, tmp_path)
    remember(path, {"seed": 1, "teacher": None, "later": None}, {}, tmp_path)
    with pytest.raises(UserError, match=f"^{tmp_path}: was begun with another seed; give the same, or"):
        remember(path, {"seed": 2, "teacher": None}, {"seed": "another seed"}, tmp_path)
    for text in ("{", "[]", "5", "null", DEEP, DEEP + "]" * 100_000, '{"seed": ' + "9" * 5000 + "}"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"begun\.json: damaged; `overwrite=True` begins anew"):
            remember(path, {"seed": 1}, {}, tmp_path)


def test_schedule_rises_then_falls_to_nothing():
    rates = [one_cycle(i, 100) for i in range(100)]
    assert max(rates) == 1 and rates[0] < 0.2 and rates[-1] < 0.01
    assert rates.index(1.0) == 9
    assert one_cycle(0, 1) == 1


def test_training_is_left_in_evaluation_mode(tmp_path):
    stage = make_stage()
    run(stage, tmp_path)
    assert not any(m.training for m in stage.modules["net"].modules())
