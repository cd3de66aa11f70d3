"""Partial convolution (Eq. 5) whose hole lies in the middle of its kernel: every patch in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.kernels.dispatch import choose_backend
from glance_fast.kernels.surround_conv.operator import OPERATOR
from glance_fast.kernels.surround_conv.reference import output_sizes, surround_conv2d_reference

__all__ = ["surround_conv2d"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Triton's kernels count places in 32 bits, elements in 64.
MOST = 2**31 - 2**16
# Kernel, hole, stride, padding and dilations, as ``_geometry`` gives them.
Geometry = tuple[tuple[int, int], tuple[int, int], int, tuple[int, int], tuple[int, ...]]


def surround_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kernel: int | tuple[int, int],
    hole: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    far_weight: Tensor | None = None,
    dilations: tuple[int, ...] = (),
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Partial convolution (Eq. 5 of *Glancing at the Patch*) with the hole in the middle of its kernel.

    .. math:: y(p) = \mathrm{act}\left(\sum_{o \in \Omega,\ p + o \text{ inside}} W_o\, x(p + o)
              \cdot \frac{|\Omega|}{|\{o \in \Omega : p + o \text{ inside}\}|} + b\right)

    :math:`\Omega` is the kernel without its hole, and the far places. Each output has a mask of its own. So
    one pass over a grid of patches answers for all of them, where one mask for all outputs answers for one
    patch. y is exactly 0 where no place lies inside x. Differentiable in ``x``, ``weight``, ``bias`` and
    ``far_weight``, once; what lies in the hole of an output, NaN included, changes no bit of it.

    Parameters
    ----------
    x : Tensor
        [N, C, H, W]; float32, float16 or bfloat16, and for the reference and the CPU float64. Channels-last
        is taken as it is, any other layout copied.
    weight : Tensor
        [O, C, T], the dtype of ``x``: the T = k_h k_w - h_h h_w places of the kernel around its hole, in
        raster order.
    bias : Tensor, optional
        [O], the dtype of ``x``.
    kernel, hole : int or (int, int)
        Rows and columns; they differ by even numbers, and somewhere.
    stride : int
        As for a convolution: output (i, j) has its kernel at the rows
        [stride · i - padding, stride · i - padding + k_h) of x, and its columns alike.
    padding : int or (int, int), optional
        As for a convolution; what it adds is outside x. The default, (kernel - 1) / 2, is there for stride 1
        and odd kernels alone.
    far_weight : Tensor, optional
        [O, C, 8 · len(dilations)], the dtype of ``x``: the weights of the far places, in raster order,
        dilation by dilation. Goes with ``dilations``, both or neither.
    dilations : sequence of int
        Each adds the 8 places {-d, 0, d} x {-d, 0, d} around the hole's middle, which the kernel must be too
        small to hold. Only with an odd hole.
    relu : bool
        act: ReLU, or nothing.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" takes "cpu" on a CPU, "triton" on a CUDA device (there the reference for float64) and
        "reference" elsewhere. On CUDA, float32 is multiplied as tf32 where
        ``torch.backends.cudnn.conv.fp32_precision`` lets torch's convolutions do so.

    Returns
    -------
    Tensor
        [N, O, H', W'], channels-last, H' and W' those of a convolution with this kernel.

    Raises
    ------
    TypeError
        An argument is no tensor or no integer, or has a dtype that does not fit.
    ValueError
        A shape, a device, the geometry or ``backend`` does not fit.

    Examples
    --------
    >>> values = torch.ones(1, 1, 9, 9)  # of a grid of patches
    >>> ring = torch.ones(1, 1, 5 * 5 - 3 * 3)
    >>> y = surround_conv2d(values, ring, kernel=5, hole=3, padding=2)
    >>> values[0, 0, 4, 4] = 100.0  # seen by the patches around it, and not by itself
    >>> changed = surround_conv2d(values, ring, kernel=5, hole=3, padding=2) != y
    >>> changed[0, 0, 4, 2].item(), changed[0, 0, 4, 4].item()
    (True, False)
    """
    geometry = _geometry(kernel, hole, stride, padding, dilations)
    _check(x, weight, bias, far_weight, *geometry)
    x, weight, bias, far_weight = _cast(x, weight, bias, far_weight)
    route = _route(x, weight, geometry, backend)
    if route == "reference":
        return surround_conv2d_reference(x, weight, bias, far_weight, *geometry, relu)
    return OPERATOR(x, weight, bias, far_weight, *geometry, relu, route)


