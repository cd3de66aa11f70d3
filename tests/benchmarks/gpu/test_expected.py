"""Predictions beside measurements."""

import math
from dataclasses import replace

from benchmarks.costs.analysis import prediction_of
from benchmarks.gpu import expected, scene
from benchmarks.gpu.cases import all_cases
from benchmarks.gpu.suite import Row


def a_row(ms, version="ours, one kernel", where="gpu", shape="8"):
    return Row("twice", shape, "float32", version, where, ms=ms)


def test_only_our_kernels_on_a_gpu_are_compared():
    rows = [
        a_row(2.0),
        a_row(1.0, version="eager"),
        a_row(3.0, where="interpreter"),
        a_row(math.nan),
        a_row(4.0, shape="9"),
    ]
    (found,) = expected.compare(rows, {("twice", "8", "float32"): 1.0})
    assert (found.predicted, found.measured, found.right) == (1.0, 2.0, False)


def test_what_is_wrong_is_told_worst_first():
    predicted = {("twice", shape, "float32"): 1.0 for shape in "abcd"}
    rows = [a_row(ms, shape=shape) for shape, ms in zip("abcd", (1.4, 1.6, 0.2, 0.7), strict=True)]
    first, *lines = expected.summary(expected.compare(rows, predicted)).splitlines()
    assert first == "predictions: 2 of 4 within a factor of 1.5"
    assert [line.split()[1] for line in lines] == ["c", "b"]
    assert lines[0].endswith("0.20 times") and lines[1].endswith("1.60 times")
    assert expected.summary([]) == "predictions: none was put to the test"


def test_every_case_of_a_gpu_has_a_prediction():
    card = expected.card_of("Card", 8e14, 6e13, 4e12, 5e12, 132)
    on_gpu = replace(scene.on_gpu(), device=scene.on_cpu().device, compiled=False)
    times = [prediction_of(case, on_gpu, card) for case in all_cases(on_gpu)]
    assert times and all(0 < t < 1 for t in times)
    slow = replace(card, matrix_seen=card.matrix_seen / 4, memory_seen=card.memory_seen / 4)
    slow = replace(slow, plain=card.plain / 4, cache=card.cache / 4)
    assert all(prediction_of(c, on_gpu, slow) > t for c, t in zip(all_cases(on_gpu), times, strict=True))
