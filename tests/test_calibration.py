"""One verdict on a score, wherever it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glance_fast.calibration import Calibration, is_anomalous, score_row
from glance_fast.data.layouts import TestSample
from glance_fast.evaluation.summary import summarise


@pytest.mark.parametrize(("apart", "anomalous"), [(-1e-9, True), (0, False), (1e-9, False)])
def test_tables_and_metrics_agree_on_scores_close_to_the_threshold(apart, anomalous):
    # Rounded to float32, the three thresholds are one.
    score, threshold = np.float32(1.1), float(np.float32(1.1)) + apart
    assert is_anomalous(np.array([score]), threshold).tolist() == [anomalous]
    row = score_row(Calibration((), threshold=threshold), "a.png", float(score))
    assert row.anomalous == str(int(anomalous))
    good = TestSample(Path("a.png"), "good")
    maps, masks = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), bool)
    found = summarise([good], maps, masks, 0, np.array([score]), threshold)
    assert found["threshold"] == {
        "value": threshold,
        "false_positives": int(anomalous),
        "missed": None,
        "f1": None,
    }


def test_without_a_threshold_nothing_is_anomalous():
    assert not is_anomalous([1e30, np.inf], np.inf).any()
