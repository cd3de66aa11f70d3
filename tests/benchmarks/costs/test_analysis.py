"""The analysis: the model of the kernels by what must hold of it, and the text's tables."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.costs import analysis, counts, predict
from benchmarks.costs.counts import Conv, Work
from benchmarks.costs.predict import H100, H200

TEXT = Path(analysis.__file__).with_name("ANALYSIS.md").read_text(encoding="utf-8")
MACHINE = {
    "machine": {"processor": "Model 1", "threads": 2},
    "fp32": 1e11,
    "bf16": 2e11,
    "copy": 1e10,
    "others": 0.02,
    "times": [
        {"operator": "a", "shape": "b", "dtype": "float32", "operations": 10**9, "bytes": 1, "seconds": 0.02},
        {"operator": "c", "shape": "d", "dtype": "bfloat16", "operations": 1, "bytes": 10**8, "seconds": 0.1},
    ],
}
LAYER = Conv("", 64, 64, 3, 1, 1, (32, 32))


class TestModel:
    def test_no_prediction_is_below_its_floor(self):
        for w in predict.layer_windows(32, 8):
            for card in (H200, H100):
                work = counts.window_forward(w, 16, predict.HALF)
                floor = work.floor(card.matrix_seen, card.memory_seen)
                assert predict.predict_window(w, 16, card).seconds > floor
        for conv in (LAYER, replace(LAYER, residual=True), replace(LAYER, stride=2)):
            floor = counts.forward(conv, 64, 2).floor(H200.matrix_seen, H200.memory_seen)
            found = predict.predict_routes(conv, 64, H200)
            assert min(found.one_kernel, found.library, found.compiled, found.eager) > floor

    def test_weights_cross_for_every_tap_and_pixels_for_every_row(self):
        found = predict.predict(LAYER, 256, 32, Work(0, 0, 0), 2, H200)
        # Two tiles of 128 pixels in rows of 32, which with a 3x3 kernel read 34; 64 channels, two bytes.
        pixels, weights = 128 * 3 * 64 * 34 / 32, 9 * 64 * 64
        assert found.cache == pytest.approx(2 * (pixels + weights) * 2 / H200.cache)
        assert found.matrix == pytest.approx(2 * 256 * 64 * 576 / H200.matrix_seen)
        assert found.memory == 0

    def test_a_kernel_of_one_place_reuses_nothing(self):
        assert predict.row_reuse(replace(LAYER, kernel=1), 32) == 1
        assert predict.row_reuse(LAYER, 1) == 1
        assert predict.row_reuse(LAYER, 1000) == pytest.approx(1 / 3, rel=0.01)

    def test_half_a_tile_costs_a_whole_one(self):
        one, half = (predict.predict(LAYER, rows, 32, Work(0, 0, 0), 2, H200) for rows in (128, 64))
        assert one == half

    def test_the_tightest_limit_is_named_and_rules(self):
        found = predict.Prediction(1e-6, 5e-6, 2e-6, 3e-6)
        assert found.bound == "memory"
        assert found.seconds == pytest.approx(predict.LAUNCH + 5e-6 / predict.REACHED)

    def test_faster_memory_never_slows(self):
        for scale in analysis.SCALES:
            slow, fast = (sum(predict.predict_image(*scale, card).values()) for card in (H100, H200))
            assert fast <= slow * 1.01  # the H100's matrix rate was seen a percent higher

    def test_parts_of_an_image_are_those_of_its_prediction(self):
        assert list(predict.parts(32, 8)) == list(predict.predict_image(32, 8, H200))


class TestTables:
    @pytest.fixture(scope="class")
    @classmethod
    def filled(cls):
        return analysis.fill(TEXT, MACHINE)

    def test_every_mark_gets_a_table(self, filled):
        for name in ("rates", "totals", "layers", "routes", "kernels", "images", "cpu"):
            inside = filled.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0].splitlines()
            rows = [line for line in inside if line.startswith("|")]
            assert len(rows) >= 4 and {row.count("|") for row in rows} == {rows[0].count("|")}, name

    def test_the_text_stands_and_a_second_time_changes_nothing(self, filled):
        assert analysis.fill(filled, MACHINE) == filled
        assert TEXT.splitlines()[0] == filled.splitlines()[0]

    def test_the_text_holds_the_tables_of_today(self, filled):
        """Those that follow from geometry alone."""
        for name in ("totals", "layers", "routes", "images"):
            mark = f"<!-- {name} -->"
            assert TEXT.split(mark)[1].split("<!--")[0] == filled.split(mark)[1].split("<!--")[0], (
                "run python -m benchmarks.costs.analysis"
            )

    def test_measured_times_stand_against_this_cpus_floor(self):
        lines = analysis.cpu(MACHINE).splitlines()
        assert lines[2] == "| a | b | float32 | 1.00 | 10.00 | 20.00 | 50% | arithmetic |"
        assert lines[3] == "| c | d | bfloat16 | 0.00 | 10.00 | 100.00 | 10% | bytes |"

    def test_a_busy_machine_and_a_ceiling_that_is_none_are_said(self):
        assert analysis.cpu(MACHINE).endswith("Others had 2% of the processors' time during the run.")
        assert analysis.cpu({**MACHINE, "others": 0.3}).endswith("not to be relied on.**")
        assert "**2 operators ran faster" in analysis.cpu(
            {**MACHINE, "fp32": 4e10, "bf16": 4e10, "copy": 9e8}
        )

    def test_a_missing_mark_is_an_error(self):
        with pytest.raises(ValueError, match="<!-- rates -->"):
            analysis.fill("nothing", MACHINE)

    def test_a_gpus_rows_are_found_and_others_are_not(self, tmp_path):
        head = ["operator", "shape", "dtype", "version", "where", "ms"]
        rows = [
            ("op", "s", "bfloat16", "ours, one kernel", "gpu", "0.5"),
            ("op", "s", "bfloat16", "ours, library and epilogue", "gpu", "0.25"),
            ("op", "s", "bfloat16", "definition, eager", "gpu", "0.1"),
            ("op", "t", "bfloat16", "ours, one kernel", "interpreter", "0.1"),
            ("op", "u", "bfloat16", "ours, one kernel", "gpu", "nan"),
        ]
        with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *rows])
        assert analysis.measured(tmp_path) == {("op", "s", "bfloat16"): "250"}
