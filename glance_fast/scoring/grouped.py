"""Global features of many patches a pass: a lattice of far-apart holes is masked at once, as in training.

Not the paper's definition: each patch's surrounding lacks the other patches of its lattice too. The scores
agree closely with the definition's because the holes lie far apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.geometry import PatchGrid
from glance_fast.nets.global_net import GlobalNet
from glance_fast.scoring.patchwise import passes_at_a_time


def global_features(
    net: GlobalNet, x: Tensor, grid: PatchGrid, limit: int | None = None, spacing: int | None = None
) -> Tensor:
    """z_g of every patch, a lattice of them a pass.

    Parameters
    ----------
    net : GlobalNet
        In evaluation mode.
    x : Tensor
        Normalised images [B, 3, H, W].
    grid : PatchGrid
        The patches.
    limit : int, optional
        Bytes that the passes computed at a time may take; one always is.
    spacing : int, optional
        Least distance between the same sides of two patches of a pass, pixels; twice the patch if not
        given.

    Returns
    -------
    Tensor
        Float32 [B, P, D].
    """
    groups = grid.lattices(spacing or 2 * grid.patch)
    holes = torch.from_numpy(grid.holes).to(x.device)
    most = max(map(len, groups))
    # Smaller groups are filled up with empty holes, whose features are thrown away.
    padded = holes.new_zeros(len(groups), most, 4)
    index = torch.full((len(groups), most), len(grid), device=x.device)
    for row, group in enumerate(groups):
        members = torch.from_numpy(group).to(x.device)
        padded[row, : len(group)] = holes[members]
        index[row, : len(group)] = members
    out = x.new_empty(len(x), len(grid) + 1, net.features)
    image, group = (
        v.flatten()
        for v in torch.meshgrid(
            torch.arange(len(x), device=x.device), torch.arange(len(groups), device=x.device), indexing="ij"
        )
    )
    passes = passes_at_a_time(net, x, grid, limit)
    for i, g in zip(image.split(passes), group.split(passes), strict=True):
        out[i[:, None], index[g]] = net(x[i], padded[g])
    return out[:, :-1]
