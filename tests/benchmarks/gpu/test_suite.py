"""The suite for a GPU, run without one; and its checks, by versions that are wrong."""

import csv
import math
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.costs.counts import Work
from benchmarks.gpu import cases, scene
from benchmarks.gpu import suite as gpu
from benchmarks.gpu.scene import PLAIN, SEQUENCE
from benchmarks.gpu.timing import Deadline, OutOfTimeError, error, measure, poisoned, sets_for
from glance_fast.nets.masked import MaskedNet

ROOT = Path(__file__).parents[3]
HOST = torch.device("cpu")
TOP = gpu.Ceilings(1e12, 1e12, 1e9, 1e9)


def read(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def a_case(**changes) -> scene.Case:
    """Doubling, in two versions."""
    return replace(
        scene.Case(
            "twice", "8", "float32", Work(8, 32, 32), lambda g: {"x": scene.normal(g, 8)},
            lambda i: i["x"].double() * 2,
            {SEQUENCE: lambda i: i["x"] + i["x"], "ours": lambda i: i["x"] * 2}, SEQUENCE, ("ours",),
        ),
        **changes,
    )  # fmt: skip


def rows_of(case: scene.Case) -> dict[str, gpu.Row]:
    return {row.version: row for row in gpu.run_case(case, list(case.versions), HOST, TOP, 0)}


class TestEndToEnd:
    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory):
        out = tmp_path_factory.mktemp("gpu")
        command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out)]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        env["TRITON_INTERPRET"] = "1"
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)
        return done, read(out / "gpu.csv"), out

    def test_everything_is_right(self, finished):
        done, rows, _ = finished
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert [row for row in rows if row["note"]] == []
        for row in rows:
            checked = row["version"].startswith("ours") or row["version"] == SEQUENCE
            assert not checked or float(row["error"]) < 2e-3

    def test_no_row_claims_a_gpus_speed(self, finished):
        done, rows, _ = finished
        assert {row["where"] for row in rows} == {"cpu", "interpreter"}
        kernels = [row for row in rows if row["version"] == "ours, one kernel"]
        assert kernels and {row["where"] for row in kernels} == {"interpreter"}
        assert {row["of_rate"] for row in rows} == {"nan"}
        assert done.stdout.splitlines()[-1].endswith("nothing here is a claim of speed.")

    def test_every_operator_has_rows_with_versions_and_times(self, finished):
        _, rows, _ = finished
        operators = {"surround_conv2d", "partial_conv2d", "partial_conv2d backward", "window_conv2d"}
        operators |= {"score_patches", "idw_map"}
        assert operators | {gpu.END_TO_END} == {row["operator"] for row in rows}
        assert all(row["torch"] == torch.__version__ and float(row["ms"]) > 0 for row in rows)
        assert {"patchwise", "grouped"} <= {row["version"] for row in rows}
        for row in rows:
            if row["operator"] != gpu.END_TO_END:
                assert float(row["tflops"]) > 0 and float(row["gbps"]) > 0 and float(row["ratio"]) > 0

    def test_a_picture_is_drawn(self, finished):
        with Image.open(finished[2] / "gpu.png") as picture:
            assert picture.width > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 50


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    def dies(*arguments):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(gpu, "run_images", dies)
    assert gpu.main(["--out", str(tmp_path), "--budget", "0"]) == 1
    out, err = capsys.readouterr()
    assert "PART FAILED: images: RuntimeError; the others go on" in out and "no more memory" in err
    assert out.splitlines()[-1].endswith("because the budget was spent.") and "PART FAILED: images" in out
    # What comes after it has run.
    assert {row["version"] for row in read(tmp_path / "gpu.csv")} >= {SEQUENCE, PLAIN, "ours"}


