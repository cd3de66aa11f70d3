"""What the method is measured against, on the same ResNet-18: PatchCore and PaDiM."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from glance_fast.experiments.baselines.padim import PaDiM
from glance_fast.experiments.baselines.patchcore import PatchCore


class Baseline(Protocol):
    """What PatchCore and PaDiM have in common."""

    def fit(self, images: np.ndarray) -> Baseline:
        """Learn from normal images, uint8 [N, H, W, 3]."""

    def maps(self, images: np.ndarray) -> np.ndarray:
        """Score images, uint8 [N, H, W, 3]: maps [N, H, W]."""


BASELINES: dict[str, type[PatchCore] | type[PaDiM]] = {"PatchCore": PatchCore, "PaDiM": PaDiM}
"""By the names that tables show."""
