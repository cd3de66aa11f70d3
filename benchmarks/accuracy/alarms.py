"""What a baseline's threshold finds, where that is set as ours is: from normal images it has not seen."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.accuracy.beds import Images
from glance_fast.calibration import is_anomalous, upper_threshold
from glance_fast.experiments.baselines import Baseline

FALSE_ALARMS = 0.01  # share of good images that is asked for
FOLDS = 5


def shares(method: Callable[[], Baseline], images: Images) -> dict[str, float]:
    """Shares of defective and of good test images above the threshold of 1 % false alarms.

    Parameters
    ----------
    method : callable
        Makes a baseline that has not seen anything.
    images : Images
        Each normal one is scored by a baseline that was fitted to four fifths without it.

    Returns
    -------
    dict
        ``found`` and ``false_alarms``.
    """
    order = np.random.default_rng(0).permutation(len(images.normal))
    normal = np.empty(len(order))
    for fold in range(FOLDS):
        apart, rest = order[fold::FOLDS], np.delete(order, np.s_[fold::FOLDS])
        normal[apart] = _scores(method().fit(images.normal[rest]), images.normal[apart])
    above = is_anomalous(
        _scores(method().fit(images.normal), images.test), upper_threshold(normal, FALSE_ALARMS)
    )
    labels = images.labels
    return {"found": float(above[labels].mean()), "false_alarms": float(above[~labels].mean())}


def _scores(model: Baseline, images: np.ndarray) -> np.ndarray:
    return model.maps(images).max((1, 2))
