"""Partial convolution of a batch of windows over a shared base: one layer of the dense engine."""

from __future__ import annotations

import torch
from torch import Tensor

from glance_fast.geometry import output_size
from glance_fast.kernels.dispatch import choose_backend, refuse
from glance_fast.kernels.window_conv.cpu import packed, window_conv2d_cpu
from glance_fast.kernels.window_conv.reference import Unmasked, WindowedMap, window_conv2d_reference

__all__ = ["Unmasked", "WindowedMap", "packed", "window_conv2d", "window_conv2d_inner"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Triton's kernel counts rows of outputs and places of a map in 32 bits, elements in 64.
MOST = 2**31 - 2**16


def window_conv2d(
    base: Tensor,
    base_raw: Tensor,
    base_out: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    holes: Tensor,
    images: Tensor,
    origins: Tensor,
    size: tuple[int, int],
    stride: int = 1,
    padding: int = 0,
    *,
    window: Tensor | None = None,
    window_origins: Tensor | None = None,
    residual: WindowedMap | None = None,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    r"""Partial convolution (Eq. 5 of *Glancing at the Patch*) of windows, each under a hole of its own.

    .. math:: y = \mathrm{act}\left(W^T (X \odot M) \cdot \frac{k_h k_w}{\mathrm{sum}(M)} + b + R\right)

    It is computed from what differs: in a map of a masked image only the surrounding of the hole does, and
    there it is given by its difference, ``window``, from the map of the unmasked image, ``base``. So is what
    is returned:

    .. math:: W^T (X \odot M) = W^T \mathrm{base} + W^T \mathrm{window}, \qquad
              \delta = y - \mathrm{base\_out}

    X at a place of window p is 0 outside the map, ``base[images[p]] + window[p]`` where that covers the
    place, and ``base[images[p]]`` elsewhere. In the hole it must be 0, and all of the hole be covered:
    ``window`` is minus ``base`` there. Where sum(M) is 0, which counts zero padding as masked, the
    convolution and b count as 0. For inference alone: not differentiable. All numbers must be finite, those
    in holes, too.

    Parameters
    ----------
    base : Tensor
        [N, C, H, W], the layer's input for the unmasked images; float32, float16 or bfloat16, and for the
        reference and the CPU float64. Here and below channels-last is taken as it is, any other layout
        copied.
    base_raw : Tensor
        [N, O, H', W'], the convolution of ``base`` with ``weight``, without bias or ratio; float32, float64
        for that.
    base_out : Tensor
        [N, O, H', W'], the layer's output for the unmasked images, in the dtype of ``base``.
    weight : Tensor
        [O, C, k_h, k_w].
    bias : Tensor or None
        [O].
    holes : Tensor
        Integer [P, 4], (top, left, bottom, right) in the layer's input, half-open; empty where
        bottom <= top or right <= left. Parts outside the map are cut off.
    images : Tensor
        Integer [P], the image that each window belongs to.
    origins : Tensor
        Integer [P, 2], (top, left) of each output window in the layer's output; all lie within it.
    size : (int, int)
        Height and width of the output windows.
    stride, padding : int
        As for a convolution.
    window : Tensor, optional
        [P, C, i_h, i_w], windows of the layer's input: differences. None for a net's first layer, where
        nothing but the hole differs.
    window_origins : Tensor, optional
        Integer [P, 2], (top, left) of each ``window`` in the layer's input; all lie within it.
    residual : WindowedMap, optional
        R, maps of the size of the layer's output, base [N, O, H', W'] and windows [P, O, r_h, r_w]; put
        together as X is, but with no hole and no padding.
    relu : bool
        act: ReLU, or nothing.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" takes "cpu" on a CPU, "triton" on a CUDA device and "reference" elsewhere. On CUDA, float32
        is multiplied as tf32 where ``torch.backends.cudnn.conv.fp32_precision`` lets torch's convolutions
        do so.

    Returns
    -------
    Tensor
        δ, [P, O, h, w], channels-last, in the dtype of ``base``.

    Raises
    ------
    TypeError
        An argument is no tensor, or has a dtype that does not fit.
    ValueError
        A shape, a device, an index or ``backend`` does not fit; a tensor requires a gradient. On a CUDA
        device an index is not waited for: it fails there, as an assertion of the device, at a later call.
    """
    source, unmasked = WindowedMap(base, window, window_origins), Unmasked(base_raw, base_out)
    _check_tensors(source, unmasked, weight, bias, holes, images, origins, residual)
    _check_layer(source, unmasked, weight, bias, holes, origins, images, size, stride, padding, residual)
    backend = choose_backend(backend, base.device)
    if backend == "triton" and base.dtype == torch.float64:
        raise TypeError("base: float64 has no Triton kernel; use backend='reference'")
    return window_conv2d_inner(
        _laid_out(source),
        Unmasked(_channels_last(base_raw), _channels_last(base_out)),
        _channels_last(weight),
        bias if bias is None else bias.contiguous(),
        holes.contiguous(),
        images.contiguous(),
        origins.contiguous(),
        (size[0], size[1]),
        stride,
        padding,
        residual if residual is None else _laid_out(residual),
        relu,
        backend=backend,
    )


def window_conv2d_inner(
    source: WindowedMap,
    unmasked: Unmasked,
    weight: Tensor,
    bias: Tensor | None,
    holes: Tensor,
    images: Tensor,
    origins: Tensor,
    size: tuple[int, int],
    stride: int,
    padding: int,
    residual: WindowedMap | None = None,
    relu: bool = False,
    boxes: Tensor | None = None,
    packed: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The same between the layers of a net, which keep what is needed: nothing is checked or waited for.

    Parameters
    ----------
    source : WindowedMap
        The layer's input: ``base``, ``window`` and ``window_origins`` of ``window_conv2d``, and the part of
        each window that is not 0.
    unmasked : Unmasked
        ``base_raw`` and ``base_out`` of ``window_conv2d``.
    weight, bias, holes, images, origins, size, stride, padding, residual, relu
        As there, all on one device. Floating-point tensors of four axes are channels-last, integers int32
        or int64, and contiguous. All places, also those of ``source`` and ``residual``, may be of n windows
        where P is a multiple of n: window p then has those of p mod n, as windows of several images do.
    boxes : Tensor, optional
        Integer [P or n, 4], (top, left, bottom, right) in the layer's output, each within its window: where
        y can differ from ``base_out``. Elsewhere δ may be left 0.
    packed : Tensor, optional
        ``weight`` as ``packed`` gives it, so that this need not be done for every call.
    backend : {"auto", "reference", "cpu", "triton"}
        "auto" is known to be right; the others are trusted.

    Returns
    -------
    Tensor
        [P, O, h, w], channels-last.
    """
    if backend == "auto":
        backend = choose_backend(backend, source.base.device)
    if backend == "triton":
        # Triton is there on Linux alone.
        from glance_fast.kernels.window_conv.gpu import window_conv2d_triton as run
    else:
        run = window_conv2d_reference
    layer = source, unmasked, weight, bias, holes, images, origins, size, stride, padding, residual, relu
    with torch.no_grad():
        return window_conv2d_cpu(*layer, boxes, packed) if backend == "cpu" else run(*layer)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _laid_out(source: WindowedMap) -> WindowedMap:
    window, origins = source.window, source.origins
    if window is None or origins is None:
        return WindowedMap(_channels_last(source.base))
    return WindowedMap(_channels_last(source.base), _channels_last(window), origins.contiguous())


def _check_tensors(source, unmasked, weight, bias, holes, images, origins, residual) -> None:
    base, window, window_origins, _ = source
    if residual is not None and not isinstance(residual, WindowedMap):
        raise TypeError(f"residual: expected a WindowedMap, got {type(residual).__name__}")
    added = residual or WindowedMap(base)
    reals = {"base": base, "base_raw": unmasked.raw, "base_out": unmasked.out}
    reals |= {"weight": weight, "bias": bias, "window": window}
    reals |= {"residual.base": added.base, "residual.window": added.window}
    places = {"holes": holes, "images": images, "origins": origins, "window_origins": window_origins}
    places |= {"residual.origins": added.origins}
    optional = ("bias", "window", "window_origins", "residual.window", "residual.origins")
    for name, tensor in (reals | places).items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
        if tensor.device != base.device:
            raise ValueError(f"{name}: on {tensor.device}, but base is on {base.device}")
        if name in places:
            if tensor.dtype not in (torch.int32, torch.int64):
                raise TypeError(f"{name}: expected int32 or int64, got {tensor.dtype}")
            continue
        if base.dtype not in DTYPES:
            raise TypeError(f"base: expected float32, float16, bfloat16 or float64, got {base.dtype}")
        expected = base.dtype
        if name == "base_raw":
            expected = torch.promote_types(base.dtype, torch.float32)
        if tensor.dtype != expected:
            raise TypeError(f"{name}: {tensor.dtype}, expected {expected}, for base is {base.dtype}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name}: requires a gradient, and window_conv2d has none; use torch.no_grad()")


def _check_layer(
    source, unmasked, weight, bias, holes, origins, images, size, stride, padding, residual
) -> None:
    for name, value, least in (("stride", stride, 1), ("padding", padding, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
        if value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")
    base, count = source.base, images.shape[0] if images.dim() else 0
    if base.dim() != 4 or 0 in base.shape[1:]:
        raise ValueError(f"base: expected [N, C, H, W], got shape {tuple(base.shape)}")
    if weight.dim() != 4 or weight.shape[1] != base.shape[1] or 0 in weight.shape:
        raise ValueError(f"weight: expected [O, {base.shape[1]}, k_h, k_w], got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected [{len(weight)}], got shape {tuple(bias.shape)}")
    for name, tensor, shape in (
        ("images", images, (count,)),
        ("holes", holes, (count, 4)),
        ("origins", origins, (count, 2)),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected {list(shape)}, got shape {tuple(tensor.shape)}")

    out = tuple(
        output_size(s, k, stride, padding) for s, k in zip(base.shape[2:], weight.shape[2:], strict=True)
    )
    if min(out) < 1:
        raise ValueError(f"base: {tuple(base.shape[2:])} with padding {padding} is smaller than the kernel")
    for name, tensor in (("base_raw", unmasked.raw), ("base_out", unmasked.out)):
        if tensor.shape != (len(base), len(weight), *out):
            expected = (len(base), len(weight), *out)
            raise ValueError(f"{name}: expected {expected}, got shape {tuple(tensor.shape)}")
    if not isinstance(size, (tuple, list)) or not all(isinstance(s, int) for s in size):
        raise TypeError(f"size: expected two integers, got {size}")
    if len(size) != 2 or not all(1 <= s <= limit for s, limit in zip(size, out, strict=True)):
        raise ValueError(f"size: expected height and width within the output's {out}, got {size}")
    if max(base.shape[2] * base.shape[3], out[0] * out[1], count * size[0] * size[1]) > MOST:
        raise ValueError(f"base, size: a map or all outputs together have more than {MOST} places")
    _check_places("images", images.unsqueeze(1), (1,), (len(base),))
    _check_places("origins", origins, size, out)
    _check_windows("window", "window_origins", source, count)
    if residual is not None:
        expected = (len(base), len(weight), *out)
        if residual.base.shape != expected:
            raise ValueError(f"residual.base: expected {expected}, got shape {tuple(residual.base.shape)}")
        _check_windows("residual.window", "residual.origins", residual, count)


def _check_windows(name: str, place: str, source: WindowedMap, count: int) -> None:
    base, window, origins, _ = source
    if (window is None) != (origins is None):
        raise ValueError(f"{place}: goes with {name}, both or neither")
    if window is None or origins is None:
        return
    channels, *limits = base.shape[1:]
    if window.dim() != 4 or window.shape[:2] != (count, channels) or 0 in window.shape[2:]:
        raise ValueError(f"{name}: expected [{count}, {channels}, h, w], got shape {tuple(window.shape)}")
    if tuple(origins.shape) != (count, 2):
        raise ValueError(f"{place}: expected [{count}, 2], got shape {tuple(origins.shape)}")
    _check_places(place, origins, window.shape[2:], limits)


def _check_places(name: str, first: Tensor, lengths, limits) -> None:
    """Whether intervals of ``lengths`` that begin at ``first`` [P, axes] lie in [0, limits)."""
    # Axis by axis, because numbers that are put into a tensor of a GPU wait for it.
    axes = zip(first.unbind(1), lengths, limits, strict=True)
    outside = [(start < 0) | (start > limit - length) for start, length, limit in axes]
    refuse(
        torch.stack(outside).any(),
        f"{name}: {tuple(lengths)} from there does not lie within {tuple(limits)} everywhere",
    )
