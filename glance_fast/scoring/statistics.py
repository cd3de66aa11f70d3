"""What a model knows about the scores of normal images: ``calibration.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import norm
from torch import Tensor

from glance_fast.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a score on normal images."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise ValueError(f"moments must be finite and the deviation positive, got {self}")

    def standardise(self, values: Tensor) -> Tensor:
        """Values in deviations from the mean."""
        return (values - self.mean) / self.std

    @classmethod
    def of(cls, values: np.ndarray | Tensor) -> Moments:
        """Moments of all entries of an array, or of a tensor on the CPU."""
        values = np.asarray(values, dtype=np.float64)
        return cls(float(values.mean()), max(float(values.std()), 1e-6))


@dataclass(frozen=True)
class ScaleStatistics:
    """Moments of one scale.

    Attributes
    ----------
    inconsistency, distortion : Moments
        Of the two patch scores.
    inconsistency_map, distortion_map : Moments
        Of the pixels of their maps, which vary less.
    map : Moments
        Of the pixels of the blended map.
    inconsistency_peak, distortion_peak : Moments
        Of the maxima of the two maps, one an image.
    lambda_s : float
        Share of the inconsistency score in the blend.
    """

    inconsistency: Moments = Moments()
    distortion: Moments = Moments()
    inconsistency_map: Moments = Moments()
    distortion_map: Moments = Moments()
    map: Moments = Moments()
    inconsistency_peak: Moments = Moments()
    distortion_peak: Moments = Moments()
    lambda_s: float = 0.5

    def __post_init__(self) -> None:
        if not (_is_number(self.lambda_s) and 0 <= self.lambda_s <= 1):
            raise ValueError(f"lambda_s must lie in [0, 1], got {self.lambda_s!r}")


@dataclass(frozen=True)
class Calibration:
    """Statistics of all scales, and the thresholds that need no defective image.

    Attributes
    ----------
    scales : tuple of ScaleStatistics
        One a scale.
    threshold : float
        An image whose score lies above it is called anomalous.
    pixel_threshold : float
        A pixel whose score lies above it is outlined.
    quantile : float
        Share of normal images that the thresholds let pass.
    aspect : float
        Width over height of the training photographs (median).
    scores : tuple of float
        Scores of the held-out normal images, from which the thresholds come.
    """

    scales: tuple[ScaleStatistics, ...]
    threshold: float = math.inf
    pixel_threshold: float = math.inf
    quantile: float = 0.99
    aspect: float = 1.0
    scores: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("threshold", "pixel_threshold"):
            # Infinite ones let everything pass.
            if not _is_number(value := getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not (_is_number(self.quantile) and 0 < self.quantile < 1):
            raise ValueError(f"quantile must lie between 0 and 1, got {self.quantile!r}")
        if not (_is_number(self.aspect) and 0 < self.aspect < math.inf):
            raise ValueError(f"aspect must be finite and positive, got {self.aspect!r}")
        if not all(_is_number(score) and math.isfinite(score) for score in self.scores):
            raise ValueError("scores must be finite numbers")

    def to_json(self) -> str:
        """As indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=True) + "\n"

    @classmethod
    def from_json(cls, text: str, scales: int, source: str) -> Calibration:
        """Read what ``to_json`` wrote; anything else is a ``UserError`` that names ``source``."""
        try:
            values: dict[str, Any] = json.loads(text)
            values["scales"] = tuple(
                _whole(
                    ScaleStatistics,
                    {n: v if n == "lambda_s" else _whole(Moments, v) for n, v in scale.items()},
                )
                for scale in values["scales"]
            )
            values["scores"] = tuple(values["scores"])
            calibration = _whole(cls, values)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{source}: damaged calibration, or of another version ({error}); train again"
            ) from error
        if len(calibration.scales) != scales:
            found = len(calibration.scales)
            raise UserError(f"{source}: holds {found} scales, the model has {scales}; train again")
        return calibration


def _whole(kind: type, values: dict[str, Any]) -> Any:
    """A dataclass from all of its fields: a default would pass for what was measured."""
    for wanted in dataclasses.fields(kind):
        if wanted.name not in values:
            raise ValueError(f"{wanted.name} is missing")
    return kind(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def upper_threshold(values: np.ndarray, quantile: float) -> float:
    """A bound that a share ``quantile`` of normal values stays below.

    Few images are held out, so the empirical quantile alone would be their maximum at best: the bound is
    the larger of that and the quantile of a normal distribution with their moments.
    """
    moments = Moments.of(values)
    return float(max(np.quantile(values, quantile), moments.mean + norm.ppf(quantile) * moments.std))
