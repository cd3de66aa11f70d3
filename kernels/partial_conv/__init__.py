"""Partial convolution with mask renormalisation (Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.geometry import output_size, shrink
from glance_fast.kernels.partial_conv.cpu import (
    count_seen,
    inside,
    partial_conv2d_holes,
    partial_conv2d_zeroed,
)
from glance_fast.kernels.partial_conv.reference import partial_conv2d_reference

__all__ = ["inside_holes", "partial_conv2d", "partial_conv2d_inner"]

BACKENDS = ("auto", "reference", "cpu", "triton")


def partial_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    r"""Partial convolution, Eq. 5 of *Glancing at the Patch*.

    .. math:: y = W^T (X \odot M) \cdot \frac{k_h k_w}{\mathrm{sum}(M)} + b
              \quad\text{where } \mathrm{sum}(M) > 0, \qquad y = 0 \text{ elsewhere}

    Zero padding counts as masked, so the ratio is above 1 at the border too. Differentiable in ``x``,
    ``weight`` and ``bias``; what lies under the mask, NaN included, never reaches ``y``.

    Parameters
    ----------
    x : Tensor
        [N, C, H, W], floating point.
    weight : Tensor
        [O, C, k_h, k_w], the dtype of ``x``.
    bias : Tensor, optional
        [O], the dtype of ``x``.
    mask : Tensor, optional
        A binary tensor [N, 1, H, W] (1 is seen), or integer holes [N, 4] or [N, K, 4] as
        (top, left, bottom, right), half-open: one box or K disjoint boxes an image, empty where
        bottom <= top or right <= left. Parts outside the image are cut off.
    stride, padding : int
        As for a convolution. With holes ``padding`` is smaller than the kernel.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" takes "cpu" for tensors on the CPU and "reference" elsewhere. With a mask [N, 1, H, W]
        both are the definition itself.

    Returns
    -------
    y : Tensor
        [N, O, H', W'].
    new_mask : Tensor or None
        What is seen of ``y``, in the form of ``mask``.

    Raises
    ------
    TypeError
        An argument is no tensor, or has a dtype that does not fit.
    ValueError
        A shape, a device or ``backend`` does not fit ("triton" has no kernel here); holes of one image
        overlap, or together (not one alone) hide all that an output sees, so that the new mask is no set
        of boxes.
    """
    _check(x, weight, bias, mask, stride, padding, backend)
    if mask is None:
        y, _ = partial_conv2d_reference(
            x, weight, bias, x.new_ones(len(x), 1, *x.shape[-2:]), stride, padding
        )
        return y, None
    if mask.dim() == 4:
        return partial_conv2d_reference(x, weight, bias, mask, stride, padding)

    size, kernel = tuple(x.shape[-2:]), tuple(weight.shape[-2:])
    holes = _clip(mask if mask.dim() == 3 else mask[:, None], size)
    seen = count_seen(holes, size, kernel, stride, padding)
    after = _shrink(holes, size, kernel, stride, padding)
    _check_boxes(holes, seen, after)
    if backend == "reference" or (backend == "auto" and x.device.type != "cpu"):
        valid = (~inside(holes, *size)).to(x.dtype)
        y, _ = partial_conv2d_reference(x, weight, bias, valid, stride, padding)
    else:
        y = partial_conv2d_holes(x, weight, bias, holes, seen, stride, padding)
    return y, after if mask.dim() == 3 else after[:, 0]


def partial_conv2d_inner(
    x: Tensor, weight: Tensor, bias: Tensor | None, holes: Tensor, stride: int, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Partial convolution between the layers of a net, which keep its invariants: nothing is checked.

    Parameters
    ----------
    x : Tensor
        [N, C, H, W], exactly 0 in its holes.
    weight, bias, stride, padding
        As for ``partial_conv2d``.
    holes : Tensor
        Int64 [N, K, 4], disjoint with space between them, within the image.

    Returns
    -------
    y : Tensor
        [N, O, H', W'], exactly 0 in its holes.
    holes : Tensor
        Int64 [N, K, 4], those of y.
    seen : Tensor
        Int64 [N, 1, H', W'], sum(M); 0 in the holes of y.
    """
    size, kernel = tuple(x.shape[-2:]), tuple(weight.shape[-2:])
    seen = count_seen(holes, size, kernel, stride, padding)
    y = partial_conv2d_zeroed(x, weight, bias, seen, stride, padding)
    return y, _shrink(holes, size, kernel, stride, padding), seen


