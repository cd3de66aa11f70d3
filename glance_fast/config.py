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
NETS = {
    # Channels at strides 4, 8, 16, 32; residual blocks at strides 8, 16, 32; readout.
    "default": ((1, 1, 1, 1), (1, 1, 1), "hole"),
    # As public re-implementations of the paper have it: widths that double, global average pooling.
    "paper": ((0.25, 0.5, 1, 2), (1, 1, 1), "pool"),
}


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
    net : {"default", "paper"}
        Preset of Global-Net: constant width and readout at the hole, or widths that double and global
        average pooling.
    width : int
        Channels of Global-Net ("default"), or at stride 16 ("paper").
    blocks : tuple of int, optional
        Residual blocks of Global-Net at strides 8, 16, 32; the preset's if not given.
    readout : {"hole", "pool"}, optional
        What reaches Global-Net's head; the preset's if not given.
    blend : {"calibrated", "paper"}
        "calibrated": residuals whitened by a covariance per grid position, scores standardised on normal
        images. "paper": Eq. 13 as it stands.
    lambda_s : float, optional
        Share of the inconsistency score in the blend (Eq. 13). If not given, 0.8 as in the paper, or,
        calibrated, for each scale what the surrounding says of the patch on normal images tells: 0.5 plus
        Global-Net's R², at most 0.9.
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
    quantile : float
        Share of normal images that the threshold behind ``anomalous`` lets pass.
    finetune_steps : int
        Steps of Local-Net's fine-tuning on the category, for each scale; 0 switches it off.
    steps : int
        Steps of Global-Net's training, for each scale.
    batch : int
        Images a step of Global-Net.
    pretrained : bool
        Start Global-Net from the built-in weights, where it is of their shape, and not from random ones. They
        were learned with the built-in Local-Nets; with another one the head has more to unlearn.
    holes : int or tuple of int
        Patches of one image masked at once in training, one entry a scale; capped by what fits.
    learning_rate : float
        Peak of the one-cycle schedule of Global-Net.
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
        Memory for decoded images; more than fit are decoded anew by threads.
    checkpoint_minutes : float
        Time between checkpoints.
    """

    image_size: int | tuple[int, int] = 256
    patch: int | tuple[int, ...] = (32, 64)
    stride: int | tuple[int, ...] = (8, 16)
    net: str = "default"
    width: int = 64
    blocks: tuple[int, int, int] | None = None
    readout: str | None = None
    blend: str = "calibrated"
    lambda_s: float | None = None
    lambda_t: float = 0.1
    shrinkage: float = 0.5
    idw_power: float = 2.0
    idw_neighbours: int = 16
    smoothing: float = 4.0
    group_spacing: float = 2.0
    quantile: float = 0.99
    finetune_steps: int = 400
    steps: int = 1600
    batch: int = 12
    pretrained: bool = True
    holes: int | tuple[int, ...] | None = None
    learning_rate: float = 1e-2
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
        _, blocks, readout = NETS[self.net]
        if self.blocks is None:
            _set(self, "blocks", blocks)
        if self.readout is None:
            _set(self, "readout", readout)
        if self.lambda_s is None and self.blend == "paper":
            _set(self, "lambda_s", 0.8)
        self._check()
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
        if self.readout not in ("hole", "pool"):
            raise UserError(f"readout: {self.readout!r} is neither 'hole' nor 'pool'")
        if len(self.blocks) != 3:
            raise UserError(f"blocks: three numbers are needed, got {len(self.blocks)}")
        if min(self.blocks) < 0:
            raise UserError(f"blocks: none may be negative, got {self.blocks}")
        if self.holes is not None and len(_tuple(self.holes)) not in (1, len(self.patches)):
            raise UserError("holes: one number, or one for each patch size")
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
            ("quantile", 0.5, 0.99999),
            ("finetune_steps", 0, 1 << 24),
            ("steps", 1, 1 << 24),
            ("batch", 2, 4096),
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

    def _fitting_image_size(self) -> tuple[int, int]:
        scales = list(zip(self.patches, self.strides, strict=True))
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
        return fitted * 2 if len(fitted) == 1 else fitted

    @property
    def patches(self) -> tuple[int, ...]:
        """``patch`` as a tuple, one entry a scale."""
        return _tuple(self.patch)

    @property
    def strides(self) -> tuple[int, ...]:
        """``stride`` as a tuple, one entry a scale."""
        return _tuple(self.stride)

    @property
    def grids(self) -> tuple[PatchGrid, ...]:
        """The patch grid of every scale."""
        return tuple(
            PatchGrid(*self.image_size, p, s) for p, s in zip(self.patches, self.strides, strict=True)
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of Global-Net at strides 4, 8, 16, 32."""
        return tuple(max(1, round(self.width * factor)) for factor in NETS[self.net][0])

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

    def to_toml(self) -> str:
        """The settings as TOML; one that is None is left out, for TOML has no such value."""
        return tomli_w.dumps({k: v for k, v in dataclasses.asdict(self).items() if v is not None})


def load_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, unchecked but for their names."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: no readable TOML file ({error})") from error
    return checked_names(values, str(path))


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
