"""Masks of regions of interest: one for all photographs, or one a photograph."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glance_fast.data.folders import list_images
from glance_fast.data.masks import read_mask, resize_mask
from glance_fast.data.score_maps import resize_map
from glance_fast.data.table import printable
from glance_fast.errors import ImageError, UserError

# What may stand between the name of a photograph and the suffix of its mask.
ENDINGS = ("", "_mask")


class Masks:
    """The regions of interest that a file, or the files of a folder, show.

    Parameters
    ----------
    path : path
        A mask as ``read_mask`` reads it, white where one is to look, for all photographs. Or a folder with
        one a photograph: of ``a/1.jpg`` it is ``a/1.png`` or ``a/1_mask.png`` (or of another suffix) in it.
        Of photographs in a folder ``test``, that may be left out.
    size : (height, width), optional
        That masks are given at; each photograph's own if not given.

    Attributes
    ----------
    path : Path
    single : bool
        Whether there is one for all photographs.

    Raises
    ------
    ImageError
        The file is no mask.
    UserError
        There is no such file or folder, the folder holds no image, or nothing is marked in the mask, or
        nothing of it is left at ``size``.
    """

    def __init__(self, path: str | Path, size: tuple[int, int] | None = None) -> None:
        self.path, self._size = Path(path), size
        self.single = not self.path.is_dir()
        self._found: dict[Path, list[Path]] = {}
        if self.single:
            if not self.path.exists():
                raise UserError(f"{self.path}: no such file or folder; `roi` is a mask, or a folder of masks")
            self._mask = read_mask(self.path)
            self._given = at_size(self._mask, size or self._mask.shape, str(self.path))
        else:
            for mask in list_images(self.path):
                self._found.setdefault(mask.relative_to(self.path).with_suffix(""), []).append(mask)

    @property
    def provenance(self) -> str:
        """What tells these masks from others: the pixels of one mask, or the path of a folder."""
        if not self.single:
            return printable(self.path.resolve())
        shape = np.array(self._mask.shape, np.int64).tobytes()
        return hashlib.sha256(shape + np.packbits(self._mask).tobytes()).hexdigest()

    def among(self, folder: Path) -> bool:
        """Whether they lie in a folder of photographs, and would be taken for such."""
        return self.path.resolve().is_relative_to(folder.resolve())

    def of(self, photograph: Path, place: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """The region of interest of a photograph.

        Parameters
        ----------
        photograph : Path
            For messages.
        place : Path
            Where it lies, relative to the folder of photographs.
        shape : (height, width)
            Its own size.

        Returns
        -------
        ndarray
            Bool, of ``size``.

        Raises
        ------
        ImageError
            It has no mask, or two; the mask cannot be read, is of another shape than the photograph, or shows
            nothing.
        """
        if self.single:
            self._check_shape(photograph, shape, self.path, self._mask.shape)
            return self._given if self._size else at_size(self._mask, shape, str(self.path))
        path = self._file(photograph, place)
        try:
            mask = read_mask(path)
            self._check_shape(photograph, shape, path, mask.shape)
            return at_size(mask, self._size or shape, f"its mask {path}")
        except ImageError as error:
            if error.path == photograph:
                raise
            raise ImageError(photograph, f"its mask {error}") from error
        except UserError as error:
            raise ImageError(photograph, str(error)) from error

    def _file(self, photograph: Path, place: Path) -> Path:
        """The mask of a photograph in the folder."""
        places = [place, place.relative_to("test")] if place.parts[0] == "test" else [place]
        names = [inner.with_name(inner.stem + ending) for inner in places for ending in ENDINGS]
        found = [path for name in names for path in self._found.get(name, ())]
        if not found:
            expected = self.path / place.with_suffix(".png")
            raise ImageError(photograph, f"has no mask of its region of interest; expected {expected}")
        if len(found) > 1:
            both = f"{found[0]} and {found[1]}"
            raise ImageError(photograph, f"has two masks of its region of interest, {both}; keep one")
        return found[0]

    def _check_shape(
        self, photograph: Path, shape: tuple[int, ...], path: Path, own: tuple[int, ...]
    ) -> None:
        """Refuse a mask that is no photograph of this shape made smaller or larger."""
        # To a pixel of the mask.
        if abs(own[1] * shape[0] - shape[1] * own[0]) > max(shape[0], shape[1]):
            raise ImageError(
                photograph,
                f"is {shape[1]}x{shape[0]}, and the mask of its region of interest, {path}, is "
                f"{own[1]}x{own[0]}: not the same shape; make the mask from such a photograph",
            )


def at_size(mask: NDArray[np.bool_], size: tuple[int, int], name: str = "roi") -> NDArray[np.bool_]:
    """A mask of a region of interest at another size.

    Parameters
    ----------
    mask : ndarray
        Bool [h, w] of any size; True where one is to look.
    size : (height, width)
    name : str
        What to call it in a message.

    Raises
    ------
    UserError
        It is something else, shows nothing, or nothing of it is left at that size.
    """
    if mask.dtype != np.bool_ or mask.ndim != 2:
        raise UserError(f"{name}: a mask is bool [H, W], not {mask.dtype} {list(mask.shape)}")
    if not mask.any():
        raise UserError(f"{name}: nothing is marked in it; white is where to look")
    resized = resize_mask(mask, size)
    if not resized.any():
        raise UserError(f"{name}: nothing of it is left at {size[1]}x{size[0]} pixels; mark more of it")
    return resized


def resize_scores(
    score_map: NDArray[np.float32], size: tuple[int, int], inside: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """A map at another size; what stands outside a region of interest does not come in.

    Parameters
    ----------
    score_map : ndarray
        Float32 [H, W].
    size : (height, width)
        In pixels.
    inside : ndarray, optional
        Bool [H, W], the region; all counts if not given.

    Returns
    -------
    ndarray
        Float32 [height, width]; outside the region one value, the one that ``score_map`` has there.
    """
    if inside is None or inside.all():
        return resize_map(score_map, size)
    weight = resize_map(inside.astype(np.float32), size)
    values = resize_map(np.where(inside, score_map, np.float32(0)), size)
    kept = weight > 0.5
    resized = np.full(size, score_map[~inside].max(), np.float32)
    resized[kept] = values[kept] / weight[kept]
    return resized
