"""glance-fast bench: what it measures holds together, and it says what it cannot do."""

from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest
from PIL import Image
from samples import draw_part

from glance_fast import Config, Glance, UserError, load
from glance_fast.engines.timing import measured, timed
from glance_fast.jobs import bench as measure
from glance_fast.jobs.bench import bench, noise, photographs


@pytest.fixture(scope="module")
def model(masked_run):
    return load(masked_run, "cpu")


@pytest.fixture(scope="module")
def found(model):
    rng = np.random.default_rng(0)
    steps = []
    images = [draw_part(rng), draw_part(rng, defect=True)]
    (scale,) = model.scales
    # Images this small hold one patch a pass unless patches may touch.
    wide, scale.spacing = scale.spacing, scale.grid.patch
    yield bench(model, images, progress=lambda *step: steps.append(step)), steps
    scale.spacing = wide


def test_every_engine_stands_in_the_table(found, model):
    rows = found[0].rows
    engines = [(row.engine, row.precision, row.images) for row in rows]
    precisions = ("fp32", "bf16") if model.chosen_precision("bf16") == "bf16" else ("fp32",)
    assert engines == [
        *((e, p, n) for e in ("dense", "grouped") for p in precisions for n in (1, 8)),
        ("patchwise", "fp32", 1),
    ]
    patches = sum(len(s.grid) for s in model.scales)
    for row in rows:
        assert row.seconds > 0 and row.patches == pytest.approx(patches / row.seconds)
        assert row.memory_mib is None or 100 < row.memory_mib < 1e5
    assert rows[-1].times == 1 and rows[-1].difference == 0 and rows[-1].agreement == 1


def test_the_dense_engine_is_exact_and_the_grouped_one_is_not(found):
    by_name = {(row.engine, row.precision): row for row in found[0].rows}
    dense, grouped = by_name["dense", "fp32"], by_name["grouped", "fp32"]
    assert dense.difference < 1e-4 and dense.agreement > 0.999
    assert grouped.difference > 1e-3


def test_progress_ends(found):
    steps = found[1]
    assert steps[-1][0] == steps[-1][1] and [s[0] for s in steps] == list(range(1, len(steps) + 1))


def test_stages_add_up(found, model, monkeypatch):
    names = {"Local-Net", "base", "windows", "readout and head", "scores", "maps"}
    for stages in found[0].stages.values():
        assert names <= set(stages) and all(seconds > 0 for seconds in stages.values())
    wholes, score = [], Glance.score

    def timed(*arguments):
        started = time.perf_counter()
        result = score(*arguments)
        wholes.append(time.perf_counter() - started)
        return result

    monkeypatch.setattr(Glance, "score", timed)
    image = noise(model)[0]
    stages = measure._stages(model, image, "dense", "fp32")
    # Each is positive, the rest too: none is counted twice. Together they are a whole run, and no part of it.
    assert all(seconds > 0 for seconds in stages.values()) and "rest" in stages
    parts = sum(seconds for name, seconds in stages.items() if name != "rest")
    assert len(wholes) == measure.ROUNDS["dense"]
    assert parts < sum(stages.values()) and min(wholes) < sum(stages.values())


def test_without_the_procedure_the_dense_engine_is_compared_with(model):
    result = bench(model, noise(model), patchwise=False)
    assert all(row.engine != "patchwise" for row in result.rows)
    assert result.rows[0].times == 1 and result.rows[0].difference == 0
    assert result.about["compared_with"] == "dense"


def test_scores_that_are_all_one_agree_with_nothing(model):
    settings = {"image_size": 64, "patch": 64, "stride": 64, "width": 8}
    alone = Glance(Config(**settings, net="pyramid", pretrained=False))
    result = bench(alone, noise(alone), patchwise=False)
    assert result.rows[0].agreement is None and json.dumps(result.as_dict(), allow_nan=False)


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_scores_that_are_all_zero_or_not_finite_are_told_without_a_number(found):
    zero, scores = np.zeros((1, 2, 2)), np.ones((1, 2, 2))
    assert measure._compare(scores, 2 * scores)[0] == 0.5
    for pair in ((zero, zero), (scores, zero), (scores * np.nan, scores)):
        row = dataclasses.replace(found[0].rows[0], difference=measure._compare(*pair)[0])
        told = dataclasses.replace(found[0], rows=[row]).as_dict()
        assert told["engines"][0]["difference"] is None and json.dumps(told, allow_nan=False)


def test_where_one_image_is_all_that_fits_each_case_is_measured_once(run_folder, monkeypatch):
    surround = load(run_folder, "cpu")
    monkeypatch.setattr(Glance, "at_once", lambda *_: 1)
    monkeypatch.setattr(measure, "ROUNDS", dict.fromkeys(measure.ROUNDS, 1))
    rows = bench(surround, noise(surround)).rows
    assert len({(row.engine, row.precision) for row in rows}) == len(rows)


@pytest.mark.parametrize("patchwise", [False, True])
def test_a_net_of_one_engine_is_compared_with_itself(run_folder, patchwise):
    surround = load(run_folder, "cpu")
    steps = []
    result = bench(surround, noise(surround), patchwise=patchwise, progress=lambda *step: steps.append(step))
    precisions = ("fp32", "bf16") if surround.chosen_precision("bf16") == "bf16" else ("fp32",)
    together = surround.at_once()
    assert [(r.engine, r.precision, r.images) for r in result.rows] == [
        ("auto", p, n) for p in precisions for n in (1, together)
    ]
    first = result.rows[0]
    assert (first.times, first.difference) == (1, 0) and first.agreement == pytest.approx(1)
    for row in result.rows:
        assert row.times == pytest.approx(first.seconds / row.seconds)
        assert row.agreement > (0.9999 if row.precision == "fp32" else 0.9)
    assert result.about["net"] == "surround" and result.about["compared_with"] == "auto"
    assert set(result.stages) == set(precisions)
    for stages in result.stages.values():
        assert {"Local-Net", "Global-Net", "scores", "maps", "rest"} <= set(stages)
    assert steps[-1][0] == steps[-1][1] and json.dumps(result.as_dict(), allow_nan=False)


def test_stages_are_timed_while_someone_measures_and_not_otherwise():
    @timed("outer")
    def work():
        time.sleep(0.02)

    with measured() as seconds:
        work()
        work()
        with timed("other"):
            pass
    work()
    assert seconds.keys() == {"outer", "other"} and 0.04 <= seconds["outer"] < 1


def test_photographs_come_from_all_of_the_folder(tmp_path):
    paths = []
    for i in range(9):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (4, 4), (i, 0, 0)).save(paths[-1])
    assert [int(image[0, 0, 0]) for image in photographs(paths, 3)] == [0, 4, 8]
    assert [int(image[0, 0, 0]) for image in photographs(paths[:7], 4)] == [0, 2, 4, 6]
    assert len(photographs(paths, 20)) == 9
    paths[4].write_text("no image")
    assert [int(image[0, 0, 0]) for image in photographs(paths, 3)] == [0, 8, 1]
    with pytest.raises(UserError, match=r"no image can be read; the last one: .*4\.png"):
        photographs(paths[4:5], 3)


def test_memory_that_cannot_be_told(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "REFERENCES", tmp_path / "none")
    measure._forget_peak()
    assert measure._peak_mib() is None
