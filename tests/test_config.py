"""Settings: what is refused and with which words, and the way through TOML and back."""

from __future__ import annotations

import dataclasses

import pytest

from glance_fast.config import (
    MASKED,
    NETS,
    PATCH_STEPS,
    PRESETS,
    Config,
    allowed,
    checked_names,
    json_schema,
    load_config,
    upgraded,
)
from glance_fast.errors import UserError


def written_and_read(config, folder):
    path = folder / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    return Config(**load_config(path))


def test_defaults():
    config = Config()
    assert (config.net, config.masked, config.image_size) == ("surround", False, (256, 256))
    assert [(g.patch, g.stride, g.frame, len(g)) for g in config.grids] == [
        (32, 8, 8, 31 * 31),
        (64, 16, 16, 15 * 15),
    ]
    assert (config.steps, config.batch, config.learning_rate) == (300, 16, 5e-3)
    assert (config.finetune_steps, config.lambda_s, config.false_alarms) == ((250, 500), 0.8, 0.01)
    assert config.blocks is None and config.readout is None


@pytest.mark.parametrize("net", sorted(MASKED))
def test_defaults_of_a_masked_net(net):
    config = Config(net=net)
    assert config.masked
    assert [(g.patch, g.stride, g.frame, len(g)) for g in config.grids] == [(32, 8, 0, 841), (64, 16, 0, 169)]
    assert (config.steps, config.batch, config.learning_rate) == (1600, 12, 1e-2)
    assert (config.finetune_steps, config.lambda_s) == ((250, 500), 0.8)
    assert config.blocks == (1, 1, 1) and config.readout == MASKED[net][2]
    assert config.widths == {"pyramid": (64, 64, 64, 64), "paper": (16, 32, 64, 128)}[net]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("name", "value"), [("steps", 7), ("batch", 3), ("learning_rate", 0.25), ("finetune_steps", 0)]
)
def test_what_goes_with_the_net_can_be_given(net, name, value):
    assert getattr(Config(net=net, **{name: value}), name) == value


def test_fine_tuning_follows_the_patch_size():
    assert [Config().finetune_steps_of(i) for i in (0, 1)] == [250, 500]
    assert Config(patch=64, stride=16).finetune_steps == 500
    assert Config(patch=32, stride=8).finetune_steps == 250
    assert Config(patch=(64, 32), stride=(16, 8)).finetune_steps == (500, 250)
    assert [Config(finetune_steps=7).finetune_steps_of(i) for i in (0, 1)] == [7, 7]
    assert [Config(finetune_steps=(0, 9)).finetune_steps_of(i) for i in (0, 1)] == [0, 9]


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().width = 8


@pytest.mark.parametrize(
    ("values", "blocks", "readout", "widths"),
    [
        pytest.param({"net": "paper"}, (1, 1, 1), "pool", (16, 32, 64, 128), id="paper"),
        pytest.param({"net": "paper", "readout": "hole"}, (1, 1, 1), "hole", (16, 32, 64, 128), id="mixed"),
        pytest.param(
            {"net": "pyramid", "blocks": [2, 0, 3], "width": 24},
            (2, 0, 3),
            "hole",
            (24,) * 4,
            id="own-blocks",
        ),
        pytest.param({"net": "paper", "width": 5}, (1, 1, 1), "pool", (1, 2, 5, 10), id="narrow"),
    ],
)
def test_what_a_preset_sets_can_be_overruled(values, blocks, readout, widths):
    config = Config(**values)
    assert (config.blocks, config.readout, config.widths) == (blocks, readout, widths)


def test_net_surround_has_no_widths():
    with pytest.raises(UserError, match="widths: net 'surround' has one width alone, 64"):
        _ = Config().widths


