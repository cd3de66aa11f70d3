"""The folder that a command writes: checked, made, and left as it was where nothing came of it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from glance_fast.errors import UserError


def one_of(resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UserError("`resume` and `overwrite` exclude each other")


def apart(out: Path, *inputs: Path) -> None:
    """Refuse an output folder that holds an input: overwriting could delete it."""
    for path in inputs:
        if path.resolve() == out.resolve():
            raise UserError(f"{out}: is the folder that is read; choose another `out`")
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out}: holds {path}, which is read; choose another `out`")


def check_file(out: Path, overwrite: bool, example: str) -> None:
    """Refuse a file that could not be written in the end, before any work is done for it.

    Parameters
    ----------
    out : Path
        The file.
    overwrite : bool
        Whether one that is there may be replaced.
    example : str
        A name for it.
    """
    if out.is_dir():
        raise UserError(f"{out}: is a folder; `out` names a file, such as {out / example}")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists already; `overwrite=True` replaces it")
    folder = next(parent for parent in out.resolve().parents if parent.exists())
    if not folder.is_dir():
        raise UserError(f"{out}: cannot be written, for {folder} is a file; choose another `out`")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written to; change its permissions or choose another `out`")


@contextlib.contextmanager
def output(
    out: Path, ours: tuple[str, ...], overwrite: bool, resume: bool = False, shared: bool = False
) -> Iterator[None]:
    """Work in an output folder, and leave none behind where nothing came of it.

    It is new, empty, or, with ``overwrite``, freed of what we wrote there before; with ``resume`` it stays as
    it is, but for what a killed process left half written. A shared one stays wholly as it is: what is half
    written there, another process may be writing.
    """
    from glance_fast.data.files import remove_stale

    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; `out` names a folder")
    _check_content(out, ours, overwrite, resume or shared)
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: cannot be made ({error.strerror}); choose another `out`") from error
        if not os.access(out, os.W_OK | os.X_OK):
            raise UserError(f"{out}: cannot be written to; change its permissions or choose another `out`")
        with locked(out, shared):
            # Another command may have written there meanwhile.
            _check_content(out, ours, overwrite, resume or shared)
            for path in (out / name for name in ours) if overwrite else ():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            if not shared:
                remove_stale(out, ours)
            yield
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # it is not empty: something came of it
                folder.rmdir()


def _check_content(out: Path, ours: tuple[str, ...], overwrite: bool, kept: bool) -> None:
    """Refuse a folder that holds what is neither to be kept nor ours to be replaced."""
    if kept:
        for path in (out / name for name in ours):
            if path.is_symlink() and path.is_dir():
                raise UserError(f"{path}: is a link out of {out}; remove it or choose another `out`")
        return
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"{out}: is not empty; `overwrite=True` replaces what is in it, or choose another `out`"
        )
    strangers = sorted(p.name for p in out.iterdir() if p.name not in ours and not p.name.startswith("."))
    if strangers:
        raise UserError(
            f"{out}: holds {strangers[0]!r}, which this command did not write; "
            "move it away or choose another `out`"
        )


@contextlib.contextmanager
def locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Keep other commands from writing to a folder meanwhile; the lock ends with the process in any case.

    Nothing is locked where the system or the disk has no locks.

    Parameters
    ----------
    folder : Path
        Is there.
    shared : bool
        Whether others may write there that share it as well.

    Raises
    ------
    UserError
        Another command is writing there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{folder}: another command is writing there; wait until it ends, or choose another `out`"
            ) from error
        except OSError:
            pass  # some network disks
        yield
    finally:
        os.close(place)
