"""Partial convolution on a GPU: an implicit matrix product, with all that Eq. 5 adds in its ends.

    y  = act((W · (X ⊙ M)) · k_h k_w / sum(M) + b + R)   where sum(M) > 0, act(R) elsewhere
    g  = dy · k_h k_w / sum(M)                           where sum(M) > 0, 0 elsewhere
    dX = M ⊙ (Wᵀ · g)      dW = g ⊙ (X ⊙ M)      db = Σ dy where sum(M) > 0      dR = dy

A row of the product is a pixel of the output. Channels lie last, so what a row of the kernel sees is one
run of KW · C numbers, and the sum walks over these runs, KH of them: a net's first layer with its three
channels takes the same way as the deep ones. With boxes for holes M and sum(M) are integer comparisons
and products; no mask is read. Between the layers of a net (INNER) X is 0 in its holes already.

Nothing is summed by atomics: two runs give the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from glance_fast.geometry import output_size
from glance_fast.kernels.conv_common import PROGRAMS, dense_pixels, split
from glance_fast.kernels.dispatch import configuration, memory_format, on_its_device, table_of, tf32_allowed
from glance_fast.kernels.partial_conv.gpu_backward import (
    partial_conv_bwd_dw_kernel,
    partial_conv_bwd_dx_kernel,
)
from glance_fast.kernels.partial_conv.gpu_forward import (
    holes_after_kernel,
    partial_conv_fwd_kernel,
    renormalise_fwd_kernel,
)
from glance_fast.kernels.partial_conv.reference import check_holes, clip, inside


def by_library(x: Tensor, weight: Tensor, stride: int, route: str, direction: str) -> bool:
    """Whether a library convolution is to do the sum, in the direction "fwd" or "bwd".

    Where the route is "auto" the device's table says so of the shape, else a guess. Forward, one kernel
    spares a trip of y through memory, which counts where matrix units make the sum cheap; without them (fp32
    with tf32 switched off) the library's sum is the faster one. Backward, it is until measured.
    """
    if route != "auto":
        return route == "cudnn"
    entry = table_of(x).get(f"partial_conv_{direction}_route", {}).get(shape_of(x, weight, stride))
    if entry is not None:
        return not entry["triton"]
    return direction == "bwd" or not (x.element_size() < 4 or tf32_allowed())


def shape_of(x: Tensor, weight: Tensor, stride: int) -> str:
    """The name of a shape in the table of tuned configurations: batch and map enter by magnitude."""
    pixels = max(x.shape[0] * x.shape[2] * x.shape[3], 1).bit_length()
    o, c, kh, kw = weight.shape
    return f"{str(x.dtype).removeprefix('torch.')} {c}-{o} {kh}x{kw}/{stride} 2^{pixels}"


def blocks(rows: int, outputs: int, depth: int, channels: int, size: int) -> dict[str, int]:
    """Tile of a matrix product of [rows, depth] and [depth, outputs] of numbers of ``size`` bytes.

    ``depth`` is a run of pixels of ``channels`` each.
    """
    block_n = min(max(triton.next_power_of_2(outputs), 16), 128)
    block_k = min(max(triton.next_power_of_2(depth), 16), 64 if size < 4 else 32)
    few = triton.cdiv(rows, 128) * triton.cdiv(outputs, block_n) < PROGRAMS // 2
    # A place of its own for each number of a tile takes registers: more warps share them.
    ragged = channels % block_k != 0
    return {
        "BLOCK_M": 64 if few or ragged else 128,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "num_warps": 8 if ragged or (block_n == 128 and not few) else 4,
        "num_stages": 3,
    }


def precision() -> str:
    """How matrix units round float32: torch's own switch for convolutions."""
    return "tf32" if tf32_allowed() else "ieee"


def mask_of(mask: Tensor) -> Tensor:
    """Holes as they are; a mask as dense uint8."""
    return mask.contiguous() if mask.dim() == 3 else (mask != 0).to(torch.uint8).contiguous()


