"""The test beds: what each is, how it is prepared, its images and their ground truth.

Four are folders below ``GLANCE_FAST_DATA`` in MVTec's layout. *any-angle* is transistor with every image
turned by a random angle, training, test and masks alike. The three textures are the demo's, at 192 pixels
with planted defects of 4 to 80 pixels.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import rotate

from glance_fast.data.demo import TEXTURES, build_demo
from glance_fast.data.images import read_image, resize, write_png
from glance_fast.data.layouts import normal_images, open_category, read_sample_mask
from glance_fast.data.masks import read_mask
from glance_fast.evaluation.truth import resize_truth


@dataclass(frozen=True)
class Bed:
    """A test bed.

    Attributes
    ----------
    name : str
        On the command line and in the results.
    kind : {"aligned", "any-angle", "texture"}
        What its parts have in common.
    size : int
        Side to which its images are resized, pixels.
    image_auroc : bool
        Whether image AUROC tells anything. Not of fabric, whose defective strips were photographed
        differently from the good ones: everything reaches 1.
    """

    name: str
    kind: str
    size: int = 256
    image_auroc: bool = True


BEDS = {
    bed.name: bed
    for bed in (
        Bed("transistor", "aligned"),
        Bed("any-angle", "any-angle"),
        Bed("fabric", "texture", image_auroc=False),
        Bed("cookie", "any-angle"),
        Bed("hazelnut", "any-angle"),
        *(Bed(name, "texture", 192) for name in TEXTURES),
    )
}


@dataclass(frozen=True)
class Images:
    """The pixels of a bed.

    Attributes
    ----------
    normal : uint8 [N, H, W, 3]
        To learn from.
    test : uint8 [T, H, W, 3]
        To judge.
    masks : bool [T, H, W]
        Where the test images are defective.
    labels : bool [T]
        Which of them are.
    """

    normal: np.ndarray
    test: np.ndarray
    masks: np.ndarray
    labels: np.ndarray


def prepare(bed: Bed, work: Path) -> Path:
    """Find a bed's folder, or build it.

    Parameters
    ----------
    bed : Bed
        Which.
    work : Path
        Where those that have to be built are kept.

    Returns
    -------
    Path
        A category in MVTec's layout.
    """
    if bed.name in TEXTURES:
        return _built(work / "textures" / bed.name, lambda out: _build_texture(bed, out))
    if bed.name == "any-angle":
        return _built(work / "transistor-turned", lambda out: build_turned(_given("transistor"), out))
    return _given(bed.name)


def load(folder: Path, size: int) -> Images:
    """Read a category at one size."""
    normal = [resize(read_image(path), (size, size)) for path in normal_images(folder)]
    return Images(np.stack(normal), *load_test(folder, (size, size)))


def load_test(folder: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a category's test images at one size: pixels, masks and labels, as in ``Images``."""
    images, masks, labels = [], [], []
    for sample in open_category(folder).samples:
        image = read_image(sample.path)
        images.append(resize(image, size))
        masks.append(resize_truth(read_sample_mask(sample, image.shape[:2]), size)[0])
        labels.append(sample.defect != "good")
    return np.stack(images), np.stack(masks), np.array(labels)


def build_turned(source: Path, out: Path, seed: int = 0) -> None:
    """Turn every image of a category by a random angle about its middle, its mask with it.

    The corners are filled with a mirror of the image, and are never defective.

    Parameters
    ----------
    source : Path
        A category in MVTec's layout.
    out : Path
        The same layout.
    seed : int
        Of the angles.
    """
    rng = np.random.default_rng(seed)
    for path in sorted(source.rglob("*.png")):
        relative = path.relative_to(source)
        if relative.parts[0] == "ground_truth":
            continue
        angle = rng.uniform(0, 360)
        write_png(out / relative, rotate(read_image(path), angle, reshape=False, order=1, mode="reflect"))
        mask = source / "ground_truth" / relative.relative_to(relative.parts[0])
        mask = mask.with_name(f"{path.stem}_mask.png")
        if relative.parts[0] == "test" and mask.is_file():
            grey = read_mask(mask).astype(np.float32)
            turned = rotate(grey, angle, reshape=False, order=1, mode="constant") > 0.5
            write_png(out / mask.relative_to(source), turned.astype(np.uint8) * 255)


def _given(name: str) -> Path:
    if "GLANCE_FAST_DATA" not in os.environ:
        raise SystemExit(f"GLANCE_FAST_DATA is not set: it names the folder that holds {name}/")
    folder = Path(os.environ["GLANCE_FAST_DATA"]) / name
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder")
    return folder


def _build_texture(bed: Bed, out: Path) -> None:
    build_demo(out, size=bed.size, train=80, good=20, per_defect=12, textures=[bed.name])
    for part in (out / bed.name).iterdir():
        part.rename(out / part.name)
    (out / bed.name).rmdir()


def _built(out: Path, build: Callable[[Path], None]) -> Path:
    """Build a folder where it is not there yet; half of one is never taken for a whole one."""
    if not out.is_dir():
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        build(partial)
        partial.rename(out)
    return out
