"""``glance-fast settings``, and whole models by name."""

import json

import pytest
from commands import never, one_line

from glance_fast import UserError
from glance_fast.cli.options import Preset, parse_setting
from glance_fast.config import PRESETS, Config, json_schema


def test_all_settings_are_listed(cli):
    code, out, err = cli("settings")
    assert code == 0 and err == ""
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert set(json_schema()["properties"]) < set(rows)
    assert all(word in rows["patch"] for word in ("[32, 64]", "32 or 64", "Side of a patch, pixels"))
    assert all(
        word in rows["false_alarms"] for word in ("0.01", "a number from 1e-05 to 0.5", "Share of normal")
    )
    assert "Which Global-Net" in rows["net"] and "Local-Net's features" not in out, "one sentence"


def test_all_settings_as_a_schema(cli):
    code, out, err = cli("settings", "--json")
    assert (code, err) == (0, "")
    schema = json.loads(out)
    assert schema == json_schema() and schema["additionalProperties"] is False
    assert schema["properties"]["width"]["minimum"] == 4 and schema["properties"]["net"]["enum"]


def test_presets_are_the_same_everywhere():
    assert set(Preset) == set(PRESETS)


@pytest.fixture
def trained_with(cli, parts, tmp_path, monkeypatch):
    """Settings with which ``train`` would train."""

    def run(*arguments):
        found = []
        monkeypatch.setattr(
            "glance_fast.training.fit.fit", lambda paths, out, config, **how: found.append(config)
        )
        assert cli("train", parts, "--out", tmp_path / "run", "--overwrite", *arguments)[0] == 0
        return found[0]

    return run


def test_presets_then_files_then_settings(trained_with, tmp_path):
    (tmp_path / "own.toml").write_text("smoothing = 2\nwidth = 32\n")
    assert trained_with("--preset", "surround") == trained_with() == Config()
    assert trained_with("--preset", "paper", "--seed", "3") == Config.preset("paper", seed=3)
    config = trained_with("--preset", "paper", "--config", tmp_path / "own.toml", "--set", "width=16")
    assert config == Config.preset("paper", smoothing=2.0, width=16)


def test_an_unknown_preset_is_refused_with_the_list(cli, parts, tmp_path, monkeypatch):
    monkeypatch.setattr("glance_fast.training.fit.fit", never)
    code, out, err = cli("train", parts, "--out", tmp_path / "run", "--preset", "best")
    assert code == 2 and out == "" and all(name in err for name in ("'best' is not one of", *PRESETS))


def test_a_begun_training_goes_on_with_its_preset_alone(cli, parts, tmp_path, monkeypatch):
    def begin(paths, out, config, **how):
        (out / "checkpoint").mkdir(exist_ok=True)
        (out / "checkpoint/images.json").touch()
        (out / "config.toml").write_text(config.to_toml())

    monkeypatch.setattr("glance_fast.training.fit.fit", begin)
    train = ("train", parts, "--out", tmp_path / "run", "--preset")
    assert cli(*train, "paper")[0] == 0
    assert cli(*train, "paper", "--resume")[0] == 0
    assert "was begun with other settings" in one_line(cli(*train, "pyramid", "--resume"))


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("width=32", ("width", 32)),
        (" width = 32 ", ("width", 32)),
        ("lambda_t=1e-2", ("lambda_t", 0.01)),
        ("patch=[32, 64]", ("patch", [32, 64])),
        (" net = paper ", ("net", "paper")),
        ('net="paper"', ("net", "paper")),
    ],
)
def test_parse_setting(text, setting):
    assert parse_setting(text) == setting


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("width", "--set width: expected key=value"),
        ("widht=3", "--set: no setting 'widht'"),
        ("=3", "--set: no setting ''"),
    ],
    ids=["no-equals-sign", "unknown-name", "no-name"],
)
def test_parse_setting_refuses(text, words):
    with pytest.raises(UserError, match=words):
        parse_setting(text)
