"""The C code of window_conv2d, layer by layer: native.c beside this file."""

from __future__ import annotations

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from glance_fast.kernels.native import instruction_sets, library, parallel
from glance_fast.kernels.window_conv.reference import Unmasked, WindowedMap

# Places within a window are counted in 32 bits.
MOST = 2**31


SIZES = (
    "count", "places", "channels", "outputs", "kernel_height", "kernel_width", "stride", "padding",
    "height", "width", "out_height", "out_width", "size_height", "size_width",
    "window_height", "window_width", "residual_height", "residual_width", "relu", "bfloat16", "block",
)  # fmt: skip
POINTERS = (
    "base", "window", "window_origins", "window_boxes", "raw", "after", "weight", "bias",
    "residual_base", "residual_window", "residual_origins", "holes", "images", "origins", "boxes", "out",
)  # fmt: skip


class Layer(ctypes.Structure):
    """``Layer`` of native.h, field by field."""

    _fields_ = [(name, ctypes.c_int64) for name in SIZES] + [(name, ctypes.c_void_p) for name in POINTERS]


def runs(dtype: torch.dtype) -> bool:
    """Whether the C code is there and the best that this processor has for a type."""
    if library() is None:
        return False
    # Where the processor multiplies bfloat16 itself, oneDNN does it faster than this in float32.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported())


def fits(source: WindowedMap, unmasked: Unmasked) -> bool:
    """Whether the places of each map can be counted in 32 bits."""
    # A row of taps is read with columns beside the map.
    return max(source.base[0].numel(), unmasked.raw[0].numel()) < MOST // 4


def packed(weight: Tensor) -> Tensor:
    """A weight [O, C, k_h, k_w] as the C code reads it: float32 [O / block, k_h, k_w, C, block]."""
    found = library()
    assert found is not None
    block = found.glance_window_conv_block(instruction_sets() - 1, len(weight))
    full = F.pad(weight.float(), (0, 0, 0, 0, 0, 0, 0, -len(weight) % block))
    return full.unflatten(0, (-1, block)).permute(0, 3, 4, 2, 1).contiguous()


def window_conv2d_native(
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
    residual: WindowedMap | None,
    relu: bool,
    boxes: Tensor | None,
    weight_packed: Tensor | None,
) -> Tensor:
    """Windows [P, O, h, w]; arguments as ``window_conv2d_cpu`` has them."""
    found = library()
    assert found is not None
    outputs, channels, *kernel = weight.shape
    last = torch.channels_last
    out = torch.empty((len(images), outputs, *size), dtype=source.base.dtype, memory_format=last)
    added = WindowedMap(out[:0]) if residual is None else residual
    weights = packed(weight) if weight_packed is None else weight_packed
    tensors = {
        "base": source.base,
        "window": source.window,
        "window_origins": source.origins,
        "window_boxes": boxes_of(source),
        "raw": unmasked.raw,
        "after": unmasked.out,
        "weight": weights,
        "bias": torch.zeros(outputs) if bias is None else bias.float(),
        "residual_base": None if residual is None else added.base,
        "residual_window": added.window,
        "residual_origins": added.origins,
        "holes": holes,
        "images": images,
        "origins": origins,
        "boxes": boxes_of(WindowedMap(out, out, origins, boxes)),
        "out": out,
    }
    # Kept until the call is over.
    tensors = {
        k: t if t is None or t.is_floating_point() else t.long().contiguous() for k, t in tensors.items()
    }
    layer = Layer(
        count=len(images),
        places=len(holes),
        channels=channels,
        outputs=outputs,
        stride=stride,
        padding=padding,
        relu=relu,
        bfloat16=out.dtype == torch.bfloat16,
        block=weights.shape[-1],
        **{k: None if t is None else t.data_ptr() for k, t in tensors.items()},
    )
    layer.kernel_height, layer.kernel_width = kernel
    layer.height, layer.width = source.base.shape[2:]
    layer.out_height, layer.out_width = unmasked.raw.shape[2:]
    layer.size_height, layer.size_width = size
    if source.window is not None:
        layer.window_height, layer.window_width = source.window.shape[2:]
    if added.window is not None:
        layer.residual_height, layer.residual_width = added.window.shape[2:]
    if found.glance_window_conv(
        ctypes.byref(layer), instruction_sets() - 1, parallel(), torch.get_num_threads()
    ):
        raise MemoryError("window_conv2d: no memory for the windows of a thread")
    return out


def boxes_of(source: WindowedMap) -> Tensor | None:
    """Int64 [P, 4]: the windows' boxes, which are all of them unless said."""
    if source.boxes is not None or source.window is None or source.origins is None:
        return source.boxes
    first = source.origins.long()
    return torch.cat([first, first + torch.tensor(source.window.shape[2:])], dim=1)
