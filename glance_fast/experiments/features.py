"""Fig. 5: local and global features of patches as each head sees them, laid out by t-SNE."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import Tensor

from glance_fast.data.table import printable, write_table
from glance_fast.errors import UserError
from glance_fast.evaluation import metrics
from glance_fast.evaluation.inputs import Category, Photographs, find_category, read_photographs
from glance_fast.evaluation.plots import short
from glance_fast.experiments.defective import defective
from glance_fast.experiments.prints import SUFFIXES, blank, save
from glance_fast.experiments.study import study
from glance_fast.geometry import PatchGrid
from glance_fast.jobs.output import apart
from glance_fast.jobs.record import provenance_of
from glance_fast.model import Glance, Scale
from glance_fast.nets.heads import DistortionHead
from glance_fast.nets.preprocess import mirrored
from glance_fast.progress import Reporter
from glance_fast.run import load, of_whole_photographs
from glance_fast.tiles import whole_only

HEADS = ("IAD", "DAD")
COLUMNS: dict[str, type] = {
    "patch": int,
    "image": str,
    "defect": str,
    "top": int,
    "left": int,
    "share": float,
    "inconsistency": float,
    "distortion": float,
    **{f"{h}_{f}_{axis}".lower(): float for h in HEADS for f in ("local", "global") for axis in "xy"},
}
SEPARATIONS = "heads.csv"
PATCHES = 800
"""Drawn in the paper."""
LEAST_PATCHES = 10
MOSTLY = 0.5
"""Share of its area from which on a patch counts as anomalous where heads are measured."""
PERPLEXITY = 30.0


class Points(NamedTuple):
    """What stands for n patches and for their surroundings, each [n, K] with K of the head."""

    local: Tensor
    global_: Tensor


@dataclass(frozen=True)
class Separation:
    """How well a head tells anomalous patches from normal ones of the same images.

    Attributes
    ----------
    patch : int
        Side of the patches, pixels.
    head : {"IAD", "DAD"}
    auroc : float or None
        Of its score, over all patches of all defective images: those whose area is anomalous by more than
        half against those that show nothing of a defect. None where one of the two is missing.
    anomalous, normal : int
        How many there are of each.
    """

    patch: int
    head: str
    auroc: float | None
    anomalous: int
    normal: int


def features(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    patches: int = PATCHES,
    seed: int = 0,
    device: str | torch.device = "auto",
    memory_mib: int | None = None,
    overwrite: bool = False,
    reporter: Reporter,
) -> list[Separation]:
    """Draw patches of defective test images, and show their features under the metric of each head.

    Under the metric of the IAD head a patch stands where its whitened z_l lies, and its surrounding where
    z_g does (``inconsistency_points``): the squared distance of the two, divided by D, is s_IAD. Under that
    of the DAD head a patch stands where the head's last hidden layer sees z_l beside z_g, and its surrounding
    where that layer would see a patch that is just what its surrounding predicts, z_g beside z_g
    (``distortion_points``): the head's logit is a weighted sum of these numbers, so that it is by their
    difference alone that s_DAD differs from that of the predicted patch.

    Parameters
    ----------
    run : path
        A run folder.
    data : path
        A category with test images and their masks, as for ``evaluate``.
    out : path
        Folder to write.

        ============================  =========================================================
        ``features-<patch>.png, pdf``  both panels of a patch size
        ``heads.csv``                 what this function returns
        ``results.csv``               a row a patch: image, place (``top``, ``left``, pixels at the model's
                                      image size), ``share`` of its area that is anomalous, its two scores,
                                      and where it and its surrounding stand in each panel
        ``experiment.json``           what it was made of
        ============================  =========================================================
    patches : int
        How many are drawn of each patch size, at least 10; half of them show something of a defect, as far as
        there are so many.
    seed : int
        Of the draw and of t-SNE.
    device, memory_mib
        As for ``load``.
    overwrite : bool
        Replace what an earlier one wrote.
    reporter : Reporter
        Shows progress.

    Returns
    -------
    list of Separation
        Two a patch size.

    Raises
    ------
    UserError
        scikit-learn is missing, ``patches`` is too small, there are no defective images, or as for ``load``,
        ``find_category`` and ``study``.
    """
    lay_out = _tsne(seed)
    if patches < LEAST_PATCHES:
        raise UserError(f"patches: at least {LEAST_PATCHES} are needed, got {patches}")
    run, data, out = Path(run), Path(data), Path(out)
    apart(out, run, data)
    category = defective(find_category(data, out))
    model = of_whole_photographs(load(run, device, memory_mib=memory_mib), run)
    whole_only(model.config, "features")
    model.memory_share()
    photographs = read_photographs(
        category, model.prepare, model.config.image_size, white=model.calibration.white
    )
    settings = provenance_of(model, data, "auto", "auto") | {"patches": patches, "seed": seed}
    stems = [f"features-{patch}" for patch in model.config.patches]
    ours = (SEPARATIONS, *(stem + suffix for stem in stems for suffix in SUFFIXES))
    found: list[Separation] = []
    with study(out, "features", settings, COLUMNS, ours, overwrite=overwrite) as kept:
        with reporter.task("scoring patches", len(category.samples)) as advance:
            views = _views(model, photographs, patches, seed, advance)
        for patch, stem, view in zip(model.config.patches, stems, views, strict=True):
            with reporter.task(f"t-SNE of patches of {patch}", len(HEADS)) as advance:
                places = []
                for head in HEADS:
                    places.append(lay_out(view.points[head]))
                    advance(len(places))
            separations = [_separation(patch, head, view) for head in HEADS]
            kept.add(*_rows(category, patch, view, places))
            save(_picture(patch, view.share, places, separations), out / stem)
            found += separations
        columns = [field.name for field in dataclasses.fields(Separation)]
        values = (["" if v is None else v for v in dataclasses.astuple(row)] for row in found)
        write_table(out / SEPARATIONS, columns, values)
    return found


def inconsistency_points(scale: Scale, local: Tensor, global_: Tensor, places: Tensor) -> Points:
    """Features whose squared distance, divided by D, is s_IAD.

    Parameters
    ----------
    scale : Scale
    local, global_ : Tensor
        z_l and z_g of n patches, [n, D].
    places : Tensor
        int64 [n], where in the grid each patch lies: there the residual z_l - z_g - m is whitened by W.

    Returns
    -------
    Points
        W (z_l - m) and W z_g; z_l and z_g themselves where the model does not whiten.
    """
    if scale.whitening is None or scale.residual_mean is None:
        return Points(local, global_)
    whitening = scale.whitening[places].float()
    around = (local - scale.residual_mean[places], global_)
    return Points(*(torch.einsum("nij,nj->ni", whitening, z) for z in around))


def distortion_points(head: DistortionHead, local: Tensor, global_: Tensor) -> Points:
    """What the head makes of the patches, [n, D] each, and of patches that are what is predicted."""
    return Points(head.hidden(local, global_), head.hidden(global_, global_))


def anomalous_shares(masks: NDArray[np.bool_], grid: PatchGrid) -> NDArray[np.float32]:
    """Share of the area of every patch that is anomalous.

    Parameters
    ----------
    masks : ndarray of bool, shape [N, H, W]
    grid : PatchGrid
        Where its frame reaches beyond the border, the mask is mirrored as the image is.

    Returns
    -------
    ndarray of float32, shape [N, P]
    """
    shares = []
    for mask in masks:
        area = mirrored(torch.from_numpy(mask)[None, :, :, None].float(), grid.frame)[..., 0]
        shares.append(F.avg_pool2d(area, grid.patch, grid.stride).flatten())
    return torch.stack(shares).numpy()


def draw(shares: NDArray[np.float32], patches: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Draw patches, half of them with something anomalous in them.

    Parameters
    ----------
    shares : ndarray of float32, shape [N, P]
        As from ``anomalous_shares``.
    patches : int
        How many; fewer where there are not so many. Where one half runs short, the other makes up for it.
    rng : Generator

    Returns
    -------
    ndarray of int, shape [n]
        Places in ``shares.ravel()``, in ascending order.
    """
    anomalous, normal = (np.flatnonzero(which) for which in (shares > 0, shares == 0))
    wanted = min(max(patches // 2, patches - len(normal)), len(anomalous))
    others = min(patches - wanted, len(normal))
    kinds = ((anomalous, wanted), (normal, others))
    return np.sort(np.concatenate([rng.choice(kind, count, replace=False) for kind, count in kinds]))


@dataclass(frozen=True)
class _View:
    """Of one patch size: scores and shares of all patches [N, P], and of those drawn what is shown."""

    grid: PatchGrid
    shares: NDArray[np.float32]
    scores: dict[str, NDArray[np.float32]]
    drawn: NDArray[np.intp]
    points: dict[str, Points]

    @property
    def share(self) -> NDArray[np.float32]:
        return self.shares.ravel()[self.drawn]


@torch.inference_mode()
def _views(
    model: Glance, photographs: Photographs, patches: int, seed: int, progress: Callable[..., None]
) -> list[_View]:
    """Score all patches, and keep the features of those that are drawn."""
    rng = np.random.default_rng(seed)
    shares = [anomalous_shares(photographs.masks, scale.grid) for scale in model.scales]
    drawn = [draw(share, patches, rng) for share in shares]
    scores: list[list[tuple[Tensor, ...]]] = [[] for _ in model.scales]
    points: list[list[tuple[Points, ...]]] = [[] for _ in model.scales]
    step, count = model.at_once(), len(photographs.prepared)
    for start in range(0, count, step):
        batch = np.stack(photographs.prepared[start : start + step])
        for i, (local, global_) in enumerate(model.features(batch)):
            scale = model.scales[i]
            found = scale.patch_scores(local, global_, model.calibration.scales[i])
            scores[i].append((found.inconsistency.cpu(), found.distortion.cpu()))
            image, place = (
                torch.from_numpy(index).to(model.device)
                for index in _here(drawn[i], len(scale.grid), start, len(batch))
            )
            pair = local[image, place], global_[image, place]
            heads = inconsistency_points(scale, *pair, place), distortion_points(scale.distortion, *pair)
            points[i].append(tuple(Points(*(z.cpu() for z in head)) for head in heads))
        progress(min(start + step, count))
    views = []
    for i, scale in enumerate(model.scales):
        all_scores = [torch.cat(parts).numpy() for parts in zip(*scores[i], strict=True)]
        all_points = [
            Points(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*points[i], strict=True)
        ]
        views.append(
            _View(
                scale.grid,
                shares[i],
                dict(zip(HEADS, all_scores, strict=True)),
                drawn[i],
                dict(zip(HEADS, all_points, strict=True)),
            )
        )
    return views


def _here(
    drawn: NDArray[np.intp], places: int, start: int, images: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Of the patches that were drawn, those in some images: image within these, and place in the grid."""
    image, place = np.divmod(drawn, places)
    here = (image >= start) & (image < start + images)
    return image[here] - start, place[here]


def _tsne(seed: int) -> Callable[[Points], NDArray[np.float32]]:
    """What lays features out: [2, n, 2], for local and global ones, from features [n, K]."""
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UserError(
            "scikit-learn is missing, which has t-SNE; pip install 'glance-fast[experiments]' installs it"
        ) from error

    def lay_out(points: Points) -> NDArray[np.float32]:
        together = torch.cat(points).numpy()
        # It must be smaller than the number of points.
        perplexity = min(PERPLEXITY, (len(together) - 1) / 3)
        # Its thousands of short loops wait for one another: with a thread a processor, where others work too,
        # it takes three to six times as long.
        with threadpool_limits(1):
            found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(together)
        return np.float32(found).reshape(2, -1, 2)

    return lay_out


def _separation(patch: int, head: str, view: _View) -> Separation:
    anomalous, normal = view.shares > MOSTLY, view.shares == 0
    auroc = None
    if anomalous.any() and normal.any():
        either = anomalous | normal
        auroc = metrics.image_auroc(view.scores[head][either], anomalous[either])
    return Separation(patch, head, auroc, int(anomalous.sum()), int(normal.sum()))


def _rows(
    category: Category, patch: int, view: _View, places: list[NDArray[np.float32]]
) -> Iterator[dict[str, Any]]:
    """Rows of ``results.csv``."""
    for row, drawn in enumerate(view.drawn):
        image, place = divmod(int(drawn), len(view.grid))
        sample = category.samples[image]
        top, left = view.grid.holes[place, :2]
        values = [
            patch,
            printable(sample.path.relative_to(category.data)),
            printable(sample.defect),
            int(top),
            int(left),
            *(float(table[image, place]) for table in (view.shares, *view.scores.values())),
            *(float(value) for panel in places for value in panel[:, row].ravel()),
        ]
        yield dict(zip(COLUMNS, values, strict=True))


# Dark is anomalous, and light enough not to cover it is normal; in this order also in grey, and for the
# colour blind.
_SHARES = LinearSegmentedColormap.from_list("share", ["#dcd9d2", "#f2b134", "#d1495b", "#5b2a86", "#12082b"])
_INK = "#2b3036"
_SHAPES = {"local": "o", "global": "^"}


def _picture(
    patch: int, share: NDArray[np.float32], places: list[NDArray[np.float32]], separations: list[Separation]
) -> Figure:
    """A panel a head: circles are patches, triangles their surroundings, as in the paper."""
    figure = blank(3.65)
    panels = figure.subplots(1, len(HEADS))
    figure.subplots_adjust(left=0.01, right=0.89, top=0.91, bottom=0.1, wspace=0.04)
    norm = Normalize(0, 1)
    for axes, found, separation in zip(panels, places, separations, strict=True):
        _scatter(axes, found, share, norm)
        number = "" if separation.auroc is None else f", AUROC {short(separation.auroc)}"
        axes.set_title(f"{separation.head} head, patches of {patch} px{number}", fontsize=8.5, color=_INK)
    bar = figure.add_axes((0.905, 0.1, 0.018, 0.81))
    figure.colorbar(ScalarMappable(norm, _SHARES), cax=bar)
    bar.set_ylabel("Share of the patch that is anomalous", fontsize=8, color=_INK)
    bar.tick_params(labelsize=7.5, colors=_INK, length=2.5)
    names = {"local": "local features: the patch", "global": "global features: its surrounding"}
    handles = [
        Line2D([], [], ls="", marker=_SHAPES[kind], ms=5, mfc="#b9b4a8", mec=_INK, mew=0.5, label=name)
        for kind, name in names.items()
    ]
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.45, 0), ncols=2, frameon=False, fontsize=8
    )
    return figure


def _scatter(axes: Axes, found: NDArray[np.float32], share: NDArray[np.float32], norm: Normalize) -> None:
    # The anomalous last, so that nothing hides them.
    for shown in (share == 0, share > 0):
        for marker, places in zip(_SHAPES.values(), found, strict=True):
            x, y = places[shown].T
            axes.scatter(
                x,
                y,
                12,
                share[shown],
                cmap=_SHARES,
                norm=norm,
                marker=marker,
                linewidths=0.25,
                edgecolors=_INK,
            )
    axes.set(xticks=[], yticks=[])
    axes.margins(0.03)
    for spine in axes.spines.values():
        spine.set(color=_INK, alpha=0.5, linewidth=0.7)
