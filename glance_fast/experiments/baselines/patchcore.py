"""PatchCore (Roth et al., 2022) on ResNet-18: distance of every place to the nearest of some normal ones.

A place is described by layers 2 and 3, each averaged over 3x3, layer 3 read bilinearly on layer 2's grid: 384
numbers. The coreset is 1 % of the normal places, chosen greedily on a random projection to 64 numbers. The
image's score is the maximum of the map; it is not reweighted by the neighbourhood in the coreset.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.experiments.baselines.places import BATCH, to_maps, trunk
from glance_fast.nets.teacher import TEACHER_FEATURES, Teacher

SHARE = 0.01
PROJECTED = 64


class PatchCore:
    """A memory of normal places.

    Parameters
    ----------
    teacher : Teacher
        The ResNet.
    seed : int
        Of the projection and of the first place chosen.

    Attributes
    ----------
    bank : Tensor [K, 384]
        The places kept.
    """

    def __init__(self, teacher: Teacher, seed: int = 0) -> None:
        self.teacher = teacher
        self.generator = torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def fit(self, images: np.ndarray) -> PatchCore:
        """Choose the coreset of normal images, uint8 [N, H, W, 3]."""
        places = torch.cat([features(self.teacher, part) for part in torch.from_numpy(images).split(BATCH)])
        places = places.flatten(0, 2)
        projection = torch.randn(TEACHER_FEATURES, PROJECTED, generator=self.generator) * PROJECTED**-0.5
        first = int(torch.randint(len(places), (), generator=self.generator))
        count = max(1, round(SHARE * len(places)))
        self.bank = places[greedy_coreset(places @ projection, count, first)]
        return self

    @torch.inference_mode()
    def maps(self, images: np.ndarray) -> np.ndarray:
        """Score images, uint8 [N, H, W, 3]: maps [N, H, W]."""
        distances = []
        for part in torch.from_numpy(images).split(BATCH):
            places = features(self.teacher, part)
            found = nearest(places.flatten(0, 2), self.bank)
            distances.append(found.reshape(places.shape[:3]))
        return to_maps(torch.cat(distances), images.shape[1:3])


def features(teacher: Teacher, images: Tensor) -> Tensor:
    """Describe every place of images, uint8 [N, H, W, 3]: [N, H / 8, W / 8, 384]."""
    # Zeros beyond the border count, as in the authors' code: means of fewer numbers vary more, and a normal
    # image's corner would be what is farthest from the coreset.
    second, third = (F.avg_pool2d(x, 3, 1, 1) for x in trunk(teacher, images)[1:])
    third = F.interpolate(third, second.shape[-2:], mode="bilinear")
    return torch.cat([second, third], 1).permute(0, 2, 3, 1)


def greedy_coreset(points: Tensor, count: int, first: int = 0) -> Tensor:
    """Choose points so that none is far from all that are chosen.

    Parameters
    ----------
    points : Tensor [N, D]
        To choose from.
    count : int
        How many, at most N.
    first : int
        Where to begin.

    Returns
    -------
    Tensor of int64 [count]
        Indices, in the order of choice: each is the farthest from those before it.
    """
    # Squared distances as a difference of larger numbers: centred, they lose fewer digits.
    points = points - points.mean(0)
    norms = points.square().sum(1)
    distances = torch.full_like(norms, torch.inf)
    chosen = torch.empty(count, dtype=torch.int64)
    chosen[0] = first
    for i in range(1, count):
        latest = chosen[i - 1]
        found = torch.addmv(norms, points, points[latest], alpha=-2).add_(norms[latest])
        torch.minimum(distances, found, out=distances)
        distances[latest] = -torch.inf  # rounding must not choose it again
        chosen[i] = distances.argmax()
    return chosen


def nearest(points: Tensor, bank: Tensor) -> Tensor:
    """Distance of each point [N, D] to the nearest of a bank [K, D]: [N]."""
    middle = bank.mean(0)
    points, bank = points - middle, bank - middle
    # The point's own norm does not change which is nearest.
    found = torch.addmm(bank.square().sum(1), points, bank.T, alpha=-2).amin(1)
    return found.add_(points.square().sum(1)).clamp_min_(0).sqrt_()
