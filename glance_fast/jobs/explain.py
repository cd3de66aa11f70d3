"""Pictures that say why images are anomalous: ``glance-fast explain``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from glance_fast.calibration import verdict
from glance_fast.data.cache import ImageCache
from glance_fast.data.depth import Unlike, check_depth, levels, shown_as, unlike
from glance_fast.data.files import atomic_write
from glance_fast.data.folders import list_images
from glance_fast.data.images import read_image
from glance_fast.data.layouts import normal_images
from glance_fast.data.table import printable
from glance_fast.errors import ImageError, UserError
from glance_fast.evaluation.explain import MEANING, Explained, Nearest, Place, explain, nearest_normal
from glance_fast.evaluation.explain_picture import Shown, picture
from glance_fast.geometry import Hole
from glance_fast.jobs.output import apart, output
from glance_fast.model import Glance
from glance_fast.progress import Reporter
from glance_fast.run import load, of_whole_photographs
from glance_fast.tiles import whole_only
from glance_fast.training.calibrate import digest

# More would make pictures that nobody reads.
MOST_PLACES = 20
# Images that are held together while the good photographs are looked through.
AT_ONCE = 64
# Folder of the pictures.
EXPLAINED = "explained"


@dataclass(frozen=True)
class Explanation:
    """What is said of an image.

    Attributes
    ----------
    path : str
        As it was given.
    picture : str or None
        The PNG that was written.
    score : float or None
        Of the image.
    anomalous : bool or None
        Whether it lies above the threshold; None where there is none.
    places : tuple of dict
        The worst places, the worst first: ``box`` (top, left, bottom, right in the image's own pixels),
        ``score`` (the peak of the map), ``above`` (whether it lies above the pixel threshold), ``word`` and
        ``meaning``, ``inconsistency`` and ``distortion`` (in deviations of normal pixels), ``patch`` (a box),
        ``distance`` (s_IAD) and ``nearest``: ``path``, ``patch`` and ``distance`` of the normal patch that is
        nearest to what is expected there, or None.
    error : str or None
        Why there is nothing to be said.
    """

    path: str
    picture: str | None
    score: float | None
    anomalous: bool | None
    places: tuple[dict[str, Any], ...]
    error: str | None = None


def explain_images(
    run: str | Path | Glance,
    images: Sequence[str | Path],
    out: str | Path,
    *,
    good: str | Path | None = None,
    worst: int = 3,
    engine: str = "auto",
    precision: str = "auto",
    overwrite: bool = False,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    reporter: Reporter | None = None,
) -> list[Explanation]:
    """Write a picture of the worst places of each image, and of what should be there.

    Parameters
    ----------
    run : path or Glance
        A run folder, or a model.
    images : sequence of path
        Images, and folders of images, which are searched with their subfolders.
    out : path
        Folder to write, new or empty: ``explained/<name>.png`` for each image, in subfolders where images
        come from several folders.
    good : path, optional
        Photographs of good parts, such as those of the training: what should be in a place is looked for
        among their patches. Without it, that is left out. Those that cannot be read are reported.
    worst : int
        Places to show of each image, from 1 to 20.
    engine, precision : str
        As for ``Glance.score``.
    overwrite : bool
        Replace what an earlier call wrote to ``out``.
    device, memory_mib
        Of a run folder, as for ``load``.
    reporter : Reporter, optional
        Shows progress; nobody sees any if not given.

    Returns
    -------
    list of Explanation
        One an image, in order; of one that cannot be read, with its error.

    Raises
    ------
    UserError
        Something given is no run folder or no image; ``worst`` is out of its range; the model has no such
        engine; or ``out`` holds something, lies among what is read, or cannot be written.
    """
    out, reporter = Path(out), reporter or Reporter(Console(quiet=True))
    if not 1 <= worst <= MOST_PLACES:
        raise UserError(f"`worst`: expected a number from 1 to {MOST_PLACES}, got {worst}")
    paths = list(_found(images))
    normal = normal_images(good) if good is not None else []
    folders = [Path(path) for path in (*images, *([good] if good is not None else [])) if Path(path).is_dir()]
    apart(out, *([] if isinstance(run, Glance) else [Path(run)]), *folders)
    model = run if isinstance(run, Glance) else load(run, device, memory_mib=memory_mib)
    whole_only(model.config, "explain")
    of_whole_photographs(model, Path("model" if isinstance(run, Glance) else run))
    model.check(engine, precision)
    model.memory_share(precision)
    names = _names(paths)
    found, odd = [], Unlike()
    with output(out, (EXPLAINED,), overwrite), contextlib.ExitStack() as stack:
        bank = stack.enter_context(_Bank.of(model, normal, reporter)) if normal else None
        advance = stack.enter_context(reporter.task("explaining", len(paths)))
        for start in range(0, len(paths), AT_ONCE):
            part = paths[start : start + AT_ONCE]
            for done in _explained(model, part, bank, worst, engine, precision):
                to = out / EXPLAINED / names[done.path]
                found.append(_written(model, done, to) if done.what else _failed(done))
                odd += done.unlike
                advance(len(found))
    for remark in odd.remarks():
        reporter.say(remark)
    return found


class _Bank:
    """Photographs of good parts, and which of them show the same."""

    def __init__(self, cache: ImageCache) -> None:
        self.cache = cache
        self.twins: dict[str, set[int]] = {}
        for index in range(len(cache)):
            self.twins.setdefault(digest(cache.batch([index])[0]), set()).add(index)

    @classmethod
    @contextlib.contextmanager
    def of(cls, model: Glance, paths: Sequence[Path], reporter: Reporter) -> Iterator[_Bank]:
        """Those of the photographs that can be read; of the others it is said."""
        with reporter.task("reading good photographs", len(paths)) as advance:
            size, limit = model.config.image_size, model.config.cache_mib << 20
            cache = ImageCache(paths, size, limit, progress=advance, white=model.calibration.white)
        with cache:
            for error in cache.errors:
                reporter.say(f"left out: {error}")
            for remark in cache.unlike.remarks():
                reporter.say(f"good photographs: {remark}")
            yield cls(cache)


class _Done(NamedTuple):
    """An image, what was found on it, and normal patches with their photographs; or what is wrong with it."""

    path: Path
    what: Explained | None = None
    nearest: Sequence[tuple[Path, Nearest] | None] = ()
    error: str = ""
    unlike: Unlike = Unlike()


def _found(images: Sequence[str | Path]) -> Iterator[Path]:
    """Images and those in folders, each once."""
    seen = set()
    for given in map(Path, images):
        if not given.exists():
            raise UserError(f"{given}: no such image or folder")
        for path in list_images(given) if given.is_dir() else [given]:
            if _whole(path) not in seen:
                seen.add(_whole(path))
                yield path


def _whole(path: Path) -> Path:
    """From the root; a link to an image keeps its own name."""
    return path.parent.resolve() / path.name


def _names(paths: Sequence[Path]) -> dict[Path, Path]:
    """Names of the pictures: as images lie below the folder that holds them all."""
    top = Path(os.path.commonpath([_whole(path).parent for path in paths]))
    # The suffix stays part of the name, so that a.png and a.jpg do not meet.
    return {path: Path(f"{_whole(path).relative_to(top)}.png") for path in paths}


def _explained(
    model: Glance, paths: Sequence[Path], bank: _Bank | None, worst: int, engine: str, precision: str
) -> Iterator[_Done]:
    """A few images together: the good photographs are looked through once for all of them."""
    found: list[_Done] = []
    white = model.calibration.white
    places, but = list[Place](), list[frozenset[int]]()
    for path in paths:
        try:
            image = read_image(path)
            check_depth(image, white, path)
        except ImageError as error:
            found.append(_Done(path, error=error.reason))
            continue
        what = explain(model, image, worst, engine, precision)
        found.append(_Done(path, what, unlike=unlike(image, white)))
        places += what.places
        # An image that is among them would be the nearest to itself.
        own = bank.twins.get(digest(levels(model.prepare(image), white)), ()) if bank else ()
        but += [frozenset(own)] * len(what.places)
    nearest = iter(nearest_normal(model, places, bank.cache, but) if bank else [None] * len(places))
    for done in found:
        its = [next(nearest) for _ in (done.what.places if done.what else ())]
        files = bank.cache.paths if bank else []
        yield done._replace(nearest=[n and (files[n.photograph], n) for n in its])


def _failed(done: _Done) -> Explanation:
    return Explanation(str(done.path), None, None, None, (), done.error)


def _written(model: Glance, done: _Done, to: Path) -> Explanation:
    """Write a picture, and say what is in it."""
    what, nearest = done.what, done.nearest
    assert what is not None
    image, size = _seen(model, done.path), model.config.image_size
    shown = [n and Shown(_short(n[0]), _seen(model, n[0]), n[1].box, n[1].distance) for n in nearest]
    data = picture(_short(done.path), image, what, shown, model.calibration, size)
    with atomic_write(to) as temporary:
        temporary.write_bytes(data)
    said = verdict(model.calibration, what.score)
    places = []
    for place, normal, photograph in zip(what.places, nearest, shown, strict=True):
        there = None
        if normal is not None and photograph is not None:
            patch = _own_pixels(normal[1].box, size, photograph.image)
            there = {"path": str(normal[0]), "patch": patch, "distance": _figure(normal[1].distance)}
        places.append(
            {
                "box": place.region.as_dict()["box"],
                "score": _figure(place.region.peak),
                "above": place.found,
                "word": place.word,
                "meaning": MEANING[place.word],
                "inconsistency": _figure(place.inconsistency),
                "distortion": _figure(place.distortion),
                "patch": _own_pixels(place.box, size, image),
                "distance": _figure(place.distance),
                "nearest": there,
            }
        )
    return Explanation(str(done.path), str(to), said.score, said.anomalous, tuple(places))


def _seen(model: Glance, path: Path) -> NDArray[np.uint8]:
    """An image for the eye."""
    return shown_as(read_image(path), model.calibration.white)


def _short(path: Path) -> str:
    """A file's name and that of its folder, by which people know it."""
    return printable("/".join(_whole(path).parts[-2:]))


def _own_pixels(box: Hole, size: tuple[int, int], image: NDArray[np.uint8]) -> dict[str, int]:
    """A box in an image's own pixels, without what lies beyond its border."""
    scale = np.array(image.shape[:2]) / size
    low = np.maximum(np.round(np.array([box.top, box.left]) * scale), 0)
    high = np.minimum(np.round(np.array([box.bottom, box.right]) * scale), image.shape[:2])
    names = ("top", "left", "bottom", "right")
    return dict(zip(names, map(int, (*low, *high)), strict=True))


def _figure(value: float) -> float:
    """With the digits of a float32."""
    return float(f"{value:.9g}")