@pytest.mark.parametrize("blend", ["calibrated", "paper"])
def test_lambda_s_is_the_papers_unless_given(blend):
    assert Config(blend=blend).lambda_s == 0.8
    assert Config(blend=blend, lambda_s=0).lambda_s == 0.0


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("asked", "patch", "stride", "size"),
    [
        pytest.param(250, (32, 64), (8, 16), (256, 256), id="one-side-up"),
        pytest.param(258, (32, 64), (8, 16), (256, 256), id="one-side-down"),
        pytest.param((200, 301), 32, 8, (200, 304), id="non-square"),
        pytest.param((128,), 32, 8, (128, 128), id="tuple-of-one"),
        pytest.param(16384, 32, 16, (16384, 16384), id="largest"),
    ],
)
def test_image_size_is_rounded_to_one_that_patches_cover(asked, patch, stride, size, net):
    config = Config(image_size=asked, patch=patch, stride=stride, net=net)
    assert config.image_size == size
    for grid in config.grids:
        assert (grid.height, grid.width) == size
        assert tuple(grid.holes[0][:2]) == (-grid.frame, -grid.frame)
        assert tuple(grid.holes[-1][2:]) == (size[0] + grid.frame, size[1] + grid.frame)
    # A second rounding must not move it, or a saved run would not load.
    assert dataclasses.replace(config).image_size == size


@pytest.mark.parametrize(
    ("values", "size"),
    [
        pytest.param(
            {"net": "pyramid", "image_size": [100, 64], "patch": 64, "stride": 8},
            (96, 64),
            id="tie-goes-down",
        ),
        pytest.param(
            {"net": "pyramid", "image_size": 33, "patch": 32, "stride": 32}, (32, 32), id="one-patch"
        ),
        # 100 + 2 * 4 - 32 is no multiple of 16, 104 + 8 - 32 is.
        pytest.param({"image_size": 100, "patch": 32, "stride": 16, "frame": 4}, (104, 104), id="frame"),
        pytest.param({"image_size": 100, "patch": 32, "stride": 16, "frame": 0}, (96, 96), id="no-frame"),
        pytest.param({"image_size": (90, 40), "patch": 32, "stride": 16}, (96, 32), id="a-narrow-side"),
    ],
)
def test_image_size_goes_with_net_and_frame(values, size):
    config = Config(**values)
    assert config.image_size == size
    assert dataclasses.replace(config) == config


# Frame


@pytest.mark.parametrize(
    ("values", "frame", "frames"),
    [
        pytest.param({}, (8, 16), (8, 16), id="quarters"),
        pytest.param({"patch": 32, "stride": 16}, 8, (8,), id="one-scale"),
        pytest.param({"patch": (32,), "stride": (16,)}, (8,), (8,), id="tuple-of-one"),
        # Half a stride is the least that grids stay in step with.
        pytest.param({"patch": 32, "stride": 28}, 14, (14,), id="half-a-stride"),
        pytest.param({"frame": 4}, 4, (4, 4), id="one-for-all"),
        pytest.param({"frame": [4, 12], "stride": (8, 8)}, (4, 12), (4, 12), id="one-each"),
        pytest.param({"frame": 0}, 0, (0, 0), id="none"),
        pytest.param({"frame": (16, 32)}, (16, 32), (16, 32), id="half-a-patch"),
        pytest.param({"net": "paper"}, (0, 0), (0, 0), id="masked"),
        pytest.param({"net": "pyramid", "frame": 0}, 0, (0, 0), id="masked-given"),
    ],
)
def test_frame(values, frame, frames):
    config = Config(**values)
    assert (config.frame, config.frames) == (frame, frames)
    assert tuple(grid.frame for grid in config.grids) == frames


