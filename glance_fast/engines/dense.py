"""Global features of all patches, exactly the definition's, from one pass and what each patch changes in it.

The unmasked image goes through the net once (the base). For every patch only the window of each layer that
it can change is computed, layer by layer, as the difference from that base.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.engines.memory import HEAD_ROWS, readout_bytes, window_bytes
from glance_fast.engines.passes import Weights, as_computed, check, folded, unmasked_layers
from glance_fast.engines.plan import Chunk, geometry_of, holes_of, plan
from glance_fast.engines.timing import timed
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.window_conv import Unmasked, WindowedMap, window_conv2d_inner
from glance_fast.nets.masked import MaskedNet, ReadPlaces, WindowedReading, read_places

# Bytes of windows at a time beyond which nothing gains: a CPU's caches hold what one layer hands to the next;
# a GPU wants many.
USEFUL = {"cpu": 16 << 20, "cuda": 2 << 30}


def global_features(
    net: MaskedNet,
    x: Tensor,
    grid: PatchGrid,
    limit: int | None = None,
    chosen: Sequence[int] | None = None,
) -> Tensor:
    """z_g of every patch, equal to the patch-by-patch engine's but for rounding.

    Parameters
    ----------
    net : MaskedNet
        In evaluation mode.
    x : Tensor
        Normalised images [B, 3, H, W].
    grid : PatchGrid
        The patches.
    limit : int, optional
        Bytes that the windows computed at a time may take; one patch's are always computed together.
    chosen : sequence of int, optional
        Raster indices of P' patches, ascending, at least one: only their windows are computed.

    Returns
    -------
    Tensor
        Float32 [B, P, D], or [B, P', D].

    Raises
    ------
    UserError
        A layer's output depends on the whole image, so that a patch changes all of it.
    """
    check(net)
    kind = x.device.type
    x = as_computed(x)
    weights = folded(net, x.dtype)
    out = x.new_empty(len(x), len(grid), net.features, dtype=torch.float32)
    if not len(x):
        return out if chosen is None else out[:, : len(chosen)]
    windows = window_bytes(net, grid, x.itemsize)
    most = USEFUL[kind] // windows
    if limit is not None:
        most = min(most, limit // (windows + readout_bytes(net)))
    step = max(1, most // len(x))
    # A GPU's matrix units take no float32; on a CPU that costs little.
    products = x.dtype if x.is_cuda else torch.float32
    everywhere = read_everywhere(net.patch, grid, x.device)
    with torch.autocast(kind, enabled=False):
        with timed("base"):
            odd = ~x.isfinite().all(1)
            # A difference from what is no number is none either, also where a hole hides that.
            x = x.masked_fill(odd[:, None], 0).contiguous(memory_format=torch.channels_last)
            base = unmasked_layers(net, x, weights)
            whole = base[-1].out.float().sum((2, 3))
        waiting: list[tuple[Chunk, Tensor]] = []
        some = None if chosen is None else tuple(chosen)
        chunks = plan(geometry_of(net), grid, x.device, step, len(x), some)
        for chunk in chunks:
            count = len(chunk.patches)
            images = torch.arange(len(x), device=x.device).repeat_interleave(count)
            with timed("windows"):
                last, read = masked(net, x, base, weights, chunk, images)
            with timed("readout and head"):
                assert last.window is not None
                changed = last.window.sum((2, 3), dtype=torch.float32).unflatten(0, (len(x), -1))
                pooled = (whole[:, None] + changed) / chunk.seen[:, None].clamp_min(1)
                places = ReadPlaces(*(t[chunk.patches] for t in everywhere))
                rows = net.read(read, pooled.flatten(0, 1)[:, None], places)
                waiting.append((chunk, rows))
                if chunk is chunks[-1] or sum(len(r) for _, r in waiting) >= HEAD_ROWS:
                    found = net.predict(torch.cat([r for _, r in waiting]), products).flatten(1)
                    parts = found.split([len(r) for _, r in waiting])
                    for (done, _), part in zip(waiting, parts, strict=True):
                        out[:, done.patches] = part.view(len(x), len(done.patches), -1)
                    waiting.clear()
        sees = odd_numbers_seen(odd, grid)
    if sees is not None:
        out = out.masked_fill_(sees[:, :, None], torch.nan)
    return out if chosen is None else out[:, list(chosen)]


def masked(
    net: MaskedNet,
    x: Tensor,
    base: list[Unmasked],
    weights: Weights,
    chunk: Chunk,
    images: Tensor,
) -> tuple[WindowedMap, list[WindowedReading]]:
    """The last layer's output, and what the head reads, of a chunk's patches in images int64 [B * n].

    All patches of one image come first, then those of the next.
    """
    before = source = WindowedMap(x)
    read = []
    for layer, (weight, bias, packed), planned, unmasked in zip(
        net.layers(), weights, chunk.layers, base, strict=True
    ):
        window = window_conv2d_inner(
            source,
            unmasked,
            weight,
            bias,
            planned.holes,
            images,
            planned.origins,
            planned.size,
            layer.module.stride,
            layer.module.padding,
            before if layer.residual else None,
            relu=True,
            boxes=planned.boxes,
            packed=packed,
        )
        before, source = source, WindowedMap(unmasked.out, window, planned.origins, planned.boxes)
        if layer.read:
            read.append(WindowedReading(source, images))
    return source, read


@lru_cache(maxsize=8)
def read_everywhere(patch: int, grid: PatchGrid, device: torch.device) -> ReadPlaces:
    """Where all patches of a grid are read, [P, 1, ...] each: the same for every image."""
    return read_places(patch, holes_of(grid, device)[:, None], (grid.height, grid.width))


def odd_numbers_seen(odd: Tensor, grid: PatchGrid) -> Tensor | None:
    """Whether there are pixels that are no numbers outside a patch: bool [B, P] of ``odd``, bool [B, H, W].

    None where there are none at all, which only a CPU asks: on a GPU, the answer would have to be waited for.
    """
    if odd.device.type == "cpu" and not bool(odd.any()):
        return None
    sums = F.pad(odd.int().cumsum(1).cumsum(2), (1, 0, 1, 0))
    top, left, bottom, right = holes_of(grid, odd.device).T
    hidden = sums[:, bottom, right] - sums[:, top, right] - sums[:, bottom, left] + sums[:, top, left]
    return hidden != sums[:, -1, -1, None]
