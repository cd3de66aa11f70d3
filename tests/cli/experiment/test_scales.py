"""``glance-fast experiment scales``: each patch size alone, and both together, from the same nets."""

import csv

import numpy as np
import pytest
from commands import one_line
from samples import SMALL

from glance_fast.evaluation import metrics
from glance_fast.evaluation.inputs import find_category, read_photographs
from glance_fast.experiments.scales import WAYS, every_way
from glance_fast.run import load

SETTINGS = [
    f"--set={key}={value}"
    for key, value in (SMALL | {"image_size": 128}).items()
    if key not in ("patch", "stride")
]


@pytest.mark.slow
def test_every_way_comes_from_the_same_nets(cli, parts, tmp_path):
    out = tmp_path / "out"
    call = ("experiment", "scales", parts, "--out", out, "--strides", "16,32", *SETTINGS)
    code, told, _ = cli(*call)
    assert code == 0 and "strides 16, 32" in told
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["strides"], r["maps"]) for r in rows] == [("16, 32", way) for way in WAYS]
    model = load(out / "runs" / "16-32", "cpu")
    counts = [len(grid) for grid in model.config.grids]
    assert [int(r["patches"]) for r in rows] == [*counts, sum(counts), sum(counts)]
    photographs = read_photographs(find_category(parts, out), model.prepare, model.config.image_size)
    found, own = every_way(model, photographs.prepared), model.score(photographs.prepared)
    np.testing.assert_allclose(found["maximum"][0], own.maps, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["maximum"][1], own.scores, rtol=1e-5, atol=1e-5)
    alone = [scale.weight * found[way][0] for scale, way in zip(model.calibration.scales, WAYS, strict=False)]
    np.testing.assert_allclose(np.maximum(*alone), own.maps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.mean(alone, 0), found["mean"][0], rtol=1e-4, atol=1e-4)
    for row in rows:
        pro, _ = metrics.pro_and_auroc(found[row["maps"]][0], photographs.masks)
        assert float(row["pro"]) == pytest.approx(pro, abs=1e-4)
    assert (out / "scales.png").stat().st_size > 1000
    assert cli(*call, "--resume")[0] == 0
    assert "was begun with settings" in one_line(cli(*call, "--resume", "--strides", "16,64"))


def test_wrong_calls(cli, parts, tmp_path):
    call = ("experiment", "scales", parts, "--out", tmp_path / "out")
    assert "--strides 8: expected two integers" in one_line(cli(*call, "--strides", "8"))
    assert "stride: 5 does not go with patch 32" in one_line(cli(*call, "--strides", "5,16"))
    assert "patch: is what this experiment varies" in one_line(cli(*call, "--set", "patch=32"))
    assert not (tmp_path / "out").exists()
