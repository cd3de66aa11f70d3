"""Files replaced together: whatever a kill interrupts, all or none are new, and the old ones come back."""

import shutil
from pathlib import Path

import pytest

from glance_fast.errors import UserError
from glance_fast.jobs.former import finish, replacing, restore
from glance_fast.run import FORMER, REPLACING

OLD = {"model.safetensors": "1", "calibration.json": "2", "config.toml": "c"}
NEW = {"model.safetensors": "3", "calibration.json": "4", "normal.safetensors": "5", "config.toml": "c"}
NEWER = {"model.safetensors": "6", "calibration.json": "7", "normal.safetensors": "8", "config.toml": "c"}


class Killed(BaseException):
    pass


@pytest.fixture
def run(tmp_path):
    for name, text in OLD.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def files(run):
    return {path.name: path.read_text() for path in run.iterdir() if path.is_file()}


def update(run, wanted):
    with replacing(run) as new:
        for name, text in wanted.items():
            if name != "config.toml":
                (new / name).write_text(text)


def test_there_and_back(run):
    update(run, NEW)
    assert files(run) == NEW and (run / FORMER).is_dir() and not (run / REPLACING).exists()
    restore(run)
    assert files(run) == OLD and [path.name for path in run.iterdir() if path.is_dir()] == []
    with pytest.raises(UserError, match="no update to undo; only the last one can be, and only once"):
        restore(run)


def test_the_last_of_two_is_undone(run):
    update(run, NEW)
    update(run, NEWER)
    assert files(run) == NEWER
    restore(run)
    assert files(run) == NEW


def test_what_fails_before_all_is_ready_changes_nothing(run):
    update(run, NEW)
    with pytest.raises(UserError, match="cannot be written: No space left"), replacing(run) as new:
        (new / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")
    assert files(run) == NEW and sorted(p.name for p in run.iterdir() if p.is_dir()) == [FORMER]
    restore(run)
    assert files(run) == OLD


@pytest.mark.parametrize("act", ["first update", "second update", "undo", "undo of the first"])
def test_killed_anywhere(run, tmp_path_factory, monkeypatch, act):
    """Before each step that changes the disk, in turn: the run is as before or as after, and can go back."""
    if act != "first update":
        update(run, NEW)
    if act == "undo":
        update(run, NEWER)
    before, after = {
        "first update": (OLD, NEW),
        "second update": (NEW, NEWER),
        "undo": (NEWER, NEW),
        "undo of the first": (NEW, OLD),
    }[act]
    seen, undone = set(), act.startswith("undo")
    for step in range(100):
        copy = tmp_path_factory.mktemp("killed") / "run"
        shutil.copytree(run, copy)
        left = [step]

        def counted(original, left=left):
            def call(*arguments, **more):
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **more)

            return call

        with monkeypatch.context() as patch:
            for owner, name in (
                *((Path, name) for name in ("rename", "replace", "mkdir", "rmdir", "unlink", "touch")),
                *((shutil, name) for name in ("copyfile", "rmtree")),
            ):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            try:
                restore(copy) if undone else update(copy, after)
                ended = True
            except Killed:
                ended = False
        finish(copy)
        assert not (copy / REPLACING).exists()
        assert files(copy) == after or (files(copy) == before and not ended)
        seen.add(files(copy) == after)
        if files(copy) == before:
            # The same again does it.
            restore(copy) if undone else update(copy, after)
            assert files(copy) == after
        if undone:
            assert not (copy / FORMER).exists()
        else:
            restore(copy)
            assert files(copy) == before
        if ended:
            break
    assert ended and seen == {True, False}
