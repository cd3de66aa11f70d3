"""Section 4.3: one class against the others, whole and resumed, and which outliers it is tested on."""

import csv

import numpy as np
import pytest
import torch
from samples import write_cifar10

from glance_fast import UserError
from glance_fast.data.cifar10 import BATCHES
from glance_fast.experiments import cifar10 as experiment
from glance_fast.experiments.one_class import Recipe, whitening_of
from glance_fast.experiments.study import Study

TINY = Recipe(copies=1, finetune_steps=2, finetune_batch=8, pairs=1, steps=3, batch=8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two images a class in each batch: those of a class have its brightness."""
    rng = np.random.default_rng(0)

    def batch():
        labels = [*range(10), *range(10)]
        planes = np.stack([rng.normal(25 * label, 6, 3072).clip(0, 255) for label in labels])
        return planes.astype(np.uint8), labels

    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    return write_cifar10(folder, {name: batch() for name in BATCHES})


def run(data, out, reporter, classes=("cat", "truck"), **more):
    return experiment.run_cifar10(data, out, classes, recipe=TINY, device="cpu", reporter=reporter, **more)


@pytest.mark.slow
def test_whole_and_resumed_runs_are_the_same(data, tmp_path, reporter, monkeypatch):
    whole = run(data, tmp_path / "whole", reporter)
    assert [(row["class"], row["seed"]) for row in whole] == [("cat", 0), ("truck", 0)]
    assert all(0 <= row[column] <= 1 for row in whole for column in experiment.AUROCS)
    assert (tmp_path / "whole" / experiment.PICTURE).stat().st_size > 1000
    add = Study.add

    def stop(self, row):
        if self.rows:
            raise KeyboardInterrupt
        add(self, row)

    monkeypatch.setattr(Study, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "broken", reporter)
    monkeypatch.setattr(Study, "add", add)
    resumed = run(data, tmp_path / "broken", reporter, resume=True)
    drop = "cpu_seconds"
    assert [{k: v for k, v in row.items() if k != drop} for row in resumed] == [
        {k: v for k, v in row.items() if k != drop} for row in whole
    ]
    with (tmp_path / "broken" / "results.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["cat", "truck"]


def test_outliers_depend_on_the_seed_alone():
    labels = np.repeat(np.arange(10), 7)
    first = experiment.draw_outliers(labels, 3, 0)
    assert len(first) == 7 and (labels[first] != 3).all() and len(set(first.tolist())) == 7
    assert np.array_equal(first, experiment.draw_outliers(labels, 3, 0))
    assert not np.array_equal(first, experiment.draw_outliers(labels, 3, 1))
    # Fewer others than images of the class.
    assert experiment.draw_outliers(np.array([1, 1, 1, 0]), 1, 0).tolist() == [3]


def test_the_table_has_the_papers_figures_and_a_mean():
    rows = [
        {"class": name, "seed": seed, **dict.fromkeys(experiment.AUROCS, value), "cpu_seconds": 1.0}
        for name, seed, value in (("airplane", 0, 0.5), ("airplane", 1, 1.0), ("truck", 0, 0.25))
    ]
    assert experiment.lines(rows) == [
        ("airplane", [0.75] * 4 + [0.791, 0.76]),
        ("truck", [0.25] * 4 + [0.722, 0.678]),
        ("mean", [0.5] * 4 + [pytest.approx((0.791 + 0.722) / 2), pytest.approx((0.76 + 0.678) / 2)]),
    ]


def test_whitening_makes_a_covariance_the_identity():
    generator = torch.Generator().manual_seed(0)
    residuals = torch.randn(500, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    white = (residuals - residuals.mean(0)) @ whitening_of(residuals, 0.0).T
    torch.testing.assert_close(torch.cov(white.T), torch.eye(6), rtol=1e-3, atol=1e-3)


def test_wrong_calls(data, tmp_path, reporter):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"classes: expected some of airplane, .*, got dogs"):
        run(data, out, reporter, ("dogs",))
    with pytest.raises(UserError, match="is read"):
        run(data, data, reporter)
    assert not out.exists()
