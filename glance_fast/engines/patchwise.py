"""Global features patch by patch: the paper's procedure, the definition that engine "dense" meets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from glance_fast.engines.memory import pass_bytes, readout_bytes
from glance_fast.geometry import PatchGrid
from glance_fast.nets.masked import MaskedNet

# More passes at a time would not be faster.
MOST_PASSES = 8


def global_features(
    net: MaskedNet,
    x: Tensor,
    grid: PatchGrid,
    limit: int | None = None,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """z_g of every patch, each from a pass of its own over the image without that patch.

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
    chosen : sequence of int, optional
        Raster indices of P' patches, at least one: the others have no pass.

    Returns
    -------
    Tensor
        Float32 [B, P, D], or [B, P', D].
    """
    holes = torch.from_numpy(grid.holes if chosen is None else grid.holes[list(chosen)]).to(x.device)
    passes = passes_at_a_time(net, x, grid, limit)
    images = []
    for image in x:
        found = []
        for part in holes.split(passes):
            copies = image.expand(len(part), -1, -1, -1)
            found.append(net(copies, part[:, None])[:, 0])
        images.append(torch.cat(found))
    return torch.stack(images) if images else x.new_zeros(0, len(holes), net.features)


def passes_at_a_time(net: MaskedNet, x: Tensor, grid: PatchGrid, limit: int | None, patches: int = 1) -> int:
    """Passes of ``net`` over images like ``x`` that keep ``limit``, with so many patches each."""
    if limit is None:
        return MOST_PASSES
    a_pass = pass_bytes(net, grid, x.itemsize) + patches * readout_bytes(net)
    return min(max(limit // a_pass, 1), MOST_PASSES)
