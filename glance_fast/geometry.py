"""Integer geometry: grids of patches and of tiles, and how a hole travels through convolutions and poolings.

The only place that knows these rules. All intervals are half-open; a hole is
``(top, left, bottom, right)`` in pixels of its layer, empty where ``bottom <= top`` or
``right <= left``.

A window of a convolution sees nothing (``sum(M) = 0`` in Eq. 5) exactly where all of it that lies
inside the image lies inside the hole, because zero padding counts as hole. So a box stays a box, it
shrinks, and a side that touches the image's border does not move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

# Share of a tile's side that it overlaps the next one by, at least: its border sees less of what is around.
OVERLAP = 0.1


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Length of a convolution's output along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def shrink(
    start: Any, stop: Any, size: int, kernel: int, stride: int = 1, padding: int = 0
) -> tuple[Any, Any]:
    """Interval of outputs that see nothing of the valid input, along one axis.

    Parameters
    ----------
    start, stop : integer array (NumPy or torch)
        The hole along this axis, half-open, within ``[0, size]``.
    size : int
        Length of the input along this axis.
    kernel, stride, padding : int
        The convolution's or pooling's; ``padding < kernel``.

    Returns
    -------
    start, stop : as given
        The hole in the output; empty (``stop <= start``) where every output sees something.
    """
    # Output o reads [o * stride - padding, o * stride - padding + kernel).
    first = -(-(start + padding) // stride) * (start > 0)
    last = (stop + padding - kernel) // stride + 1
    reaches_end = stop >= size
    return first, last * ~reaches_end + output_size(size, kernel, stride, padding) * reaches_end


def reach(
    start: np.ndarray, stop: np.ndarray, size: int, kernel: int, stride: int = 1, padding: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of outputs that see something of ``[start, stop)``, along one axis.

    Parameters
    ----------
    start, stop : integer array
        Places of the input along this axis, half-open, within ``[0, size]``.
    size, kernel, stride, padding : int
        As for ``shrink``.

    Returns
    -------
    start, stop : integer array
        Outputs whose window meets the interval; 0, 0 where that is empty.
    """
    first = np.maximum(-(-(start + padding - kernel + 1) // stride), 0)
    last = np.minimum((stop - 1 + padding) // stride + 1, output_size(size, kernel, stride, padding))
    some = (stop > start) & (last > first)
    return first * some, last * some


class Hole(NamedTuple):
    """A box of masked pixels, half-open."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def empty(self) -> bool:
        """Whether the box holds no pixel."""
        return self.bottom <= self.top or self.right <= self.left

    def through(self, size: tuple[int, int], kernel: int, stride: int = 1, padding: int = 0) -> Hole:
        """The hole after a convolution or pooling of an input of ``size`` (height, width)."""
        if self.empty:
            return Hole(0, 0, 0, 0)
        top, bottom = shrink(np.int64(self.top), np.int64(self.bottom), size[0], kernel, stride, padding)
        left, right = shrink(np.int64(self.left), np.int64(self.right), size[1], kernel, stride, padding)
        hole = Hole(int(top), int(left), int(bottom), int(right))
        return Hole(0, 0, 0, 0) if hole.empty else hole


@dataclass(frozen=True)
class PatchGrid:
    """Patches of an image in raster order, the last row and column flush with the border, or with the frame.

    Attributes
    ----------
    height, width : int
        The image, pixels; with the frame on both sides and without a patch they are multiples of ``stride``.
    patch, stride : int
        Side of a patch and step from one to the next, pixels.
    frame : int
        Pixels by which the image is continued beyond its border, as its mirror image; at most half a patch,
        so that what is mirrored of a patch is a part of that patch too.
    """

    height: int
    width: int
    patch: int
    stride: int
    frame: int = 0

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.frame <= self.patch:
            raise ValueError(f"frame must lie between 0 and half a patch of {self.patch}, got {self.frame}")
        if self.patch < 1 or self.stride < 1:
            raise ValueError(f"patch and stride must be at least 1, got {self.patch} and {self.stride}")
        if self.stride > self.patch:
            raise ValueError(f"stride {self.stride} leaves gaps between patches of {self.patch} pixels")
        for name, size in (("height", self.height), ("width", self.width)):
            if size < self.patch:
                raise ValueError(f"image {name} {size} is smaller than a patch of {self.patch} pixels")
            if (size + 2 * self.frame - self.patch) % self.stride:
                fits = fitting_size(size, [(self.patch, self.stride, self.frame)])
                raise ValueError(
                    f"image {name} {size} leaves a strip without a patch (patch {self.patch}, stride "
                    f"{self.stride}); {fits} fits"
                )

    @property
    def rows(self) -> int:
        """Number of patches from top to bottom."""
        return (self.height + 2 * self.frame - self.patch) // self.stride + 1

    @property
    def cols(self) -> int:
        """Number of patches from left to right."""
        return (self.width + 2 * self.frame - self.patch) // self.stride + 1

    def __len__(self) -> int:
        return self.rows * self.cols

    @cached_property
    def centers_y(self) -> np.ndarray:
        """Float64 [rows]: centres of the patches in pixel coordinates (pixel i's centre is i)."""
        return np.arange(self.rows) * self.stride + (self.patch - 1) / 2 - self.frame

    @cached_property
    def centers_x(self) -> np.ndarray:
        """Float64 [cols]: as ``centers_y``, from left to right."""
        return np.arange(self.cols) * self.stride + (self.patch - 1) / 2 - self.frame

    @property
    def hidden(self) -> int:
        """Cells along a side of the box, about a patch, of the patches that share a pixel with it; odd."""
        return 2 * ((self.patch - 1) // self.stride) + 1

    @property
    def surrounded(self) -> bool:
        """Whether every patch has another that shares no pixel with it."""
        return max(self.rows, self.cols) > self.hidden

    @cached_property
    def holes(self) -> np.ndarray:
        """Int64 [rows * cols, 4]: every patch as a hole, in raster order; beyond the border with a frame."""
        top, left = np.divmod(np.arange(len(self)), self.cols)
        top, left = top * self.stride - self.frame, left * self.stride - self.frame
        return np.stack([top, left, top + self.patch, left + self.patch], axis=1)

    def patches_of(self, pixels: np.ndarray) -> np.ndarray:
        """The patches that are the nearest, by their centres, to one of some pixels.

        Parameters
        ----------
        pixels : ndarray
            Bool [height, width].

        Returns
        -------
        ndarray
            Int64, raster indices in ascending order. Of two that are equally near, the first.
        """
        nearest = [
            np.clip(np.ceil((np.arange(size) - centers[0]) / self.stride - 0.5), 0, len(centers) - 1)
            for size, centers in ((self.height, self.centers_y), (self.width, self.centers_x))
        ]
        rows, cols = (axis.astype(np.int64) for axis in nearest)
        y, x = np.nonzero(pixels)
        return np.unique(rows[y] * self.cols + cols[x])

    def lattices(self, spacing: int) -> list[np.ndarray]:
        """Split the patches into groups of far-apart ones.

        Parameters
        ----------
        spacing : int
            Least distance between the same sides of two patches of a group, pixels; at least ``patch``.

        Returns
        -------
        list of int64 arrays
            Raster indices; every patch stands in exactly one group.
        """
        if spacing < self.patch:
            raise ValueError(f"spacing {spacing} would let patches of {self.patch} pixels overlap")
        step = -(-spacing // self.stride)
        index = np.arange(len(self)).reshape(self.rows, self.cols)
        groups = [index[i::step, j::step].ravel() for i in range(step) for j in range(step)]
        return [group for group in groups if group.size]


@dataclass(frozen=True)
class TileGrid:
    """Overlapping tiles that cover a photograph, the last row and column flush with its border.

    Attributes
    ----------
    height, width : int
        The photograph, pixels.
    tile : (int, int)
        Height and width of a tile, pixels of the photograph.
    """

    height: int
    width: int
    tile: tuple[int, int]

    def __post_init__(self) -> None:
        if min(self.height, self.width, *self.tile) < 1:
            raise ValueError(f"a photograph of {self.height}x{self.width} has no tiles of {self.tile}")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the tiles: none reaches beyond the photograph."""
        return min(self.tile[0], self.height), min(self.tile[1], self.width)

    @cached_property
    def tops(self) -> np.ndarray:
        """Int64 [rows]: where each row of tiles begins."""
        return _starts(self.height, self.sides[0])

    @cached_property
    def lefts(self) -> np.ndarray:
        """Int64 [cols]: where each column of tiles begins."""
        return _starts(self.width, self.sides[1])

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    @cached_property
    def weights_y(self) -> np.ndarray:
        """Float32 [rows, side]: what each pixel of a tile counts by, from top to bottom.

        With ``weights_x``, the weights of all tiles at a pixel of the photograph sum to 1.
        """
        return _weights(self.tops, self.height, self.sides[0])

    @cached_property
    def weights_x(self) -> np.ndarray:
        """Float32 [cols, side]: as ``weights_y``, from left to right."""
        return _weights(self.lefts, self.width, self.sides[1])


def _overlap(side: int) -> int:
    return math.ceil(OVERLAP * side)


def _starts(size: int, side: int) -> np.ndarray:
    """Where tiles of a side begin along an axis: at equal steps, and the last one flush with the end."""
    step = max(1, side - _overlap(side))
    return np.minimum(np.arange(-(-(size - side) // step) + 1) * step, size - side)


def _weights(starts: np.ndarray, size: int, side: int) -> np.ndarray:
    """Float32 [tiles, side]: level, falling where tiles overlap; at every pixel they sum to 1."""
    pixel = np.arange(side) + 0.5
    hat = np.minimum(1, np.minimum(pixel, side - pixel) / _overlap(side))
    total = np.zeros(size)
    for start in starts:
        total[start : start + side] += hat
    return np.stack([hat / total[start : start + side] for start in starts]).astype(np.float32)


def fitting_size(size: int, scales: Sequence[tuple[int, ...]], least: int = 1) -> int:
    """The size nearest to ``size`` that every (patch, stride, frame) covers without a strip left over.

    Parameters
    ----------
    size : int
        Pixels.
    scales : sequence of (int, int) or (int, int, int)
        Patch and stride, and the frame where there is one.
    least : int
        No smaller size is considered.

    Raises
    ------
    ValueError
        No size fits all of them.
    """
    frames = [(*scale, 0)[:3] for scale in scales]
    least = max(least, *(patch for patch, _, _ in frames))
    period = step_of(stride for _, stride, _ in frames)
    candidates = [
        s
        for s in range(max(least, size - period), max(least, size) + period + 1)
        if all((s + 2 * frame - patch) % stride == 0 for patch, stride, frame in frames)
    ]
    if not candidates:
        raise ValueError(f"no image size fits all of (patch, stride) {[scale[:2] for scale in scales]}")
    return min(candidates, key=lambda s: (abs(s - size), s))


def step_of(strides: Iterable[int]) -> int:
    """By what two sizes differ at least that patches of all these strides cover without a strip left over."""
    return int(np.lcm.reduce(list(strides)))


def fitting_within(
    shape: tuple[int, int], size: tuple[int, int], scales: Sequence[tuple[int, int, int]]
) -> tuple[int, int]:
    """The largest size within another that has the aspect of a shape, to half a step of the patches.

    Parameters
    ----------
    shape : (int, int)
        Height and width of a photograph. What this function gives stays as it is.
    size : (int, int)
        Height and width that patches cover without a strip left over; one of them is the found one's, too.
    scales : sequence of (int, int, int)
        Patch, stride and frame.

    Raises
    ------
    ValueError
        The shape is so long that the other side would be no patch.
    """
    whole = all(
        side <= most and fitting_size(side, scales) == side for side, most in zip(shape, size, strict=True)
    )
    if whole and (shape[0] == size[0] or shape[1] == size[1]):
        return shape
    half = step_of(stride for _, stride, _ in scales) / 2
    found = []
    for axis, other in ((0, 1), (1, 0)):
        wanted = round(size[axis] * shape[other] / shape[axis])
        side = fitting_size(wanted, scales)
        if side <= size[other] and abs(side - wanted) <= half:
            found.append((size[axis], side) if axis == 0 else (side, size[axis]))
    if not found:
        raise ValueError(f"nothing of {shape} is as large as a patch within {size}")
    return max(found, key=lambda sides: sides[0] * sides[1])
