"""Local-Net: a patch to its feature z_l (Eq. 4), by valid convolutions alone.

Valid convolutions make the net fully convolutional: one pass over an image gives the very features
that the patches give one by one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glance_fast.nets.modules import module_list
from glance_fast.nets.teacher import Teacher

# By patch size: residual blocks of two 3x3 convolutions at stride 4, then (kernel, stride, channels) of the
# convolutions that bring what is left to a single place.
LAYOUTS: dict[int, tuple[int, tuple[tuple[int, int, int], ...]]] = {
    32: (1, ((2, 1, 256),)),
    64: (2, ((3, 1, 128), (2, 2, 128), (2, 1, 256))),
}


class ValidBlock(nn.Module):
    """Residual block of two valid 3x3 convolutions; the shortcut is cropped to what they leave."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3)
        self.conv2 = nn.Conv2d(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + x[:, :, 2:-2, 2:-2])


class LocalNet(nn.Module):
    """Features of patches.

    Parameters
    ----------
    patch : int
        Side of a patch, pixels: 32 or 64.
    features : int
        D, numbers a patch.

    Attributes
    ----------
    step : int
        Cumulative stride; strides between patches are multiples of it.
    """

    def __init__(self, patch: int, features: int = 128) -> None:
        super().__init__()
        if patch not in LAYOUTS:
            raise ValueError(
                f"Local-Net has no layout for patches of {patch} pixels: use one of {list(LAYOUTS)}"
            )
        blocks, reductions = LAYOUTS[patch]
        self.patch, self.features = patch, features
        self.conv1 = nn.Conv2d(3, 64, 7, 2)
        self.layer1 = nn.Sequential(*(ValidBlock(64) for _ in range(blocks)))
        channels, self.step = 64, 4
        reduce = []
        for kernel, stride, outputs in reductions:
            reduce.append(nn.Conv2d(channels, outputs, kernel, stride))
            channels = outputs
            self.step *= stride
        self.reduce = module_list(reduce)
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, features, 1)

    def forward(self, x: Tensor, stride: int | None = None) -> Tensor:
        """Features of all patches at ``stride``.

        Parameters
        ----------
        x : Tensor
            Normalised images [B, 3, H, W], or patches.
        stride : int, optional
            Step between patches, pixels, a multiple of ``step``; ``step`` itself if not given.

        Returns
        -------
        Tensor
            [B, D, rows, cols]; place (i, j) is the patch whose top left is (i, j) * stride.
        """
        stride = stride or self.step
        if stride % self.step:
            raise ValueError(f"stride {stride} is no multiple of {self.step}, Local-Net's own stride")
        # In bfloat16 the pixels' own levels would be rounded: most of what bfloat16 loses, it loses here.
        with torch.autocast(x.device.type, enabled=False):
            x = self.conv1(x.to(self.conv1.weight.dtype))
        # ReLU and maximum in either order are the same; after pooling there is less of it.
        x = self.layer1(F.relu(F.max_pool2d(x, 3, 2)))
        for conv in self.reduce[:-1]:
            x = F.relu(conv(x))
        # The last reduction skips the places between patches, so the 1x1 layers never see them.
        last = self.reduce[-1]
        x = F.relu(F.conv2d(x, last.weight, last.bias, stride // self.step))
        return self.project(F.relu(self.hidden(x)))

    @torch.no_grad()
    def start_from(self, teacher: Teacher) -> None:
        """Take conv1 and layer1 of a ResNet whose BatchNorm is folded: converges much faster."""
        self.conv1.load_state_dict(teacher.conv1.state_dict())
        for mine, theirs in zip(self.layer1, teacher.layer1, strict=False):
            for conv in ("conv1", "conv2"):
                mine.get_submodule(conv).load_state_dict(theirs.get_submodule(conv).state_dict())

    @torch.no_grad()
    def whiten(self, mean: Tensor, covariance: Tensor, eps: float = 0.1) -> Tensor:
        """Fold a ZCA whitening of the outputs into the last layer.

        Parameters
        ----------
        mean, covariance : Tensor
            Of the outputs, [D] and [D, D].
        eps : float
            Added to the eigenvalues, as a share of their mean.

        Returns
        -------
        Tensor
            The whitening matrix [D, D] that was folded in.
        """
        values, vectors = torch.linalg.eigh(covariance.double())
        scale = (values.clamp_min(0) + eps * values.mean()).rsqrt()
        zca = (vectors * scale) @ vectors.T
        assert self.project.bias is not None
        weight = zca @ self.project.weight[:, :, 0, 0].double()
        self.project.weight.copy_(weight[:, :, None, None])
        self.project.bias.copy_(zca @ (self.project.bias.double() - mean.double()))
        return zca.float()
