"""A data set to try everything on, made of three photographs that ship with scikit-image: no download.

Grass, gravel and brick, 512 x 512 pixels each. Training images are cut from the left of the picture, test
images from the right, and no pixel is in both: the texture of a test image has never been seen. What is put
into one as a defect may come from anywhere in a picture (swap). The test part gets one crop's width and a
quarter of the columns that are left over, so that its crops can still be at many places. Crops stay native
(they are not resized), each is mirrored from left to right or not, as a coin falls, and each gets its own
brightness, contrast, tint, slope of the light and noise. One generator per image, seeded by what the image
is: an image does not depend on how many others are made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data as skimage_data
from skimage import draw

from glance_fast.data.images import write_png
from glance_fast.errors import UserError

TEXTURES = ("grass", "gravel", "brick")
DEFECTS = ("cut", "blob", "smear", "swap", "colour")

SMALLEST, LARGEST = 4, 80  # across a defect, in pixels
_PICTURE = 512
# Tint of each texture (the pictures are grey), about what one would photograph.
_TINT = {"grass": (0.92, 1.08, 0.82), "gravel": (1.04, 1.0, 0.95), "brick": (1.18, 0.95, 0.86)}
# A defect that is nothing but another structure needs room to be one; a person could not tell 4 pixels of
# gravel among grass.
_SMALLEST_BY_KIND = {"cut": 12, "smear": 16, "swap": 20}
_VISIBLE = 13.0  # grey levels by which a defect differs on average from what it covers, at the least

Image = NDArray[np.floating]  # [size, size, 3], 0 to 255
Mask = NDArray[np.bool_]  # [size, size]


def build_demo(
    out: str | Path,
    size: int = 256,
    seed: int = 0,
    train: int = 40,
    good: int = 8,
    per_defect: int = 4,
    textures: Sequence[str] = TEXTURES,
) -> None:
    """Write one category in MVTec's layout for each texture.

    ``<out>/<texture>/train/good/000.png``, ``test/good/000.png``, ``test/<defect>/000.png`` and
    ``ground_truth/<defect>/000_mask.png`` (255 on the pixels that were changed, 0 elsewhere), the defects
    being

    ======  ==================================================================================
    cut     a thin, slightly curved line, darker or lighter, in another colour
    blob    a coloured stain of irregular outline that half hides what is below
    smear   the texture wiped along one direction
    swap    another texture of the same brightness; or the right one, turned (brick) or magnified
    colour  the texture unchanged in its structure, in another colour
    ======  ==================================================================================

    from 4 to 80 pixels across (cut from 12, smear from 16, swap from 20), every size as likely as its double,
    at random places and angles, never cut by the border. A person can see each: what is cut or spilt has a
    colour of its own, for among blades of grass and stones no brightness stands out.

    Parameters
    ----------
    out : path
        The folder; made where missing. Files of the same names are replaced.
    size : int
        Side of the images in pixels, 96 to 256.
    seed : int
        The same seed gives the same files.
    train, good, per_defect : int
        Numbers of training images, of normal test images, and of test images of each defect, per texture.
    textures : sequence of str
        Out of ``TEXTURES``.

    Raises
    ------
    UserError
        ``size`` or a number is out of range, a texture is unknown, a category's folder holds other images
        already, or a file cannot be written.
    """
    if not 96 <= size <= _PICTURE // 2:
        reason = f"training and test crops must not meet in a picture of {_PICTURE}x{_PICTURE}"
        raise UserError(f"size must be from 96 to {_PICTURE // 2}, not {size}: {reason}")
    if train < 1 or good < 0 or per_defect < 0 or seed < 0:
        raise UserError("train must be at least 1; good, per_defect and seed at least 0")
    unknown = sorted(set(textures) - set(TEXTURES))
    if unknown:
        raise UserError(f"unknown texture {unknown[0]}; there are {', '.join(TEXTURES)}")

    out = Path(out)
    counts = {("train", "good"): train, ("test", "good"): good}
    counts |= {("test", kind): per_defect for kind in DEFECTS}
    for texture in textures:
        _check_only_ours(out / texture, counts)
    for texture in textures:
        for (part, kind), count in counts.items():
            for index in range(count):
                image, mask = _sample(texture, part, kind, index, size, seed)[1:]
                write_png(out / texture / part / kind / f"{index:03}.png", image)
                if kind != "good":
                    truth = out / texture / "ground_truth" / kind / f"{index:03}_mask.png"
                    write_png(truth, mask.astype(np.uint8) * 255)


def _check_only_ours(folder: Path, counts: dict[tuple[str, str], int]) -> None:
    """Images of an earlier, larger demo would silently join this one."""
    ours = {folder / part / kind / f"{i:03}.png" for (part, kind), n in counts.items() for i in range(n)}
    truth = folder / "ground_truth"
    ours |= {truth / kind / f"{i:03}_mask.png" for kind in DEFECTS for i in range(counts["test", kind])}
    other = sorted(path for path in folder.rglob("*.png") if path not in ours and path.name[0] != ".")
    if other:
        reason = f"holds other images, such as {other[0]}; remove them or choose another folder"
        raise UserError(f"{folder}: {reason}")


def _sample(
    texture: str, part: str, kind: str, index: int, size: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Mask]:
    """One image: as it would be without its defect, with it, and the mask of what was changed."""
    identity = [TEXTURES.index(texture), ("train", "test").index(part), ("good", *DEFECTS).index(kind), index]
    rng = np.random.default_rng([seed, size, *identity])
    crop = _crop(rng, texture, part, size)
    clean, develop = _photograph(rng, texture, crop)
    best, seen = (_to_uint8(clean), np.zeros((size, size), dtype=bool)), -1.0
    if kind == "good":
        return _to_uint8(clean), *best

    across = _across(rng, kind)
    spread = _line if kind == "cut" else _stain
    for _ in range(20):
        mask = _place(rng, spread(rng, across), size)
        painted = _PAINT[kind](rng, _Scene(clean, mask, across, texture, develop))
        # The rim lets the ground through, as in a photograph; outside the mask nothing changes at all.
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1].astype(np.float32)
        alpha = np.clip(0.35 + 0.4 * depth, 0, 1) if kind != "cut" and across > 8 else mask.astype(np.float32)
        changed = np.where(mask[..., None], clean + alpha[..., None] * (painted - clean), clean)
        contrast = float(np.abs(changed - clean)[mask].mean())
        if contrast > seen:
            best, seen = (_to_uint8(changed), mask), contrast
        # Wiping a brick that is smooth already shows nothing, and so on: try elsewhere.
        if seen >= _VISIBLE:
            break
    return _to_uint8(clean), *best


# ---------------------------------------------------------------- the photograph


def _columns(part: str, size: int) -> tuple[int, int]:
    """The columns of the picture that belong to a part, half-open."""
    border = _PICTURE - size - (_PICTURE - 2 * size) // 4
    return (0, border) if part == "train" else (border, _PICTURE)


def _crop(rng: np.random.Generator, texture: str, part: str, size: int) -> Image:
    left, right = _columns(part, size)
    row = rng.integers(0, _PICTURE - size + 1)
    column = rng.integers(left, right - size + 1)
    crop = getattr(skimage_data, texture)()[row : row + size, column : column + size].astype(np.float32)
    # Not upside down: the light on bricks comes from above.
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _photograph(
    rng: np.random.Generator, texture: str, grey: Image
) -> tuple[Image, Callable[[NDArray[np.float32]], Image]]:
    """Grey texture [size, size] to a colour photograph, and the camera, for other things in that light."""
    size = len(grey)
    contrast, brightness = rng.uniform(0.88, 1.1), rng.uniform(-10, 10)
    tint = np.array(_TINT[texture], np.float32) * rng.normal(1, 0.015, 3).astype(np.float32)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.06)
    y, x = np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    light = (1 + slope * (x * np.cos(angle) + y * np.sin(angle))).astype(np.float32)
    noise = rng.normal(0, 1.5, (size, size, 3)).astype(np.float32)

    def develop(values: NDArray[np.float32]) -> Image:
        seen = ((values - 118) * contrast + 118 + brightness) * light
        return (seen[..., None] * tint + noise).astype(np.float32)

    return develop(grey), develop


def _to_uint8(image: Image) -> NDArray[np.uint8]:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- the shapes


def _across(rng: np.random.Generator, kind: str) -> float:
    smallest = _SMALLEST_BY_KIND.get(kind, SMALLEST)
    return float(np.exp(rng.uniform(math.log(smallest), math.log(LARGEST))))


def _stain(rng: np.random.Generator, across: float) -> Mask:
    """An irregular closed shape, its longer side ``across``; small ones are nearly elliptic."""
    angle, flat = rng.uniform(0, np.pi), rng.uniform(0.5, 1.0)
    waves = [(k, rng.uniform(0, 0.22) / k, rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5, 7)]
    # Drawn on a fine grid of directions first, for the outline's own extent; then scaled to ``across``.
    theta = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radius = 1 + sum(a * np.cos(k * theta + p) for k, a, p in waves)
    u, v = radius * np.cos(theta), flat * radius * np.sin(theta)
    x, y = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)
    scale = across / max(np.ptp(x), np.ptp(y))
    x, y = (x - (x.max() + x.min()) / 2) * scale, (y - (y.max() + y.min()) / 2) * scale

    side = math.ceil(across) + 2
    return draw.polygon2mask((side, side), np.stack([y, x], axis=1) + (side - 1) / 2)


def _line(rng: np.random.Generator, across: float) -> Mask:
    """A bent line, ``across`` long, one to four pixels wide."""
    width = np.clip(across / rng.uniform(9, 16), 1.2, 4.0)
    angle, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.15)
    t = np.linspace(-0.5, 0.5, 8 * math.ceil(across))
    u, v = t * (across - 1), bend * across * (4 * t**2 - 0.5)
    x, y = u * np.cos(angle) - v * np.sin(angle), u * np.sin(angle) + v * np.cos(angle)

    side = math.ceil(across * 1.1) + 6
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    far = np.full((side, side), np.inf)
    for px, py, place in zip(x, y, t, strict=True):
        taper = width / 2 * (1 - 0.6 * abs(2 * place) ** 2)  # thinner towards its ends
        far = np.minimum(far, np.hypot(columns - px, rows - py) - max(taper, 0.6))
    return far <= 0


def _place(rng: np.random.Generator, shape: Mask, size: int) -> Mask:
    """Put a shape somewhere in an empty picture, a pixel from the border at least."""
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    shape = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = shape.shape
    top, left = rng.integers(1, size - height), rng.integers(1, size - width)
    mask = np.zeros((size, size), dtype=bool)
    mask[top : top + height, left : left + width] = shape
    return mask


# ---------------------------------------------------------------- what is painted


class _Scene(NamedTuple):
    clean: Image
    mask: Mask
    across: float
    texture: str
    develop: Callable[[NDArray[np.float32]], Image]  # what a grey picture looks like in this light


def _away(rng: np.random.Generator, level: float, step: float) -> float:
    """A grey level that differs from ``level`` by ``step``, darker or lighter, to the side that has room."""
    sign = rng.choice((-1.0, 1.0))
    if not 12 <= level + sign * step <= 243:
        sign = -sign
    return level + sign * step


def _ground(scene: _Scene) -> tuple[NDArray[np.float32], float]:
    """Colour under the defect, and how much the grey levels of the picture vary."""
    return scene.clean[scene.mask].mean(0), float(scene.clean.mean(2).std())


def _cut(rng: np.random.Generator, scene: _Scene) -> Image:
    """Something scratched in."""
    level, spread = _ground(scene)
    # A thin line among blades of grass is lost unless it is darker or lighter than nearly all of them.
    target = level + _away(rng, level.mean(), rng.uniform(55, 80) + spread) - level.mean()
    opacity = rng.uniform(0.8, 0.95)
    return scene.clean * (1 - opacity) + opacity * (target + _hue(rng, rng.uniform(24, 36)))


def _blob(rng: np.random.Generator, scene: _Scene) -> Image:
    """Something spilt."""
    level, spread = _ground(scene)
    step = rng.uniform(28, 48) + 0.6 * spread + 30 * SMALLEST / scene.across
    hue = _hue(rng, rng.uniform(24, 36) + 30 * SMALLEST / scene.across)
    target = level + hue + _away(rng, level.mean(), step) - level.mean()
    shade = ndimage.gaussian_filter(rng.normal(0, 1, scene.mask.shape), max(scene.across / 6, 1))
    shade *= 6 / max(shade.std(), 1e-6)
    paint = target + shade[..., None] + rng.normal(0, 1.5, scene.clean.shape)
    opacity = rng.uniform(0.6, 0.85)
    return scene.clean * (1 - opacity) + opacity * paint


def _smear(rng: np.random.Generator, scene: _Scene) -> Image:
    """Something wiped."""
    angle, length = rng.uniform(0, np.pi), np.clip(scene.across * rng.uniform(0.4, 0.7), 8, 32)
    steps = np.linspace(-length / 2, length / 2, 2 * math.ceil(length))
    wiped = np.zeros_like(scene.clean)
    for step in steps:
        shift = (step * np.sin(angle), step * np.cos(angle), 0)
        wiped += ndimage.shift(scene.clean, shift, order=1, mode="reflect")
    wiped /= len(steps)
    # What wipes also wets or polishes.
    return wiped * rng.uniform(0.82, 0.92) if rng.random() < 0.5 else wiped * rng.uniform(1.08, 1.18)


def _swap(rng: np.random.Generator, scene: _Scene) -> Image:
    """Something that belongs elsewhere."""
    size = len(scene.mask)
    # Grass and gravel look the same from all sides, so turning them would be no defect.
    own = rng.random() < 0.4
    source = getattr(
        skimage_data, scene.texture if own else rng.choice([t for t in TEXTURES if t != scene.texture])
    )()
    row, column = rng.integers(0, _PICTURE - size + 1, 2)
    patch = source[row : row + size, column : column + size].astype(np.float32)
    if own and scene.texture == "brick":
        patch = np.rot90(patch)
    elif own:
        zoom = rng.uniform(2.2, 3.0)
        start = (size - size / zoom) / 2
        patch = ndimage.affine_transform(patch, [1 / zoom, 1 / zoom], offset=start, order=1, mode="nearest")
    patch = scene.develop(patch)
    # By brightness alone it must not be found.
    return patch + scene.clean[scene.mask].mean(0) - patch[scene.mask].mean(0)


def _colour(rng: np.random.Generator, scene: _Scene) -> Image:
    """Something stained."""
    return scene.clean + _hue(rng, rng.uniform(18, 28) + 70 * SMALLEST / scene.across)


def _hue(rng: np.random.Generator, step: float) -> NDArray[np.float64]:
    """A change of colour [3] by ``step`` grey levels that adds up to no brightness."""
    angle = rng.uniform(0, 2 * np.pi)
    # Three cosines, a third of a turn apart.
    return step * np.cos(angle + np.array([0, 2, 4]) * np.pi / 3)


_PAINT = {"cut": _cut, "blob": _blob, "smear": _smear, "swap": _swap, "colour": _colour}
