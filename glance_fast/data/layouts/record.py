"""What every layout of a data set comes down to: normal images, and test images with their truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from glance_fast.data.folders import list_images
from glance_fast.errors import UserError

_GOOD = frozenset(("good", "ok", "normal"))


def is_good(name: str) -> bool:
    """Whether a folder or a label of this name says that images are normal: good, ok, normal."""
    return name.casefold() in _GOOD


class Saturation(NamedTuple):
    """How much of a defect has to be found.

    Attributes
    ----------
    threshold : float
        A number of pixels; or a share of the defect's, where ``relative``.
    relative : bool
        Which of the two.
    """

    threshold: float
    relative: bool

    def pixels(self, area: int) -> int:
        """Of a defect of ``area`` pixels, how many suffice: at least 1, at most all."""
        wanted = self.threshold * area if self.relative else self.threshold
        return max(1, min(int(wanted), area))


@dataclass(frozen=True)
class TestSample:
    """One test image.

    Parameters
    ----------
    path : pathlib.Path
        The image.
    defect : str
        The name of its kind, mostly that of its folder; ``"good"`` for a normal image.
    masks : tuple of pathlib.Path
        Its ground truth, together; empty for a normal image, and where nobody marked the defects.
    classes : bool
        Whether the masks hold numbers of classes, of which all but 0 are defective; if not, they are binary.
    """

    __test__ = False  # pytest takes the name for one of its own

    path: Path
    defect: str
    masks: tuple[Path, ...] = ()
    classes: bool = False


@dataclass(frozen=True)
class Category:
    """The test images of a category.

    Attributes
    ----------
    data : Path
        Its folder, or its CSV file, as given.
    layout : str
        The name of its layout.
    base : Path
        The folder that tables and maps name images below.
    samples : list of TestSample
        By defect, then by name, in natural order; in a table's order where a table lists them.
    searched : tuple of Path
        Folders in which every image counts.
    unlabelled : list of Path
        Test images of which the truth is not public.
    saturations : dict of int to Saturation, or None
        By the value in a mask, where each mask is one defect (MVTec LOCO).
    notes : tuple of str
        What an evaluation has to say of this data.
    """

    data: Path
    layout: str
    base: Path
    samples: list[TestSample]
    searched: tuple[Path, ...] = ()
    unlabelled: list[Path] = field(default_factory=list)
    saturations: dict[int, Saturation] | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """That of its folder, however that was given; of a CSV file, without its suffix."""
        return self.data.stem if self.data.is_file() else name_of(self.data)

    def __str__(self) -> str:
        """In one line: the layout, and how many test images there are."""
        good = sum(sample.defect == "good" for sample in self.samples)
        more = f", {len(self.unlabelled)} without public truth" if self.unlabelled else ""
        return f"{self.layout}: {good} good and {len(self.samples) - good} defective test images{more}"

    def place(self, path: Path) -> Path:
        """Where an image lies, relative to ``base``; it stays below where a table names one elsewhere."""
        inner = path.relative_to(self.base) if path.is_relative_to(self.base) else path
        return Path(*(part for part in inner.parts if part not in (inner.anchor, "..")))

    def targets(self, out: Path) -> list[Path]:
        """Where below ``out`` the map of each sample goes.

        Raises
        ------
        UserError
            ``out`` lies among the test images, or two images would have one map.
        """
        if any(out.resolve().is_relative_to(folder.resolve()) for folder in self.searched):
            raise UserError(
                f"{out}: lies among the test images, and maps would be taken for images; choose another"
            )
        owners: dict[Path, Path] = {}
        for sample in self.samples:
            target = out / "maps" / self.name / self.place(sample.path).with_suffix(".tiff")
            if target in owners:
                # MVTec's layout knows images by their names without suffix, and so do the masks.
                raise UserError(
                    f"{sample.path}: has the same name as {owners[target].name}; rename one of them"
                )
            owners[target] = sample.path
        return list(owners)


@dataclass(frozen=True)
class Layout:
    """A way in which data sets are laid out.

    Attributes
    ----------
    name : str
        As people call it.
    holds : callable
        Tells of a folder whether it is a category in this layout.
    normal : callable
        Of a category, the normal images to learn from; a ``UserError`` where there are none.
    category : callable
        Of a category, its test images; a ``UserError`` where there are none, or their truth is not complete.
    """

    name: str
    holds: Callable[[Path], bool]
    normal: Callable[[Path], list[Path]]
    category: Callable[[Path], Category]


def name_of(folder: Path) -> str:
    """The name of a folder, however it was given."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def train_good(data: Path) -> list[Path]:
    """The images of ``train/good``."""
    good = data / "train" / "good"
    if not good.is_dir():
        raise UserError(f"{data}: no folder 'train/good' in it; put the normal images there")
    return list_images(good)


def mask_named(*endings: str) -> Callable[[Path], Sequence[Path]]:
    """Find the mask that is called like its image, with one of some endings in place of the suffix."""

    def find(place: Path) -> Sequence[Path]:
        paths = (place.with_name(place.name + ending) for ending in endings)
        return [path for path in paths if path.is_file()][:1]

    return find


def samples_below(
    test: Path, truth: Path, find: Callable[[Path], Sequence[Path]], expected: str, classes: bool = False
) -> list[TestSample]:
    """Test images in folders that are called by their defects, with their masks.

    Parameters
    ----------
    test : Path
        Holds ``<defect>/<name>.png``.
    truth : Path
        Holds masks in the same folders. Images in it are no test images.
    find : callable
        Gives the masks of an image from ``<truth>/<defect>/<name>``.
    expected : str
        What is put behind that path to say what was looked for.
    classes : bool
        As in ``TestSample``.

    Returns
    -------
    list of TestSample
        Without any mask where there is none at all beside good images: these can be told from each other.

    Raises
    ------
    UserError
        There is no image, one lies outside the folders of the defects, or a defective one has no mask.
    """
    samples: list[TestSample] = []
    missing: list[tuple[Path, str]] = []
    for path in list_images(test):
        if path.is_relative_to(truth):
            continue
        inner = path.relative_to(test)
        if len(inner.parts) == 1:
            raise UserError(
                f"{path}: lies directly in '{name_of(test)}'; move it to {name_of(test)}/good or to "
                f"{name_of(test)}/<defect>"
            )
        if is_good(inner.parts[0]):
            samples.append(TestSample(path, "good"))
            continue
        place = truth / inner.with_suffix("")
        masks = tuple(find(place))
        samples.append(TestSample(path, inner.parts[0], masks, classes))
        if not masks:
            missing.append((path, f"{place}{expected}"))
    if missing and (_holds_images(truth) or all(sample.defect != "good" for sample in samples)):
        path, place_of_mask = missing[0]
        raise UserError(f"{path}: has no mask; expected {place_of_mask}{more(missing)}")
    return samples


def more(found: Sequence[object]) -> str:
    """What to put behind the first of several faults."""
    return f" ({len(found) - 1} more like it)" if len(found) > 1 else ""


def _holds_images(folder: Path) -> bool:
    try:
        return bool(list_images(folder))
    except UserError:
        return False
