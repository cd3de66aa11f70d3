"""Global features patch by patch: the paper's procedure, the definition that every other engine meets."""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.geometry import PatchGrid
from glance_fast.nets.global_net import GlobalNet

BATCH = 8


def global_features(net: GlobalNet, x: Tensor, grid: PatchGrid) -> Tensor:
    """z_g of every patch, each from a pass of its own over the image without that patch.

    Parameters
    ----------
    net : GlobalNet
        In evaluation mode.
    x : Tensor
        Normalised images [B, 3, H, W].
    grid : PatchGrid
        The patches.

    Returns
    -------
    Tensor
        Float32 [B, P, D].
    """
    holes = torch.from_numpy(grid.holes).to(x.device)
    images = []
    for image in x:
        passes = []
        for part in holes.split(BATCH):
            copies = image.expand(len(part), -1, -1, -1)
            passes.append(net(copies, part[:, None])[:, 0])
        images.append(torch.cat(passes))
    return torch.stack(images) if images else x.new_zeros(0, len(grid), net.features)
