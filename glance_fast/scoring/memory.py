"""How much memory scoring takes, so that it stays below the limit that the user sets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from glance_fast.config import Config
from glance_fast.errors import UserError
from glance_fast.geometry import PatchGrid
from glance_fast.nets.global_net import GlobalNet
from glance_fast.scoring.plan import changes, geometry_of, most_pixels

if TYPE_CHECKING:
    from glance_fast.model import Scale

# MiB that scoring may take beside the model, unless told otherwise.
DEFAULT = {"cpu": 2048, "cuda": 8192}
# Images in flight at a time: more would not be faster on a CPU, and a GPU is to be kept busy.
MOST_IMAGES = {"cpu": 8, "cuda": 64}
MIB = 1 << 20


def pass_bytes(net: GlobalNet, grid: PatchGrid, itemsize: int) -> int:
    """Bytes of all layers' outputs, and the input, of one pass over an image."""
    pixels = 3 * grid.height * grid.width
    for change, layer in zip(changes(geometry_of(net), grid), net.layers(), strict=False):
        pixels += change.out[0] * change.out[1] * len(layer.module.weight)
    return pixels * itemsize


def window_bytes(net: GlobalNet, grid: PatchGrid, itemsize: int) -> int:
    """Bytes of the most that the windows of one patch of one image hold at a time."""
    widest = max(len(layer.module.weight) for layer in net.layers())
    return most_pixels(geometry_of(net), grid) * widest * itemsize


def split(scales: Iterable[Scale], config: Config, itemsize: int, limit: int, most: int) -> tuple[int, int]:
    """How a limit is kept.

    Parameters
    ----------
    scales : iterable of Scale
        Of the model.
    config : Config
        Its settings.
    itemsize : int
        Bytes of a number in the networks.
    limit : int
        Bytes.
    most : int
        Images at a time, at most, and those whose maps are made together.

    Returns
    -------
    images : int
        To score at a time.
    windows : int
        Bytes that are left for windows, or for the passes of the other engines.

    Raises
    ------
    UserError
        Not even one image and one patch fit.
    """
    scales = list(scales)
    height, width = config.image_size
    # The table of the interpolation, and the maps of a batch: two heads, twice, and their blends.
    maps = height * width * 4 * most * (5 * len(scales) + 1)
    fixed = maps + height * width * 8 * config.idw_neighbours * len(scales)
    features = sum(len(s.grid) * s.local.features * 2 * 4 for s in scales)
    # Of Local-Net, the first layer's output, which is its largest, and what comes of it.
    local = 3 * (height // 2) * (width // 2) * 64 * itemsize
    image = features + max(local, *(pass_bytes(s.global_net, s.grid, itemsize) for s in scales))
    patch = max(window_bytes(s.global_net, s.grid, itemsize) for s in scales)
    least = fixed + image + patch
    if least > limit:
        raise UserError(
            f"image_size {height}x{width}: scoring takes {-(-least // MIB)} MiB beside the model, and "
            f"{limit // MIB} are allowed; allow more (--memory-mib, memory_mib), or train with a smaller "
            "image_size"
        )
    images = min(max((limit - fixed - patch) // 2 // image, 1), most)
    return images, limit - fixed - images * image
