"""The two heads: inconsistency (Eq. 7) and distortion (Eq. 8, 9)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.kernels.patch_score import DistortionWeights
from glance_fast.nets.batch_norm import affine_of


def inconsistency_loss(local: Tensor, global_: Tensor) -> Tensor:
    """l_IAD, Eq. 7: mean squared difference of z_l and z_g."""
    return F.mse_loss(global_, local)


class DistortionHead(nn.Module):
    """C(z*, z_g) of Eq. 8: the probability that the patch is undistorted.

    A perceptron over z*, z_g and the squared difference of the two.
    """

    def __init__(self, features: int = 128, hidden: int = 128) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3 * features)
        self.first = nn.Linear(3 * features, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, local: Tensor, global_: Tensor) -> Tensor:
        """Logits [...] of C for features [..., D]."""
        return self.last(self.hidden(local, global_)).squeeze(-1)

    def hidden(self, local: Tensor, global_: Tensor) -> Tensor:
        """Numbers [..., hidden] of which the logit is a weighted sum, for features [..., D]."""
        x = torch.cat([local, global_, (local - global_).square()], dim=-1)
        x = F.relu(self.first(self.norm(x.flatten(0, -2))))
        return F.relu(self.second(x)).unflatten(0, local.shape[:-1])

    def folded(self) -> DistortionWeights:
        """The weights that scoring uses, BatchNorm folded into the first layer."""
        gain, shift = affine_of(self.norm)
        local, global_, square = (w.contiguous() for w in (self.first.weight * gain).chunk(3, dim=1))
        return DistortionWeights(
            local,
            global_,
            square,
            self.first.bias + self.first.weight @ shift,
            self.second.weight,
            self.second.bias,
            self.last.weight[0],
            self.last.bias[0],
        )


def distortion_loss(clean: Tensor, stained: Tensor) -> Tensor:
    """l_DAD, Eq. 9, of clean and stained patches in equal number.

    ``clean`` and ``stained`` are logits of C; C is trained towards 1 on clean patches, as Eq. 8 and 12
    need it.
    """
    logits = torch.cat([clean.flatten(), stained.flatten()])
    targets = torch.cat([torch.ones_like(clean).flatten(), torch.zeros_like(stained).flatten()])
    return F.binary_cross_entropy_with_logits(logits, targets)
