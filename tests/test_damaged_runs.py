"""Run folders damaged by chance or with intent: loaded, or refused in one line; nothing in them is run."""

import dataclasses
import json
import math
import pickle
import shutil
import struct
import tomllib
import tracemalloc
import zipfile

import pytest
import tomli_w
import torch
from damage import Readings, damaged
from safetensors.torch import load_file, save, save_file

from glance_fast import Config, UserError, load
from glance_fast.cli.options import parse_setting
from glance_fast.config import MOST_TOML, load_config
from glance_fast.data.files import NOTES
from glance_fast.nets.student import Student
from glance_fast.run import FORMAT

FILES = ("config.toml", "calibration.json", "model.safetensors")
MIB = 1 << 20
# Of every kind, and for numbers those at which something could break.
ODD = (
    *(
        None,
        True,
        False,
        "",
        "x",
        "auto",
        "x\ny\x1b[31m",
        "x" * 5000,
        [],
        [[]],
        [1, "x"],
        [None],
        {},
        {"a": 1},
    ),
    *(-1, 0, 1, 3, 1 << 31, 1 << 63, 1 << 64, 10**400, -(10**30)),
    *(0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    [1 << 40] * 3,
    [0.5] * 1000,
)


@pytest.fixture
def run(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture
def readings():
    return Readings()


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_read_or_named(run, readings, name):
    path = run / name
    # Where it is all weights, any bit is as good as any other.
    within = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0] if name.endswith("safetensors") else None
    for data in damaged(path.read_bytes(), 1, 20, within):
        path.write_bytes(data)
        readings(run, load, run, "cpu")
    readings.tell(name)
    assert readings.refused > 60


def test_a_flipped_bit_in_the_weights_is_noticed(run, readings):
    path = run / "model.safetensors"
    whole = path.read_bytes()
    first = 8 + struct.unpack("<Q", whole[:8])[0]
    for place in range(first, len(whole), (len(whole) - first) // 20):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        assert readings(run, load, run, "cpu"), place


# ---------------------------------------------------------------- settings


def toml(values):
    return tomli_w.dumps({name: value for name, value in values.items() if value is not None})


def test_every_setting_with_odd_values(run, readings):
    path = run / "config.toml"
    settings = tomllib.loads(path.read_text())
    for field in dataclasses.fields(Config):
        for value in ODD:
            if value is None or value == [None]:
                continue
            path.write_text(toml(settings | {field.name: value}), encoding="utf-8")
            readings(run, load, run, "cpu")
    readings.tell("settings")
    assert readings.refused > 700


DEEP = 100_000


@pytest.mark.parametrize(
    "text",
    [
        b"width = " + b"[" * 5000,
        b"width = " + b"[" * 5000 + b"]" * 5000,
        b"width = " + b"{a=" * 3000,
        b"a." * 8000 + b"a = 1",
        b"[" + b"a." * 8000 + b"a]",
        b"width = " + b"9" * 10_000,
        b"width = 8\n" * (1 << 20),
        b"#" * (8 * MIB),
        b'local = """' + b"x" * MIB,
        b"width = \xff\xfe",
        b"width = 8\0",
        b"width\0 = 8",
        b"width = 8\nwidth = 8",
        b"\xef\xbb\xbfwidth = 8",
        b"width = 1979-05-27T07:32:00Z",
        b"width = 0x" + b"f" * 6000,
        b"width = 1e999999999",
        b"[width]\nwidth = 8",
        b"[[width]]",
        b'"__class__" = 1',
        b'"' + b"k" * 9000 + b'" = 1',
        b'"a\\nb\\u001b[31m" = 1',
        b"self = 1",
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_settings_that_are_no_settings_are_one_line_at_little_cost(run, readings, text):
    (run / "config.toml").write_bytes(text)
    # Python's reader makes every beginning of a key with dots.
    most = 300 if b"a.a.a." in text else 32
    tracemalloc.start()
    try:
        assert readings(run / "config.toml", load, run, "cpu")
        assert tracemalloc.get_traced_memory()[1] < most * MIB
    finally:
        tracemalloc.stop()


def test_settings_may_be_long_up_to_a_limit(tmp_path):
    path = tmp_path / "c.toml"
    text = "width = 8\n#"
    path.write_text(text + "x" * (MOST_TOML - len(text)))
    assert load_config(path) == {"width": 8}
    path.write_text(text + "x" * (MOST_TOML - len(text) + 1))
    with pytest.raises(UserError, match=r"c\.toml: longer than 16,384 characters"):
        load_config(path)


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "0x" + "f" * 6000, "\n[", "nan"])
def test_odd_settings_of_the_command_line_are_one_line(readings, value):
    said = readings("width", lambda: Config(**dict([parse_setting(f"width={value}")])))
    assert "width: expected an integer from 4 to 4096, got" in said


@pytest.mark.parametrize("sizes", [{"image_size": [16384, 16384]}, {"width": 4096}])
def test_settings_of_a_model_larger_than_its_weights_are_refused_before_one_is_made(run, monkeypatch, sizes):
    path = run / "config.toml"
    path.write_text(toml(tomllib.loads(path.read_text()) | sizes))

    def never(config):
        raise AssertionError(config)

    monkeypatch.setattr("glance_fast.run.Glance", never)
    with pytest.raises(UserError, match=r"model\.safetensors: does not fit config\.toml beside it"):
        load(run, "cpu")


# ---------------------------------------------------------------- what is known of normal scores


def test_every_entry_of_the_calibration_with_odd_values(run, readings):
    path = run / "calibration.json"
    whole = json.loads(path.read_text())
    for name in (*whole, "unknown", "quantile"):
        for value in ODD:
            path.write_text(json.dumps(whole | {name: value}))
            readings(path, load, run, "cpu") if name != "weights" else readings(run, load, run, "cpu")
    for name in (*whole["scales"][0], "unknown"):
        for value in (*ODD, {"mean": 0.0}, {"mean": 0.0, "std": 0.0}, {"mean": True, "std": 1.0}):
            path.write_text(json.dumps(whole | {"scales": [whole["scales"][0] | {name: value}]}))
            readings(path, load, run, "cpu")
    readings.tell("calibration")
    assert readings.refused > 600


@pytest.mark.parametrize(
    "text",
    [
        b"[" * DEEP,
        b"[" * DEEP + b"]" * DEEP,
        b'{"scales":' * DEEP,
        b'{"scales": ' + b"[" * DEEP + b"]" * DEEP + b"}",
        b'{"threshold": ' + b"9" * 10_000 + b"}",
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"NaN",
        b"\xff\xfe",
        b"\0",
        b"{}" * 2,
        b'{"a\\nb\\u001b": 1, "' + b"k" * 9000 + b'": 1}',
    ],
    ids=lambda text: ascii(text[:24]),
)
def test_a_calibration_that_is_none_is_one_line(run, readings, text):
    (run / "calibration.json").write_bytes(text)
    assert readings(run / "calibration.json", load, run, "cpu")


# ---------------------------------------------------------------- weights


def header(text, length=None, data=b""):
    return struct.pack("<Q", len(text) if length is None else length) + text + data


TENSOR = b'{"a": {"dtype": "%s", "shape": %s, "data_offsets": [0, %s]}}'


@pytest.mark.parametrize(
    "data",
    [
        header(b"{}", (1 << 64) - 1),
        header(b"{}", 1 << 40),
        header(b"{}", 99),
        header(b"{}"),
        header(b"[]"),
        header(b"{"),
        header(b'{"__metadata__": 1}'),
        header(b'{"__metadata__": {"glance-fast": 1}}'),
        header(b'{"a":' * DEEP),
        header(b"[" * DEEP + b"]" * DEEP),
        header(TENSOR % (b"F32", b"[4611686018427387904, 4]", b"0")),
        header(TENSOR % (b"F32", b"[1099511627776]", b"4398046511104")),
        header(TENSOR % (b"F32", b"[-1]", b"4"), data=bytes(4)),
        header(TENSOR % (b"F32", b"[2]", b"4"), data=bytes(4)),
        header(TENSOR % (b"X99", b"[1]", b"4"), data=bytes(4)),
        header(TENSOR % (b"F32", b"[" + b"1," * 99 + b"1]", b"4"), data=bytes(4)),
        header(TENSOR % (b"F8_E4M3", b"[4]", b"4"), data=bytes(4)),
        header(TENSOR % (b"F32", b"[1]", b"4"), data=bytes(8)),
        b"PK\3\4" + bytes(99),
        b"\x80\2}q\0.",
        b"",
    ],
    ids=lambda data: ascii(data[:32]),
)
def test_weights_that_are_none_are_one_line(run, readings, data):
    (run / "model.safetensors").write_bytes(data)
    assert readings(run / "model.safetensors", load, run, "cpu")


def test_foreign_tensors_are_one_line(run, readings):
    path = run / "model.safetensors"
    whole, notes = load_file(path), {NOTES: json.dumps({"format": FORMAT})}
    for name in whole:
        tensor = whole[name]
        for other in (
            None,
            tensor.to(torch.int64 if tensor.is_floating_point() else torch.float64),
            torch.zeros(*tensor.shape, 1),
            torch.zeros(0),
            tensor.flatten()[: tensor.numel() // 2],
        ):
            rest = {key: value for key, value in whole.items() if key != name}
            save_file(rest | ({} if other is None else {name: other.contiguous()}), path, notes)
            assert readings(path, load, run, "cpu"), name
        if tensor.is_floating_point():
            spoilt = tensor.clone()
            spoilt.view(-1)[0] = math.nan
            save_file(whole | {name: spoilt}, path, notes)
            assert "not finite" in readings(path, load, run, "cpu")
    for name in ("x", "x\n\x1b[31m", "k" * 9000, "__class__"):
        save_file(whole | {name: torch.zeros(1)}, path, notes)
        assert readings(path, load, run, "cpu")
    readings.tell("foreign tensors")


@pytest.mark.parametrize(
    "notes",
    ["[" * DEEP, '{"format":' * DEEP, "9" * 10_000, "NaN", "\0", '{"format": [1]}'],
)
def test_notes_of_weights_that_are_none(run, readings, tmp_path, notes):
    path = run / "model.safetensors"
    path.write_bytes(save(load_file(path), {NOTES: notes}))
    assert "not a model of this version" in readings(path, load, run, "cpu")
    shutil.copy(path, tmp_path / "net.safetensors")
    assert readings(tmp_path / "net.safetensors", Student.load, tmp_path / "net.safetensors")


@pytest.mark.parametrize("patch", [*ODD, 48])
def test_a_local_net_for_odd_patches(tmp_path, readings, patch):
    path = tmp_path / "net.safetensors"
    path.write_bytes(save({"a": torch.zeros(1)}, {NOTES: json.dumps({"patch": patch})}))
    assert readings(path, Student.load, path)


class Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return self.place.touch, ()


@pytest.mark.parametrize("name", FILES)
def test_nothing_in_a_run_folder_is_run(run, readings, tmp_path, name):
    path, sprung = run / name, tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(sprung)))
    assert readings(path, load, run, "cpu")
    torch.save({"a": Trap(sprung)}, path)
    assert readings(path, load, run, "cpu")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap(sprung)))
    assert readings(path, load, run, "cpu")
    path.unlink()
    path.mkdir()
    assert readings(path if name != FILES[2] else run, load, run, "cpu")
    assert not sprung.exists()
