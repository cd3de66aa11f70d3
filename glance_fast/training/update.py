"""New normal photographs join those that a model was calibrated on; its nets stay as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from glance_fast.calibration import with_thresholds
from glance_fast.data.cache import ImageCache
from glance_fast.maps import combine
from glance_fast.model import Glance
from glance_fast.training.calibrate import aspect_of, calibration_of, features_of, holding
from glance_fast.training.normal import Normal, read_normal
from glance_fast.training.whitening import residuals_of, whiten


class Joined(NamedTuple):
    """What came of it.

    Attributes
    ----------
    normal : Normal
        All photographs, earlier and new ones.
    before : ndarray
        Float64 [n]: image scores of the new photographs by the model as it was, which had not seen them.
    after : ndarray
        Float64 [n]: their scores in the new calibration, each by a whitening that has not seen it.
    """

    normal: Normal
    before: np.ndarray
    after: np.ndarray


@torch.inference_mode()
def join(
    model: Glance,
    kept: tuple[Path, Sequence[str]] | None,
    cache: ImageCache,
    earlier: Mapping[str, int],
    new: Mapping[str, int],
    progress: Callable[[int, int], None] | None = None,
) -> Joined:
    """Calibrate anew on earlier and new photographs together.

    Whitening, moments and thresholds are those that ``calibrate`` would give of all of them: from the
    residuals of the earlier ones, kept to the bit, and those of the new ones. Each photograph is looked at
    alone, so that nothing depends on what came with it: two updates give, bit for bit, what one with all
    photographs gives. A training looks at several together, which rounds otherwise; it differs by that alone.
    What stays: the nets, what each patch size counts by, λ_s, and the share of false alarms.

    Parameters
    ----------
    model : Glance
        Changed in place: ``residual_mean``, ``whitening`` and ``calibration``.
    kept : (Path, sequence of str), optional
        File of earlier photographs (``glance_fast.training.normal``), and the names in it.
    cache : ImageCache
        Photographs.
    earlier, new : mapping of str to int
        Names of photographs and their places in ``cache``: those that the model was trained on, where there
        is no file of them, and those that join.
    progress : callable, optional
        Called with (photographs done, photographs in all).

    Raises
    ------
    UserError
        Memory does not suffice, or the file is damaged.
    """
    before = model.calibration
    normal = Normal.empty(model, [*(kept[1] if kept else ()), *earlier, *new])
    scores: dict[str, float] = {}
    with holding(model, len(normal.names)):
        if kept:
            read_normal(kept[0], normal, kept[1])
        looked_at = {**earlier, **new}
        for done, (name, index) in enumerate(looked_at.items(), start=1):
            (features,) = features_of(model, cache, [index])
            place = normal.names.index(name)
            normal.aspects[place] = aspect_of(cache, index)
            for scale, found in zip(normal.scales, residuals_of(model, [features]), strict=True):
                scale.residual[place], scale.distortion[place] = found.residual[0], found.distortion[0]
            if name in new:
                parts = zip(model.scales, features, before.scales, strict=True)
                maps = model.head_maps([scale.patch_scores(*pair, s) for scale, pair, s in parts])
                scores[name] = float(combine(maps, model.config, before)[1])
            if progress:
                progress(done, len(looked_at))
        shares, weights = zip(*((s.lambda_s, s.weight) for s in before.scales), strict=True)
        calibration = calibration_of(model, whiten(model, normal.scales), shares, weights)
    model.calibration = dataclasses.replace(
        with_thresholds(calibration, before.false_alarms),
        aspect=float(np.median(normal.aspects.numpy())),
        shape=before.shape,
        white=before.white,
        trained_on=tuple(sorted({*before.trained_on, *normal.names})),
    )
    after = [model.calibration.scores[normal.names.index(name)] for name in new]
    return Joined(normal, np.array([scores[name] for name in new]), np.array(after))