@pytest.mark.parametrize("patch", sorted(PATCH_STEPS))
def test_the_usual_frame_goes_with_every_stride(patch):
    for stride in range(PATCH_STEPS[patch], patch + 1, PATCH_STEPS[patch]):
        config = Config(image_size=8 * patch, patch=patch, stride=stride)
        assert 0 < config.frame <= patch // 2, "patches cover the border"
        assert abs(config.frame - patch / 4) <= max(stride / 4, patch // 4)
        # Sizes with that frame are those without it, so that nets can be compared.
        masked = dataclasses.replace(config, net="pyramid", frame=None)
        assert abs(masked.image_size[0] - config.image_size[0]) < stride
        assert abs(config.image_size[0] - 8 * patch) < stride


@pytest.mark.parametrize(
    ("values", "least"),
    [
        pytest.param({"patch": 32, "stride": 8}, 72, id="32"),
        pytest.param({"patch": 64, "stride": 16}, 144, id="64"),
        pytest.param({}, 144, id="both"),
        pytest.param({"patch": 32, "stride": 16}, 64, id="coarse"),
        pytest.param({"patch": 32, "stride": 32}, 32, id="without-overlap"),
        pytest.param({"patch": 64, "stride": 8, "frame": 0}, 184, id="no-frame"),
    ],
)
def test_an_image_without_a_surrounding_is_refused_with_the_least_that_has_one(values, least):
    """By the definition: of the patches, one of every scale has another that shares no pixel with it."""

    def has_surroundings(size):
        config = dataclasses.replace(Config(**values), image_size=size)
        for grid in config.grids:
            boxes = grid.holes
            apart = (boxes[:, None, :2] >= boxes[None, :, 2:]) | (boxes[:, None, 2:] <= boxes[None, :, :2])
            if not apart.any(2).any(1).all():
                return False
        return True

    stride = max(Config(**values).strides)
    assert Config(**values, image_size=least).image_size == (least, least)
    assert has_surroundings(least)
    too_small = least - stride
    if too_small >= max(Config(**values).patches):
        with pytest.raises(
            UserError, match=rf"no surrounding beside a patch of \d+ pixels; {least} and more"
        ):
            Config(**values, image_size=too_small)
        assert Config(**{**values, "image_size": too_small, "net": "pyramid", "frame": 0}).masked
        # One long side is enough.
        assert Config(**values, image_size=(too_small, least)).image_size == (too_small, least)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param({"net": "huge"}, "net: expected surround, pyramid or paper, got 'huge'", id="net"),
        pytest.param({"net": "default"}, "net: expected surround, .*, got 'default'", id="former-net"),
        pytest.param(
            {"frame": -1}, "frame: expected an integer from 0 to 32, .*, got -1", id="frame-negative"
        ),
        pytest.param({"frame": 17}, r"frame: 17 lies outside \[0, 16\], half of a patch", id="frame-wide"),
        pytest.param(
            {"frame": (8, 33)},
            r"frame: expected an integer from 0 to 32, .*, got \(8, 33\)",
            id="frame-wide-64",
        ),
        pytest.param({"frame": (1, 2, 3)}, "frame: one number, or one for each", id="frame-count"),
        pytest.param({"net": "pyramid", "frame": 8}, "frame: net 'pyramid' would find", id="frame-masked"),
        pytest.param({"frame": (8, 9)}, "image_size: no image size fits all", id="frame-odd"),
        pytest.param(
            {"image_size": 64},
            r"no surrounding beside a patch of 64 .* 144 and more fit, or patches of 32 alone \(`patch=32`",
            id="no-surrounding",
        ),
        pytest.param(
            {"image_size": 48, "patch": 32, "stride": 8},
            r"beside a patch of 32 pixels; 72 and more fit, or a masked net \(",
            id="no-surrounding-32",
        ),
        pytest.param({"blend": "raw"}, "blend: expected calibrated or paper, got 'raw'", id="blend"),
        pytest.param(
            {"symmetry": "yes"}, "symmetry: expected auto, none, .* or all, got 'yes'", id="symmetry"
        ),
        pytest.param({"symmetry": "turns", "image_size": (256, 192)}, "turns need a square", id="turns"),
        pytest.param({"symmetry": "all", "image_size": (256, 192)}, "turns need a square", id="all-turns"),
        pytest.param({"readout": "ring"}, "readout: expected hole or pool, got 'ring'", id="readout"),
        pytest.param({"patch": (32, 64), "stride": 8}, "patch and stride: 2 .* 1 strides", id="scales"),
        pytest.param({"patch": 33, "stride": 8}, "patch: 33 is not supported; use one of 32, 64", id="patch"),
        pytest.param({"patch": 32, "stride": 6}, "stride: 6 .* multiple of 4 from 4 to 32", id="stride-odd"),
        pytest.param({"patch": 32, "stride": 36}, "stride: 36 does not go", id="stride-gap"),
        pytest.param(
            {"patch": 32, "stride": 0},
            "stride: expected an integer from 1 to 16384, or a list .*, got 0",
            id="stride-zero",
        ),
        pytest.param({"patch": 64, "stride": 4}, "stride: 4 .* multiple of 8 from 8 to 64", id="stride-64"),
        pytest.param({"patch": (32, 32), "stride": (8, 16)}, "patch: every scale", id="same-patch-twice"),
        pytest.param(
            {"blocks": (1, 2)},
            r"blocks: expected three integers from 0 to 64, got \(1, 2\)",
            id="blocks-count",
        ),
        pytest.param({"blocks": 5}, "blocks: expected three integers .*, got 5", id="blocks-one-number"),
        pytest.param(
            {"blocks": (1, -1, 1)},
            r"blocks: expected .* 0 to 64, got \(1, -1, 1\)",
            id="blocks-negative",
        ),
        pytest.param({"holes": (1, 2, 3)}, "holes: one number, or one for each", id="holes-count"),
        pytest.param(
            {"holes": 0}, "holes: expected an integer from 1 to 16777216, .* got 0", id="holes-zero"
        ),
        pytest.param({"finetune_steps": (1, 2, 3)}, "finetune_steps: one number, or", id="finetune-count"),
        pytest.param({"pretrained": 1}, "pretrained: expected true or false, got 1", id="pretrained"),
        pytest.param(
            {"image_size": (64, 64, 3)},
            r"image_size: expected .*, or \(height, width\), got \(64, 64, 3",
            id="size-of-three",
        ),
        pytest.param(
            {"image_size": 8}, "image_size: expected an integer from 16 to 16384, .*, got 8", id="size-tiny"
        ),
        pytest.param(
            {"image_size": (64, 16385)},
            r"image_size: expected .* to 16384, .*, got \(64, 1638",
            id="size-huge",
        ),
        pytest.param({"image_size": 63}, "image_size: 63 is smaller than a patch of 64", id="size-small"),
        pytest.param({"image_size": (64, 40)}, "is smaller than a patch of 64", id="width-small"),
    ],
)
def test_refused(values, words):
    with pytest.raises(UserError, match=words):
        Config(**values)


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [
        ("width", 3, 4097),
        ("lambda_s", -0.01, 1.01),
        ("lambda_t", -1, 1001),
        ("shrinkage", 0.009, 1.1),
        ("idw_power", -1, 33),
        ("idw_neighbours", -1, (1 << 20) + 1),
        ("smoothing", -1, 1001),
        ("group_spacing", 0.5, 1001),
        ("false_alarms", 0, 0.51),
        ("finetune_steps", -1, (1 << 24) + 1),
        ("steps", 0, (1 << 24) + 1),
        ("batch", 1, 4097),
        ("variants", 7, (1 << 20) + 1),
        ("learning_rate", 0, 1.5),
        ("shift", -1, 257),
        ("brightness", -0.1, 1.1),
        ("validation", 0, 0.6),
        ("seed", -1, 2**31),
        ("cache_mib", 0, (1 << 24) + 1),
        ("checkpoint_minutes", -1, 2e6),
    ],
)
def test_numbers_outside_their_range(name, below, above):
    for value in (below, above):
        with pytest.raises(UserError, match=rf"^{name}: expected an? \w+ from .* to .*, got {value}$"):
            Config(**{name: value})