def inside_holes(holes: Tensor, height: int, width: int) -> Tensor:
    """Which places lie in a hole.

    Parameters
    ----------
    holes : Tensor
        Integer, [N, 4] or [N, K, 4].
    height, width : int
        Of the layer that ``holes`` speaks of.

    Returns
    -------
    Tensor
        Bool [N, 1, height, width].
    """
    return inside(holes if holes.dim() == 3 else holes[:, None], height, width)


def _clip(holes: Tensor, size: tuple[int, int]) -> Tensor:
    # Sums of sides and sizes do not fit into the narrow types.
    holes = holes.long().clamp_min(0)
    holes = torch.minimum(holes, holes.new_tensor([*size, *size]))
    empty = (holes[..., 2] <= holes[..., 0]) | (holes[..., 3] <= holes[..., 1])
    return holes.masked_fill(empty[..., None], 0)


def _shrink(
    holes: Tensor, size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> Tensor:
    top, bottom = shrink(holes[..., 0], holes[..., 2], size[0], kernel[0], stride, padding)
    left, right = shrink(holes[..., 1], holes[..., 3], size[1], kernel[1], stride, padding)
    out = (output_size(size[0], kernel[0], stride, padding), output_size(size[1], kernel[1], stride, padding))
    return _clip(torch.stack([top, left, bottom, right], dim=-1), out)


def _areas(holes: Tensor) -> Tensor:
    return (holes[..., 2] - holes[..., 0]) * (holes[..., 3] - holes[..., 1])


def _check_boxes(holes: Tensor, seen: Tensor, after: Tensor) -> None:
    if holes.shape[1] < 2:
        return
    low = torch.maximum(holes[:, :, None, :2], holes[:, None, :, :2])
    high = torch.minimum(holes[:, :, None, 2:], holes[:, None, :, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    if bool((common.sum((1, 2)) != _areas(holes).sum(1)).any()):
        raise ValueError("mask: holes of one image overlap; give disjoint boxes, or a mask [N, 1, H, W]")
    if bool(((seen == 0).sum((1, 2, 3)) != _areas(after).sum(1)).any()):
        raise ValueError(
            "mask: two holes together hide all that one output sees; leave space between them, "
            "or give a mask [N, 1, H, W]"
        )


def _check(x, weight, bias, mask, stride, padding, backend) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("mask", mask)):
        if tensor is None and name in ("bias", "mask"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: on {tensor.device}, but x is on {x.device}")
    if backend not in BACKENDS:
        raise ValueError(f"backend: {backend!r} is none of {', '.join(BACKENDS)}")
    if backend == "triton":
        raise ValueError("backend: partial_conv2d has no Triton kernel; use 'auto'")
    if backend == "cpu" and x.device.type != "cpu":
        raise ValueError(f"backend: 'cpu' asked for tensors on {x.device}")
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        if not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    if x.dim() != 4:
        raise ValueError(f"x: expected [N, C, H, W], got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"x: expected floating point, got {x.dtype}")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight: expected [O, {x.shape[1]}, k_h, k_w], got shape {tuple(weight.shape)}")
    # Under autocast the convolution brings both to one dtype itself.
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"weight: {weight.dtype}, but x is {x.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], got shape {tuple(bias.shape)}")
    if bias is not None and bias.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"bias: {bias.dtype}, but x is {x.dtype}")
    kernel = weight.shape[-2:]
    if any(s + 2 * padding < k for s, k in zip(x.shape[-2:], kernel, strict=True)):
        raise ValueError(f"x: {tuple(x.shape[-2:])} with padding {padding} is smaller than the kernel")
    if mask is None:
        return
    if mask.dim() == 4:
        if mask.shape != (len(x), 1, *x.shape[-2:]):
            raise ValueError(f"mask: expected {(len(x), 1, *x.shape[-2:])}, got shape {tuple(mask.shape)}")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError("mask: holds values other than 0 and 1")
        return
    if mask.dim() not in (2, 3) or mask.shape[0] != len(x) or mask.shape[-1] != 4:
        raise ValueError(
            f"mask: expected [N, 1, H, W], [N, 4] or [N, K, 4], N = {len(x)}, got shape {tuple(mask.shape)}"
        )
    if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
        raise TypeError(f"mask: holes are integers, got {mask.dtype}")
    if padding >= min(kernel):
        raise ValueError(f"padding: with holes it must be smaller than the kernel, got {padding}")
