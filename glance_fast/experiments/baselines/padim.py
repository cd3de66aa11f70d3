"""PaDiM (Defard et al., 2021) on ResNet-18: Mahalanobis distance to a Gaussian for every place.

A place is described by layers 1 to 3 on layer 1's grid, layers 2 and 3 read bilinearly, of whose 448 numbers
100 are drawn at random. All normal images are used; nothing has to be held out.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.experiments.baselines.places import BATCH, to_maps, trunk
from glance_fast.nets.teacher import Teacher

CHANNELS = 64 + 128 + 256
DIMENSIONS = 100
RIDGE = 0.01


class PaDiM:
    """A Gaussian for every place.

    Parameters
    ----------
    teacher : Teacher
        The ResNet.
    seed : int
        Of the numbers drawn.

    Attributes
    ----------
    mean : Tensor [P, 100]
        Of every place, in raster order.
    whitening : Tensor [P, 100, 100]
        Inverse of the lower Cholesky factor of every place's covariance.
    """

    def __init__(self, teacher: Teacher, seed: int = 0) -> None:
        self.teacher = teacher
        generator = torch.Generator().manual_seed(seed)
        self.kept = torch.randperm(CHANNELS, generator=generator)[:DIMENSIONS]

    @torch.inference_mode()
    def fit(self, images: np.ndarray) -> PaDiM:
        """Estimate the Gaussians of normal images, uint8 [N, H, W, 3]."""
        found = [self._features(part) for part in torch.from_numpy(images).split(BATCH)]
        self.mean, self.whitening = gaussians(torch.cat(found).flatten(1, 2).transpose(0, 1).contiguous())
        return self

    @torch.inference_mode()
    def maps(self, images: np.ndarray) -> np.ndarray:
        """Score images, uint8 [N, H, W, 3]: maps [N, H, W]."""
        found = []
        for part in torch.from_numpy(images).split(BATCH):
            places = self._features(part)
            distances = mahalanobis(places.flatten(1, 2).transpose(0, 1), self.mean, self.whitening)
            found.append(distances.T.reshape(places.shape[:3]))
        return to_maps(torch.cat(found), images.shape[1:3])

    def _features(self, images: Tensor) -> Tensor:
        return features(self.teacher, images)[..., self.kept]


def features(teacher: Teacher, images: Tensor) -> Tensor:
    """Describe every place of images, uint8 [N, H, W, 3]: [N, H / 4, W / 4, 448]."""
    maps = trunk(teacher, images)
    size = maps[0].shape[-2:]
    return torch.cat([F.interpolate(m, size, mode="bilinear") for m in maps], 1).permute(0, 2, 3, 1)


def gaussians(places: Tensor) -> tuple[Tensor, Tensor]:
    """Estimate a Gaussian for every place.

    Parameters
    ----------
    places : Tensor [P, N, D]
        What N normal images have there.

    Returns
    -------
    mean : Tensor [P, D]
    whitening : Tensor [P, D, D]
        Its squared product with a deviation from the mean is the squared Mahalanobis distance, for the
        covariance with ``RIDGE`` on its diagonal.
    """
    mean = places.mean(1)
    deviations = places - mean[:, None]
    identity = torch.eye(places.shape[2], dtype=places.dtype)
    covariance = deviations.mT @ deviations / (places.shape[1] - 1) + RIDGE * identity
    factor = torch.linalg.cholesky(covariance)
    return mean, torch.linalg.solve_triangular(factor, identity, upper=False)


def mahalanobis(places: Tensor, mean: Tensor, whitening: Tensor) -> Tensor:
    """Distance of every place [P, N, D] to its Gaussian: [P, N]."""
    return torch.linalg.vector_norm((places - mean[:, None]) @ whitening.mT, dim=2)
