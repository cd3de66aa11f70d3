"""Errors that a user can cause. The command line prints them in one line, never as a traceback."""

from __future__ import annotations

from pathlib import Path


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
