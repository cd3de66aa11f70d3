"""The model: one Local-Net, Global-Net and pair of heads for each patch size, and how they score images."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from glance_fast.calibration import Calibration, ScaleStatistics
from glance_fast.config import Config
from glance_fast.data.depth import fitted, levels, unlike
from glance_fast.data.images import Pixels, as_rgb, read_image
from glance_fast.data.roi import at_size
from glance_fast.device import has_bf16
from glance_fast.engines import dense, grouped, patchwise
from glance_fast.engines.memory import DEFAULT_MIB, IMAGES_TOGETHER, MIB, Share, split
from glance_fast.engines.timing import timed
from glance_fast.errors import ImageError, UserError
from glance_fast.kernels.patch_score import PatchScores, score_patches
from glance_fast.letterbox import Box, Window, window_of
from glance_fast.maps import HeadMaps, combine, distances, interpolate
from glance_fast.nets.heads import DistortionHead
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.masked import MaskedNet, masked_net
from glance_fast.nets.modules import channels_last, module_list
from glance_fast.nets.preprocess import mirrored, to_input
from glance_fast.nets.surround import SurroundNet
from glance_fast.roi import Roi

ENGINES = ("auto", "dense", "patchwise", "grouped")
PRECISIONS = ("auto", "fp32", "bf16")
NOT_FINITE = "its scores are not finite; try precision fp32, or train the model again"
# Patches of a region of interest that are scored at a time: their whitenings are copied together.
SOME_PATCHES = 256
NO_REGION = "`roi`: a region of interest is for photographs of one shape, and aspect is 'letterbox'"
NO_BF16 = "no bf16 instructions on this machine, where it would be slower: scoring in fp32"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreResult:
    """Scores of a batch of images.

    Attributes
    ----------
    maps : ndarray, float32 [B, H, W]
        Anomaly score of every pixel at the model's image size; higher is more anomalous. Outside a region of
        interest it is no higher than anywhere inside, and never above the mean of normal pixels, 0.
    scores : ndarray, float32 [B]
        One score an image.
    patch_scores : ndarray, float32 [B, rows, cols], or a tuple of one a scale
        Blended scores of the patches; NaN for those that do not belong to the region of interest.
    inside : ndarray, bool [B, H, W], or None
        The regions of interest; None where all counts.
    boxes : list of Box, or None
        With ``aspect = "letterbox"``, what each image takes of its map: ``maps[i, top:bottom, left:right]``.
        Beyond it the map is as it is outside a region of interest, and ``patch_scores`` are NaN.
    """

    maps: np.ndarray
    scores: np.ndarray
    patch_scores: np.ndarray | tuple[np.ndarray, ...]
    inside: np.ndarray | None = None
    boxes: list[Box] | None = None

    def seen(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Map and region of interest of one image, [h, w]: what it takes of them, of its own aspect."""
        inside = None if self.inside is None else self.inside[index]
        if self.boxes is None:
            return self.maps[index], inside
        top, left, bottom, right = self.boxes[index]
        return self.maps[index, top:bottom, left:right], inside


class HeadScores(Protocol):
    """The two scores of patches, each [B, P]; ``PatchScores``, for one."""

    @property
    def inconsistency(self) -> Tensor: ...
    @property
    def distortion(self) -> Tensor: ...


