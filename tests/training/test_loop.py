"""The loop: schedule, checkpoints, a resume that changes nothing, damaged checkpoints."""

import os
import signal

import pytest
import torch
from torch import nn

from glance_fast.errors import UserError
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
    for text in ("{", "[]"):
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
