"""``glance-fast experiment cifar10``: a row a class and seed, gone on with after a kill."""

import csv
import functools
import json
import re

import numpy as np
import pytest
from commands import never, one_line, tree
from samples import write_cifar10

from glance_fast.data.cifar10 import BATCHES, CLASSES
from glance_fast.experiments import cifar10, one_class

COLUMNS = ["class", "seed", "auroc", "auroc_paper", "auroc_iad", "auroc_dad", "cpu_seconds"]


@pytest.fixture
def data(tmp_path):
    """Every class has its own colours; two images of each in every batch."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (10, 3, 1, 1))
    labels = [*range(10), *range(10)]
    batches = {}
    for name in BATCHES:
        images = colours[labels] + rng.normal(0, 20, (20, 3, 32, 32))
        batches[name] = images.clip(0, 255).astype(np.uint8).reshape(20, -1), labels
    return write_cifar10(tmp_path / "data" / "cifar-10-batches-bin", batches).parent


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Trainings of seconds."""
    recipe = functools.partial(
        one_class.Recipe, copies=1, finetune_steps=2, finetune_batch=8, pairs=2, steps=3, batch=8
    )
    monkeypatch.setattr(cifar10, "Recipe", recipe)


def rows_of(out):
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def but_time(out):
    return [{k: v for k, v in row.items() if k != "cpu_seconds"} for row in rows_of(out)]


class Stub:
    """Scores images by their contrast."""

    def score(self, images):
        contrast = images.std((1, 2, 3)).astype(np.float32)
        return one_class.Scores(contrast, -contrast, contrast, 0 * contrast)


def test_all_classes_beside_the_papers(cli, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(cifar10, "fit_one_class", lambda *given, **options: Stub())
    code, told, _ = cli("experiment", "cifar10", data, "--out", out, "--quiet")
    assert code == 0
    rows = rows_of(out)
    assert [row["class"] for row in rows] == list(CLASSES) and list(rows[0]) == COLUMNS
    for row in rows:
        assert row["seed"] == "0" and float(row["auroc_paper"]) == 0.5
        assert float(row["auroc_iad"]) == pytest.approx(1 - float(row["auroc"]))
    assert len({row["auroc"] for row in rows}) > 2
    ours = sum(float(row["auroc"]) for row in rows) / 10
    mean = next(line for line in told.splitlines() if "mean" in line)
    expected = [ours, 0.5, 1 - ours, ours, 0.7049, 0.6641]
    assert [float(value) for value in re.findall(r"\d\.\d{3}", mean)] == pytest.approx(expected, abs=6e-4)
    assert "GradCon" in told and "0.791" in told and "differs from the paper" in told
    assert (out / "cifar10.png").stat().st_size > 1000
    monkeypatch.setattr(cifar10, "fit_one_class", never)
    before = tree(out)
    assert cli("experiment", "cifar10", data, "--out", out, "--resume")[0] == 0
    assert tree(out) == before, "nothing is measured twice"


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_results(cli, data, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call = ("experiment", "cifar10", data, "--classes", "cat, dog", "--seed", 3)
    code, told, _ = cli(*call, "--out", whole, "--json")
    assert code == 0 and [row["class"] for row in json.loads(told)["rows"]] == ["cat", "dog"]
    assert all(float(row["cpu_seconds"]) > 0 for row in rows_of(whole))
    fit, begun = cifar10.fit_one_class, []

    def second_stops(*arguments, **options):
        begun.append(options["name"])
        if len(begun) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(cifar10, "fit_one_class", second_stops)
    code, _, said = cli(*call, "--out", broken)
    assert code == 130 and "--resume goes on" in said
    assert [row["class"] for row in rows_of(broken)] == ["cat"]
    assert cli(*call, "--out", broken, "--resume")[0] == 0
    assert begun == ["cat", "dog", "dog"]
    assert but_time(broken) == but_time(whole)
    # Another seed follows in the same folder.
    assert cli(*call[:-1], 4, "--out", broken, "--resume", "--classes", "cat")[0] == 0
    assert [row["seed"] for row in rows_of(broken)] == ["3", "3", "4"]


def test_wrong_calls(cli, data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    call = ("experiment", "cifar10", data, "--out", out, "--quiet", "--classes")
    assert "classes: expected some of airplane, " in one_line(cli(*call, "cat,lion"))
    assert "got lion" in one_line(cli(*call, "cat,lion"))
    assert "nothing to resume" in one_line(cli(*call, "cat", "--resume"))
    assert "holds" in one_line(cli("experiment", "cifar10", data, "--out", data.parent))
    assert "no CIFAR-10 in it" in one_line(cli("experiment", "cifar10", tmp_path, "--out", out))
    assert not out.exists()
    monkeypatch.setattr(cifar10, "fit_one_class", never)
    batch = data / "cifar-10-batches-bin" / "test_batch.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-5])
    assert "test_batch.bin: 61455 bytes are no whole number" in one_line(cli(*call, "cat"))
    # All of one class.
    records = bytearray(whole)
    records[::3073] = bytes([3] * 20)
    batch.write_bytes(records)
    assert "has no test image of another class than cat" in one_line(cli(*call, "cat"))
    assert "has less than 1 test images of the class dog" in one_line(cli(*call, "dog"))


def test_other_images_or_settings_are_refused(cli, data, tmp_path, monkeypatch):
    out = tmp_path / "out"

    call = ("experiment", "cifar10", data, "--out", out, "--quiet", "--classes", "cat")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10, "fit_one_class", stop)
    assert cli(*call)[0] == 130
    monkeypatch.setattr(cifar10, "Recipe", functools.partial(cifar10.Recipe, steps=4))
    assert "was begun with steps = 3, not 4" in one_line(cli(*call, "--resume"))
    batch = data / "cifar-10-batches-bin" / "data_batch_1.bin"
    batch.write_bytes(bytes(batch.read_bytes()[:-1]) + b"\x01")
    assert "was begun with images = " in one_line(cli(*call, "--resume"))
