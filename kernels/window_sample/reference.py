"""Bilinear reading of windows over a base in torch: the four places around, and between them.

X_p = base[images[p]], with window[p] added to it
y_p = lerp(lerp(X_p[⌊y⌋, ⌊x⌋], X_p[⌊y⌋, ⌊x⌋ + 1], x - ⌊x⌋), the same at ⌊y⌋ + 1, y - ⌊y⌋)
"""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.kernels.window_conv.reference import WindowedMap


def neighbours(cells: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The places before and after ``cells`` on an axis, and how far between them they lie, [..., 1]."""
    cells = cells.clamp(0, size - 1)
    low = cells.floor().clamp_max(max(size - 2, 0))
    first = low.long()
    return first, (first + 1).clamp_max(size - 1), (cells - low)[..., None]


def window_sample_reference(source: WindowedMap, images: Tensor, cells: Tensor) -> Tensor:
    """[P, R, C]; see ``window_sample``."""
    base, window, origins, _ = source
    count = len(images)
    if len(cells) < count:
        cells = cells.repeat(count // len(cells), 1, 1)
    real = torch.promote_types(base.dtype, torch.float32)
    (x0, x1, right), (y0, y1, down) = (
        neighbours(cell, size) for cell, size in zip(cells.unbind(-1), base.shape[:1:-1], strict=True)
    )
    # All four corners at once: one by one, their places take longer than their numbers.
    y, x = torch.cat([y0, y0, y1, y1], -1), torch.cat([x0, x1, x0, x1], -1)
    found = base.permute(0, 2, 3, 1)[images.long()[:, None], y, x].to(real)
    if window is not None and origins is not None:
        origins = origins.long().repeat(count // max(len(origins), 1), 1)
        top, left = origins[:, :, None].unbind(1)
        row, column = y - top, x - left
        height, width = window.shape[2:]
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.arange(count, device=y.device)[:, None]
        held = window.permute(0, 2, 3, 1)[index, row.clamp(0, height - 1), column.clamp(0, width - 1)]
        found += held.to(real) * inside[..., None]
    corners = found.chunk(4, dim=1)
    right, down = right.to(real), down.to(real)
    top_, bottom = torch.lerp(corners[0], corners[1], right), torch.lerp(corners[2], corners[3], right)
    return torch.lerp(top_, bottom, down)
