"""Tables 1 and 2: means as the paper takes them, and which figures of it stand beside."""

import numpy as np
import pytest

from glance_fast.config import Config
from glance_fast.experiments import categories, paper
from glance_fast.experiments.categories import tables


def a_row(category, method="ours", value=0.5, **other):
    row = {"category": category, "kind": paper.kind_of(category), "method": method}
    return (
        row
        | {"pro": value, "pixel_auroc": value, "image_auroc": value, "seconds": 1.0, "error": None}
        | other
    )


def test_means_of_textures_and_objects_stand_below():
    rows = [a_row("carpet", value=0.25), a_row("wood", value=0.75), a_row("metal_nut", value=0.5)]
    rows += [a_row("Metal Nut", value=1.0), a_row("cookie", value=0.0)]
    pro = tables(rows)[0]
    assert pro.metric == "pro" and pro.columns == ["ours", "paper"]
    found = dict(pro.rows)
    assert (
        found["carpet"] == [0.25, 0.977]
        and found["Metal Nut"] == [1.0, 0.967]
        and found["cookie"] == [0.0, None]
    )
    assert found["textures"] == [0.5, pytest.approx((0.977 + 0.941) / 2)]
    assert found["objects"] == [0.75, pytest.approx(0.967)]
    # The paper has no cookie, and no mean over it.
    assert found["all"] == [0.5, None]


def test_a_method_that_lacks_a_category_has_no_mean():
    rows = [a_row("a"), a_row("b"), a_row("a", "PaDiM"), a_row("b", "PaDiM", error="broken", value=None)]
    assert [t.columns for t in tables(rows)] == [["ours", "PaDiM"]] * 3
    assert tables(rows)[2].rows == [("a", [0.5, 0.5]), ("b", [0.5, None]), ("all", [0.5, None])]


def test_the_papers_means_are_those_it_prints():
    printed = paper.printed()
    for table, mean in (
        ("pro", 0.961),
        ("pixel_auroc", 0.907),
        ("cifar10", 0.705),
        ("cifar10_gradcon", 0.664),
    ):
        assert sum(printed[table].values()) / len(printed[table]) == pytest.approx(mean, abs=6e-4)
    columns = zip(*printed["lambda_s"].values(), strict=True)
    means = [sum(column) / 15 for column in columns]
    assert means == pytest.approx([0.912, 0.935, 0.948, 0.957, 0.961, 0.954], abs=1e-3)
    assert {name for name in printed["pro"] if paper.kind_of(name) == "texture"} == set(printed["textures"])


@pytest.mark.slow
def test_baselines_take_more_than_8_bits(deep_parts, tmp_path, small, reporter, monkeypatch):
    seen = []

    class Baseline:
        def __init__(self, teacher, seed):
            pass

        def fit(self, images):
            seen.append(images)
            return self

        def maps(self, images):
            seen.append(images)
            return images.mean(3)

    monkeypatch.setattr(categories, "BASELINES", {"mean": Baseline})
    config = Config(**small)
    rows = categories.run_categories(
        deep_parts, tmp_path / "out", config, baselines=True, device="cpu", reporter=reporter
    )
    assert [(row["method"], row["error"]) for row in rows] == [("ours", None), ("mean", None)]
    normal, tested = seen
    assert normal.dtype == tested.dtype == np.float32
    assert 100 < np.median(normal) < 140 and 100 < np.median(tested) < 140
    # Between two grey levels of 8 bits.
    assert (tested % 1 > 0.3).any()
