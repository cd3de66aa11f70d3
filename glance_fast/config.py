"""Everything a training run can be told, in one frozen dataclass, and its TOML file."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from glance_fast.errors import UserError
from glance_fast.geometry import PatchGrid, fitting_size

# Local-Net by patch size: residual blocks of two 3x3 convolutions at stride 4, then (kernel, stride,
# channels) of the convolutions that bring what is left to a single place.
LOCAL_LAYOUTS: dict[int, tuple[int, tuple[tuple[int, int, int], ...]]] = {
    32: (1, ((2, 1, 256),)),
    64: (2, ((3, 1, 128), (2, 2, 128), (2, 1, 256))),
}
# Global-Nets over the image, one hole a pass.
MASKED = {
    # Channels at strides 4, 8, 16, 32; residual blocks at strides 8, 16, 32; readout.
    "pyramid": ((1, 1, 1, 1), (1, 1, 1), "hole"),
    # As public re-implementations of the paper have it: widths that double, global average pooling.
    "paper": ((0.25, 0.5, 1, 2), (1, 1, 1), "pool"),
}
NETS = ("surround", *MASKED)
# What a setting is where it is not given: for net "surround", and for the masked ones.
BY_NET = {
    "steps": (300, 1600),
    "batch": (16, 12),
    "learning_rate": (5e-3, 1e-2),
}
# Steps of Local-Net's fine-tuning by patch size: the larger net has the more to learn.
FINETUNE_STEPS = {32: 250, 64: 500}


@dataclass(frozen=True)
class Config:
    """Settings of a model and of its training.

    Parameters
    ----------
    image_size : int or (int, int)
        Side, or (height, width), to which every image is resized; rounded to the nearest that patch and
        stride cover without a strip left over.
    patch, stride : int or tuple of int
        Side of a patch and step between patches, pixels; a tuple holds one entry a scale.
    net : {"surround", "pyramid", "paper"}
        Global-Net. "surround": over Local-Net's features, every patch in one pass. The other two run over the
        image with one patch masked: "pyramid" has constant width and reads its last maps at the hole, "paper"
        has widths that double and global average pooling.
    frame : int or tuple of int, optional
        Pixels by which an image is mirrored beyond its border, one entry a scale, so that patches cover the
        border too. If not given, a quarter of the patch for "surround" and 0 for the masked nets, which
        would find the mirror image of their hole.
    width : int
        Channels of Global-Net, at stride 16 for "paper".
    blocks : tuple of int, optional
        Residual blocks of a masked net at strides 8, 16, 32; the preset's if not given.
    readout : {"hole", "pool"}, optional
        What reaches a masked net's head; the preset's if not given.
    blend : {"calibrated", "paper"}
        "calibrated": residuals whitened by a covariance per grid position, scores standardised on normal
        images. "paper": Eq. 13 as it stands.
    lambda_s : float
        Share of the inconsistency score in the blend (Eq. 13).
    lambda_t : float
        Weight of the distortion loss in training (Eq. 10).
    shrinkage : float
        Share of the global covariance in that of each grid position.
    idw_power : float
        Power of the distance in inverse-distance weighting.
    idw_neighbours : int
        Patch centres that a pixel's value comes from; 0 for all of them.
    smoothing : float
        Standard deviation of a Gaussian on the map, pixels; 0 for none.
    group_spacing : float
        Distance between the patches that the grouped engine masks in one pass, in patches. Less is sooner
        done, and further from the definition's scores; ``glance-fast bench`` says how far.
    false_alarms : float
        Share of normal images that the threshold behind ``anomalous`` may call anomalous.
    finetune_steps : int or tuple of int, optional
        Steps of Local-Net's fine-tuning on the category, one entry a scale; 250 for patch 32 and 500 for
        patch 64 if not given, 0 switches it off.
    steps : int, optional
        Steps of Global-Net's training, for each scale; if not given, 300 for "surround" and 1600 for the
        masked nets.
    batch : int, optional
        Images a step of Global-Net; 16 for "surround" and 12 for the masked nets if not given.
    variants : int
        Augmented copies of training images, and as many stained ones, whose features are computed once and
        trained on; every image has one at least, up to twice this number.
    pretrained : bool
        Start a masked net from the built-in weights, where it is of their shape, and not from random ones.
        They were learned with the built-in Local-Nets; with another one the head has more to unlearn.
    holes : int or tuple of int
        Patches of one image masked at once in a masked net's training, one entry a scale; capped by what
        fits.
    learning_rate : float, optional
        Peak of the one-cycle schedule of Global-Net; 0.005 for "surround" and 0.01 for the masked nets if not
        given.
    symmetry : {"auto", "none", "turns", "mirrors", "all"}
        Quarter turns and mirroring in training; "auto" measures on normal images what the category allows.
    shift : int
        Largest random translation in training, pixels.
    brightness : float
        Largest random change of brightness in training, as a share.
    validation : float
        Share of the images held out of training, for calibration and the figures in the log.
    seed : int
        Of everything random.
    cache_mib : int
        Memory for decoded images, and as much for augmented copies. Images that do not fit are decoded anew
        by threads; of copies, fewer are made.
    checkpoint_minutes : float
        Time between checkpoints.
    """

    image_size: int | tuple[int, int] = 256
    patch: int | tuple[int, ...] = (32, 64)
    stride: int | tuple[int, ...] = (8, 16)
    net: str = "surround"
    frame: int | tuple[int, ...] | None = None
    width: int = 64
    blocks: tuple[int, int, int] | None = None
    readout: str | None = None
    blend: str = "calibrated"
    lambda_s: float = 0.8
    lambda_t: float = 0.1
    shrinkage: float = 0.5
    idw_power: float = 2.0
    idw_neighbours: int = 16
    smoothing: float = 4.0
    group_spacing: float = 2.0
    false_alarms: float = 0.01
    finetune_steps: int | tuple[int, ...] | None = None
    steps: int | None = None
    batch: int | None = None
    variants: int = 240
    pretrained: bool = True
    holes: int | tuple[int, ...] | None = None
    learning_rate: float | None = None
    symmetry: str = "auto"
    shift: int = 6
    brightness: float = 0.07
    validation: float = 0.1
    seed: int = 0
    cache_mib: int = 2048
    checkpoint_minutes: float = 2.0

    def __post_init__(self) -> None:
        _set = object.__setattr__
        for field in dataclasses.fields(self):
            _set(self, field.name, _coerce(field.name, field.type, getattr(self, field.name)))
        if self.net not in NETS:
            raise UserError(f"net: {self.net!r} is none of {', '.join(NETS)}")
        if self.blend not in ("calibrated", "paper"):
            raise UserError(f"blend: {self.blend!r} is neither 'calibrated' nor 'paper'")
        if self.masked:
            _, blocks, readout = MASKED[self.net]
            _set(self, "blocks", blocks if self.blocks is None else self.blocks)
            _set(self, "readout", readout if self.readout is None else self.readout)
        for name, values in BY_NET.items():
            if getattr(self, name) is None:
                _set(self, name, values[self.masked])
        self._check()
        if self.finetune_steps is None:
            steps = tuple(FINETUNE_STEPS[patch] for patch in self.patches)
            _set(self, "finetune_steps", steps if isinstance(self.patch, tuple) else steps[0])
        if self.frame is None:
            frames = tuple(map(self._usual_frame, self.patches, self.strides))
            _set(self, "frame", frames if isinstance(self.patch, tuple) else frames[0])
        self._check_frame()
        _set(self, "image_size", self._fitting_image_size())

    def _check(self) -> None:
        if len(self.patches) != len(self.strides):
            raise UserError(
                f"patch and stride: {len(self.patches)} patch sizes, {len(self.strides)} strides; give both, "
                "e.g. --set patch=32 --set stride=8"
            )
        for patch, stride in zip(self.patches, self.strides, strict=True):
            if patch not in LOCAL_LAYOUTS:
                raise UserError(
                    f"patch: {patch} is not supported; use one of {', '.join(map(str, LOCAL_LAYOUTS))}"
                )
            least = local_step(patch)
            if stride % least or not least <= stride <= patch:
                raise UserError(
                    f"stride: {stride} does not go with patch {patch}; "
                    f"use a multiple of {least} from {least} to {patch}"
                )
        if len(set(self.patches)) != len(self.patches):
            raise UserError("patch: every scale has another patch size")
        if self.symmetry not in ("auto", "none", "turns", "mirrors", "all"):
            raise UserError(f"symmetry: {self.symmetry!r} is none of auto, none, turns, mirrors, all")
        if self.symmetry in ("turns", "all") and len(set(_tuple(self.image_size))) > 1:
            raise UserError("symmetry: quarter turns need a square image_size")
        if self.readout not in ("hole", "pool", None):
            raise UserError(f"readout: {self.readout!r} is neither 'hole' nor 'pool'")
        if self.blocks is not None and len(self.blocks) != 3:
            raise UserError(f"blocks: three numbers are needed, got {len(self.blocks)}")
        if self.blocks is not None and min(self.blocks) < 0:
            raise UserError(f"blocks: none may be negative, got {self.blocks}")
        if self.holes is not None and len(_tuple(self.holes)) not in (1, len(self.patches)):
            raise UserError("holes: one number, or one for each patch size")
        if self.finetune_steps is not None:
            given = _tuple(self.finetune_steps)
            if len(given) not in (1, len(self.patches)):
                raise UserError("finetune_steps: one number, or one for each patch size")
            if not 0 <= min(given) <= max(given) <= 1 << 24:
                raise UserError(f"finetune_steps: {self.finetune_steps} lies outside [0, {1 << 24}]")
        if self.holes is not None and min(_tuple(self.holes)) < 1:
            raise UserError(f"holes: at least 1 is needed, got {self.holes}")
        for name, low, high in (
            ("width", 4, 4096),
            ("lambda_s", 0, 1),
            ("lambda_t", 0, 1e3),
            ("shrinkage", 0.01, 1),
            ("idw_power", 0, 32),
            ("idw_neighbours", 0, 1 << 20),
            ("smoothing", 0, 1e3),
            ("group_spacing", 1, 1e3),
            ("false_alarms", 1e-5, 0.5),
            ("steps", 1, 1 << 24),
            ("batch", 2, 4096),
            ("variants", 8, 1 << 20),
            ("learning_rate", 1e-7, 1),
            ("shift", 0, 256),
            ("brightness", 0, 1),
            ("validation", 0.01, 0.5),
            ("seed", 0, 2**31 - 1),
            ("cache_mib", 1, 1 << 24),
            ("checkpoint_minutes", 0, 1e6),
        ):
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise UserError(f"{name}: {getattr(self, name)} lies outside [{low}, {high}]")

    def _usual_frame(self, patch: int, stride: int) -> int:
        """A quarter of the patch, or the nearest to it that the stride goes with; 0 for a masked net."""
        if self.masked:
            return 0
        half = stride // 2
        return min(half * max(1, round(patch / 4 / half)), patch // 2)

    def _check_frame(self) -> None:
        if len(self.frames) != len(self.patches):
            raise UserError("frame: one number, or one for each patch size")
        for frame, patch in zip(self.frames, self.patches, strict=True):
            if not 0 <= frame <= patch // 2:
                raise UserError(
                    f"frame: {frame} lies outside [0, {patch // 2}], half of a patch of {patch} pixels"
                )
        if self.masked and any(self.frames):
            raise UserError(
                f"frame: net {self.net!r} would find its hole's mirror image; use 0, or 'surround'"
            )

    def _fitting_image_size(self) -> tuple[int, int]:
        scales = list(zip(self.patches, self.strides, self.frames, strict=True))
        sizes = _tuple(self.image_size)
        if len(sizes) not in (1, 2) or min(sizes) < 16 or max(sizes) > 1 << 14:
            raise UserError(
                f"image_size: expected one side or (height, width) in pixels, got {self.image_size}"
            )
        if min(sizes) < max(self.patches):
            raise UserError(
                f"image_size: {self.image_size} is smaller than a patch of {max(self.patches)} pixels"
            )
        try:
            fitted = tuple(fitting_size(size, scales) for size in sizes)
        except ValueError as error:
            raise UserError(f"image_size: {error}") from error
        fitted = fitted * 2 if len(fitted) == 1 else fitted
        if not self.masked:
            self._check_surrounding(fitted, scales)
        return fitted

    def _check_surrounding(self, size: tuple[int, int], scales: list[tuple[int, int, int]]) -> None:
        """Every patch needs another beside it that shares no pixel with it."""
        failing = [g for g in (PatchGrid(*size, *scale) for scale in scales) if not g.surrounded]
        if not failing:
            return
        # One cell more than the hole, along an axis, and no pixel in common with it.
        least = {g.patch: g.hidden * g.stride + g.patch - 2 * g.frame for g in failing}
        worst = max(least, key=least.__getitem__)
        fits = fitting_size(least[worst], scales, least[worst])
        smaller = [patch for patch in self.patches if patch not in least] or [min(LOCAL_LAYOUTS)]
        advice = f"{fits} and more fit"
        if smaller[0] < worst:
            stride = self.strides[self.patches.index(smaller[0])] if smaller[0] in self.patches else 8
            advice += f", or patches of {smaller[0]} alone (--set patch={smaller[0]} --set stride={stride})"
        raise UserError(
            f"image_size: {size[0]}x{size[1]} leaves no surrounding beside a patch of {worst} pixels; "
            f"{advice}, or a masked net (--set net=pyramid)"
        )

    @property
    def patches(self) -> tuple[int, ...]:
        """``patch`` as a tuple, one entry a scale."""
        return _tuple(self.patch)

    @property
    def strides(self) -> tuple[int, ...]:
        """``stride`` as a tuple, one entry a scale."""
        return _tuple(self.stride)

    @property
    def frames(self) -> tuple[int, ...]:
        """``frame`` as a tuple, one entry a scale."""
        frames = _tuple(self.frame)
        return frames * len(self.patches) if len(frames) == 1 else frames

    @property
    def masked(self) -> bool:
        """Whether Global-Net runs over the image, a hole a pass."""
        return self.net in MASKED

    @property
    def grids(self) -> tuple[PatchGrid, ...]:
        """The patch grid of every scale."""
        scales = zip(self.patches, self.strides, self.frames, strict=True)
        return tuple(PatchGrid(*self.image_size, *scale) for scale in scales)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of a masked net at strides 4, 8, 16, 32."""
        return tuple(max(1, round(self.width * factor)) for factor in MASKED[self.net][0])

    def holes_of(self, scale: int) -> int:
        """Patches of one image masked at once in training, for a scale."""
        height, width = self.image_size
        cells = (height // (2 * self.patches[scale])) * (width // (2 * self.patches[scale]))
        if self.holes is None:
            # 14 of 16 cells for patch 32 at 256 pixels, all 4 for patch 64.
            wanted = cells if cells <= 4 else round(cells * 0.875)
        else:
            wanted = _tuple(self.holes)[scale if len(_tuple(self.holes)) > 1 else 0]
        return max(1, min(wanted, cells))

    def finetune_steps_of(self, scale: int) -> int:
        """Steps of Local-Net's fine-tuning, for a scale."""
        steps = _tuple(self.finetune_steps)
        return steps[scale if len(steps) > 1 else 0]

    def to_toml(self) -> str:
        """The settings as TOML; one that is None is left out, for TOML has no such value."""
        return tomli_w.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None})


