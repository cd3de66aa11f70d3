"""What a model knows about the scores of normal images: ``calibration.json``."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, norm
from torch import Tensor

from glance_fast.data.files import read_json
from glance_fast.data.table import ScoreRow
from glance_fast.errors import UserError, excerpt

# Deviations by which photographs held out may score higher before it is said.
LEAST_DIFFERENCE = 0.25


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a score on normal images."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        numbers = _is_number(self.mean) and _is_number(self.std)
        if not (numbers and math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"moments must be finite and the deviation positive, got {self}")

    def standardise(self, values: Tensor) -> Tensor:
        """Values in deviations from the mean."""
        return (values - self.mean) / self.std

    @classmethod
    def of(cls, values: np.ndarray | Tensor) -> Moments:
        """Moments of all entries of an array, or of a tensor on the CPU."""
        values = np.asarray(values, dtype=np.float64)
        return cls(float(values.mean()), max(float(values.std()), 1e-6))


class Verdict(NamedTuple):
    """What a score says of an image.

    Attributes
    ----------
    score : float
        Itself, with the nine digits that hold a float32.
    above : float
        Share of normal images that score as high.
    anomalous : bool or None
        Whether it lies above the threshold; None where the model has none.
    """

    score: float
    above: float
    anomalous: bool | None


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
    weight : float
        What the scale's blend counts by in the map.
    """

    inconsistency: Moments = Moments()
    distortion: Moments = Moments()
    inconsistency_map: Moments = Moments()
    distortion_map: Moments = Moments()
    map: Moments = Moments()
    inconsistency_peak: Moments = Moments()
    distortion_peak: Moments = Moments()
    lambda_s: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.lambda_s) and 0 <= self.lambda_s <= 1):
            raise ValueError(f"lambda_s must lie in [0, 1], got {self.lambda_s!r}")
        if not (_is_number(self.weight) and 0 < self.weight <= 1):
            raise ValueError(f"weight must lie in (0, 1], got {self.weight!r}")


