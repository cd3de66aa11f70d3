"""The test beds, and the tables of the results."""

import json
import shutil

import numpy as np
import pytest
import torch

from benchmarks import tables
from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import alarms, beds, measure, ours, results
from benchmarks.accuracy.beds import BEDS, Bed
from glance_fast.config import PRESETS, Config
from glance_fast.data.images import read_image, write_png
from glance_fast.data.masks import read_mask
from glance_fast.evaluation.evaluate import evaluate
from glance_fast.experiments.baselines import patchcore
from glance_fast.model import Glance
from glance_fast.nets.teacher import Teacher


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Teacher().eval().requires_grad_(False)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 48, 3), dtype=np.uint8)


def a_row(data="cookie", settings="PatchCore", seed=0, pro=0.5, score=None, **other) -> dict:
    score = score or (results.ANCHOR if settings in ("PatchCore", "PaDiM") else results.BLEND)
    row = {"kind": BEDS[data].kind, "data": data, "settings": settings, "seed": seed, "score": score}
    row |= {"seconds": 10, "threads": 1, "pro": pro, "pixel_auroc": 0.25, "image_auroc": 1.0, "ms": None}
    return row | other


def cells(text: str) -> dict[str, list[str]]:
    """A table's lines by their first cells."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {first: rest for first, *rest in lines}


def test_a_baselines_threshold_comes_from_images_it_has_not_seen():
    class Brightest:
        """Scores the brightness of an image, and nothing where it was fitted to that."""

        def fit(self, normal):
            self.seen = set(normal[:, 0, 0, 0].tolist())
            return self

        def maps(self, images):
            values = images[:, 0, 0, 0].astype(float)
            return np.array([[[0.0 if v in self.seen else v]] for v in values])

    def lit(*values):
        return np.array(values, np.uint8)[:, None, None, None].repeat(3, 3)

    normal = lit(*range(1, 121))
    test, labels = lit(121, 150, 119, 200, 122), np.array([True, True, True, False, False])
    images = beds.Images(normal, test, labels[:, None, None], labels)
    # Of 120 the second highest, 119, is the threshold of 1 %: the image of 119 itself was fitted to.
    assert alarms.shares(Brightest, images) == {"found": 2 / 3, "false_alarms": 1.0}


class TestMeasure:
    def test_figures_of_maps_that_are_the_truth(self):
        masks = np.zeros((3, 16, 16), bool)
        masks[1:, 4:9, 5:12] = True
        found = measure.figures(masks.astype(np.float32), masks.max((1, 2)), masks, masks.any((1, 2)))
        assert found == pytest.approx({"pro": 1, "pixel_auroc": 1, "image_auroc": 1})

    def test_the_median_counts_and_threads_are_given_back(self, monkeypatch):
        clock = iter(range(10**6))
        monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock) ** 2)
        before, seen = torch.get_num_threads(), []
        # The run number i, from 0, takes 4 i + 1 seconds on this clock.
        middle = measure.SETTLE + (measure.REPEATS - 1) / 2
        found = measure.time_one(
            lambda x: seen.append((x.shape, torch.get_num_threads())), np.zeros((2, 3, 3))
        )
        assert found == pytest.approx(1e3 * (4 * middle + 1))
        assert set(seen) == {((1, 2, 3, 3), 2)} and torch.get_num_threads() == before

    def test_weights_that_are_not_named_are_asked_for(self, monkeypatch):
        monkeypatch.delenv("GLANCE_FAST_WEIGHTS", raising=False)
        with pytest.raises(SystemExit, match="GLANCE_FAST_WEIGHTS is not set"):
            measure.resnet()


class TestBeds:
    def test_there_are_eight(self):
        names = "transistor any-angle fabric cookie hazelnut grass gravel brick"
        assert list(BEDS) == names.split()
        assert {bed.size for bed in BEDS.values()} == {192, 256}
        # The default net takes them as they are.
        assert all(Config(image_size=bed.size).image_size == (bed.size,) * 2 for bed in BEDS.values())

    def test_a_given_folder_is_found(self, monkeypatch, tmp_path):
        monkeypatch.delenv("GLANCE_FAST_DATA", raising=False)
        with pytest.raises(SystemExit, match="GLANCE_FAST_DATA is not set"):
            beds.prepare(BEDS["cookie"], tmp_path)
        monkeypatch.setenv("GLANCE_FAST_DATA", str(tmp_path))
        with pytest.raises(SystemExit, match="cookie: no such folder"):
            beds.prepare(BEDS["cookie"], tmp_path)
        (tmp_path / "cookie").mkdir()
        assert beds.prepare(BEDS["cookie"], tmp_path) == tmp_path / "cookie"

    def test_pixels_masks_and_labels_are_read(self, parts):
        found = beds.load(parts, 32)
        assert found.normal.shape == (12, 32, 32, 3) and found.test.shape == (6, 32, 32, 3)
        assert found.labels.tolist() == [False] * 3 + [True] * 3
        assert found.masks.any((1, 2)).tolist() == found.labels.tolist()
        # Where it is punched, it is dark.
        assert found.test[found.masks].mean() < 40 < found.test[~found.masks].mean()

    def test_the_figures_are_those_of_the_evaluator(self, parts, small, tmp_path):
        data = tmp_path / "plates"
        shutil.copytree(parts, data)
        # What vanishes at the size of the images must count here as it does there.
        for i, path in enumerate(sorted((data / "ground_truth" / "punched").iterdir())):
            mask = np.repeat(np.repeat(read_mask(path), 3, 0), 3, 1)
            mask[4 + 9 * i, 2:6] = True
            write_png(path, mask.astype(np.uint8) * 255)
            image = data / "test" / "punched" / path.name.replace("_mask", "")
            write_png(image, np.repeat(np.repeat(read_image(image), 3, 0), 3, 1))
        model = Glance(Config(**small))
        shipped = evaluate(model, data, tmp_path / "out")
        assert "vanish" in " ".join(shipped["notes"])
        assert (
            ours.ablate(model, data)[results.BLEND].items()
            >= {name: shipped[name] for name in results.METRICS}.items()
        )

    def test_masks_turn_with_their_images(self, parts, monkeypatch, tmp_path):
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / "transistor").symlink_to(parts)
        monkeypatch.setenv("GLANCE_FAST_DATA", str(folder))
        out = beds.prepare(BEDS["any-angle"], tmp_path / "work")
        straight, turned = beds.load(parts, 64), beds.load(out, 64)
        assert turned.normal.shape == straight.normal.shape
        assert not np.array_equal(turned.test, straight.test)
        inside = turned.test[turned.masks].mean()
        assert inside < 60 < turned.test[~turned.masks].mean()
        assert np.array_equal(turned.masks.any((1, 2)), straight.labels)
        # A second time it is found.
        monkeypatch.delenv("GLANCE_FAST_DATA")
        assert beds.prepare(BEDS["any-angle"], tmp_path / "work") == out

    def test_one_texture_is_built_at_a_time(self, monkeypatch, tmp_path):
        def small(out, **settings):
            assert settings == {
                "size": 192, "train": 80, "good": 20, "per_defect": 12, "textures": ["gravel"],
            }  # fmt: skip
            (out / "gravel" / "train" / "good").mkdir(parents=True)

        monkeypatch.setattr(beds, "build_demo", small)
        out = beds.prepare(BEDS["gravel"], tmp_path)
        assert [p.name for p in out.iterdir()] == ["train"] and out.parent == tmp_path / "textures"
        assert [p.name for p in out.parent.iterdir()] == ["gravel"]

    def test_half_a_bed_is_built_anew(self, monkeypatch, tmp_path):
        def broken(out, **settings):
            (out / "left").mkdir()
            raise OSError

        monkeypatch.setattr(beds, "build_demo", broken)
        with pytest.raises(OSError):
            beds.prepare(BEDS["gravel"], tmp_path)
        monkeypatch.setattr(
            beds, "build_demo", lambda out, **settings: (out / "gravel" / "test").mkdir(parents=True)
        )
        assert [p.name for p in beds.prepare(BEDS["gravel"], tmp_path).iterdir()] == ["test"]


class TestResults:
    def test_later_rows_replace_those_of_the_same_run(self, tmp_path):
        path = tmp_path / "new" / "accuracy.json"
        figures = {"pro": 0.12345678, "pixel_auroc": 0.5, "image_auroc": 1.0}
        cost = {"seconds": 12.6, "threads": 1}
        results.keep(path, BEDS["cookie"], "default", 0, cost, {"a": figures, "b": figures | {"ms": 3.14159}})
        results.keep(path, BEDS["transistor"], "default", 0, cost, {"a": figures})
        results.keep(path, BEDS["cookie"], "default", 1, cost, {"a": figures})
        results.keep(path, BEDS["cookie"], "default", 0, cost, {"b": figures | {"pro": 0.9}})
        found = results.read(path)
        assert [(row["data"], row["seed"], row["score"], row["pro"]) for row in found] == [
            ("transistor", 0, "a", 0.1235), ("cookie", 0, "b", 0.9), ("cookie", 1, "a", 0.1235)
        ]  # fmt: skip
        assert list(found[0]) == list(a_row()) and found[0]["seconds"] == 13 and found[0]["ms"] is None
        assert [p.name for p in path.parent.iterdir()] == ["accuracy.json"]

    def test_no_file_has_no_rows(self, tmp_path):
        assert results.read(tmp_path / "none.json") == []

    def test_a_table_holds_means_over_seeds_then_over_beds(self):
        rows = [
            a_row(pro=0.2),
            a_row(seed=1, pro=0.4, seconds=30, ms=20.0),
            a_row("transistor", pro=0.9, ms=40.0),
        ]
        found = cells(results.table(rows))
        assert found["bed"] == ["PatchCore"]
        costs = ["seeds", "largest spread of seeds", "training, s", "ms an image"]
        assert list(found)[2:] == ["transistor", "cookie", "mean", *costs]
        assert found["cookie"] == ["0.300 / 0.250 / 1.000"] and found["mean"] == ["0.600 / 0.250 / 1.000"]
        assert found["seeds"] == ["1; cookie 2"]
        assert found["largest spread of seeds"] == ["0.200 / 0.000 / 0.000"]
        assert found["training, s"] == ["15"] and found["ms an image"] == ["30"]

    def test_columns_have_their_order_and_other_settings_come_last(self):
        rows = [a_row(settings=s) for s in ("wide", "paper", "PaDiM", "PatchCore", "pyramid", "default")] + [
            a_row(settings="default", score=results.LOCAL, pro=0.75)
        ]
        found = cells(results.table(rows))
        assert found["bed"] == [*results.COLUMNS, "ours, wide"]
        assert [cell[:5] for cell in found["cookie"]] == ["0.500", "0.750", *["0.500"] * 5]
        assert "mean" not in found  # of one bed

    def test_a_method_without_all_beds_has_no_mean(self):
        rows = [a_row(), a_row("brick", seed=1, ms=5.0), a_row(settings="default")]
        found = cells(results.table(rows))
        assert found["brick"] == ["-", "0.500 / 0.250 / 1.000"]
        assert found["mean"] == ["-", "0.500 / 0.250 / 1.000"]
        assert found["training, s"] == ["-", "10"]
        assert "ms an image" not in found  # not of a smaller image
        assert found["largest spread of seeds"] == ["-", "-"]

    def test_milliseconds_have_a_line_where_a_method_has_them(self):
        found = cells(results.table([a_row(ms=5.0), a_row(settings="default")]))
        assert found["ms an image"] == ["-", "5"]

    def test_image_auroc_of_fabric_counts_nowhere(self):
        found = cells(results.table([a_row("fabric", image_auroc=1.0), a_row(image_auroc=0.5)]))
        assert found["fabric"] == ["0.500 / 0.250 / (1.000)"]
        assert found["mean"] == ["0.500 / 0.250 / 0.500"]

    def test_the_ablation_is_of_ours(self):
        rows = [a_row(), *(a_row(settings="default", score=s) for s in (results.BLEND, "IAD alone"))]
        found = cells(results.ablation(rows))
        assert found["bed"] == ["blend", "IAD alone"] and list(found)[2:] == ["cookie"]

    def test_what_the_threshold_does_is_the_mean_over_seeds(self):
        shares = [{"found": 0.75, "false_alarms": 0.0}, {"found": 0.5, "false_alarms": 0.125}]
        rows = [
            a_row(),
            *(a_row(settings="default", score="blend", seed=i) | shares[i] for i in range(2)),
            a_row("brick", settings="default", score="IAD alone"),
        ]
        found = cells(results.alarms(rows))
        assert found["cookie"] == ["62.5% / 6.2%"] and "brick" not in found
        rows.append(a_row("brick", settings="PaDiM", score=results.ANCHOR) | shares[0])
        found = cells(results.alarms(rows))
        assert found["found / false alarms"] == ["ours", "PaDiM"]
        assert found["cookie"] == ["62.5% / 6.2%", "-"] and found["brick"] == ["-", "75.0% / 0.0%"]
        # A mean is of all beds, each of which counts once.
        assert found["mean"] == ["-", "-"]
        rows.append(a_row("brick", settings="default", score="blend") | {"found": 1.0, "false_alarms": 0.5})
        assert cells(results.alarms(rows))["mean"] == ["81.2% / 28.1%", "-"]

    def test_what_a_baselines_threshold_does_stands_in_its_row(self, tmp_path):
        path, shares = tmp_path / "accuracy.json", {"found": 0.75, "false_alarms": 0.01}
        rows = [a_row(settings="PaDiM", score=results.ANCHOR), a_row("brick")]
        path.write_text(json.dumps(rows))
        results.keep_shares(path, "cookie", "PaDiM", 0, shares)
        first, *others = results.select(results.read(path), data="cookie")
        assert first == rows[0] | shares and not others and rows[1] in results.read(path)
        with pytest.raises(SystemExit, match="has no row of PatchCore on cookie with seed 0"):
            results.keep_shares(path, "cookie", "PatchCore", 0, shares)

    def test_the_readme_has_all_tables(self):
        rows = [a_row(), a_row(settings="default")]
        assert tables.accuracy(rows[:1]) == results.table(rows[:1])
        found = tuple(tables.accuracy(rows).split("\n\n"))
        assert found == (results.table(rows), results.alarms(rows), results.ablation(rows))

    def test_the_short_table_has_a_line_a_method_and_means_of_all_beds(self):
        shares = {"found": 0.5, "false_alarms": 0.0}
        rows = [
            a_row(settings="default", pro=0.5, **shares),
            a_row("fabric", "default", pro=0.7, image_auroc=0.2, **shares | {"found": 1.0}),
            a_row(),
            a_row("fabric", "paper"),
        ]
        found = results.summary(rows).splitlines()
        assert found[0].startswith("| mean of 2 test beds | PRO |")
        # Of fabric an image AUROC says nothing; PatchCore lacks it.
        assert found[2:] == [
            "| ours | 0.600 | 0.250 | 1.000 | 75.0% | 0.0% |",
            "| PatchCore | - | - | 1.000 | - | - |",
        ]

    def test_the_kept_file_is_of_these_beds(self):
        rows = results.read()
        shares = {"found", "false_alarms"}
        assert all({*row} - shares == {*a_row()} and row["data"] in BEDS for row in rows)
        assert all(
            shares <= {*row} for row in rows if row["settings"] == "default" and row["score"] == "blend"
        )
        assert len({(r["data"], r["settings"], r["seed"], r["score"]) for r in rows}) == len(rows)

    def test_the_demo_has_a_table(self):
        found = tables.demo({"brick": {"pro": 0.5, "pixel_auroc": 0.25, "image_auroc": 1.0}})
        assert cells(found)["brick"] == ["0.500", "0.250", "1.000"]


class TestCommand:
    @pytest.fixture
    def call(self, tmp_path, monkeypatch, parts, teacher, capsys):
        """Run the command on a small bed; what was run is noted."""
        noted = []
        monkeypatch.setitem(BEDS, "cookie", Bed("cookie", "any-angle", 64))
        monkeypatch.setattr(command, "prepare", lambda bed, work: parts)
        monkeypatch.setattr(command, "resnet", lambda: teacher)
        monkeypatch.setattr(measure, "REPEATS", 2)
        monkeypatch.setattr(patchcore, "SHARE", 0.05)

        def instead(bed, folder, run, settings, seed, timed):
            noted.append((run.name, settings, timed))
            score = {"pro": 0.5, "pixel_auroc": 0.5, "image_auroc": 0.5, "ms": 7.0 if timed else None}
            return {"seconds": 1, "threads": 1}, {results.BLEND: score}

        monkeypatch.setattr(ours, "measure", instead)

        def run(*arguments):
            noted.clear()
            command.main([*arguments, "--results", str(tmp_path / "r.json"), "--work", str(tmp_path)])
            return list(noted), results.read(tmp_path / "r.json"), capsys.readouterr().out

        return run

    def test_what_is_missing_is_run_and_the_rest_is_not(self, call):
        noted, rows, text = call("cookie")
        assert noted == [
            ("cookie-default-0", {}, False),
            ("cookie-pyramid-0", {"net": "pyramid"}, False),
            ("cookie-paper-0", PRESETS["paper"], False),
        ]
        assert {row["settings"] for row in rows} == {"default", "pyramid", "paper", "PatchCore", "PaDiM"}
        assert all(0 <= row[m] <= 1 and row["ms"] is None for row in rows for m in results.METRICS)
        assert text.endswith(results.table(rows) + "\n")
        noted, again, _ = call("cookie")
        assert noted == [] and again == rows
        assert call("cookie", "--seeds", "2", "--only", "ours")[0] == [("cookie-default-1", {}, False)]
        assert len(call("cookie", "--again", "--only", "ours")[0]) == 1
        assert call()[1] == call()[1] != []

    def test_time_is_taken_of_the_first_seed(self, call):
        call("cookie", "--only", "padim", "--only", "ours")
        noted, rows, _ = call("cookie", "--only", "padim", "--only", "ours", "--seeds", "2", "--time")
        assert [timed for *_, timed in noted] == [True, False]
        assert all((row["ms"] is not None) == (row["seed"] == 0) for row in rows)

    def test_other_settings_have_a_name(self, call):
        noted, rows, _ = call("cookie", "--set", "width=8", "--set", "patch=[32]", "--label", "thin")
        assert noted == [("cookie-thin-0", {"width": 8, "patch": [32]}, False)]
        assert [row["settings"] for row in rows] == ["thin"]

    @pytest.mark.parametrize(
        "wrong",
        [
            ["nothing"],
            ["cookie", "--set", "width=8"],
            ["cookie", "--label", "thin"],
            ["cookie", "--set", "width=8", "--label", "PaDiM"],
            ["cookie", "--set", "width=8", "--label", "thin", "--only", "padim"],
        ],
    )
    def test_what_cannot_be_meant_is_refused(self, call, wrong):
        with pytest.raises(SystemExit):
            call(*wrong)


@pytest.mark.slow
class TestOurs:
    def test_a_model_is_trained_once_and_taken_apart(self, parts, small, tmp_path, monkeypatch):
        bed, run = Bed("small", "aligned", 64), tmp_path / "run"
        monkeypatch.setattr(measure, "REPEATS", 1)
        cost, scores = ours.measure(bed, parts, run, small, seed=1)
        assert {results.BLEND, "IAD alone", "DAD alone", results.LOCAL} <= set(scores)
        assert all(0 <= found[m] <= 1 for found in scores.values() for m in results.METRICS)
        assert cost == json.loads((run / "cost.json").read_text()) and cost["threads"] > 0
        monkeypatch.setattr(ours, "fit", None)
        again = ours.measure(bed, parts, run, small, seed=1, timed=True)
        assert again[1][results.BLEND].pop("ms") > 0
        assert again == (cost, scores)
