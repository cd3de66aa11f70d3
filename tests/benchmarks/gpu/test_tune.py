"""Tuning without a GPU: what is tried, what the compiler drops, and who wins."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import tune
from benchmarks.gpu.timing import Deadline

ROOT = Path(__file__).parents[3]
START = {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3}
LAYER = "partial_conv2d 64>64 3x3/1 16x16  bfloat16"


def compile_only(*arguments: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)


def read(path: Path) -> dict:
    """The configurations of a table that was made here."""
    from glance_fast.kernels import dispatch

    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == {"made_for", "configurations"} and found["made_for"] == dispatch.made_for()
    return found["configurations"]


class TestCandidates:
    def test_start_comes_first_then_the_nearest(self):
        found = tune.candidates(START)
        changes = [tune.differences(START, c) for c in found]
        assert found[0] == START and changes == sorted(changes) and changes[1] == 1
        assert len({tuple(c.items()) for c in found}) == len(found) > 50

    def test_blocks_stay_powers_of_two_that_tensor_cores_take(self):
        for candidate in tune.candidates({**START, "BLOCK_N": 16}):
            for name, value in candidate.items():
                if name.startswith("BLOCK"):
                    assert value & (value - 1) == 0 and 16 <= value <= 256
            assert candidate["BLOCK_M"] * candidate["BLOCK_N"] <= tune.MOST_TILE

    def test_small_settings_are_left_alone(self):
        assert {c["BLOCK_P"] for c in tune.candidates({"BLOCK_P": 8, "num_warps": 4})} == {8}


class TestChooser:
    def test_answers_stand_in_and_leave_again(self):
        from glance_fast.kernels import dispatch
        from glance_fast.kernels.partial_conv import gpu

        with tune.choosing() as chooser:
            x = torch.zeros(1)
            assert gpu.configuration(x, "k", "s", START) == {"enable_fp_fusion": True, **START}
            chooser.forced["k"] = {"BLOCK_M": 64}
            assert gpu.configuration(x, "k", "s", START) == {"enable_fp_fusion": True, "BLOCK_M": 64}
            assert chooser.asked == {("k", "s"): START}
        assert gpu.configuration is dispatch.configuration

    def test_every_launcher_asks(self):
        """A launcher that chose for itself could not be tuned."""
        from glance_fast.kernels import dispatch

        with tune.choosing():
            for path in Path(dispatch.__file__).parent.glob("*/gpu.py"):
                module = sys.modules[f"glance_fast.kernels.{path.parent.name}.gpu"]
                assert isinstance(module.configuration, tune.Chooser), path


class FakePlace:
    """Takes the time that a table says of the configuration in force."""

    def __init__(self, chooser, times, wrong=()):
        self.chooser, self.times, self.wrong = chooser, times, wrong

    def seconds(self):
        found = self.times[self.chooser.forced["k"]["BLOCK_M"]]
        if isinstance(found, Exception):
            raise found
        return found

    def right(self):
        return self.chooser.forced["k"]["BLOCK_M"] not in self.wrong


def winner(times, wrong=(), seconds=60.0):
    chooser = tune.Chooser()
    tried = [{"BLOCK_M": m} for m in times]
    place = FakePlace(chooser, times, wrong)
    best = tune.fastest(chooser, "k", tried[0], tried, [place, place], Deadline(seconds))
    assert "k" not in chooser.forced
    return best


class TestFastest:
    def test_the_fastest_wins(self):
        assert winner({16: 1.0, 32: 0.8, 64: 0.5}) == {"BLOCK_M": 64}

    def test_noise_is_no_reason(self):
        assert winner({16: 1.0, 32: 0.99}) is None

    def test_what_is_wrong_never_wins(self, capsys):
        assert winner({16: 1.0, 32: 0.8, 64: 0.5}, wrong=(64,)) == {"BLOCK_M": 32}
        assert "{'BLOCK_M': 64} is WRONG" in capsys.readouterr().out

    def test_what_fails_is_passed_over(self):
        assert winner({16: 1.0, 32: RuntimeError("out of resources"), 64: 0.5}) == {"BLOCK_M": 64}

    def test_out_of_time_nothing_more_is_tried(self):
        assert winner({16: 1.0, 32: 0.5}, seconds=0) is None


@dataclass
class RoutedCase:
    """A case of partial convolution; ``times`` are those of its two routes."""

    operator: str
    times: dict[str, float]
    ours: tuple[str, ...] = ("ours, one kernel", "ours, library and epilogue")


@dataclass
class RoutedPlace:
    case: RoutedCase
    version: str

    def seconds(self):
        from glance_fast.kernels.partial_conv import gpu

        for kernel in ("partial_conv_fwd_kernel", "partial_conv_bwd_dx_kernel"):
            gpu.configuration(None, kernel, "a shape", START)
        return self.case.times[self.version]


def test_each_direction_has_a_route_of_its_own(monkeypatch):
    one, library = RoutedCase("", {}).ours
    found = [
        RoutedCase("partial_conv2d", {one: 1.0, library: 2.0}),
        RoutedCase("partial_conv2d backward", {one: 2.0, library: 1.0}),
        RoutedCase("window_conv2d", {}),
    ]
    monkeypatch.setattr(tune, "tunable", lambda scene: found)
    monkeypatch.setattr(tune, "place_of", lambda case, version, device: RoutedPlace(case, version))
    table = {}
    tune.choose_routes(SimpleNamespace(device=None), table, Deadline(60))
    assert table == {
        "partial_conv_fwd_route": {"a shape": {"triton": 1}},
        "partial_conv_bwd_route": {"a shape": {"triton": 0}},
    }


class TestWrite:
    def test_entries_are_added_to_those_of_before(self, tmp_path):
        path = tmp_path / "tuned" / "A-GPU.json"
        tune.write(path, {"k": {"a": START}})
        tune.write(path, {"k": {"b": START}, "partial_conv_fwd_route": {"a": {"triton": 1}}})
        assert read(path) == {"k": {"a": START, "b": START}, "partial_conv_fwd_route": {"a": {"triton": 1}}}
        assert [p.name for p in path.parent.iterdir()] == ["A-GPU.json"]

    def test_dispatch_reads_what_is_written(self, tmp_path, monkeypatch):
        from glance_fast.kernels import dispatch

        monkeypatch.setattr(dispatch, "TUNED", tmp_path)
        tune.write(tmp_path / "A-GPU.json", {"k": {"a": START}})
        # Not from the cache, which would remember it.
        assert dispatch.tuned.__wrapped__("A GPU") == {"k": {"a": START}}
        assert dispatch.tuned.__wrapped__("B GPU") == {}

    @pytest.mark.parametrize("changed", ["triton", "kernels", "all"])
    def test_a_table_of_other_kernels_is_ignored_with_a_warning(self, tmp_path, monkeypatch, caplog, changed):
        from glance_fast.kernels import dispatch

        monkeypatch.setattr(dispatch, "TUNED", tmp_path)
        path, here = tmp_path / "A-GPU.json", dispatch.made_for()
        tune.write(path, {"k": {"a": START}})
        found = json.loads(path.read_text(encoding="utf-8"))
        found["made_for"] = {} if changed == "all" else {**here, changed: "another"}
        path.write_text(json.dumps(found), encoding="utf-8")
        assert dispatch.tuned.__wrapped__("A GPU") == {}
        (record,) = caplog.records
        there = None if changed == "all" else "another"
        assert record.name == "glance_fast" and record.levelname == "WARNING"
        assert "A-GPU.json is ignored: made for" in record.message and "benchmarks.gpu.tune" in record.message
        for name in here:
            said = f"{name} {there}, here {here[name]}" in record.message
            assert said == (changed in (name, "all"))
        # And nothing of it is kept.
        tune.write(path, {"k": {"b": START}})
        assert read(path) == {"k": {"b": START}}

    def test_another_source_has_another_name(self, tmp_path, monkeypatch):
        from glance_fast.kernels import dispatch

        folder = Path(dispatch.__file__).parent
        names = ["conv_common.py", "tf32.py", *(p.relative_to(folder) for p in folder.glob("*/gpu*.py"))]
        monkeypatch.setattr(dispatch, "__file__", str(tmp_path / "dispatch.py"))
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text((folder / name).read_text())
        found = [dispatch.made_for.__wrapped__()]
        for name in names:
            (tmp_path / name).write_text((folder / name).read_text() + "X = 1\n")
            found.append(dispatch.made_for.__wrapped__())
        assert found[0] == dispatch.made_for() and len({f["kernels"] for f in found}) == len(found)


def test_what_is_tuned_has_a_name_of_its_own():
    from glance_fast.kernels.patch_score import gpu as patch_score
    from glance_fast.kernels.window_conv import gpu as window_conv

    weight, matrix = torch.zeros(64, 32, 3, 3), torch.zeros(4, 8, 8)
    windows = [
        (weight, 1, (6, 6), False),
        (weight, 2, (6, 6), False),
        (weight, 1, (6, 8), False),
        (weight, 1, (6, 6), True),
        (weight.half(), 1, (6, 6), False),
    ]
    assert len({window_conv.shape_of(*w) for w in windows}) == len(windows)
    forms = [None, matrix, matrix[0], matrix.half()]
    assert len({patch_score._form(f) for f in forms}) == len(forms)


def test_candidates_are_compiled_for_the_card():
    pairs = {(8, 0): "sm_80", (8, 6): "sm_86", (8, 7): "sm_80", (8, 9): "sm_89", (9, 0): "sm_90"}
    pairs |= {(10, 0): "sm_90", (12, 0): "sm_120"}
    assert {capability: tune.target_of(capability) for capability in pairs} == pairs


class TestCompiler:
    def test_without_a_gpu_it_stops(self):
        done = compile_only("-m", "benchmarks.gpu.tune")
        assert done.returncode == 1 and "no CUDA device" in done.stderr

    def test_dry_lists_what_would_be_timed(self):
        done = compile_only(
            "-m", "benchmarks.gpu.tune", "--dry", "--case", LAYER, "--limit", "2", "--workers", "1"
        )
        lines = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) == 6, done.stderr[-2000:]
        assert "partial_conv_fwd_kernel, 2 of 2 are worth timing" in lines[0]
        assert lines[1].startswith("  time  BLOCK_M ") and "registers" in lines[1]
        assert "renormalise_fwd_kernel" in lines[3]
        assert not list((ROOT / "kernels").glob("tuned/cpu*"))

    def test_what_spills_or_does_not_fit_is_dropped(self):
        tried = [
            START,
            {**START, "BLOCK_M": 256, "BLOCK_N": 128, "BLOCK_K": 256, "num_warps": 8},
            {**START, "BLOCK_M": 256, "BLOCK_N": 256},
        ]
        code = (
            "import json\nfrom benchmarks.gpu.tune import judge\n"
            f"v = judge({LAYER!r}, 'ours, one kernel', 'partial_conv_fwd_kernel', {tried!r}, 'sm_90')\n"
            "print(json.dumps([(x.fits, x.why) for x in v]))"
        )
        done = compile_only("-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
        (fits, _), (large, why), (spilling, spills) = json.loads(done.stdout.splitlines()[-1])
        assert fits and not large and not spilling
        assert "too much shared memory" in why or "spills" in why
        assert "spills" in spills