def test_not_a_number_is_no_number():
    with pytest.raises(UserError, match="smoothing: expected a number from 0 to 1000, got nan"):
        Config(smoothing=float("nan"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_size", 256.0),
        ("image_size", "256"),
        ("patch", []),
        ("patch", [32, 64.0]),
        ("patch", None),
        ("stride", [True, True]),
        ("width", 64.0),
        ("width", [64, 64]),
        ("steps", True),
        ("lambda_t", "0.3"),
        ("lambda_s", [0.5]),
        ("net", 3),
        ("symmetry", False),
        ("readout", 3),
        ("holes", 2.5),
    ],
    ids=lambda value: repr(value),
)
def test_values_of_another_kind(name, value):
    with pytest.raises(UserError, match=rf"^{name}: expected "):
        Config(**{name: value})


def test_an_unknown_setting_is_named_with_the_known_ones():
    with pytest.raises(UserError, match=r"^Config: no setting 'widht'; there are image_size, .*width"):
        Config(widht=32)


def test_every_setting_says_what_it_is_and_what_it_takes():
    schema = json_schema()
    assert list(schema["properties"]) == [field.name for field in dataclasses.fields(Config)]
    for name, part in schema["properties"].items():
        assert f"    {name} : {allowed(part)}\n        {part['description'].split()[0]} " in Config.__doc__
    assert len(schema["description"]) < 100, "not all of it once more"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("net", "surround, pyramid or paper"),
        ("patch", "32 or 64, or a list with one for each patch size"),
        ("steps", "an integer from 1 to 16777216"),
        ("smoothing", "a number from 0 to 1000"),
        ("pretrained", "true or false"),
        ("blocks", "three integers from 0 to 64"),
        ("image_size", "an integer from 16 to 16384, or (height, width)"),
    ],
)
def test_limits_in_words(name, words):
    assert allowed(json_schema()["properties"][name]) == words