def sizes(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of the output."""
    return tuple(
        output_size(s, k, stride, padding) for s, k in zip(x.shape[-2:], weight.shape[-2:], strict=True)
    )


@on_its_device
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor,
    stride: int,
    padding: int,
    relu: bool,
    inner: bool,
    library: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, sum(M) and the holes of y; see ``operator.py``. ``library``: by a library convolution."""
    (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    oh, ow = sizes(x, weight, stride, padding)
    boxes = mask.dim() == 3
    count = mask.shape[1] if boxes else 0
    masks = mask_of(mask)
    seen = torch.empty(n, 1, oh, ow, dtype=torch.int16, device=x.device)
    flags = {
        "BOXES": boxes,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "RELU": relu,
    }
    layer = {"KH": kh, "KW": kw, "STRIDE": stride, "PADDING": padding}
    residual = None if residual is None else dense_pixels(residual)
    rows = n * oh * ow
    if library:
        if not inner:
            hidden = inside(mask, h, w) if boxes else mask == 0
            x = x.masked_fill(hidden, 0)
        y = dense_pixels(F.conv2d(x, weight, None, stride, padding))
        block_n = min(triton.next_power_of_2(o), 64)
        tile = configuration(
            x,
            "renormalise_fwd_kernel",
            shape_of(x, weight, stride),
            {"BLOCK_M": 4096 // block_n, "BLOCK_N": block_n, "num_warps": 4},
        )
        if rows:
            renormalise_fwd_kernel[triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(o, tile["BLOCK_N"])](
                y, bias, residual, masks, seen, rows, h, w, oh, ow, o, count, **layer, **flags, **tile
            )
    else:
        y = torch.empty(n, oh, ow, o, dtype=x.dtype, device=x.device)
        tile = configuration(
            x,
            "partial_conv_fwd_kernel",
            shape_of(x, weight, stride),
            blocks(rows, o, kw * c, c, x.element_size()),
        )
        if rows:
            partial_conv_fwd_kernel[triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(o, tile["BLOCK_N"])](
                dense_pixels(x), dense_pixels(weight), bias, residual, masks, y, seen,
                rows, h, w, c, oh, ow, o, count, **layer, **flags, INNER=inner,
                ONE_TAP=c % tile["BLOCK_K"] == 0, PRECISION=precision(), **tile,
            )  # fmt: skip
    y = y.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(x, weight))
    after = holes_after(masks, (h, w), (oh, ow), layer) if boxes else mask.new_empty(0, dtype=torch.int64)
    if boxes and count > 1 and not inner:
        check_holes(clip(mask, h, w), seen, after)
    return y, seen, after


def holes_after(holes: Tensor, size: tuple[int, int], out: tuple[int, int], layer: dict[str, int]) -> Tensor:
    """Int64 [N, K, 4]: the holes of a convolution's output."""
    after = torch.empty(holes.shape, dtype=torch.int64, device=holes.device)
    count = holes.shape[0] * holes.shape[1]
    if count:
        tile = configuration(holes, "holes_after_kernel", "any", {"BLOCK": 128})
        holes_after_kernel[(triton.cdiv(count, tile["BLOCK"]),)](
            holes, after, count, *size, *out, **layer, **tile
        )
    return after


@on_its_device
def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    seen: Tensor,
    stride: int,
    padding: int,
    inner: bool,
    needs: list[bool],
    library: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, those that ``needs`` asks for; see ``operator.py``."""
    if library:
        return backward_by_library(dy, x, weight, mask, seen, stride, padding, inner, needs)
    dx = dw = db = dy.new_empty(0)
    rows = seen.numel()
    if needs[0]:
        dx = input_gradient(dense_pixels(dy), x, weight, mask, seen, stride, padding)
    if needs[1] or needs[2]:
        if rows:
            dw, db = weight_gradients(dense_pixels(dy), x, weight, mask, seen, stride, padding, inner)
        else:
            dw, db = torch.zeros_like(weight), weight.new_zeros(len(weight))
    return dx, dw if needs[1] else dy.new_empty(0), db if needs[2] else dy.new_empty(0)


def input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, seen: Tensor, stride: int, padding: int
) -> Tensor:
    """dX [N, C, H, W] of dy [N, OH, OW, O]."""
    (n, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    oh, ow = dy.shape[1:3]
    dx = torch.empty(n, h, w, c, dtype=x.dtype, device=x.device)
    rows = n * triton.cdiv(h, stride) * triton.cdiv(w, stride)
    boxes = mask.dim() == 3
    tile = configuration(
        x, "partial_conv_bwd_dx_kernel", shape_of(x, weight, stride), blocks(rows, c, o, o, x.element_size())
    )
    if rows:
        grid = triton.cdiv(rows, tile["BLOCK_M"]), triton.cdiv(c, tile["BLOCK_N"]), stride * stride
        partial_conv_bwd_dx_kernel[grid](
            dy, dense_pixels(weight), mask_of(mask), seen, dx, rows, h, w, c, oh, ow, o,
            mask.shape[1] if boxes else 0, KH=kh, KW=kw, STRIDE=stride, PADDING=padding, BOXES=boxes,
            PRECISION=precision(), **tile,
        )  # fmt: skip
    return dx.permute(0, 3, 1, 2).contiguous(memory_format=memory_format(x))


def weight_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, mask: Tensor, seen: Tensor, stride: int, padding: int, inner: bool
) -> tuple[Tensor, Tensor]:
    """dW [O, C, KH, KW] and db [O] of dy [N, OH, OW, O]."""
    (_, c, h, w), (o, _, kh, kw) = x.shape, weight.shape
    oh, ow = dy.shape[1:3]
    rows = seen.numel()
    boxes = mask.dim() == 3
    block_n = min(max(triton.next_power_of_2(kw * c), 16), 64)
    tile = configuration(
        x,
        "partial_conv_bwd_dw_kernel",
        shape_of(x, weight, stride),
        {
            "BLOCK_M": min(max(triton.next_power_of_2(o), 16), 64),
            "BLOCK_N": block_n,
            # Longer ones spill on some cards: ratio and masks of each row take registers.
            "BLOCK_K": 32,
            # As in ``blocks``.
            "num_warps": 8 if c % block_n else 4,
            "num_stages": 3,
        },
    )
    tiles = triton.cdiv(o, tile["BLOCK_M"]), kh * triton.cdiv(kw * c, tile["BLOCK_N"])
    # Few tiles and a long sum: shares of it, summed up afterwards in order.
    splits, share = split(tiles[0] * tiles[1], rows, tile["BLOCK_K"])
    dw = torch.empty(splits, o, kh, kw, c, dtype=torch.float32, device=x.device)
    db = torch.empty(splits, o, dtype=torch.float32, device=x.device)
    partial_conv_bwd_dw_kernel[(*tiles, splits)](
        dy, dense_pixels(x), mask_of(mask), seen, dw, db, rows, h, w, c, oh, ow, o,
        mask.shape[1] if boxes else 0, share, KH=kh, KW=kw, STRIDE=stride,
        PADDING=padding, BOXES=boxes, INNER=inner, ONE_TAP=c % tile["BLOCK_N"] == 0, PRECISION=precision(),
        **tile,
    )  # fmt: skip
    dw = dw.sum(0).to(weight.dtype).permute(0, 3, 1, 2).contiguous(memory_format=memory_format(weight))
    return dw, db.sum(0).to(weight.dtype)


def backward_by_library(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    seen: Tensor,
    stride: int,
    padding: int,
    inner: bool,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by the library's two convolutions, dy scaled before."""
    hidden = inside(mask, *x.shape[-2:]) if mask.dim() == 3 else mask == 0
    dy = torch.where(seen > 0, dy, 0)
    db = dy.sum((0, 2, 3)) if needs[2] else dy.new_empty(0)
    scaled = (dy * (weight[0, 0].numel() / seen.clamp_min(1).float())).to(dy.dtype)
    if not inner:
        x = x.masked_fill(hidden, 0)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        scaled, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [*needs[:2], False]
    )
    if needs[0]:
        dx = dx.masked_fill_(hidden, 0).contiguous(memory_format=memory_format(x))
    if needs[1]:
        dw = dw.contiguous(memory_format=memory_format(weight))
    return (*(dy.new_empty(0) if g is None else g for g in (dx, dw)), db)
