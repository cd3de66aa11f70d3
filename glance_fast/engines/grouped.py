"""Global features of many patches a pass: a lattice of far-apart holes is masked at once, as in training.

Not the paper's definition: each patch's surrounding lacks the other patches of its lattice too. The scores
agree closely with the definition's because the holes lie far apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from glance_fast.engines.passes import as_computed, check, folded, layer_outputs
from glance_fast.engines.patchwise import passes_at_a_time
from glance_fast.engines.timing import timed
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.partial_conv import inside_holes
from glance_fast.nets.masked import MaskedNet, Reading, mean_seen, read_places


def global_features(
    net: MaskedNet,
    x: Tensor,
    grid: PatchGrid,
    limit: int | None,
    spacing: int,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """z_g of every patch, a lattice of them a pass.

    Parameters
    ----------
    net : MaskedNet
        In evaluation mode.
    x : Tensor
        Normalised images [B, 3, H, W].
    grid : PatchGrid
        The patches.
    limit : int, optional
        Bytes that the passes computed at a time may take; one always is.
    spacing : int
        Least distance between the same sides of two patches of a pass, pixels; at least the patch.
    chosen : sequence of int, optional
        Raster indices of P' patches, at least one: passes without any of them are left out. The others mask
        all patches of their lattice, so that z_g does not depend on what is chosen.

    Returns
    -------
    Tensor
        Float32 [B, P, D], or [B, P', D].

    Raises
    ------
    UserError
        The net has a layer that is not known.
    """
    check(net)
    kind = x.device.type
    x = as_computed(x)
    weights = folded(net, x.dtype)
    index, holes = groups(grid, spacing, x.device)
    if chosen is not None:
        wanted = torch.isin(index, torch.tensor(list(chosen), device=x.device)).any(1)
        index, holes = index[wanted], holes[wanted]
    out = x.new_empty(len(x), len(grid) + 1, net.features, dtype=torch.float32)
    image = torch.arange(len(x), device=x.device).repeat_interleave(len(index))
    group = torch.arange(len(index), device=x.device).repeat(len(x))
    passes = passes_at_a_time(net, x, grid, limit, index.shape[1])
    with torch.autocast(kind, enabled=False):
        for i, g in zip(image.split(passes), group.split(passes), strict=True):
            with timed("passes"):
                hidden = inside_holes(holes[g], grid.height, grid.width)
                maps, last = layer_outputs(net, x[i].masked_fill_(hidden, 0), holes[g], weights)
            with timed("readout and head"):
                read = [Reading(m) for m, layer in zip(maps[1:], net.layers(), strict=True) if layer.read]
                pooled = mean_seen(maps[-1], last)[:, None]
                places = read_places(net.patch, holes[g], (grid.height, grid.width))
                found = net.predict(net.read(read, pooled, places))
                out[i[:, None], index[g]] = found
    return out[:, :-1] if chosen is None else out[:, list(chosen)]


@lru_cache(maxsize=8)
def groups(grid: PatchGrid, spacing: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which patches a pass masks.

    Returns
    -------
    index : Tensor
        Int64 [passes, K], raster indices; the grid's length where a pass has fewer than K patches.
    holes : Tensor
        Int64 [passes, K, 4], the patches; empty in such places.
    """
    lattices = grid.lattices(spacing)
    index = np.full((len(lattices), max(map(len, lattices))), len(grid))
    for row, lattice in zip(index, lattices, strict=True):
        row[: len(lattice)] = lattice
    holes = np.concatenate([grid.holes, np.zeros((1, 4), np.int64)])[index]
    return torch.from_numpy(index).to(device), torch.from_numpy(holes).to(device)
