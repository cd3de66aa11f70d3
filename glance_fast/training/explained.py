"""R²: what share of the features' variance a prediction explains."""

from __future__ import annotations

import torch
from torch import Tensor


class Explained:
    """Share of the variance of features that predictions explain, over all that was added; in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._total = torch.zeros((), dtype=torch.float64)
        self._squares = self._error = 0.0

    def add(self, features: Tensor, predicted: Tensor) -> None:
        """Count features and what was predicted of them.

        Parameters
        ----------
        features, predicted : Tensor
            [..., D], of one shape and on one device.
        """
        z = features.flatten(0, -2).double()
        self._count += len(z)
        self._total = self._total + z.sum(0).cpu()
        self._squares += float(z.square().sum())
        self._error += float((features - predicted).double().square().sum())

    @property
    def r2(self) -> float:
        """1 where all is predicted, 0 where the mean of the features would do as well."""
        variance = self._squares - float(self._total.square().sum()) / self._count
        return 1 - self._error / max(variance, 1e-12)