def _route(x: Tensor, weight: Tensor, geometry: Geometry, backend: str) -> str:
    chosen = choose_backend(backend, x.device)
    if chosen != "triton":
        return chosen
    if x.dtype == torch.float64:
        if backend == "auto":
            return "reference"
        raise TypeError("x: float64 is not for the Triton kernels; use backend='reference'")
    kernel, _, stride, padding, _ = geometry
    rows, cols = output_sizes((x.shape[-2], x.shape[-1]), kernel, stride, padding)
    if x.shape[0] * max(rows * cols, x.shape[-2] * x.shape[-1]) > MOST:
        raise ValueError(f"x: {tuple(x.shape)}, or what comes of it, has more than {MOST} places; split it")
    return "triton"


def _cast(
    x: Tensor, weight: Tensor, bias: Tensor | None, far_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """All in autocast's type where it is on, as convolutions are."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return x, weight, bias, far_weight
    dtype = torch.get_autocast_dtype(kind)

    def cast(t: Tensor) -> Tensor:
        return t if t.dtype == torch.float64 else t.to(dtype)

    bias, far_weight = (None if t is None else cast(t) for t in (bias, far_weight))
    return cast(x), cast(weight), bias, far_weight


def _integer(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name}: must be at least {least}, got {value}")
    return value


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name}: expected an integer or two, got {tuple(value)}")
        return _integer(name, value[0], least), _integer(name, value[1], least)
    return (_integer(name, value, least),) * 2


def _geometry(kernel, hole, stride, padding, dilations) -> Geometry:
    """Kernel, hole, stride, padding and dilations, checked, as pairs where there are two axes."""
    kernel, hole = _pair("kernel", kernel, 1), _pair("hole", hole, 1)
    if any(k < h or (k - h) % 2 for k, h in zip(kernel, hole, strict=True)):
        raise ValueError(f"hole: {hole} does not lie in the middle of the kernel {kernel}")
    if kernel == hole:
        raise ValueError(f"kernel: {kernel} is all hole")
    stride = _integer("stride", stride, 1)
    if padding is None:
        if stride != 1 or any(k % 2 == 0 for k in kernel):
            raise ValueError("padding: must be given where the stride is not 1 or the kernel is even")
        padding = tuple(k // 2 for k in kernel)
    padding = _pair("padding", padding, 0)
    if not isinstance(dilations, (tuple, list)):
        raise TypeError(f"dilations: expected a tuple of integers, got {type(dilations).__name__}")
    dilations = tuple(_integer("dilations", d, 1) for d in dilations)
    if len(set(dilations)) < len(dilations):
        raise ValueError(f"dilations: {dilations} holds one twice")
    if dilations and any(h % 2 == 0 for h in hole):
        raise ValueError(f"dilations: the hole {hole} has no middle; an odd one has")
    if dilations and min(dilations) <= max(kernel) // 2:
        raise ValueError(f"dilations: places at {min(dilations)} lie within the kernel {kernel}")
    return kernel, hole, stride, padding, dilations


def _check(x, weight, bias, far_weight, kernel, hole, stride, padding, dilations) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), ("far_weight", far_weight)):
        if tensor is None and name in ("bias", "far_weight"):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != x.device:
            raise ValueError(f"{name}: on {tensor.device}, but x is on {x.device}")
        if x.dtype not in DTYPES:
            raise TypeError(f"x: expected float32, float16, bfloat16 or float64, got {x.dtype}")
        # Under autocast all are brought to one dtype.
        if tensor.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"{name}: {tensor.dtype}, but x is {x.dtype}")
    if x.dim() != 4 or x.shape[1] == 0:
        raise ValueError(f"x: expected [N, C, H, W], got shape {tuple(x.shape)}")
    places = kernel[0] * kernel[1] - hole[0] * hole[1]
    if weight.dim() != 3 or len(weight) == 0 or weight.shape[1:] != (x.shape[1], places):
        raise ValueError(f"weight: expected [O, {x.shape[1]}, {places}], got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], got shape {tuple(bias.shape)}")
    if (far_weight is None) != (not dilations):
        raise ValueError("far_weight: goes with dilations, both or neither")
    if dilations and far_weight.shape != (len(weight), x.shape[1], 8 * len(dilations)):
        expected = [len(weight), x.shape[1], 8 * len(dilations)]
        raise ValueError(f"far_weight: expected {expected}, got shape {tuple(far_weight.shape)}")
    if any(s + 2 * p < k for s, p, k in zip(x.shape[-2:], padding, kernel, strict=True)):
        raise ValueError(f"x: {tuple(x.shape[-2:])} with padding {padding} is smaller than the kernel")
