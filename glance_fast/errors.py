"""Errors that a user can cause. The command line prints them in one line, never as a traceback."""

from __future__ import annotations

import errno
from pathlib import Path

# Characters of a file's content in a message.
MOST_QUOTED = 200


class UserError(ValueError):
    """Something given to us is wrong; the message says which thing and what to do."""


class ImageError(UserError):
    """A file cannot be used as an image.

    Parameters
    ----------
    path : path
        The file.
    reason : str
        One line: what is wrong with it, and what to do where that is not plain.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[Path, str]]:
        # Pickle would call it with the message alone, and a worker process could not hand it on.
        return type(self), (self.path, self.reason)


class TooLargeError(ImageError):
    """An image has more pixels than are decoded at once."""


def elsewhere(error: OSError) -> str:
    """Advice to put behind an error, if what is wrong is the place."""
    if error.errno == errno.EROFS:
        return "; choose another folder"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "; change its permissions or choose another folder"
    return ""


def on_one_line(text: str) -> str:
    """Text with control characters escaped: a file's name may hold a line break or a terminal's commands."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def excerpt(text: str) -> str:
    """Text that comes from a file, as a message may hold it: on one line, and not too long."""
    return on_one_line(text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}...")


def quoted(value: object) -> str:
    """A value from a file, as a message may hold it."""
    try:
        return excerpt(repr(value))
    except ValueError:
        return "a number of thousands of digits"  # which Python refuses to print


def cannot_write(path: str | Path, error: OSError) -> UserError:
    """What to raise, from ``error``, where a file cannot be written."""
    return UserError(f"{path}: cannot be written: {error.strerror or error}{elsewhere(error)}")
