"""How much memory scoring takes, so that it stays below the limit that the user sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from glance_fast.config import Config
from glance_fast.engines.plan import changes, geometry_of
from glance_fast.errors import UserError
from glance_fast.geometry import PatchGrid
from glance_fast.nets.masked import RING, MaskedNet
from glance_fast.nets.surround import SurroundNet

MIB = 1 << 20
# What scoring may take beside the model, unless told otherwise; and images that are worth handing over
# together: more would not be faster on a CPU, and a GPU is to be kept busy.
DEFAULT_MIB = {"cpu": 2048, "cuda": 8192}
IMAGES_TOGETHER = {"cpu": 8, "cuda": 64}


# Rows that the head takes together, patches or more: few at a time, its layers' fixed costs count.
HEAD_ROWS = 1024


class Share(NamedTuple):
    """How a limit is kept.

    Attributes
    ----------
    together : int
        Images that are handed over together, and whose maps are made at the same time.
    images : int
        Of these, how many go through the networks at a time.
    windows : int
        Bytes that are left for windows, or for the passes of the other engines.
    """

    together: int
    images: int
    windows: int


def pass_bytes(net: MaskedNet, grid: PatchGrid, itemsize: int) -> int:
    """Bytes of all layers' outputs, and the input, of one pass over an image."""
    return (3 * grid.height * grid.width + outputs(net, grid)) * itemsize


def base_bytes(net: MaskedNet, grid: PatchGrid, itemsize: int) -> int:
    """Bytes of such a pass that keeps the layers' sums, too, float32, for windows to be added to."""
    return pass_bytes(net, grid, itemsize) + outputs(net, grid) * 4


def outputs(net: MaskedNet, grid: PatchGrid) -> int:
    """Numbers that all layers together give."""
    found = zip(changes(geometry_of(net), grid), net.layers(), strict=False)
    return sum(change.out[0] * change.out[1] * len(layer.module.weight) for change, layer in found)


def window_bytes(net: MaskedNet, grid: PatchGrid, itemsize: int) -> int:
    """Bytes of the most that the windows of one patch of one image hold at a time.

    These are a layer's output, its input and that of the layer before, and what the head will read.
    """
    layers = net.layers()
    areas = [(c.stop - c.start).max(0).prod() for c in changes(geometry_of(net), grid)[:-1]]
    sizes = [area * len(layer.module.weight) for area, layer in zip(areas, layers, strict=True)]
    kept = [size * layer.read for size, layer in zip(sizes, layers, strict=True)]
    most = max(sum(kept[: max(i - 2, 0)]) + sum(sizes[max(i - 2, 0) : i + 1]) for i in range(len(sizes)))
    return int(most) * itemsize


def readout_bytes(net: MaskedNet) -> int:
    """Bytes of the most that reading what the head is given takes for one patch of one image, float32."""
    *rings, _ = [len(layer.module.weight) for layer in net.layers() if layer.read]
    inputs = net.inputs
    if net.readout == "pool":
        return inputs * 4
    # Of four corners of each place: those of the windows, those of the base, and one of both; where they lie,
    # as eight int64; and all that was read, in parts and together.
    corners = 4 * RING * RING
    return corners * (3 * max(rings) * 4 + 8 * 8) + 2 * inputs * 4


def waiting_bytes(net: MaskedNet, rows: int) -> int:
    """Bytes of what waits for the head, and of what that makes of so many rows."""
    widest = max(m.out_features for m in net.head if isinstance(m, nn.Linear))
    # In pieces and together, and a layer's input and output.
    return rows * (2 * net.inputs + 2 * widest) * 4


def surround_bytes(net: SurroundNet, itemsize: int) -> int:
    """Bytes of all layers' outputs of one pass over the features of an image."""
    outputs = len(net.bias)
    # v, the strips of h and their sum, and three layers of the head, normalised and not.
    return len(net.grid) * (net.features + len(net.value.bias) + 9 * outputs + 8 * outputs) * itemsize


def split(
    nets: Sequence[MaskedNet | SurroundNet],
    features: int,
    config: Config,
    itemsize: int,
    limit: int,
    most: int,
) -> Share:
    """Divide what scoring may take.

    Parameters
    ----------
    nets : sequence of MaskedNet or SurroundNet
        The Global-Net of every patch size.
    features : int
        D.
    config : Config
        Settings.
    itemsize : int
        Bytes of a number in the networks.
    limit : int
        Bytes.
    most : int
        Images together, at most.

    Returns
    -------
    Share

    Raises
    ------
    UserError
        Not even one image and one patch fit.
    """
    grids = config.grids
    height, width = config.image_size
    # The tables of the interpolation; where all patches count there is none.
    tables = sum(n for g in grids if (n := config.idw_neighbours) < len(g)) * height * width * 8
    # The maps of an image: two heads, twice, and their blends.
    maps = height * width * 4 * (5 * len(grids) + 1)
    both = sum(len(grid) * features * 2 * 4 for grid in grids)
    # Of Local-Net, the first layer's output, which is its largest and always float32, and what comes of it.
    frame = 2 * max(grid.frame for grid in grids)
    local = 2 * ((height + frame) // 2) * ((width + frame) // 2) * 64 * 4
    passes = patch = waiting = 0
    for net, grid in zip(nets, grids, strict=True):
        if isinstance(net, SurroundNet):
            passes = max(passes, surround_bytes(net, itemsize))
            continue
        passes = max(passes, base_bytes(net, grid, itemsize))
        patch = max(patch, window_bytes(net, grid, itemsize) + readout_bytes(net))
        waiting = max(waiting, waiting_bytes(net, HEAD_ROWS))
    image = both + max(local, passes)
    fixed = tables + waiting
    least = fixed + maps + image + patch
    if least > limit:
        raise UserError(
            f"image_size {height}x{width}: scoring takes {-(-least // MIB)} MiB beside the model, and "
            f"{limit // MIB} are allowed; allow more (`memory_mib`), or train with a smaller "
            "image_size"
        )
    together = min((limit - fixed - image - patch) // maps, most)
    left = limit - fixed - together * maps
    images = min(max((left - patch) // 2 // image, 1), together)
    return Share(together, images, left - images * image)
