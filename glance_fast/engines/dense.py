"""Global features of all patches, exactly the definition's, from one pass and what each patch changes in it.

The unmasked image goes through the net once (the base). For every patch only the window of each layer that
it can change is computed, layer by layer, over that base.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.engines.memory import HEAD_ROWS, readout_bytes, window_bytes
from glance_fast.engines.passes import Weights, as_computed, check, folded, layer_outputs
from glance_fast.engines.plan import Chunk, geometry_of, plan
from glance_fast.engines.timing import timed
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.window_conv import WindowedMap, window_conv2d_inner
from glance_fast.nets.masked import MaskedNet, WindowedReading

# Bytes of windows at a time beyond which nothing gains: a CPU's caches hold what one layer hands to the next;
# a GPU wants many.
USEFUL = {"cpu": 16 << 20, "cuda": 2 << 30}


def global_features(net: MaskedNet, x: Tensor, grid: PatchGrid, limit: int | None = None) -> Tensor:
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

    Returns
    -------
    Tensor
        Float32 [B, P, D].

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
        return out
    windows = window_bytes(net, grid, x.itemsize)
    most = USEFUL[kind] // windows
    if limit is not None:
        most = min(most, limit // (windows + readout_bytes(net)))
    step = max(1, most // len(x))
    with torch.autocast(kind, enabled=False):
        with timed("base"):
            base, _ = layer_outputs(
                net, x, torch.zeros(len(x), 0, 4, dtype=torch.int64, device=x.device), weights
            )
            sums = integral_image(base[-1])
        waiting: list[tuple[Chunk, Tensor]] = []
        chunks = plan(geometry_of(net), grid, x.device, step, len(x))
        for chunk in chunks:
            count = len(chunk.patches)
            images = torch.arange(len(x), device=x.device).repeat_interleave(count)
            with timed("windows"):
                last, read = masked(net, base, weights, chunk, images)
            with timed("readout and head"):
                pooled = windowed_sum(sums, last, images) / chunk.seen.repeat(len(x))[:, None].clamp_min(1)
                places = chunk.places.repeat(len(x), 1)[:, None]
                waiting.append((chunk, net.read(read, pooled[:, None], places, (x.shape[-2], x.shape[-1]))))
                if chunk is chunks[-1] or sum(len(r) for _, r in waiting) >= HEAD_ROWS:
                    found = net.predict(torch.cat([r for _, r in waiting])).flatten(1)
                    parts = found.split([len(r) for _, r in waiting])
                    for (done, _), part in zip(waiting, parts, strict=True):
                        out[:, done.patches] = part.view(len(x), len(done.patches), -1)
                    waiting.clear()
    return out


def masked(
    net: MaskedNet,
    base: list[Tensor],
    weights: Weights,
    chunk: Chunk,
    images: Tensor,
) -> tuple[WindowedMap, list[WindowedReading]]:
    """The last layer's output, and what the head reads, of a chunk's patches in images int64 [B * n].

    All patches of one image come first, then those of the next.
    """
    before = source = WindowedMap(base[0])
    times = len(images) // len(chunk.patches)
    read = []
    for layer, (weight, bias), planned, unchanged in zip(
        net.layers(), weights, chunk.layers, base[1:], strict=True
    ):
        origins = planned.origins.repeat(times, 1)
        window = window_conv2d_inner(
            source,
            weight,
            bias,
            planned.holes.repeat(times, 1),
            images,
            origins,
            planned.size,
            layer.module.stride,
            layer.module.padding,
            before if layer.residual else None,
            relu=True,
        )
        before, source = source, WindowedMap(unchanged, window, origins)
        if layer.read:
            read.append(WindowedReading(source, images))
    return source, read


def integral_image(maps: Tensor) -> Tensor:
    """Sums over all rectangles from the corner: float64 [B, h + 1, w + 1, C]."""
    return F.pad(maps.double().cumsum(2).cumsum(3), (1, 0, 1, 0)).permute(0, 2, 3, 1)


def windowed_sum(sums: Tensor, source: WindowedMap, images: Tensor) -> Tensor:
    """Sum over the maps of windows over a base: float32 [N, C]."""
    assert source.window is not None and source.origins is not None
    own = source.window.float().sum((2, 3))
    height, width = source.window.shape[2:]
    if source.window.shape[2:] == source.base.shape[2:]:
        return own
    top, left = source.origins.unbind(1)
    bottom, right = top + height, left + width
    covered = (
        sums[images, bottom, right] - sums[images, top, right]
        - sums[images, bottom, left] + sums[images, top, left]
    )  # fmt: skip
    return (sums[images, -1, -1] - covered).float() + own
