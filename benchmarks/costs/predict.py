"""What the kernels should take on a GPU, from their operations, their bytes and how they are tiled.

A product's tile loads its operands once for every tap of the kernel. Weights go past the first cache
(``LDGSTS.E.BYPASS`` in the machine code) and cross from the second one each time. Pixels go through it, and
the taps of one row of the kernel find there what the first of them brought; by the next row it is gone,
because the tiles' stages leave the cache little room. Instructions are counted in the machine code for sm_90
(``benchmarks.gpu.ahead_of_time``): each of a multiprocessor's four schedulers issues one a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from benchmarks.costs import counts
from benchmarks.costs.counts import Conv, Windows, Work, total
from glance_fast.geometry import PatchGrid
from glance_fast.nets.heads import DistortionHead
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.masked import MaskedNet

SIZE, FEATURES, BATCH, NEIGHBOURS = 256, 128, 16, 16
HALF, FLOAT = 2, 4


@dataclass(frozen=True)
class Card:
    """Rates of a GPU, operations and bytes a second.

    Attributes
    ----------
    matrix, plain, memory : float
        Dense bfloat16, float32 without matrix units, device memory; of the datasheet.
    matrix_seen, memory_seen : float
        A large product of random numbers, a large copy; as reported of such a card.
    cache : float
        From the second cache to the multiprocessors; as reported, for want of a datasheet's figure.
    multiprocessors : int
        And their clock under load, Hz.
    """

    name: str
    matrix: float
    plain: float
    memory: float
    matrix_seen: float
    memory_seen: float
    cache: float = 5.5e12
    multiprocessors: int = 132
    clock: float = 1.7e9

    @property
    def shared(self) -> float:
        """Bytes a second that all shared memories together deliver: 128 a cycle each."""
        return 128 * self.multiprocessors * self.clock


H200 = Card("H200", 989e12, 67e12, 4.8e12, 790e12, 4.3e12)
H100 = Card("H100", 989e12, 67e12, 3.35e12, 798e12, 3.0e12)
LAUNCH = 3e-6  # seconds between the starts of dependent kernels in a graph
REACHED = 0.8  # of the tightest limit, by a kernel with nothing wrong
LIBRARY = 0.6  # of the measured matrix rate, by the library's convolutions of 64 channels
WARP_ROWS = 64  # that one warp-group's product reads B for
# Instructions of each of a tile's four warps: for 64 numbers of depth, and before and after all of them.
STEP, DEPTH, AROUND = 188, 64, 1500
WARPS = SCHEDULERS = 4


@dataclass(frozen=True)
class Prediction:
    """Seconds that each limit would take alone, and what follows.

    Attributes
    ----------
    matrix, memory, cache, shared, issue : float
        Products on the matrix units, device memory, the way from the second cache to the
        multiprocessors, shared memory, and the issue of instructions.
    """

    matrix: float
    memory: float
    cache: float
    shared: float
    issue: float = 0.0

    @property
    def bound(self) -> str:
        """The limit that is met first."""
        limits = {"matrix units": self.matrix, "memory": self.memory, "L2": self.cache, "shared": self.shared}
        limits["instructions"] = self.issue
        return max(limits, key=limits.__getitem__)

    @property
    def seconds(self) -> float:
        """Predicted time of the launch."""
        return LAUNCH + max(self.matrix, self.memory, self.cache, self.shared, self.issue) / REACHED


def tile_of(conv: Conv) -> tuple[int, int]:
    """Rows and columns of a product's tile, as the kernels' heuristics choose them for many rows."""
    return 128, min(max(1 << (conv.outputs - 1).bit_length(), 16), 128)


def predict(conv: Conv, rows: int, width: int, work: Work, element: int, card: Card) -> Prediction:
    """An implicit matrix product over so many pixels, in rows of ``width``."""
    block_m, block_n = tile_of(conv)
    tiles = ceil(rows / block_m) * ceil(conv.outputs / block_n)
    depth = conv.inputs * conv.kernel**2
    pixels, weights = block_m * depth, block_n * depth
    crossing = tiles * (pixels * row_reuse(conv, width) + weights) * element
    # Read from the first cache, written, then read: by each warp-group its 64 rows of A and all of B.
    shared = tiles * (3 * pixels + weights * (1 + block_m / WARP_ROWS)) * element
    issued = tiles * (ceil(depth / DEPTH) * STEP + AROUND) * WARPS / SCHEDULERS
    return Prediction(
        2 * tiles * block_m * block_n * depth / card.matrix_seen,
        work.bytes / card.memory_seen,
        crossing / card.cache,
        shared / card.shared,
        issued / (card.multiprocessors * card.clock),
    )


def row_reuse(conv: Conv, width: int) -> float:
    """Share of the loads of pixels that cross from the second cache, for outputs in rows of ``width``."""
    return min(1.0, ((width - 1) * conv.stride + conv.kernel) / (width * conv.kernel))


def predict_window(w: Windows, images: int, card: Card, element: int = HALF) -> Prediction:
    """One layer of the dense engine: all windows as large as the largest."""
    work = counts.window_forward(w, images, element)
    return predict(w.conv, images * counts.rectangles(w), w.largest[1], work, element, card)


def predict_conv(conv: Conv, batch: int, card: Card, element: int = HALF) -> Prediction:
    """A layer over whole maps."""
    rows = batch * counts.area(conv.out)
    return predict(conv, rows, conv.out[1], counts.forward(conv, batch, element), element, card)


@dataclass(frozen=True)
class Routes:
    """Predicted seconds of the ways to a partial convolution with ReLU in half precision."""

    eager: float
    compiled: float
    one_kernel: float
    library: float


def predict_routes(conv: Conv, batch: int, card: Card) -> Routes:
    """The definition eager and compiled, and our two routes."""
    places = batch * counts.area(conv.out)
    x, y = batch * counts.area(conv.size) * conv.inputs * HALF, places * conv.outputs * HALF
    added = y if conv.residual else 0

    def trips(read: int, written: int) -> float:
        """A pass of elementwise work."""
        return LAUNCH + (read + written) / card.memory_seen / REACHED

    work = counts.forward(replace(conv, residual=False), batch, HALF)
    product = LAUNCH + max(
        work.operations / card.matrix_seen / LIBRARY, work.bytes / card.memory_seen / REACHED
    )
    masked, epilogue = trips(x, x), trips(y + added, y)
    # Times the ratio, plus bias, where valid, ReLU; the mask's own convolution and the ratio are small.
    steps = 4 * trips(y, y) + 4 * LAUNCH + (trips(y + added, y) if added else 0.0)
    return Routes(
        masked + product + steps,
        masked + product + epilogue + LAUNCH,
        predict_conv(conv, batch, card).seconds,
        product + epilogue,
    )


def plain_seconds(work: Work, card: Card, matrix: bool = False) -> float:
    """A launch bound by its bytes, or by the unit that does its operations."""
    return LAUNCH + work.floor(card.matrix_seen if matrix else card.plain, card.memory_seen) / REACHED


def score_seconds(batch: int, patches: int, hidden: int, card: Card) -> float:
    """Patch scores: whitening as two products in half precision, the perceptron as three in tf32."""
    work = counts.score_patches(batch, patches, FEATURES, hidden)
    whitening = 2 * batch * patches * FEATURES**2
    tf32 = card.matrix_seen / 2
    products = 2 * whitening / card.matrix_seen + 3 * (work.operations - whitening) / tf32
    return LAUNCH + max(products, work.bytes / card.memory_seen) / REACHED


def layer_windows(patch: int, stride: int) -> list[Windows]:
    """The dense engine's layers of the default net."""
    convs = counts.global_layers(MaskedNet(patch), (SIZE, SIZE))
    return counts.windows(convs, PatchGrid(SIZE, SIZE, patch, stride).holes)


