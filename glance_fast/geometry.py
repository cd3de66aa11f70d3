"""Integer geometry: patch grids, and how a hole travels through convolutions and poolings.

The only place that knows these rules. All intervals are half-open; a hole is
``(top, left, bottom, right)`` in pixels of its layer, empty where ``bottom <= top`` or
``right <= left``.

A window of a convolution sees nothing (``sum(M) = 0`` in Eq. 5) exactly where all of it that lies
inside the image lies inside the hole, because zero padding counts as hole. So a box stays a box, it
shrinks, and a side that touches the image's border does not move.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


def output_size(size: int, kernel: int, stride: int = 1, padding: int = 0) -> int:
    """Length of a convolution's output along one axis."""
    return (size + 2 * padding - kernel) // stride + 1


def shrink(start, stop, size: int, kernel: int, stride: int = 1, padding: int = 0):
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


def reach(start, stop, size: int, kernel: int, stride: int = 1, padding: int = 0):
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
    """Patches of an image in raster order, the last row and column flush with the border.

    Attributes
    ----------
    height, width : int
        The image, pixels; ``height - patch`` and ``width - patch`` are multiples of ``stride``.
    patch, stride : int
        Side of a patch and step from one to the next, pixels.
    """

    height: int
    width: int
    patch: int
    stride: int

    def __post_init__(self) -> None:
        if self.patch < 1 or self.stride < 1:
            raise ValueError(f"patch and stride must be at least 1, got {self.patch} and {self.stride}")
        if self.stride > self.patch:
            raise ValueError(f"stride {self.stride} leaves gaps between patches of {self.patch} pixels")
        for name, size in (("height", self.height), ("width", self.width)):
            if size < self.patch:
                raise ValueError(f"image {name} {size} is smaller than a patch of {self.patch} pixels")
            if (size - self.patch) % self.stride:
                raise ValueError(
                    f"image {name} {size} leaves a strip without a patch (patch {self.patch}, stride "
                    f"{self.stride}); {fitting_size(size, [(self.patch, self.stride)])} fits"
                )

    @property
    def rows(self) -> int:
        """Number of patches from top to bottom."""
        return (self.height - self.patch) // self.stride + 1

    @property
    def cols(self) -> int:
        """Number of patches from left to right."""
        return (self.width - self.patch) // self.stride + 1

    def __len__(self) -> int:
        return self.rows * self.cols

    @cached_property
    def centers_y(self) -> np.ndarray:
        """Float64 [rows]: centres of the patches in pixel coordinates (pixel i's centre is i)."""
        return np.arange(self.rows) * self.stride + (self.patch - 1) / 2

    @cached_property
    def centers_x(self) -> np.ndarray:
        """Float64 [cols]: as ``centers_y``, from left to right."""
        return np.arange(self.cols) * self.stride + (self.patch - 1) / 2

    @cached_property
    def holes(self) -> np.ndarray:
        """Int64 [rows * cols, 4]: every patch as a hole, in raster order."""
        top, left = np.divmod(np.arange(len(self)), self.cols)
        top, left = top * self.stride, left * self.stride
        return np.stack([top, left, top + self.patch, left + self.patch], axis=1)

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


def fitting_size(size: int, scales: list[tuple[int, int]]) -> int:
    """The size nearest to ``size`` that every (patch, stride) covers without a strip left over.

    Raises
    ------
    ValueError
        No size fits all of them.
    """
    largest = max(patch for patch, _ in scales)
    period = int(np.lcm.reduce([stride for _, stride in scales]))
    candidates = [
        s
        for s in range(max(largest, size - period), max(largest, size) + period + 1)
        if all((s - patch) % stride == 0 for patch, stride in scales)
    ]
    if not candidates:
        raise ValueError(f"no image size fits all of (patch, stride) {scales}")
    return min(candidates, key=lambda s: (abs(s - size), s))