@pytest.mark.parametrize("symmetry", ["auto", "none", "mirrors"])
def test_symmetries_without_turns_go_with_any_image(symmetry):
    assert Config(symmetry=symmetry, image_size=(256, 192)).symmetry == symmetry


def test_integers_stand_for_floats():
    config = Config(smoothing=3, lambda_s=1)
    assert (config.smoothing, config.lambda_s) == (3.0, 1.0)
    assert type(config.smoothing) is float and type(config.lambda_s) is float


@pytest.mark.parametrize(
    ("values", "holes"),
    [
        pytest.param({}, [14, 4], id="by-default"),
        pytest.param({"holes": 3}, [3, 3], id="one-for-all"),
        pytest.param({"holes": (6, 2)}, [6, 2], id="one-each"),
        pytest.param({"holes": 1000}, [16, 4], id="capped-by-what-fits"),
        pytest.param({"image_size": 64}, [1, 1], id="at-least-one"),
        pytest.param({"image_size": (256, 128)}, [7, 2], id="non-square"),
    ],
)
def test_holes_an_image(values, holes):
    config = Config(net="pyramid", **values)
    assert [config.holes_of(i) for i in range(2)] == holes


# Presets


def test_preset_of_the_paper():
    """As literally as the paper can be had."""
    config = Config.preset("paper")
    assert (config.net, config.masked, config.readout, config.frame) == ("paper", True, "pool", 0)
    assert [(grid.patch, grid.stride, len(grid)) for grid in config.grids] == [(32, 8, 841)]
    assert (config.blend, config.lambda_s, config.smoothing) == ("paper", 0.8, 0.0)
    assert config.holes_of(0) == 1


def test_other_presets():
    assert Config.preset("surround") == Config() and Config.preset("pyramid") == Config(net="pyramid")
    assert set(PRESETS) == set(NETS)


def test_a_preset_can_be_overruled():
    assert Config.preset("paper", lambda_s=0.5, seed=2) == dataclasses.replace(
        Config.preset("paper"), lambda_s=0.5, seed=2
    )
    assert PRESETS["paper"]["lambda_s"] == 0.8
    with pytest.raises(UserError, match=r"^Config: no setting 'widht'"):
        Config.preset("paper", widht=3)


def test_an_unknown_preset_is_refused_with_the_list():
    with pytest.raises(UserError, match=r"^preset: expected surround, pyramid, paper, got 'best'$"):
        Config.preset("best")