@pytest.mark.parametrize(
    "fault", [subprocess.CalledProcessError(1, "tune"), subprocess.TimeoutExpired("tune", 1.0), KeyError("a")]
)
def test_parts_fail_by_themselves(fault, capsys):
    ran = []

    def dies():
        raise fault

    assert gpu.run_parts({"tuning": dies, "picture": lambda: ran.append("picture")}) == ["tuning"]
    assert ran == ["picture"]
    assert f"PART FAILED: tuning: {type(fault).__name__}" in capsys.readouterr().out


def test_a_call_that_is_wrong_fails_the_whole(tmp_path, capsys, monkeypatch):
    wrong = gpu.checks.Check("twice", "float32", "odd layout", "cpu", 1.0, "WRONG: error above 0.001")
    monkeypatch.setattr(gpu.checks, "run_checks", lambda *arguments: [wrong])
    assert gpu.main(["--out", str(tmp_path), "--budget", "0"]) == 1
    assert "twice, float32, odd layout, on cpu: WRONG: error above 0.001" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_tuning_gets_what_is_left_or_nothing(tmp_path, capsys, monkeypatch, seconds):
    ran = []
    monkeypatch.setattr(gpu.subprocess, "run", lambda command, **options: ran.append((command, options)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some Card")
    gpu.run_tuning(tmp_path, seconds)
    out = capsys.readouterr().out
    if not seconds:
        assert not ran and out == f"{gpu.SKIPPED}: tuning\n"
        return
    ((command, options),) = ran
    assert command[1:] == [
        "-m",
        "benchmarks.gpu.tune",
        "--budget",
        "60",
        "--out",
        str(tmp_path / "tuned.json"),
    ]
    assert options["check"] and "kernels/tuned/Some-Card.json" in out


def test_out_of_time_the_rest_is_named(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path), "--budget", "0"]) == 0
    rows = read(tmp_path / "gpu.csv")
    names = {row["version"] for row in rows}
    assert {SEQUENCE, PLAIN, "ours", "patchwise"} <= names
    assert {row["note"] for row in rows} == {gpu.SKIPPED} and {row["ms"] for row in rows} == {"nan"}
    assert f"{len(rows)} of {len(rows)} rows were skipped" in capsys.readouterr().out


class TestChecks:
    def test_what_is_right_is_timed(self):
        rows = rows_of(a_case())
        assert rows["ours"].note == "" and rows["ours"].error < 1e-6 and rows["ours"].ms > 0
        assert rows[SEQUENCE].ratio == 1
        assert rows["ours"].tflops == pytest.approx(8 / (rows["ours"].ms * 1e-3) / 1e12)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda i: i["x"] * 2.01,
            lambda i: i["x"] * float("nan"),
            lambda i: torch.cat([i["x"][:7] * 2, torch.empty(1)]),
        ],
        ids=["inexact", "nan", "unwritten"],
    )
    def test_what_is_wrong_is_called_wrong(self, wrong):
        rows = rows_of(a_case(versions={SEQUENCE: wrong}))
        assert rows[SEQUENCE].note.startswith("WRONG")
        assert gpu.verdict(list(rows.values())) == 1

    def test_a_version_that_dies_leaves_the_others(self):
        def dies(i):
            raise RuntimeError("out of resources\nand more")

        versions = {SEQUENCE: dies, "ours": lambda i: i["x"] * 2}
        rows = rows_of(a_case(versions=versions))
        assert rows[SEQUENCE].note == "failed: RuntimeError: out of resources"
        assert rows["ours"].note == "" and math.isnan(rows["ours"].ratio)
        assert gpu.verdict(list(rows.values())) == 1

    def test_another_shape_is_a_failure(self):
        rows = rows_of(a_case(versions={SEQUENCE: lambda i: (i["x"] * 2, i["x"])}))
        assert rows[SEQUENCE].note.startswith("failed: ValueError")

    def test_inputs_are_not_the_same_twice(self):
        drawn = []

        def draw(generator):
            drawn.append(scene.normal(generator, 4))
            return {"x": drawn[-1]}

        list(gpu.run_case(a_case(draw=draw), [SEQUENCE], HOST, TOP, 0))
        list(gpu.run_case(a_case(draw=draw), [SEQUENCE], HOST, TOP, 1))
        assert len({tuple(x.tolist()) for x in drawn}) == len(drawn) >= 4


