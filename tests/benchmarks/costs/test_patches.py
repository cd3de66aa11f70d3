"""From times to slopes, a summary and a picture; what is shown on the right stays unless a run is given."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from benchmarks.costs import patches as cost
from benchmarks.costs.patches import Row
from glance_fast.data.images import write_png

MACHINE = {"device": "cpu", "processor": "Model 1", "threads": 2, "python": "3.11", "torch": "2.13.0"}
PLACES = ((256, 32, 64), (248, 24, 100), (256, 16, 225), (256, 8, 841), (384, 8, 2025), (512, 8, 3721))


def line(version: str, power: float, places=PLACES, precision: str = "fp32") -> list[Row]:
    """Times that grow as a power of the patches."""
    return [Row(version, precision, *place, 5, 1e-3 * place[2] ** power) for place in places]


ROWS = [
    *line("dense", 0.7), *line("dense", 0.6, precision="bf16"), *line("definition", 1.0, PLACES[:4])
]  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A folder with made-up times."""
    found = {
        "machine": MACHINE,
        "rows": [asdict(row) for row in ROWS],
        "slopes": cost.slopes(ROWS),
        "images": [{"images": n, "seconds_an_image": 0.25} for n in cost.COUNTS],
    }
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "cost.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def plot(results, *arguments: str) -> np.ndarray:
    path = results.parent / "docs" / "cost.png"
    cost.main(["--plot", "--results", str(results), "--picture", str(path), *arguments])
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


class TestSlopes:
    def test_they_are_the_powers(self):
        found = cost.slopes(ROWS)
        assert list(found) == ["definition, fp32", "dense, fp32", "dense, bf16"]
        assert found["dense, fp32"] == pytest.approx({"one image": 0.7, "larger images": 0.7, "all": 0.7})
        assert found["definition, fp32"]["one image"] == pytest.approx(1.0)
        assert found["definition, fp32"]["larger images"] is None

    def test_larger_images_do_not_count_for_one_image(self):
        rows = line("dense", 0.5, PLACES[:4]) + line("dense", 0.9, PLACES[4:])
        found = cost.slopes(rows)["dense, fp32"]
        assert found["one image"] == pytest.approx(0.5) and found["larger images"] > 0.9


class TestPicture:
    def test_it_is_drawn_from_what_was_kept(self, results, capsys):
        picture = plot(results)
        for _, colour in (cost.LOOKS[row.version, row.precision] for row in ROWS):
            exact = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
            assert (picture == exact).all(-1).sum() > 100
        text = capsys.readouterr().out
        assert "| definition, fp32 | 256 | 8 | 841 | 841 ms |" in text
        assert "slope of dense, bf16: one image 0.60, larger images 0.60, all 0.60" in text
        assert "1: 250 ms, 2: 250 ms, 4: 250 ms, 8: 250 ms" in text

    def test_what_was_scored_before_stays_beside_it(self, results):
        alone = plot(results)
        pair = np.zeros((cost.SHOWN, 2 * cost.SHOWN, 3), np.uint8)
        pair[:, : cost.SHOWN], pair[:, cost.SHOWN :] = (250, 0, 250), (0, 250, 0)
        write_png(results / "scored.png", pair)
        both = plot(results)
        assert both.shape[1] == 1280 > alone.shape[1]
        # A pixel of the photograph is a pixel of the picture.
        for colour in ((250, 0, 250), (0, 250, 0)):
            assert abs((both == colour).all(-1).sum() / cost.SHOWN**2 - 1) < 0.02

    def test_names_keep_their_distance_and_order(self):
        found = cost.spread({"c": 0.5, "a": 0.49, "b": 0.495, "d": 0.9})
        assert found == pytest.approx(
            {"a": 0.49, "b": 0.49 + cost.APART, "c": 0.49 + 2 * cost.APART, "d": 0.9}
        )

    @pytest.mark.parametrize("run", ["run_folder", "masked_run"])
    def test_a_run_scores_the_photograph(self, results, parts, run, request):
        path = min((parts / "test/punched").iterdir())
        plot(results, "--run", str(request.getfixturevalue(run)), "--photograph", str(path))
        with Image.open(results / "scored.png") as pair:
            assert pair.size == (2 * cost.SHOWN, cost.SHOWN)

    def test_a_run_needs_a_photograph(self, results):
        with pytest.raises(SystemExit, match="--run and --photograph go together"):
            plot(results, "--run", "run")


class TestMeasuring:
    def test_the_first_of_several_is_not_counted(self, monkeypatch):
        clock, taken = [0.0], iter([9.0, 7.0, 1.0, 3.0])
        monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])

        def run() -> None:
            clock[0] += next(taken)

        # In turn "a" 9, "a" 7, "b" 1, "a" 3: of "a" the 9 is left out, "b" has its only run.
        assert cost.medians({"a": (2, run), "b": (1, run)}) == {"a": 5.0, "b": 1.0}

    def test_every_version_is_timed(self, monkeypatch):
        monkeypatch.setattr(cost, "ROUNDS", 2)
        rows = cost.by_patches([(64, 32), (64, 16)], width=8)
        assert {(row.side, row.stride, row.patches) for row in rows} == {(64, 32, 4), (64, 16, 9)}
        kinds = {(row.version, row.precision) for row in rows}
        assert {("dense", "fp32"), ("grouped", "fp32"), ("definition", "fp32")} <= kinds <= set(cost.LOOKS)
        assert all(row.seconds > 0 for row in rows)
        images = cost.by_images(64, 32, width=8)
        assert [row["images"] for row in images] == list(cost.COUNTS)
