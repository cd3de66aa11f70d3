"""Partial convolution with mask renormalisation (Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.kernels.dispatch import choose_backend, refuse
from glance_fast.kernels.partial_conv.operator import OPERATOR
from glance_fast.kernels.partial_conv.reference import (
    check_holes,
    clip,
    holes_after,
    inside,
    partial_conv2d_reference,
)

__all__ = ["choose_route", "inside_holes", "partial_conv2d", "partial_conv2d_inner"]

# Sums of box masks are int16.
MOST_PLACES = 2**15 - 1


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
    ``weight`` and ``bias``, once; what lies under the mask, NaN included, never reaches ``y``.

    Parameters
    ----------
    x : Tensor
        [N, C, H, W], floating point.
    weight : Tensor
        [O, C, k_h, k_w], the dtype of ``x``.
    bias : Tensor, optional
        [O], the dtype of ``x``.
    mask : Tensor, optional
        A binary tensor [N, 1, H, W] (1 is seen; in compiled code that is not checked), or integer holes
        [N, 4] or [N, K, 4] as (top, left, bottom, right), half-open: one box or K disjoint boxes an
        image, empty where bottom <= top or right <= left. Parts outside the image are cut off.
    stride, padding : int
        As for a convolution. With holes ``padding`` is smaller than the kernel.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" is "cpu" for tensors on a CPU (with a mask [N, 1, H, W] that is the definition itself), on a
        CUDA device what ``choose_route`` says, and "reference" elsewhere.

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
        A shape, a device or ``backend`` does not fit; the mask requires a gradient; a kernel of more than
        32,767 places comes with holes; holes of one image overlap, or together (not one alone) hide all that
        an output sees, so that the new mask is no set of boxes. What depends on the values of a mask or of
        holes is not waited for on a CUDA device: it fails there, as an assertion of the device, at a later
        call.

    Examples
    --------
    >>> x, weight = torch.ones(1, 1, 5, 5), torch.ones(1, 1, 3, 3)
    >>> hole = torch.tensor([[1, 1, 3, 3]])  # top, left, bottom, right
    >>> y, hole = partial_conv2d(x, weight, mask=hole, padding=1)
    >>> y[0, 0, 4, 4].item(), y[0, 0, 1, 1].item()  # nine places count, whatever the mask leaves of them
    (9.0, 9.0)
    >>> hole.tolist()  # every output sees something: no place is a hole any more
    [[0, 0, 0, 0]]
    """
    _check(x, weight, bias, mask, stride, padding)
    x, weight, bias = _cast(x, weight, bias)
    route = choose_route(x, mask, padding, backend)
    if mask is not None and mask.dim() == 4:
        if not torch.compiler.is_compiling():
            _check_binary(mask)
        if route == "reference":
            return partial_conv2d_reference(x, weight, bias, mask, stride, padding)
        y, seen, _ = OPERATOR(x, weight, bias, None, mask, stride, padding, False, False, route)
        return y, (seen > 0).to(mask.dtype)

    if mask is None:
        holes = torch.zeros(len(x), 0, 4, dtype=torch.int64, device=x.device)
    else:
        holes = mask.long() if mask.dim() == 3 else mask.long().unsqueeze(1)
    if route == "reference":
        size, kernel = (x.shape[-2], x.shape[-1]), (weight.shape[-2], weight.shape[-1])
        holes = clip(holes, *size)
        valid = (~inside(holes, *size)).to(x.dtype)
        y, valid = partial_conv2d_reference(x, weight, bias, valid, stride, padding)
        after = holes_after(holes, size, kernel, stride, padding)
        if holes.shape[1] > 1 and not torch.compiler.is_compiling():
            check_holes(holes, valid, after)
    else:
        y, _, after = OPERATOR(x, weight, bias, None, holes, stride, padding, False, False, route)
    return y, None if mask is None else after.view(mask.shape)


def partial_conv2d_inner(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    holes: Tensor,
    stride: int,
    padding: int,
    residual: Tensor | None = None,
    relu: bool = False,
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
    residual : Tensor, optional
        [N, O, H', W'], added to the convolution.
    relu : bool
        Whether what is negative then becomes 0.

    Returns
    -------
    y : Tensor
        [N, O, H', W']; exactly 0 in its holes, or the residual.
    holes : Tensor
        Int64 [N, K, 4], those of y.
    seen : Tensor
        int16 [N, 1, H', W'], sum(M); 0 in the holes of y.
    """
    x, weight, bias = _cast(x, weight, bias)
    route = choose_route(x, holes, padding)
    y, seen, after = OPERATOR(x, weight, bias, residual, holes, stride, padding, relu, True, route)
    return y, after, seen


def choose_route(x: Tensor, mask: Tensor | None, padding: int, backend: str = "auto") -> str:
    """Who computes a partial convolution of these tensors.

    Parameters
    ----------
    x, mask, padding, backend
        As for ``partial_conv2d``.

    Returns
    -------
    {"reference", "cpu", "triton", "auto"}
        "triton" is one kernel that does it all. "auto" is that, or a library convolution and a kernel for
        the rest, whichever ``python -m benchmarks.gpu.tune`` found faster on the device for the shape,
        forward and backward each by itself.

    Raises
    ------
    ValueError
        ``backend`` is unknown, or cannot run where x is; x has more pixels than a kernel can count.
    TypeError
        A Triton kernel was asked for float64.
    """
    chosen = choose_backend(backend, x.device)
    if chosen == "cpu" and mask is not None and mask.dim() == 4:
        return "reference"
    if chosen != "triton":
        return chosen
    if x.dtype == torch.float64:
        if backend == "auto":
            return "reference"
        raise TypeError("x: float64 is not for the Triton kernels; use backend 'reference'")
    if len(x) * (x.shape[-2] + 2 * padding) * (x.shape[-1] + 2 * padding) >= 1 << 31:
        raise ValueError(f"x: {tuple(x.shape)} has 2^31 pixels or more; split the batch")
    return backend


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


def _cast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All in autocast's type where it is on, as convolutions are."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(kind)

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype)

    return cast(x), cast(weight), None if bias is None else cast(bias)


def _check_binary(mask: Tensor) -> None:
    refuse(((mask != 0) & (mask != 1)).any(), "mask: holds values other than 0 and 1")


def _check(x, weight, bias, mask, stride, padding) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("mask", mask)):
        if tensor is None and name in ("bias", "mask"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: on {tensor.device}, but x is on {x.device}")
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
        if mask.requires_grad and torch.is_grad_enabled():
            raise ValueError("mask: requires a gradient, and there is none")
        return
    if mask.dim() not in (2, 3) or mask.shape[0] != len(x) or mask.shape[-1] != 4:
        raise ValueError(
            f"mask: expected [N, 1, H, W], [N, 4] or [N, K, 4], N = {len(x)}, got shape {tuple(mask.shape)}"
        )
    if mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
        raise TypeError(f"mask: holes are integers, got {mask.dtype}")
    if padding >= min(kernel):
        raise ValueError(f"padding: with holes it must be smaller than the kernel, got {padding}")
    if kernel[0] * kernel[1] > MOST_PLACES:
        raise ValueError(
            f"weight: with holes a kernel has at most {MOST_PLACES} places, got {kernel[0]} x {kernel[1]}; "
            "give a mask [N, 1, H, W]"
        )
