"""Help, the version, wrong arguments."""

import logging
import re
import subprocess
import sys

import pytest

import glance_fast

COMMANDS = (
    "train",
    "score-dir",
    "watch",
    "serve",
    "calibrate",
    "update",
    "explain",
    "evaluate",
    "bench",
    "export",
    "settings",
    "distill",
    "demo",
)
# These write a file or a folder of their own.
WRITING = tuple(
    command for command in COMMANDS if command not in ("watch", "serve", "calibrate", "update", "settings")
)


def test_version(cli):
    assert cli("--version") == (0, f"glance-fast {glance_fast.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_an_example(cli, command):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert re.search(rf"^ glance-fast {command} ", out, re.MULTILINE), "an example"
    assert max(map(len, out.splitlines())) <= 80
    # Neither a paragraph that a narrow terminal breaks anew, nor markup that shows.
    assert "[dim]" not in out and not re.search(r"^ \S+(?: \S+)? *$", out.split("╭")[0], re.MULTILINE)
    assert "--quiet" in out and ("--json" in out) == (command not in ("train", "watch", "serve", "distill"))
    assert ("--device" in out) == (command not in ("settings", "export"))
    if command in WRITING:
        assert all(option in out for option in ("--out", "--overwrite"))


def test_help_of_all_names_commands_and_exit_codes(cli):
    code, out, _ = cli("--help")
    assert code == 0 and all(command in out for command in COMMANDS)
    text = " ".join(out.split())
    for meaning in ("0 done", "1 failed", "2 wrong use of options", "3 some images", "130 stopped"):
        assert meaning in text
    assert "glance-fast train photos/good --out run" in text


def test_help_promises_no_more_than_there_is(cli):
    def helped(command):
        return " ".join(cli(command, "--help")[1].replace("│", " ").split())

    assert "MiB that calibration may take" in helped("train") and "scoring" not in helped("train")
    for command in ("score-dir", "evaluate"):
        assert "MiB that scoring may take" in helped(command)
        assert "the scores of a pass per patch of the same model" in helped(command)


def test_the_command_line_does_not_wait_for_pytorch():
    code = "import sys, glance_fast.cli, glance_fast\n"
    code += "slow = {'torch', 'numpy', 'numba', 'scipy', 'matplotlib', 'skimage'} & set(sys.modules)\n"
    code += "assert not slow, slow\n"
    # ... and gets it as soon as something is asked for.
    code += "assert set(glance_fast.__all__) <= set(dir(glance_fast)) and 'torch' not in sys.modules\n"
    code += "assert glance_fast.load.__module__ == 'glance_fast.run' and 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


def test_the_library_logs_nothing_unless_it_is_listened_to():
    assert [type(handler) for handler in logging.getLogger("glance_fast").handlers] == [logging.NullHandler]


def test_all_public_names_are_there():
    for name in glance_fast.__all__:
        assert getattr(glance_fast, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'glance_fast' has no attribute 'scores'"):
        _ = glance_fast.scores
    assert not hasattr(glance_fast, "scores")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("glance-fast sc", ["score-dir"]),
        ("glance-fast train --pre", ["--preset"]),
        ("glance-fast train --preset ", ["surround", "pyramid", "paper"]),
    ],
)
def test_shells_complete_words(cli, monkeypatch, words, completed):
    monkeypatch.setenv("_GLANCE_FAST_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    code, out, err = cli()
    assert (code, out.split(), err) == (0, completed, "")


def test_no_arguments_show_help(cli):
    code, out, _ = cli()
    assert code == 2 and "score-dir" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Missing argument 'DATA'"),
        (["train", "x"], "Missing option '--out' / '-o'"),
        (["train", "x", "--out", "y", "--steps", "abc"], "Invalid value for '--steps'"),
        (["train", "x", "--out", "y", "--steps", "0"], "Invalid value for '--steps'"),
        (["train", "x", "--out", "y", "--seed", "-1"], "Invalid value for '--seed'"),
        (["train", "x", "--out", "y", "--bogus"], "No such option: --bogus"),
        (["score-dir", "x"], "Missing argument 'IMAGES'"),
        (["score-dir", "x", "y", "--out", "z", "--engine", "fast"], "'fast' is not one of"),
        (["score-dir", "x", "y", "z", "--out", "z"], "unexpected extra argument"),
        (["demo", "--steps", "3"], "No such option: --steps"),
    ],
)
def test_wrong_arguments_are_explained_shortly(cli, arguments, message):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and message in err
    assert len(err.splitlines()) <= 6