# TOML


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"net": "pyramid"}, id="masked"),
        pytest.param({"frame": (4, 12), "stride": (8, 8), "steps": 5, "false_alarms": 0.05}, id="frames"),
        pytest.param({"patch": 32, "stride": 8, "image_size": (200, 304)}, id="one-scale-non-square"),
        pytest.param({"patch": (64, 32), "stride": (8, 4), "holes": (2, 5)}, id="two-scales"),
        pytest.param({"net": "paper", "blend": "paper", "lambda_s": 0.123456789012345678}, id="paper"),
        pytest.param({"holes": 3, "learning_rate": 1e-7, "smoothing": 0}, id="numbers"),
    ],
)
def test_toml_round_trip(values, tmp_path):
    config = Config(**values)
    assert written_and_read(config, tmp_path) == config


def test_toml_to_the_byte():
    """Checkpoints and run.json know settings by this text: a run that was begun must go on."""
    assert (
        Config().to_toml()
        == """\
image_size = [
    256,
    256,
]
patch = [
    32,
    64,
]
stride = [
    8,
    16,
]
net = "surround"
frame = [
    8,
    16,
]
width = 64
blend = "calibrated"
lambda_s = 0.8
lambda_t = 0.1
shrinkage = 0.5
idw_power = 2.0
idw_neighbours = 16
smoothing = 4.0
group_spacing = 2.0
false_alarms = 0.01
finetune_steps = [
    250,
    500,
]
steps = 300
batch = 16
variants = 240
pretrained = true
learning_rate = 0.005
symmetry = "auto"
shift = 6
brightness = 0.07
validation = 0.1
seed = 0
cache_mib = 2048
checkpoint_minutes = 2.0
"""
    )
    assert Config(net="paper", smoothing=3).to_toml().count("smoothing = 3.0\n") == 1


def test_toml_lists_become_tuples(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("patch = [32]\nstride = [16]\nimage_size = [96, 64]\nblocks = [0, 1, 0]\nholes = [2]\n")
    config = Config(**load_config(path))
    assert config.patch == (32,) and config.stride == (16,) and config.frame == (8,)
    assert config.image_size == (96, 64) and config.blocks == (0, 1, 0) and config.holes == (2,)
    assert hash(config) is not None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"net": "default", "quantile": 0.95}, {"net": "pyramid", "false_alarms": 0.05}),
        ({"net": "paper", "quantile": 0.99999}, {"net": "paper", "false_alarms": 0.00001}),
    ],
)
def test_settings_of_an_earlier_version_are_understood(before, after, tmp_path):
    path = tmp_path / "config.toml"
    lines = [f"{name} = {value!r}" for name, value in {**before, "steps": 9, "blocks": [1, 2, 1]}.items()]
    path.write_text("\n".join(lines), encoding="utf-8")
    read = load_config(path)
    assert read.pop("false_alarms") == pytest.approx(after["false_alarms"], rel=1e-9)
    assert read == {"net": after["net"], "steps": 9, "blocks": [1, 2, 1]}
    config = Config(**load_config(path))
    assert (config.net, config.masked, config.frames) == (after["net"], True, (0, 0))


def test_settings_of_this_version_are_left_as_they_are():
    for values in ({}, {"net": "surround", "false_alarms": 0.1}, {"net": "default"}, {"net": "paper"}):
        assert upgraded(values) == values
    # Whatever is wrong with an old file is named as in any other.
    for quantile in ("0.99", True, None, [0.99]):
        with pytest.raises(UserError, match="no setting 'quantile'"):
            checked_names(upgraded({"net": "default", "quantile": quantile}), "config.toml")
    before = {"net": "default", "quantile": 0.9}
    upgraded(before)
    assert before == {"net": "default", "quantile": 0.9}, "changed in place"


def test_unknown_name_in_a_file_is_named_with_the_known_ones(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text("widht = 32\n")
    with pytest.raises(UserError, match=r"own\.toml: no setting 'widht'; there are .*width"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"width = ", "no readable TOML"), (b"\xff\xfe", "no readable TOML"), (None, "no such file")],
    ids=["broken", "not-text", "missing"],
)
def test_unreadable_files(content, words, tmp_path):
    path = tmp_path / "own.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"own\.toml: {words}"):
        load_config(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no readable TOML"):
        load_config(tmp_path)


def test_the_nets_that_there_are():
    assert set(NETS) == {"surround", "pyramid", "paper"} == {"surround", *MASKED}
