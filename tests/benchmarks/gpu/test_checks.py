"""Checks of every operator as users call it; by operators that are wrong, or that die."""

import csv
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu import checks
from benchmarks.gpu.timing import Deadline

HOST = torch.device("cpu")


def doubled(x, backend):
    return x * 2


def a_problem(run=doubled, **changes):
    return replace(
        checks.Problem("twice", lambda g: (torch.randn(3, 5, generator=g),), run, (torch.float32,)), **changes
    )


def test_every_operator_is_right_in_every_way(tmp_path, capsys):
    done = checks.run_checks(HOST, Deadline(600), tmp_path / "checks.csv")
    assert [c for c in done if c.fault] == []
    found = {(c.operator, c.how) for c in done}
    names = {p.operator for p in checks.problems()}
    assert names >= {
        "partial_conv2d",
        "surround_conv2d",
        "window_conv2d",
        "window_sample",
        "score_patches",
        "idw_map",
    }
    assert {(name, how) for name in names for how in ("as it is", "odd layout")} <= found
    assert ("surround_conv2d", "compiled") in found and ("partial_conv2d", "compiled") in found
    assert {c.dtype for c in done} == {"float32", "bfloat16", "float16"}
    with (tmp_path / "checks.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(done)
    assert f"checks: {len(done)} of {len(done)} calls are right" in capsys.readouterr().out


def misled(x, backend):
    """Right only where its input lies as it usually does."""
    return x * (2 if backend == "reference" or x.is_contiguous() else 3)


def lost(x, backend):
    """A number of the output is never written."""
    if backend == "reference":
        return x * 2
    out = torch.empty_like(x)
    out[1:] = x[1:] * 2
    return out


def dead(x, backend):
    if backend != "reference":
        raise RuntimeError("no such kernel\nat all")
    return x * 2


@pytest.mark.parametrize(
    ("run", "wrong", "said"),
    [
        (doubled, set(), ""),
        (misled, {"odd layout"}, "WRONG: error above 0.001"),
        (lost, {"as it is", "odd layout"}, "WRONG: error above 0.001"),
        (dead, {"as it is", "odd layout"}, "RuntimeError: no such kernel"),
    ],
)
def test_what_is_wrong_is_called_wrong_and_the_others_go_on(run, wrong, said):
    found = list(checks.check(a_problem(run), torch.float32, HOST))
    assert {c.how for c in found} == {"as it is", "odd layout"}
    assert {c.how for c in found if c.fault} == wrong
    assert {c.fault for c in found if c.fault} <= {said}


def test_a_break_in_the_graph_of_an_operator_is_a_fault():
    def broken(x, backend):
        return x * (2 if float(x.sum()) < 1e9 else 3)

    def how(problem):
        return {c.how: c.fault for c in checks.check(problem, torch.float32, HOST)}

    assert how(a_problem(graph=True))["compiled"] == ""
    assert how(a_problem(broken, graph=True))["compiled"] != ""


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 4), (2, 3, 5, 4)])
def test_odd_tensors_hold_the_same_numbers(shape):
    x = torch.randn(shape)
    found = checks.odd(x)
    assert torch.equal(found, x) and found.storage_offset() == 1
    assert x.numel() == 1 or not found.is_contiguous()


def test_out_of_time_is_said(tmp_path, capsys):
    assert checks.run_checks(HOST, Deadline(0), tmp_path / "checks.csv") == []
    assert "SKIPPED: out of time: the rest of the checks" in capsys.readouterr().out
