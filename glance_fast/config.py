"""All that a training run can be told, with limits and meanings, in one dataclass, and its TOML file."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, get_args

import tomli_w
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.dataclasses import dataclass

from glance_fast.errors import UserError, excerpt, quoted
from glance_fast.geometry import PatchGrid, fitting_size, fitting_within, step_of

# Patch sizes that there is a Local-Net for, and its cumulative stride.
PATCH_STEPS = {32: 4, 64: 8}
# Global-Nets over the image, one hole a pass.
MASKED = {
    # Channels at strides 4, 8, 16, 32; residual blocks at strides 8, 16, 32; readout.
    "pyramid": ((1, 1, 1, 1), (1, 1, 1), "hole"),
    # As public re-implementations of the paper have it: widths that double, global average pooling.
    "paper": ((0.25, 0.5, 1, 2), (1, 1, 1), "pool"),
}
Net = Literal["surround", "pyramid", "paper"]
NETS = get_args(Net)
# What a setting is where it is not given: for net "surround", and for the masked ones.
BY_NET = {
    "steps": (300, 1600),
    "batch": (16, 12),
    "learning_rate": (5e-3, 1e-2),
}
# Whole models by name: what differs from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "surround": {},
    "pyramid": {"net": "pyramid"},
    # The paper as literally as it can be had: one patch size, Eq. 13 as it stands, no smoothing, one hole. Of
    # symmetry it says nothing, and "auto" stays; symmetry = "none" trains without turns and mirroring.
    "paper": {
        "net": "paper",
        "patch": 32,
        "stride": 8,
        "frame": 0,
        "readout": "pool",
        "blend": "paper",
        "lambda_s": 0.8,
        "smoothing": 0.0,
        "holes": 1,
    },
}
# Characters of a file with settings. The time to read TOML grows with the square of the parts of a key.
MOST_TOML = 1 << 14
# Settings that came later, and as what they are left out of TOML: trainings begun before know theirs by it.
LATER = {"aspect": "stretch"}
# Steps of Local-Net's fine-tuning by patch size: the larger net has the more to learn.
FINETUNE_STEPS = {32: 250, 64: 500}


Kind = TypeVar("Kind")
Given = TypeVar("Given")
Kept = TypeVar("Kept")


class Settled(Generic[Given, Kept]):
    """A setting that is given as one type and kept as a narrower one, which ``Config`` puts in its place.

    Type checkers tell the two apart by a descriptor; pydantic checks what is given.
    """

    if TYPE_CHECKING:

        def __get__(self, config: object, owner: type) -> Kept: ...
        def __set__(self, config: object, value: Given) -> None: ...

    else:

        def __class_getitem__(cls, types):
            return types[0]


def given(value: Any) -> Any:
    """The default of a ``Settled`` setting: of the type that is given, not of the one that is kept."""
    return value


# TOML has lists where Python has tuples.
Listed = Annotated[Kind, BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]
OneEach = Annotated[tuple[Kind, ...], Field(min_length=1, description="a list with one for each patch size")]
OneOrEach = Listed[Kind | OneEach[Kind]]
Pixels = Annotated[int, Field(ge=16, le=1 << 14)]
Sides = Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=2, description="(height, width)")]
Patch = Annotated[int, Field(le=1 << 14), WithJsonSchema({"type": "integer", "enum": list(PATCH_STEPS)})]
# Half of the largest patch.
Frame = Annotated[int, Field(ge=0, le=max(PATCH_STEPS) // 2)]
Count = Annotated[int, Field(ge=0, le=64)]
Blocks = Annotated[tuple[Count, Count, Count], Field(description="three integers from 0 to 64")]


def allowed(schema: dict[str, Any]) -> str:
    """What a part of the JSON schema allows, in words; None goes without saying."""
    if "anyOf" in schema:
        return ", or ".join(allowed(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *first, last = map(str, schema["enum"])
        return f"{', '.join(first)} or {last}"
    if schema["type"] == "array":
        return schema["description"]
    if schema["type"] == "boolean":
        return "true or false"
    kind = {"integer": "an integer", "number": "a number"}[schema["type"]]
    low, high = (f"{schema[end]:.10g}" for end in ("minimum", "maximum"))
    return f"{kind} from {low} to {high}"


def _in_one_line(cls: Any) -> Any:
    """Have ``cls`` say what is wrong with a setting in one line."""
    validated = cls.__init__

    @functools.wraps(validated)
    def __init__(self: Any, **settings: Any) -> None:
        checked_names(settings, "Config")
        try:
            validated(self, **settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            if not first["loc"]:
                # Of ``__post_init__``, which looks at several settings together.
                raise first["ctx"]["error"] from None
            name = str(first["loc"][0])
            what = allowed(json_schema()["properties"][name])
            raise UserError(f"{name}: expected {what}, got {quoted(settings[name])}") from None

    cls.__init__ = __init__
    return cls


@_in_one_line
@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Config:
    """Settings of a model and of its training."""

    image_size: Settled[Listed[Pixels | Sides], tuple[int, int]] = Field(
        default=given(256),
        description="Side, or (height, width), to which every image is resized. Rounded to the nearest that "
        "patch and stride cover without a strip left over.",
    )
    aspect: Literal["stretch", "letterbox"] = Field(
        default="stretch",
        description='What becomes of photographs of another shape than ``image_size``. "stretch": each is '
        'resized to it. "letterbox": each keeps its aspect and takes what it needs of ``image_size``, which '
        "gets the shape of the photographs in training; these have to be of one shape.",
    )
    tile: Settled[Annotated[int, Field(ge=16, le=1 << 20)] | Literal["auto"] | None, int | None] = Field(
        default=given(None),
        description="Side of a tile of a photograph, in its pixels: what the model sees at ``image_size``. "
        "auto is ``image_size`` itself, so that no pixel is lost. Photographs are then trained on and scored "
        "by overlapping tiles: for large ones of which every part looks alike. If not given, the model sees "
        "whole photographs.",
    )
    patch: OneOrEach[Patch] = Field(
        default=(32, 64), description="Side of a patch, pixels. Several are as many scales of one model."
    )
    stride: OneOrEach[Annotated[int, Field(ge=1, le=1 << 14)]] = Field(
        default=(8, 16), description="Step between patches, pixels."
    )
    net: Net = Field(
        default="surround",
        description='Which Global-Net. "surround": over Local-Net\'s features, every patch in one pass. The '
        'other two run over the image with one patch masked: "pyramid" has constant width and reads its last '
        'maps at the hole, "paper" has widths that double and global average pooling.',
    )
    frame: Settled[OneOrEach[Frame] | None, int | tuple[int, ...]] = Field(
        default=given(None),
        description="Pixels by which an image is mirrored beyond its border, so that patches cover the "
        'border too. If not given, a quarter of the patch for "surround" and 0 for the masked nets, which '
        "would find the mirror image of their hole.",
    )
    width: int = Field(
        default=64, ge=4, le=4096, description='Channels of Global-Net, at stride 16 for "paper".'
    )
    blocks: Listed[Blocks] | None = Field(
        default=None,
        description="Residual blocks of a masked net at strides 8, 16, 32. The net's own if not given.",
    )
    readout: Literal["hole", "pool"] | None = Field(
        default=None, description="What reaches a masked net's head. The net's own if not given."
    )
    blend: Literal["calibrated", "paper"] = Field(
        default="calibrated",
        description='How the two scores become one. "calibrated": residuals whitened by a covariance per '
        'grid position, scores standardised on normal images. "paper": Eq. 13 as it stands.',
    )
    lambda_s: float = Field(
        default=0.8, ge=0, le=1, description="Share of the inconsistency score in the blend (Eq. 13)."
    )
    lambda_t: float = Field(
        default=0.1, ge=0, le=1e3, description="Weight of the distortion loss in training (Eq. 10)."
    )
    shrinkage: float = Field(
        default=0.5,
        ge=0.01,
        le=1,
        description="Share of the global covariance in that of each grid position.",
    )
    idw_power: float = Field(
        default=2.0, ge=0, le=32, description="Power of the distance in inverse-distance weighting."
    )
    idw_neighbours: int = Field(
        default=16,
        ge=0,
        le=1 << 20,
        description="Patch centres that a pixel's value comes from; 0 for all of them.",
    )
    smoothing: float = Field(
        default=4.0,
        ge=0,
        le=1e3,
        description="Standard deviation of a Gaussian on the map, pixels; 0 for none.",
    )
    group_spacing: float = Field(
        default=2.0,
        ge=1,
        le=1e3,
        description="Distance between the patches that the grouped engine masks in one pass, in patches. "
        "Less is faster, and further from the definition's scores; ``glance-fast bench`` says how far.",
    )
    false_alarms: float = Field(
        default=0.01,
        ge=1e-5,
        le=0.5,
        description="Share of normal images that the threshold behind ``anomalous`` may call anomalous.",
    )
    finetune_steps: Settled[
        OneOrEach[Annotated[int, Field(ge=0, le=1 << 24)]] | None, int | tuple[int, ...]
    ] = Field(
        default=given(None),
        description="Steps of Local-Net's fine-tuning on the category; 0 switches it off. If not given, 250 "
        "for patch 32 and 500 for patch 64.",
    )
    steps: Settled[int | None, int] = Field(
        default=given(None),
        ge=1,
        le=1 << 24,
        description='Steps of Global-Net\'s training, for each scale. If not given, 300 for "surround" and '
        "1600 for the masked nets.",
    )
    batch: Settled[int | None, int] = Field(
        default=given(None),
        ge=2,
        le=4096,
        description='Images a step of Global-Net. If not given, 16 for "surround" and 12 for masked nets.',
    )
    variants: int = Field(
        default=240,
        ge=8,
        le=1 << 20,
        description="Augmented copies of training images, and as many stained ones, that are trained on. "
        "Their features are computed once; every image has one at least, up to twice this number.",
    )
    pretrained: bool = Field(
        default=True,
        description="Start a masked net from the built-in weights, where it is of their shape, and not from "
        "random ones. They were learned with the built-in Local-Nets; with another one the head has more to "
        "unlearn.",
    )
    holes: OneOrEach[Annotated[int, Field(ge=1, le=1 << 24)]] | None = Field(
        default=None,
        description="Patches of one image masked at once in a masked net's training. Capped by what fits, "
        "and if not given nearly that.",
    )
    learning_rate: Settled[float | None, float] = Field(
        default=given(None),
        ge=1e-7,
        le=1,
        description='Peak of the one-cycle schedule of Global-Net. If not given, 0.005 for "surround" and '
        "0.01 for the masked nets.",
    )
    symmetry: Literal["auto", "none", "turns", "mirrors", "all"] = Field(
        default="auto",
        description='Quarter turns and mirroring in training. "auto" measures on normal images what the '
        "category allows.",
    )
    shift: int = Field(default=6, ge=0, le=256, description="Largest random translation in training, pixels.")
    brightness: float = Field(
        default=0.07, ge=0, le=1, description="Largest random change of brightness in training, as a share."
    )
    validation: float = Field(
        default=0.1,
        ge=0.01,
        le=0.5,
        description="Share of the images that no net is trained on. They tell which symmetry there is, what "
        "each patch size counts by in the map, and the figures in the log. Calibration takes all images.",
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="Seed of everything random.")
    cache_mib: int = Field(
        default=2048,
        ge=1,
        le=1 << 24,
        description="Memory for decoded images, and as much for augmented copies and their features, MiB. "
        "Images that do not fit are decoded anew by threads; of copies fewer are made, though never fewer "
        "than 8. Fine-tuning takes up to one and a half times as much beside it, for turned copies and what "
        "the teacher says of both.",
    )
    checkpoint_minutes: float = Field(
        default=2.0, ge=0, le=1e6, description="Time between checkpoints, minutes."
    )

    def __post_init__(self) -> None:
        _set = object.__setattr__
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
        if self.tile is not None and len(set(self.image_size)) > 1:
            raise UserError("tile: tiles are square; give one number for image_size")
        if self.tile == "auto":
            _set(self, "tile", self.image_size[0])

    def _check(self) -> None:
        if len(self.patches) != len(self.strides):
            raise UserError(
                f"patch and stride: {len(self.patches)} patch sizes, {len(self.strides)} strides; give both, "
                "e.g. `patch=32` and `stride=8`"
            )
        for patch, stride in zip(self.patches, self.strides, strict=True):
            if patch not in PATCH_STEPS:
                raise UserError(
                    f"patch: {patch} is not supported; use one of {', '.join(map(str, PATCH_STEPS))}"
                )
            least = PATCH_STEPS[patch]
            if stride % least or not least <= stride <= patch:
                raise UserError(
                    f"stride: {stride} does not go with patch {patch}; "
                    f"use a multiple of {least} from {least} to {patch}"
                )
        if len(set(self.patches)) != len(self.patches):
            raise UserError("patch: every scale has another patch size")
        if self.symmetry in ("turns", "all") and len(set(_tuple(self.image_size))) > 1:
            raise UserError("symmetry: quarter turns need a square image_size")
        if self.aspect == "letterbox" and self.tile is not None:
            raise UserError("aspect: a tile is square and never stretched; leave one of aspect and tile away")
        if self.aspect == "letterbox" and self.masked:
            raise UserError(
                f"aspect: net {self.net!r} tells where a patch lies by the whole image; letterbox is for "
                "'surround'"
            )
        for name in ("holes", "finetune_steps"):
            given = getattr(self, name)
            if given is not None and len(_tuple(given)) not in (1, len(self.patches)):
                raise UserError(f"{name}: one number, or one for each patch size")

    @classmethod
    def preset(cls, name: str, **settings: Any) -> Config:
        """A whole model by name.

        Parameters
        ----------
        name : {"surround", "pyramid", "paper"}
            "surround": the defaults. "pyramid": a masked net with its defaults. "paper": the paper as
            literally as it can be had, with one patch size, the blend of Eq. 13 as it stands, no smoothing,
            global average pooling and one hole an image in training.
        **settings
            Settings in place of the preset's.

        Returns
        -------
        Config

        Raises
        ------
        UserError
            There is no such preset, or a setting is refused.

        Examples
        --------
        >>> Config.preset("paper", seed=1).blend
        'paper'
        """
        if name not in PRESETS:
            raise UserError(f"preset: expected {', '.join(PRESETS)}, got {name!r}")
        return cls(**{**PRESETS[name], **settings})

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
            if frame > patch // 2:
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
        if min(sizes) < max(self.patches):
            raise UserError(
                f"image_size: {self.image_size} is smaller than a patch of {max(self.patches)} pixels"
            )
        try:
            fitted = fitting_size(sizes[0], scales), fitting_size(sizes[-1], scales)
        except ValueError as error:
            raise UserError(f"image_size: {error}") from error
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
        smaller = [patch for patch in self.patches if patch not in least] or [min(PATCH_STEPS)]
        advice = f"{fits} and more fit"
        if smaller[0] < worst:
            stride = self.strides[self.patches.index(smaller[0])] if smaller[0] in self.patches else 8
            advice += f", or patches of {smaller[0]} alone (`patch={smaller[0]}` and `stride={stride}`)"
        raise UserError(
            f"image_size: {size[0]}x{size[1]} leaves no surrounding beside a patch of {worst} pixels; "
            f"{advice}, or a masked net (`net=pyramid`)"
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
        """Channels of a masked net at strides 4, 8, 16, 32.

        Raises
        ------
        UserError
            The net is "surround", which has no such strides.
        """
        if not self.masked:
            raise UserError(f"widths: net {self.net!r} has one width alone, {self.width} (`width`)")
        return tuple(max(1, round(self.width * factor)) for factor in MASKED[self.net][0])

    @property
    def step(self) -> int:
        """By what two image sizes differ at least, pixels."""
        return step_of(self.strides)

    def size_for(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The size, (height, width), at which the model sees a photograph of this height and width.

        That is ``image_size``, or, with ``aspect = "letterbox"``, the largest within it that has the
        photograph's aspect, to half a step of the patches.

        Raises
        ------
        UserError
            Too few patches would be left, as of a photograph that is very long.
        """
        if self.aspect == "stretch":
            return self.image_size
        scales = list(zip(self.patches, self.strides, self.frames, strict=True))
        try:
            size = fitting_within(shape, self.image_size, scales)
        except ValueError:
            size = (0, 0)
        if not (all(size) and all(PatchGrid(*size, *scale).surrounded for scale in scales)):
            rows, cols = self.image_size
            raise UserError(
                f"{shape[1]}x{shape[0]}: too few patches are left in its own aspect within {cols}x{rows} "
                "pixels; crop it to another shape, or train with a larger image_size"
            )
        return size

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
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return tomli_w.dumps({k: v for k, v in values.items() if LATER.get(k) != v})