@dataclass(frozen=True)
class Calibration:
    """Statistics of all scales, and the thresholds that need no defective image.

    Attributes
    ----------
    scales : tuple of ScaleStatistics
        One a scale.
    image : Moments
        Of the sum of peaks that makes an image's score.
    threshold : float
        An image whose score lies above it is called anomalous.
    pixel_threshold : float
        A pixel whose score lies above it is outlined.
    false_alarms : float
        Share of normal images that may lie above the threshold.
    aspect : float
        Width over height of the training photographs (median).
    shape : (int, int) or None
        Height and width of the training photographs, pixels (medians); None in run folders of an earlier
        version.
    scores, peaks : tuple of float
        Image scores and highest pixels of normal images, each by a whitening that had not seen it; the
        thresholds come from them.
    distances : bool
        Whether maps show the root of s_IAD, a Mahalanobis distance, and the log odds of s_DAD. If not, they
        show the scores themselves: in the paper's blend, and in run folders of an earlier version.
    largest_peaks : bool
        Whether an image's score takes the larger peak of the patch sizes, of each head. If not, it takes all
        peaks: in run folders of an earlier version.
    trained_on : tuple of str
        Names of the images behind the whitening (``glance_fast.training.calibrate.digest``).
    weights : str
        Digest of the weights that it was measured with (``glance_fast.run.save_calibration``); empty where
        it was never saved, and in run folders of an earlier version.
    white : int or None
        Stored value that is white in images of more than 8 bits (``glance_fast.data.depth``); None where the
        model was trained on images of 8 bits.
    """

    scales: tuple[ScaleStatistics, ...]
    image: Moments = Moments()
    threshold: float = math.inf
    pixel_threshold: float = math.inf
    false_alarms: float = 0.01
    aspect: float = 1.0
    shape: tuple[int, int] | None = None
    scores: tuple[float, ...] = field(default=())
    peaks: tuple[float, ...] = field(default=())
    distances: bool = False
    largest_peaks: bool = False
    trained_on: tuple[str, ...] = field(default=())
    weights: str = ""
    white: int | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "pixel_threshold"):
            # Infinite ones let everything pass.
            if not _is_number(value := getattr(self, name)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not (_is_number(self.false_alarms) and 0 < self.false_alarms < 1):
            raise ValueError(f"false_alarms must lie between 0 and 1, got {self.false_alarms!r}")
        for name in ("distances", "largest_peaks"):
            if not isinstance(value := getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {value!r}")
        if not (_is_number(self.aspect) and 0 < self.aspect < math.inf):
            raise ValueError(f"aspect must be finite and positive, got {self.aspect!r}")
        if self.shape is not None and not (
            len(self.shape) == 2 and all(isinstance(side, int) and side > 0 for side in self.shape)
        ):
            raise ValueError(f"shape must be two positive integers, got {self.shape!r}")
        if not all(_is_number(score) and math.isfinite(score) for score in (*self.scores, *self.peaks)):
            raise ValueError("scores and peaks must be finite numbers")
        if not all(isinstance(name, str) for name in self.trained_on):
            raise ValueError("trained_on must be strings")
        if not isinstance(self.weights, str):
            raise ValueError("weights must be a string")
        if self.white is not None and (type(self.white) is not int or not 255 <= self.white <= 65535):
            raise ValueError(f"white must be null or from 255 to 65535, got {self.white!r}")

    def share_above(self, score: float) -> float:
        """Share of normal images that score as high or higher, the image itself counted as one of them.

        Of a normal image it is as likely to lie below 0.05 as a die with twenty sides is to show one given
        side: a p-value. 1 where no normal image was scored.
        """
        return (1 + sum(normal >= score for normal in self.scores)) / (1 + len(self.scores))

    def to_json(self) -> str:
        """As indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, allow_nan=True) + "\n"

    @classmethod
    def from_json(cls, text: str, scales: int, source: str) -> Calibration:
        """Read what ``to_json`` wrote; anything else is a ``UserError`` that names ``source``."""
        try:
            values: dict[str, Any] = read_json(text)
            if "quantile" in values:
                # Of a run folder of an earlier version.
                values["false_alarms"] = 1 - values.pop("quantile")
                values |= {"image": {"mean": 0.0, "std": 1.0}, "peaks": [], "trained_on": []}
                values["distances"] = False
                values["scales"] = [{**scale, "weight": 1.0} for scale in values["scales"]]
            values.setdefault("largest_peaks", False)
            values.setdefault("weights", "")
            values["shape"] = tuple(values["shape"]) if values.get("shape") else None
            values.setdefault("white", None)
            values["scales"] = tuple(
                _whole(
                    ScaleStatistics,
                    {n: v if n in ("lambda_s", "weight") else _whole(Moments, v) for n, v in scale.items()},
                )
                for scale in values["scales"]
            )
            values["image"] = _whole(Moments, values["image"])
            values |= {name: tuple(values[name]) for name in ("scores", "peaks", "trained_on")}
            calibration = _whole(cls, values)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{source}: damaged calibration, or of another version ({excerpt(str(error))}); train again"
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


def with_thresholds(calibration: Calibration, false_alarms: float) -> Calibration:
    """The thresholds that let a share ``false_alarms`` of normal images be called anomalous."""
    return dataclasses.replace(
        calibration,
        false_alarms=false_alarms,
        threshold=upper_threshold(np.array(calibration.scores), false_alarms),
        pixel_threshold=upper_threshold(np.array(calibration.peaks), false_alarms),
    )


def rank_of_threshold(count: int, false_alarms: float) -> int:
    """Which of ``count`` normal scores, from the lowest, is the threshold; above ``count`` if none suffices.

    Of n + 1 normal images each is as likely to have the k-th lowest score, so that the next one lies above
    the k-th of n with a probability of (n + 1 - k) / (n + 1).
    """
    # A hair below, so that 0.99 * 100 is 99.
    return math.ceil((count + 1) * (1 - false_alarms) - 1e-9)


def photographs_needed(false_alarms: float) -> int:
    """How many normal images a promise of so few false alarms takes."""
    return math.ceil(1 / false_alarms - 1e-9) - 1


def upper_threshold(values: np.ndarray, false_alarms: float) -> float:
    """A bound above which a share ``false_alarms`` of normal values lies, at most.

    The conformal one (``rank_of_threshold``) where there are enough values. Where there are not, the larger
    of their maximum and of the quantile of a normal distribution with their moments, which promises nothing.

    Parameters
    ----------
    values : ndarray
        [N], at least one: scores of normal images.
    false_alarms : float
        Between 0 and 1.
    """
    rank = rank_of_threshold(len(values), false_alarms)
    if rank <= len(values):
        return float(np.sort(values)[rank - 1])
    moments = Moments.of(values)
    return float(max(values.max(), moments.mean + norm.isf(false_alarms) * moments.std))


def is_anomalous(scores: ArrayLike, threshold: float) -> NDArray[np.bool_]:
    """Whether scores lie above the threshold: what a model says of images.

    Parameters
    ----------
    scores : float, or array of floats
        Of any shape.
    threshold : float
        An infinite one calls nothing anomalous.

    Returns
    -------
    ndarray of bool
        Of the shape of ``scores``.
    """
    # The threshold is a float64, and NumPy would round it to the type of the scores.
    return np.asarray(scores, np.float64) > threshold


def score_row(calibration: Calibration, path: str, score: float) -> ScoreRow:
    """The line of ``scores.csv`` for an image that was scored.

    Parameters
    ----------
    calibration : Calibration
        The model's.
    path : str
        Of the image, as the table is to name it.
    score : float
        Of the image.
    """
    known = math.isfinite(calibration.threshold)
    anomalous = str(int(is_anomalous(score, calibration.threshold))) if known else ""
    return ScoreRow(path, f"{score:.9g}", f"{calibration.share_above(score):.3g}", anomalous)


def verdict(calibration: Calibration, score: float) -> Verdict:
    """What ``score_row`` says of an image, as numbers.

    Parameters
    ----------
    calibration : Calibration
        The model's.
    score : float
        Of the image; finite.
    """
    row = score_row(calibration, "", score)
    anomalous = row.anomalous == "1" if row.anomalous else None
    return Verdict(float(row.score), float(row.above), anomalous)


def promise(calibration: Calibration, sure: float = 0.95) -> str:
    """What the threshold promises, in a sentence for the user.

    Parameters
    ----------
    calibration : Calibration
        With the scores of normal images.
    sure : float
        How certain the share of false alarms that is named last is to be, between 0 and 1.
    """
    count, wanted = len(calibration.scores), calibration.false_alarms
    rank = rank_of_threshold(count, wanted)
    if rank > count:
        return (
            f"threshold: {count} photographs cannot promise {wanted:.3g} of false alarms, for which "
            f"{photographs_needed(wanted)} are needed; about {1 / (count + 1):.1%} is what to expect at most"
        )
    worst = beta.ppf(sure, count + 1 - rank, rank)
    return (
        f"threshold: a share of {wanted:.3g} of good photographs or less will lie above it (from {count}; "
        f"with {sure:.0%} certainty fewer than {worst:.1%})"
    )


def caution(higher: float, held_out: int) -> str:
    """What to say, beside the promise, where photographs held out score higher than those trained on.

    Parameters
    ----------
    higher : float
        By how many deviations (``glance_fast.training.calibrate.calibrate``).
    held_out : int
        How many photographs were held out.

    Returns
    -------
    str
        Empty where the difference is small, or no more than so few photographs differ by chance.
    """
    if higher < max(LEAST_DIFFERENCE, held_out**-0.5):
        return ""
    return (
        f"caution: {held_out} photographs held out score {higher:.1f} deviations higher than those trained "
        "on; expect more false alarms than that. glance-fast calibrate with other photographs of good parts "
        "sets the threshold by them"
    )