class TestTiming:
    def test_poison_reaches_every_allocation_and_ends(self):
        with poisoned():
            x = torch.empty(3)
            found = [x, torch.empty_like(x), x.new_empty(2), torch.empty_strided((2, 2), (2, 1))]
            assert all(t.isnan().all() for t in found)
            assert (torch.empty(2, dtype=torch.int16) == -77).all()
        assert torch.empty.__name__ == "empty" and torch.Tensor.new_empty.__name__ == "new_empty"

    def test_error_is_relative_and_the_largest_of_a_tuple(self):
        one, two = torch.ones(4), torch.full((4,), 2.0)
        assert error(one * 1.5, one.double()) == pytest.approx(0.5)
        assert error((one, two * 1.25), (one.double(), two.double())) == pytest.approx(0.25)
        assert math.isnan(error((one * math.nan, two), (one.double(), two.double())))
        assert error(torch.zeros(2), torch.zeros(2).double()) == 0

    def test_sets_hold_more_than_the_cache_and_no_more_than_memory(self):
        assert sets_for(Work(0, 1 << 20, 0), 50 << 20) == 24
        assert sets_for(Work(0, 30 << 20, 20 << 20), 50 << 20) == 4
        assert sets_for(Work(0, 1 << 32, 1 << 32), 50 << 20) == 2

    def test_the_hosts_clock_takes_turns(self):
        seen = []
        timing = measure(seen.append, ["a", "b"], HOST)
        assert timing.clock == "wall clock" and timing.repeats == len(seen) and seen[:2] == ["a", "b"]

    @pytest.mark.parametrize("capturable", [True, False])
    def test_events_surround_a_graph_or_the_launches(self, monkeypatch, capturable):
        """The device's clock, stood in for by a counter of runs: 2 ms each."""
        runs = []

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = len(runs)

            def synchronize(self):
                pass

            def elapsed_time(self, stop):
                return 2.0 * (stop.at - self.at)

        class Graph:
            def replay(self):
                runs.extend(["a", "b", "c"])

        @contextmanager
        def graph(_):
            if not capturable:
                raise RuntimeError("operation not permitted when stream is capturing")
            yield

        for name, stand_in in (("Event", Event), ("CUDAGraph", Graph), ("graph", graph)):
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
        timing = measure(runs.append, ["a", "b", "c"], torch.device("cuda"))
        assert timing.clock == ("graph" if capturable else "events")
        assert timing.seconds == pytest.approx(2e-3) and timing.iqr == 0 and timing.repeats >= 3
        assert runs[:6] == ["a", "b", "c"] * 2

    def test_a_deadline_ends(self):
        Deadline(60).check()
        with pytest.raises(OutOfTimeError):
            Deadline(0).check()


def test_the_default_net_on_a_gpu_has_all_cases():
    """Built, not run: every case of the scene that no test machine has."""
    # Without bfloat16, which no kernel does right on a CPU.
    on_gpu = replace(scene.on_gpu(), device=HOST, compiled=False, dtypes=(torch.float16, torch.float32))
    found = list(cases.all_cases(on_gpu))
    shapes = [(c.operator, c.shape, c.dtype) for c in found]
    assert len(set(shapes)) == len(shapes)
    count = {name: sum(c.operator == name for c in found) for name in {c.operator for c in found}}
    assert count["window_conv2d"] == len(MaskedNet(32).layers()) and count["partial_conv2d"] == 12
    assert count["surround_conv2d"] == 3 and count["surround_conv2d backward"] == 1
    assert all(SEQUENCE in c.versions or "definition, whole maps" in c.versions for c in found)
    assert all(c.ours for c in found if c.operator.endswith(("conv2d", "backward")))
