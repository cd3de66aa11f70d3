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

# Number of the instruction set that multiplies two bfloat16 at once.
PAIRS = 3

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


def there(dtype: torch.dtype) -> bool:
    """Whether the C code is, and knows the type."""
    return library() is not None and dtype in (torch.float32, torch.bfloat16)


def library_first(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies faster than the C code: it has a processor's matrix unit."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def instructions(dtype: torch.dtype) -> int:
    """Number of the instruction set whose products are taken, in the order of native.c."""
    last = instruction_sets() - 1
    return last if dtype == torch.bfloat16 else min(last, PAIRS - 1)


def fits(source: WindowedMap, unmasked: Unmasked) -> bool:
    """Whether the places of each map can be counted in 32 bits."""
    # A row of taps is read with columns beside the map.
    return max(source.base[0].numel(), unmasked.raw[0].numel()) < MOST // 4


def packed(weight: Tensor) -> Tensor:
    """A weight [O, C, k_h, k_w] as the C code reads it.

    Float32 [O / block, k_h, k_w, C, block]; bfloat16 [O / block, k_h, k_w, C / 2, block, 2] where the
    processor multiplies those in pairs. Zeros fill up what does not divide.
    """
    found = library()
    assert found is not None
    number = instructions(weight.dtype)
    pairs = number == PAIRS
    block = found.glance_window_conv_block(number, len(weight))
    full = weight if pairs else weight.float()
    full = F.pad(full, (0, 0, 0, 0, 0, weight.shape[1] % 2 if pairs else 0, 0, -len(weight) % block))
    full = full.unflatten(0, (-1, block)).permute(0, 3, 4, 2, 1)
    return (full.unflatten(3, (-1, 2)).transpose(4, 5) if pairs else full).contiguous()


class NativeLayer:
    """One layer; arguments as ``window_conv2d_cpu`` has them.

    Attributes
    ----------
    out : Tensor
        [P, O, h, w], where ``run`` or ``finish`` leave the windows.
    """

    def __init__(
        self,
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
    ) -> None:
        outputs, channels, *kernel = weight.shape
        last = torch.channels_last
        self.out = torch.empty((len(images), outputs, *size), dtype=source.base.dtype, memory_format=last)
        added = WindowedMap(self.out[:0]) if residual is None else residual
        tensors = {
            "base": source.base,
            "window": source.window,
            "window_origins": source.origins,
            "window_boxes": boxes_of(source),
            "raw": unmasked.raw,
            "after": unmasked.out,
            "bias": torch.zeros(outputs) if bias is None else bias.float(),
            "residual_base": None if residual is None else added.base,
            "residual_window": added.window,
            "residual_origins": added.origins,
            "holes": holes,
            "images": images,
            "origins": origins,
            "boxes": boxes_of(WindowedMap(self.out, self.out, origins, boxes)),
            "out": self.out,
        }
        # Kept as long as their addresses are.
        self.tensors = {
            k: t if t is None or t.is_floating_point() else t.long().contiguous() for k, t in tensors.items()
        }
        self.layer = Layer(
            count=len(images),
            places=len(holes),
            channels=channels,
            outputs=outputs,
            stride=stride,
            padding=padding,
            relu=relu,
            bfloat16=self.out.dtype == torch.bfloat16,
            block=outputs,
            **{k: None if t is None else t.data_ptr() for k, t in self.tensors.items()},
        )
        self.layer.kernel_height, self.layer.kernel_width = kernel
        self.layer.height, self.layer.width = source.base.shape[2:]
        self.layer.out_height, self.layer.out_width = unmasked.raw.shape[2:]
        self.layer.size_height, self.layer.size_width = size
        if source.window is not None:
            self.layer.window_height, self.layer.window_width = source.window.shape[2:]
        if added.window is not None:
            self.layer.residual_height, self.layer.residual_width = added.window.shape[2:]

    def run(self, weight: Tensor) -> None:
        """All of the layer, by the weight that ``packed`` gives."""
        self.layer.weight, self.layer.block = weight.data_ptr(), weight.shape[4]
        self._call("glance_window_conv", instructions(self.out.dtype))

    def fill(self, field: Tensor, part: slice) -> None:
        """What these windows read, into field [n, C, rows, columns]."""
        at = ctypes.c_void_p(field.data_ptr())
        self._call("glance_window_conv_fill", *_range(part), at, *map(ctypes.c_int64, field.shape[2:]))

    def finish(self, y: Tensor, part: slice) -> None:
        """The rest, of their products y [n, O, h, w]."""
        at = ctypes.c_void_p(y.data_ptr())
        self._call("glance_window_conv_finish", *_range(part), at, instructions(self.out.dtype))

    def _call(self, function: str, *arguments: object) -> None:
        run = getattr(library(), function)
        if run(ctypes.byref(self.layer), *arguments, parallel(), torch.get_num_threads()):
            raise MemoryError("window_conv2d: no memory for the windows of a thread")


def _range(part: slice) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    return ctypes.c_int64(part.start), ctypes.c_int64(part.stop)


def boxes_of(source: WindowedMap) -> Tensor | None:
    """Int64 [P, 4]: the windows' boxes, which are all of them unless said."""
    if source.boxes is not None or source.window is None or source.origins is None:
        return source.boxes
    first = source.origins.long()
    return torch.cat([first, first + torch.tensor(source.window.shape[2:])], dim=1)
