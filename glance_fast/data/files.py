"""Files that are either complete or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from glance_fast.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file so that readers never see half of it.

    Gives a temporary path in the folder of `path`, with the same suffix and a hidden name. When the body
    ends, the temporary file takes the place of `path`; when the body fails, it is removed and `path` stays as
    it was. Missing parent folders are made. The body should do nothing but write: every `OSError` that it
    lets through is reported as a failure to write `path`.

    Parameters
    ----------
    path : path
        The file to write.

    Yields
    ------
    pathlib.Path
        Where to write.

    Raises
    ------
    UserError
        The file cannot be written: disk full, folder read-only, a folder of that name, and so on.
    """
    path = Path(path)
    # Not tempfile.mkstemp: it makes files that only their owner may read, and the rename would keep that. The
    # target's name is not repeated either: a long one would pass the file system's limit.
    temporary = path.parent / f".tmp-{secrets.token_hex(8)}{path.suffix}"
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8 with line feeds on every system, whole or not at all.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with atomic_write(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(data)