def parts(patch: int, stride: int, element: int = HALF) -> dict[str, Work]:
    """Everything that one image costs at one scale, by name; a batch of BATCH shares what it can."""
    grid = PatchGrid(SIZE, SIZE, patch, stride)
    net, found = MaskedNet(patch), layer_windows(patch, stride)
    local = counts.local_layers(LocalNet(patch), (SIZE, SIZE), stride)
    hidden = DistortionHead(FEATURES).first.out_features

    def share(work: Work) -> Work:
        return Work(work.operations // BATCH, work.read // BATCH, work.written // BATCH)

    return {
        "Local-Net": share(total(counts.forward(c, BATCH, element) for c in local)),
        "Global-Net on the unmasked image": share(
            total(counts.forward(w.conv, BATCH, element) for w in found)
        ),
        "windows": share(total(counts.window_forward(w, BATCH, element) for w in found)),
        "readout": share(counts.readout(net, found[-1], BATCH * len(grid), element)),
        "Global-Net's head": share(counts.global_head(net, BATCH * len(grid), element)),
        "score_patches": share(counts.score_patches(BATCH, len(grid), FEATURES, hidden)),
        "idw_map, 16 nearest, both scores": share(counts.idw_map(2 * BATCH, len(grid), SIZE**2, NEIGHBOURS)),
    }


def passes(patch: int, stride: int, element: int = HALF) -> Work:
    """The patch-by-patch procedure: a whole pass for every patch."""
    grid = PatchGrid(SIZE, SIZE, patch, stride)
    return total(counts.forward(w.conv, len(grid), element) for w in layer_windows(patch, stride))


def predict_image(patch: int, stride: int, card: Card, images: int = BATCH) -> dict[str, float]:
    """Seconds an image, predicted, by part; launches shared by a batch."""
    found = layer_windows(patch, stride)
    local = counts.local_layers(LocalNet(patch), (SIZE, SIZE), stride)
    whole = parts(patch, stride)
    out = {
        "Local-Net": sum(predict_conv(c, images, card).seconds for c in local) / images,
        "Global-Net on the unmasked image": sum(predict_conv(w.conv, images, card).seconds for w in found)
        / images,
        "windows": sum(predict_window(w, images, card).seconds for w in found) / images,
    }
    count, hidden = len(PatchGrid(SIZE, SIZE, patch, stride)), DistortionHead(FEATURES).first.out_features
    readout, head, _, maps = list(whole)[3:]
    # Three readings, the sum, and what puts them together.
    out[readout] = (4 * LAUNCH + plain_seconds(whole[readout] * 3 * images, card)) / images
    out[head] = plain_seconds(whole[head] * images, card, matrix=True) / images
    out["score_patches"] = score_seconds(images, count, hidden, card) / images
    out[maps] = plain_seconds(whole[maps] * images, card) / images
    return out