def load_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, unchecked but for their names."""
    try:
        values = upgraded(tomllib.loads(Path(path).read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: no readable TOML file ({error})") from error
    return checked_names(values, str(path))


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run folder of an earlier version, as this version says them."""
    if values.get("net") not in ("default", "paper") or type(values.get("quantile")) not in (int, float):
        return values
    values = dict(values)
    # 1 - 0.99999 would lie a hair below what is allowed.
    values["false_alarms"] = round(1 - values.pop("quantile"), 12)
    if values["net"] == "default":
        values["net"] = "pyramid"
    return values


def parse_setting(text: str) -> tuple[str, Any]:
    """``key=value`` of the command line; the value is read as TOML, or as a string."""
    key, found, value = text.partition("=")
    if not found:
        raise UserError(f"--set {text}: expected key=value")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    return next(iter(checked_names({key.strip(): parsed}, "--set"))), parsed


def checked_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """``values`` if every name is a setting's."""
    names = [field.name for field in dataclasses.fields(Config)]
    for name in values:
        if name not in names:
            raise UserError(f"{source}: no setting {name!r}; there are {', '.join(names)}")
    return values


def local_step(patch: int) -> int:
    """Cumulative stride of Local-Net; strides between patches are multiples of it."""
    step = 4
    for _, stride, _ in LOCAL_LAYOUTS[patch][1]:
        step *= stride
    return step


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _coerce(name: str, kind: str, value: Any) -> Any:
    """Lists of a TOML file to tuples, integers to floats where a float is meant; refuse what does not fit."""
    if value is None and "None" in kind:
        return None
    if isinstance(value, (list, tuple)) and "tuple" in kind:
        if value and all(type(v) is int for v in value):
            return tuple(value)
    elif ("int" in kind.split(" | ") and type(value) is int) or (kind == "bool" and isinstance(value, bool)):
        return value
    elif kind.startswith("float") and type(value) in (int, float):
        return float(value)
    elif kind.startswith("str") and isinstance(value, str):
        return value
    raise UserError(f"{name}: expected {kind}, got {value!r}")
