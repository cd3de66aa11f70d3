"""Files of a run folder replaced together, so that what was there before can be restored.

Several files cannot be renamed at once. So all that is needed lies ready in a folder first, and one rename
makes it count: from then on, whoever comes next finishes what a killed process began.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glance_fast.errors import UserError, cannot_write
from glance_fast.run import CALIBRATION, FORMER, MODEL, NORMAL, REPLACING

# In the folder that lies ready: what is to come, what it replaces, and names of what is to go.
NEW, OLD, GONE = "new", "old", "gone"
_STAGED = ".staged"


@contextmanager
def replacing(run: Path) -> Iterator[Path]:
    """Replace files of a run folder, all of them or none.

    Parameters
    ----------
    run : Path
        The folder. What is replaced is kept in it for ``restore``, in place of what was kept before.

    Yields
    ------
    Path
        A folder to write the files to.

    Raises
    ------
    UserError
        Something cannot be written.
    """
    finish(run)
    with _staged(run) as staged:
        yield staged / NEW
        (staged / OLD).mkdir()
        for path in (staged / NEW).iterdir():
            if (run / path.name).exists():
                shutil.copyfile(run / path.name, staged / OLD / path.name)


def restore(run: Path) -> None:
    """Put back, bit for bit, what the last ``replacing`` replaced.

    Raises
    ------
    UserError
        Nothing is kept there, or something cannot be written.
    """
    finish(run)
    if not (run / FORMER).is_dir():
        raise UserError(f"{run}: no update to undo; only the last one can be, and only once")
    with _staged(run) as staged:
        # An old folder that is empty: there is nothing to go back to from there.
        (staged / OLD).mkdir()
        for path in (run / FORMER).iterdir():
            shutil.copyfile(path, staged / NEW / path.name)
        (staged / GONE).mkdir()
        for name in (MODEL, CALIBRATION, NORMAL):
            if not (run / FORMER / name).exists():
                (staged / GONE / name).touch()


def finish(run: Path) -> None:
    """Finish what a killed process began to replace, if one did.

    Raises
    ------
    UserError
        Something cannot be written.
    """
    begun = run / REPLACING
    if not begun.is_dir():
        return
    try:
        if (begun / OLD).is_dir():
            if (run / FORMER).is_dir():
                shutil.rmtree(run / FORMER)
            (begun / OLD).rename(run / FORMER)
        # Of folders that are no longer there, nothing is left to do.
        for path in (begun / GONE).glob("*"):
            (run / path.name).unlink(missing_ok=True)
        for path in sorted((begun / NEW).glob("*")):
            path.replace(run / path.name)
        if (run / FORMER).is_dir() and not any((run / FORMER).iterdir()):
            (run / FORMER).rmdir()
        shutil.rmtree(begun)
    except OSError as error:
        raise cannot_write(run, error) from error


@contextmanager
def _staged(run: Path) -> Iterator[Path]:
    """A folder to make ready; it counts once the body has ended, and is removed where the body fails."""
    staged = run / _STAGED
    try:
        # A killed process may have left one.
        shutil.rmtree(staged, ignore_errors=True)
        (staged / NEW).mkdir(parents=True)
        yield staged
        staged.rename(run / REPLACING)
    except OSError as error:
        raise cannot_write(run, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    finish(run)