@functools.cache
def json_schema() -> dict[str, Any]:
    """The JSON schema of the settings: kinds, limits, defaults, meanings."""
    return TypeAdapter(Config).json_schema()


def _parameters() -> str:
    """The settings as a section of a docstring, so that limits and meanings stand in one place."""
    text = "Parameters\n----------\n"
    for name, schema in json_schema()["properties"].items():
        meaning = textwrap.fill(schema["description"], 102, initial_indent="    ", subsequent_indent="    ")
        text += f"{name} : {allowed(schema)}\n{meaning}\n"
    return textwrap.indent(text, "    ")


Config.__doc__ = f"{Config.__doc__}\n\n{_parameters()}    "


def load_config(path: Path) -> dict[str, Any]:
    """Settings of a TOML file, unchecked but for their names."""
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            text = file.read(MOST_TOML + 1)
        if len(text) > MOST_TOML:
            raise UserError(f"{path}: longer than {MOST_TOML:,} characters; settings are some lines of TOML")
        values = upgraded(parsed_toml(text))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: no readable TOML file ({excerpt(str(error))})") from error
    return checked_names(values, str(path))


def parsed_toml(text: str) -> dict[str, Any]:
    """What TOML says.

    Raises
    ------
    tomllib.TOMLDecodeError
        It is none, nested too deeply, or holds a number of too many digits for Python.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise tomllib.TOMLDecodeError("nested too deeply") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:
        raise tomllib.TOMLDecodeError(str(error)) from error


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


def checked_names(values: dict[str, Any], source: str) -> dict[str, Any]:
    """``values`` if every name is a setting's."""
    names = [field.name for field in dataclasses.fields(Config)]
    for name in values:
        if name not in names:
            raise UserError(f"{source}: no setting {quoted(name)}; there are {', '.join(names)}")
    return values


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