class Scale(nn.Module):
    """All that belongs to one patch size.

    Attributes
    ----------
    residual_mean, whitening : Tensor or None
        Of z_l - z_g on normal images, for every grid position: [P, D] and, in half precision,
        [P, D, D]. None for the paper's blend.
    """

    residual_mean: Tensor | None
    whitening: Tensor | None

    def __init__(self, config: Config, index: int) -> None:
        super().__init__()
        self.grid = config.grids[index]
        self.spacing = round(config.group_spacing * self.grid.patch)
        self.local = LocalNet(config.patches[index])
        features = self.local.features
        self.global_net: MaskedNet | SurroundNet
        if config.masked:
            self.global_net = masked_net(config, config.patches[index], features)
        else:
            self.global_net = SurroundNet(self.grid, features, config.width)
        self.distortion = DistortionHead(features)
        calibrated = config.blend == "calibrated"
        mean = torch.zeros(len(self.grid), features) if calibrated else None
        whitening = torch.eye(features).half().repeat(len(self.grid), 1, 1) if calibrated else None
        self.register_buffer("residual_mean", mean)
        self.register_buffer("whitening", whitening)

    @timed("Local-Net")
    def local_features(self, images: Tensor) -> Tensor:
        """z_l of all patches of images [B, H, W, 3], values from 0 to 255, [B, rows, cols, D]."""
        x = to_input(mirrored(images, self.grid.frame))
        return self.local(x, self.grid.stride).permute(0, 2, 3, 1)

    def features(
        self,
        images: Tensor,
        engine: str,
        limit: int,
        chosen: Sequence[int] | None = None,
        cells: tuple[slice, slice] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """z_l and z_g of all patches of images as for ``local_features``, each float32 [B, P, D].

        Or of some, by their raster indices in ascending order. A masked net computes z_g of these alone; net
        "surround" has that of all patches from its one pass. Of images that take a part of the grid,
        ``cells`` says which.
        """
        local = self.local_features(images)
        flat = local.float().flatten(1, 2)
        if chosen is not None:
            flat = flat[:, list(chosen)]
        net = self.global_net
        if isinstance(net, SurroundNet):
            with timed("Global-Net"):
                found = net(local, cells=cells).float().flatten(1, 2)
                return flat, found if chosen is None else found[:, list(chosen)]
        scene = net, to_input(images), self.grid, limit
        if engine == "grouped":
            return flat, grouped.global_features(*scene, self.spacing, chosen)
        return flat, (patchwise if engine == "patchwise" else dense).global_features(*scene, chosen)

    @timed("scores")
    def patch_scores(
        self, local: Tensor, global_: Tensor, s: ScaleStatistics, places: Tensor | None = None
    ) -> PatchScores:
        """Eq. 11 to 13 on features [B, P, D], or [B, P', D] of the patches that int64 [P'] names."""
        if places is None:
            return self._scored(local, global_, s, self.residual_mean, self.whitening)
        found = []
        for start in range(0, len(places), SOME_PATCHES):
            part = slice(start, start + SOME_PATCHES)
            here = (t if t is None else t[places[part]] for t in (self.residual_mean, self.whitening))
            found.append(self._scored(local[:, part], global_[:, part].contiguous(), s, *here))
        return PatchScores(*(torch.cat(scores, 1) for scores in zip(*found, strict=True)))

    def _scored(
        self,
        local: Tensor,
        global_: Tensor,
        s: ScaleStatistics,
        mean: Tensor | None,
        whitening: Tensor | None,
    ) -> PatchScores:
        return score_patches(
            local.contiguous(),
            global_,
            self.distortion.folded(),
            mean=mean,
            whitening=whitening,
            inconsistency_scale=(s.inconsistency.mean, s.inconsistency.std),
            distortion_scale=(s.distortion.mean, s.distortion.std),
            lambda_s=s.lambda_s,
        )


class Glance(nn.Module):
    """A model, untrained until its weights are loaded or fitted.

    Parameters
    ----------
    config : Config
        Settings.
    seed : int
        Of the initial weights.

    Attributes
    ----------
    precision : {"auto", "fp32", "bf16"}
        In which it scores unless told otherwise; "auto" is fp32.
    memory_mib : int or None
        That scoring may take beside the model; None: 2048 on a CPU, 8192 on a GPU.
    inside : Tensor or None
        Bool [H, W]: the region of interest that it was trained with, a part of its ``state_dict``. It is
        scored in that region alone unless told otherwise.
    """

    inside: Tensor | None

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scales = module_list(Scale(config, i) for i in range(len(config.patches)))
        self.calibration = Calibration(
            tuple(ScaleStatistics(lambda_s=config.lambda_s) for _ in self.scales),
            false_alarms=config.false_alarms,
            distances=config.blend == "calibrated",
            largest_peaks=config.blend == "calibrated",
        )
        self.precision = "auto"
        self.memory_mib: int | None = None
        self.register_buffer("inside", None)
        self._known_roi: tuple[Tensor, Roi] | None = None
        channels_last(self)
        self.eval()

    def get_extra_state(self) -> Tensor:
        """The calibration, as bytes: a ``state_dict`` holds all that scoring needs."""
        return torch.frombuffer(bytearray(self.calibration.to_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the calibration of a ``state_dict``."""
        text = bytes(state.cpu().numpy()).decode()
        self.calibration = Calibration.from_json(text, len(self.scales), "calibration in state_dict")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Have a region of interest where a ``state_dict`` has one, and none where it has none."""
        held = f"{prefix}inside" in state_dict
        size = self.config.image_size
        self.inside = torch.zeros(size, dtype=torch.bool, device=self.device) if held else None
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def roi(self) -> Roi | None:
        """The region of interest that it was trained with."""
        if self.inside is None:
            return None
        if self._known_roi is None or self._known_roi[0] is not self.inside:
            roi = Roi.of(self.inside.cpu().numpy(), self.config, self.device)
            self._known_roi = self.inside, roi
        return self._known_roi[1]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def at_once(self, precision: str = "auto") -> int:
        """Images that are best handed over together, scored in a precision as ``score`` takes it.

        Raises
        ------
        UserError
            As for ``memory_share``.
        """
        return self.memory_share(precision).together

    @property
    def memory_limit(self) -> int:
        """Bytes of ``memory_mib``, or of its default."""
        return (self.memory_mib or DEFAULT_MIB.get(self.device.type, DEFAULT_MIB["cpu"])) * MIB

    def memory_share(self, precision: str = "auto") -> Share:
        """What ``memory_mib`` is divided into.

        Raises
        ------
        UserError
            It does not suffice for an image.
        """
        most = IMAGES_TOGETHER.get(self.device.type, IMAGES_TOGETHER["cpu"])
        itemsize = 2 if self.chosen_precision(precision) == "bf16" else 4
        nets = [scale.global_net for scale in self.scales]
        features = self.scales[0].local.features
        return split(nets, features, self.config, itemsize, self.memory_limit, most)

    @torch.inference_mode()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps and scores of a batch of images that are tensors already.

        Parameters
        ----------
        images : Tensor
            Floating point [B, 3, H, W], RGB in [0, 1], on the model's device. Resized to the model's image
            size, or as its ``aspect`` has it. 1 is 255 of 8 bits, and ``calibration.white`` of more.

        Returns
        -------
        maps : Tensor
            Float32 [B, H, W], resized back.
        scores : Tensor
            Float32 [B].

        Raises
        ------
        UserError
            ``images`` is of another shape or type or, on a CPU, holds values outside [0, 1]; or the model is
            in training mode.
        """
        # A GPU is not waited for to look at the values.
        if images.device.type == "cpu" and images.is_floating_point() and images.numel():
            low, high = (float(value) for value in images.aminmax())
            if not (low >= 0 and high <= 1):
                raise UserError(f"images: values from {low:g} to {high:g}; they must lie in [0, 1]")
        head_maps = self.head_maps(self.patch_scores(images), self._part_of(images, None))
        maps, scores = combine(head_maps, self.config, self.calibration, self.inside)
        if maps.shape[1:] != images.shape[2:]:
            maps = F.interpolate(maps[:, None], images.shape[2:], mode="bilinear")[:, 0]
        return maps, scores

    def score(
        self,
        images: Sequence[str | Path | np.ndarray | Image.Image],
        engine: str = "auto",
        precision: str = "auto",
        roi: np.ndarray | Sequence[np.ndarray] | None = None,
    ) -> ScoreResult:
        """How anomalous every pixel of every image is.

        Parameters
        ----------
        images : sequence of paths, uint8 or uint16 arrays [H, W, 3], [H, W, 4] or [H, W], or PIL images
            Resized to the model's image size, or as its ``aspect`` has it. Of more than 8 bits for a model
            that was trained on such ones, with values as stored.
        engine : {"auto", "dense", "patchwise", "grouped"}
            How a masked Global-Net runs. "patchwise" is a pass a patch, the paper's procedure. "dense"
            ("auto") gives the same scores from one pass and what each patch changes in it. "grouped" masks
            many far-apart patches in one pass, with scores that agree closely (``group_spacing``). Net
            "surround" has one engine, "auto".
        precision : {"auto", "fp32", "bf16"}
            Of the two networks; "auto" is what the model was loaded with, and fp32 if that was "auto". A
            machine without bfloat16 instructions, where it would be slower, computes in fp32 all the same;
            that is logged as a warning.
        roi : ndarray or sequence of ndarray, optional
            The region of interest, bool [h, w] of any size, stretched to the image size; one for all images,
            or one an image. If not given, the one that the model was trained with, if there is one. Of a
            masked net, patches that do not belong to it are not computed; net "surround" has features of all
            patches from one pass, and there they are not scored. Images one after another with the same
            region go together.

        Returns
        -------
        ScoreResult

        Raises
        ------
        ImageError
            A path cannot be read as an image, a PIL image cannot be decoded, or an image has more than 8 bits
            and the model was trained on such of 8.
        UserError
            ``engine`` or ``precision`` is unknown, or the net has no such engine; ``images`` holds something
            else; ``memory_mib`` is too little for an image; or ``roi`` is no mask, shows nothing, is not one
            an image, or is given to a model that keeps the aspect of photographs.
        """
        self.check(engine, precision)
        if roi is not None and self.config.aspect == "letterbox":
            raise UserError(NO_REGION)
        one = isinstance(images, np.ndarray) and (images.ndim == 2 or images.shape[2:] in ((3,), (4,)))
        if one or isinstance(images, (str, Path, Image.Image)):
            raise UserError("images: expected a list, got a single image; write model.score([image])")
        regions = self._regions(roi, len(images))
        parts = list(self._score_chunks(images, engine, precision, regions))
        height, width = self.config.image_size
        if not parts:
            patches = tuple(np.zeros((0, s.grid.rows, s.grid.cols), np.float32) for s in self.scales)
            maps, scores = np.zeros((0, height, width), np.float32), np.zeros(0, np.float32)
            inside = None
        else:
            maps = np.concatenate([part.maps for part in parts])
            scores = np.concatenate([part.scores for part in parts])
            patches = tuple(
                np.concatenate(p) for p in zip(*(part.patch_scores for part in parts), strict=True)
            )
            known = [part.inside for part in parts if part.inside is not None]
            inside = np.concatenate(known) if known else None
        boxes = None
        if self.config.aspect == "letterbox":
            boxes = [box for part in parts for box in part.boxes or ()]
        own = patches if isinstance(self.config.patch, tuple) else patches[0]
        return ScoreResult(maps, scores, own, inside, boxes)

    def _regions(
        self, roi: np.ndarray | Sequence[np.ndarray] | None, count: int
    ) -> list[tuple[range, np.ndarray | None]]:
        """Runs of images, and the region that each run has; None: the model's own, if any."""
        size = self.config.image_size
        if roi is None or not count:
            return [(range(count), None)]
        if isinstance(roi, np.ndarray) and roi.ndim == 2:
            return [(range(count), at_size(roi, size))]
        if len(roi) != count:
            raise UserError(f"roi: {len(roi)} masks for {count} images; give one for all, or one an image")
        masks = [at_size(np.asarray(mask), size) for mask in roi]
        changes = [i for i in range(1, count) if not np.array_equal(masks[i - 1], masks[i])]
        return [(range(*ends), masks[ends[0]]) for ends in pairwise([0, *changes, count])]

    @torch.inference_mode()
    def _score_chunks(
        self,
        images: Sequence[Any],
        engine: str,
        precision: str,
        regions: Sequence[tuple[range, np.ndarray | None]],
    ) -> Iterator[ScoreResult]:
        together = self.at_once(precision)
        for run, inside in regions:
            roi = self.roi if inside is None else Roi.of(inside, self.config, self.device)
            for start in range(run.start, run.stop, together):
                part = images[start : min(start + together, run.stop)]
                with timed("resizing"):
                    prepared = [self.prepare(image) for image in part]
                # Of one size, unless they keep their aspects.
                for _, alike in itertools.groupby(prepared, key=np.shape):
                    yield self._score_batch(np.stack(list(alike)), engine, precision, roi)

    def _score_batch(self, batch: np.ndarray, engine: str, precision: str, roi: Roi | None) -> ScoreResult:
        patch_scores = self.patch_scores(batch, engine, precision, roi)
        part = self._part_of(batch, roi)
        head_maps = self.head_maps(patch_scores, part)
        with timed("maps"):
            inside = part.pixels if isinstance(part, Roi) else None
            maps, scores = combine(head_maps, self.config, self.calibration, inside)
        # The device is waited for here, and nowhere before.
        blended = []
        for i, (found, scale) in enumerate(zip(patch_scores, self.scales, strict=True)):
            values = found.blended.cpu().numpy()
            if part is not None:
                some, values = values, np.full((len(values), len(scale.grid)), np.nan, values.dtype)
                values[:, part.places[i].cpu().numpy()] = some
            blended.append(values.reshape(-1, scale.grid.rows, scale.grid.cols))
        where = None if inside is None else np.broadcast_to(inside.cpu().numpy(), maps.shape)
        own, boxes = maps.cpu().numpy(), None
        if self.config.aspect == "letterbox":
            box = part.box if isinstance(part, Window) else Box(0, 0, *self.config.image_size)
            boxes = [box] * len(batch)
            own = self._placed(own, box)
        return ScoreResult(own, scores.cpu().numpy(), tuple(blended), where, boxes)

    def _placed(self, maps: np.ndarray, box: Box) -> np.ndarray:
        """Maps of what photographs take of the model's image as maps of all of it, [B, H, W]."""
        lowest = np.minimum(maps.min((1, 2)), min(0.0, self.calibration.pixel_threshold))
        whole = np.empty((len(maps), *self.config.image_size), np.float32)
        whole[:] = lowest[:, None, None]
        whole[:, box.top : box.bottom, box.left : box.right] = maps
        return whole

    def _part_of(self, batch: np.ndarray | Tensor, roi: Roi | None) -> Roi | Window | None:
        """What counts of images as ``features`` takes them; None: all."""
        size = self._size_of(batch)
        if size != self.config.image_size:
            return window_of(self.config, size, self.device)
        return roi or self.roi

    def _size_of(self, batch: np.ndarray | Tensor) -> tuple[int, int]:
        """Height and width at which the nets see images."""
        height, width = batch.shape[1:3] if isinstance(batch, np.ndarray) else batch.shape[2:]
        return self.config.size_for((height, width))

    def prepare(self, image: str | Path | np.ndarray | Image.Image, name: str | Path = "image") -> Pixels:
        """An image [H, W, 3] of the model's size and depth, as ``glance_fast.data.depth.fitted`` has it.

        With ``aspect = "letterbox"``, it has its own aspect, and is smaller where that is another.

        Parameters
        ----------
        image
            As ``score`` takes it.
        name : str or Path
            What to call one in a message that is no path.

        Raises
        ------
        ImageError, UserError
            As for ``score``.
        """
        if isinstance(image, (str, Path)):
            name, image = image, read_image(image)
        pixels, white = as_rgb(image), self.calibration.white
        for remark in unlike(pixels, white).remarks():
            _log_once(remark)
        try:
            size = self.config.size_for(pixels.shape[:2])
        except UserError as error:
            raise ImageError(name, str(error)) from error
        return fitted(pixels, size, white, name)

    @torch.inference_mode()
    def features(
        self,
        batch: np.ndarray | Tensor,
        engine: str = "auto",
        precision: str = "auto",
        roi: Roi | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """z_l and z_g of all patches, each float32 [B, P, D], one pair a scale.

        With a region of interest, [B, P', D] of the patches that belong to it.

        Parameters
        ----------
        batch : ndarray or Tensor
            Images [B, H, W, 3], prepared or of an ``ImageCache``, or a tensor as ``forward`` takes it.
        engine, precision : str
            As for ``score``.
        roi : Roi, optional
            The model's own if not given, if it has one.
        """
        self.check(engine, precision)
        bf16 = self.chosen_precision(precision) == "bf16"
        share = self.memory_share(precision)
        images = self._pixels(batch)
        part = self._part_of(batch, roi)
        everywhere = [None] * len(self.scales)
        patches = part.patches if isinstance(part, Roi) else everywhere
        cells = part.cells if isinstance(part, Window) else everywhere
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            parts = [
                [
                    scale.features(some, engine, share.windows, chosen, place)
                    for scale, chosen, place in zip(self.scales, patches, cells, strict=True)
                ]
                for some in images.split(share.images)
            ]
        found = []
        for scale in zip(*parts, strict=True):
            local, global_ = (torch.cat(f) if len(f) > 1 else f[0] for f in zip(*scale, strict=True))
            found.append((local, global_))
        return found

    def check(self, engine: str, precision: str) -> None:
        """Refuse an engine or a precision that there is not, and a model in no state to score.

        Raises
        ------
        UserError
            It is unknown, or not for this net; or the model is in training mode, where scores would change it
            and depend on what is scored together; or its weights are not float32.
        """
        if any(module.training for module in self.modules()):
            raise UserError("the model is in training mode; call model.eval() before it scores")
        dtype = next(self.parameters()).dtype
        if dtype != torch.float32:
            raise UserError(
                f"the model's weights are {str(dtype).removeprefix('torch.')}, they must be float32: "
                'model.float(); to compute in bfloat16, give precision="bf16"'
            )
        if engine not in ENGINES:
            raise UserError(f"engine: {engine!r} is none of {', '.join(ENGINES)}")
        if engine != "auto" and not self.config.masked:
            raise UserError(
                f"engine: {engine!r} is for masked nets; net 'surround' answers for every patch in one pass, "
                "and 'auto' is its only engine"
            )
        if precision not in PRECISIONS:
            raise UserError(f"precision: {precision!r} is none of {', '.join(PRECISIONS)}")

    def _pixels(self, batch: np.ndarray | Tensor) -> Tensor:
        """Images as [B, H, W, 3] of the model's size, values from 0 to 255, on the model's device."""
        if isinstance(batch, np.ndarray):
            return torch.from_numpy(levels(batch, self.calibration.white)).to(self.device)
        if batch.dim() != 4 or batch.shape[1] != 3 or not batch.is_floating_point():
            raise UserError(
                f"images: floating point [B, 3, H, W] is needed, got {batch.dtype} {list(batch.shape)}"
            )
        images, size = batch.float(), self._size_of(batch)
        if batch.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return images.permute(0, 2, 3, 1) * 255

    def chosen_engine(self, wanted: str = "auto") -> str:
        """The engine that ``wanted`` comes to with this net: "auto" is "dense" for a masked one."""
        return "dense" if wanted == "auto" and self.config.masked else wanted

    def chosen_precision(self, wanted: str = "auto") -> str:
        """The precision that ``wanted`` comes to on this machine: "fp32" or "bf16"."""
        wanted = self.precision if wanted == "auto" else wanted
        if wanted != "bf16":
            return "fp32"
        if has_bf16(self.device):
            return "bf16"
        _log_once(NO_BF16)
        return "fp32"

    @torch.inference_mode()
    def patch_scores(
        self,
        batch: np.ndarray | Tensor,
        engine: str = "auto",
        precision: str = "auto",
        roi: Roi | None = None,
    ) -> list[PatchScores]:
        """Scores of all patches, one set a scale; parameters as for ``features``."""
        features = self.features(batch, engine, precision, roi)
        return self.scores_of(features, self.calibration.scales, self._part_of(batch, roi))

    def scores_of(
        self,
        features: Sequence[tuple[Tensor, Tensor]],
        statistics: Sequence[ScaleStatistics],
        part: Roi | Window | None = None,
    ) -> list[PatchScores]:
        """Scores of patches from what ``features`` gives of the same part of the image, one set a scale."""
        part = part or self.roi
        places = [None] * len(self.scales) if part is None else part.places
        return [
            scale.patch_scores(*pair, s, some)
            for scale, pair, s, some in zip(self.scales, features, statistics, places, strict=True)
        ]

    @timed("maps")
    def head_maps(
        self, patch_scores: Sequence[HeadScores], part: Roi | Window | None = None
    ) -> list[HeadMaps]:
        """Maps of the two scores, or of ``distances``, one pair a scale.

        With a region of interest (the model's own if none is given), the scores are those of the patches that
        belong to it, and what the maps have outside it means nothing. With a window, they are those of its
        patches, and the maps are of its size.
        """
        part = part or self.roi
        maps = []
        for i, (found, scale) in enumerate(zip(patch_scores, self.scales, strict=True)):
            heads = found.inconsistency, found.distortion
            if self.calibration.distances:
                heads = distances(*heads)
            if part is None:
                maps.append(HeadMaps(*(interpolate(values, scale.grid, self.config) for values in heads)))
            else:
                maps.append(HeadMaps(*(part.maps(values.float(), i, self.config) for values in heads)))
        return maps


@functools.cache  # not for every batch
def _log_once(line: str) -> None:
    log.warning(line)
