"""Copies of the training images that features are computed from once: augmented, and the same stained."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import Levels
from glance_fast.data.stains import stain_image
from glance_fast.training.sampling import augment, step_generator
from glance_fast.training.symmetry import Symmetry, vary

# Images from which stains take their pieces.
OTHERS = 32
# D, and copies without which no training is begun.
FEATURES, LEAST = 128, 8


@dataclass(frozen=True)
class Variants:
    """Augmented copies of images.

    Attributes
    ----------
    clean, stained : ndarray, uint8 [N, H, W, 3]
        The same copies without and with stains; float32 of 0 to 255 where images have more than 8 bits.
    masks : ndarray, bool [N, H, W]
        Where they differ visibly.
    inside : ndarray, bool [N, H, W], or None
        The region of interest of each, turned and mirrored as it is; None where all counts.
    """

    clean: Levels
    stained: Levels
    masks: NDArray[np.bool_]
    inside: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.clean)


def make_variants(
    cache: ImageCache,
    indices: NDArray[np.integer],
    count: int,
    config: Config,
    symmetry: Symmetry,
    name: str,
    progress: Callable[[int], None] | None = None,
    inside: NDArray[np.bool_] | None = None,
) -> Variants:
    """Augmented and stained copies, the same for one seed and the same images.

    Parameters
    ----------
    cache : ImageCache
    indices : ndarray of int
        The images to take; each is taken once before one is taken twice.
    count : int
        N.
    config : Config
        ``shift``, ``brightness`` and ``seed``.
    symmetry : Symmetry
        Turns and mirroring that the category allows.
    name : str
        Another name draws other numbers.
    progress : callable, optional
        Called with the copies made so far.
    inside : ndarray, optional
        bool [H, W], the region of interest of all images.
    """
    rng = np.random.default_rng((config.seed, zlib.crc32(name.encode())))
    order = np.concatenate([rng.permutation(indices) for _ in range(-(-count // len(indices)))])[:count]
    others = cache.batch(rng.permutation(indices)[:OTHERS])
    shape = (count, *config.image_size)
    clean, stained = (np.empty((*shape, 3), others.dtype) for _ in range(2))
    masks = np.empty(shape, bool)
    regions = None if inside is None else np.empty(shape, bool)
    for number, index in enumerate(order):
        generator = step_generator(config.seed, name, number)
        image = torch.from_numpy(cache.batch([index]))
        if inside is not None:
            # As a fourth channel, so that it is turned with the others.
            image = torch.cat([image, torch.from_numpy(inside).to(image.dtype)[None, :, :, None]], -1)
        image = vary(image, symmetry, generator)
        if regions is not None:
            regions[number] = image[0, :, :, 3].bool().numpy()
        moved = augment(image[..., :3], config.shift, config.brightness, generator)[0]
        clean[number] = (moved if cache.white else moved.round_()).numpy()
        stained[number], masks[number] = stain_image(clean[number], others, rng)
        if progress:
            progress(number + 1)
    return Variants(clean, stained, masks, regions)


def number_of_variants(images: int, config: Config, itemsize: int = 1) -> int:
    """How many copies are trained on.

    As many as there are images, but ``variants`` at least and twice that at most. Fewer where the copies,
    without and with stains, their masks, and the features of the patch size that has most would take more
    than ``cache_mib``; though never fewer than 8. What fine-tuning adds, turned copies and the teacher's
    maps, is not counted.

    Parameters
    ----------
    images : int
        That are trained on.
    config : Config
        Settings.
    itemsize : int
        Bytes of a value of a copy.
    """
    wanted = min(max(images, config.variants), 2 * config.variants)
    # Pixels without and with stains, the mask, and features of both, half precision, a patch size at a time.
    pixels = (6 * itemsize + 1) * config.image_size[0] * config.image_size[1]
    features = 2 * 2 * FEATURES * max(map(len, config.grids))
    return max(min(wanted, (config.cache_mib << 20) // (pixels + features)), LEAST)
