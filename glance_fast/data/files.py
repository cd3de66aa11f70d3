"""Files that are either complete or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from glance_fast.errors import UserError, cannot_write, excerpt

NOTES = "glance-fast"
# Names of the temporary files of ``atomic_write``.
_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}(\..+)?")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Write a file so that readers never see half of it.

    Gives a temporary path in the folder of ``path``, with the same suffix and a hidden name. When the body
    ends, the temporary file takes the place of ``path``; when the body fails, it is removed and ``path``
    stays as it was. Missing parent folders are made. The body should do nothing but write: every
    ``OSError`` that it lets through is reported as a failure to write ``path``.

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
        raise cannot_write(path, error) from error


def check_inside(path: Path, folder: Path) -> None:
    """Refuse to write a file of an output folder where a link in that folder leads out of it.

    Raises
    ------
    UserError
        With the file's name.
    """
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: a link in {folder} leads out of it; remove it or choose another folder")


def remove_stale(folder: Path, subfolders: Iterable[str]) -> None:
    """Remove the temporary files that a killed process left behind.

    Parameters
    ----------
    folder : Path
        An output folder of ours, itself searched without its subfolders.
    subfolders : iterable of str
        Names of what is ours in it, searched to the bottom.
    """
    inner = [folder / name for name in subfolders if not (folder / name).is_symlink()]
    found = [*folder.glob(".tmp-*"), *(path for place in inner for path in place.rglob(".tmp-*"))]
    for path in found:
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 with line feeds on every system, whole or not at all.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path: str | Path, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    """Write tensors as safetensors, whole or not at all; the same content gives the same bytes.

    Parameters
    ----------
    path : path
        The file to write.
    tensors : dict of Tensor
        By name.
    notes : dict
        Kept in the file as JSON; ``read_notes`` gives them back.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    # One entry alone: safetensors writes several in an order that differs from run to run.
    metadata = {NOTES: json.dumps(notes, sort_keys=True)}
    data = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)
    with atomic_write(path) as temporary:
        # Not save_file, whose files only their owner may read.
        temporary.write_bytes(data)


def stream_tensors(path: str | Path, tensors: Mapping[str, Tensor], notes: dict[str, Any]) -> None:
    """Write tensors as ``write_tensors`` does, without a second copy of them in memory.

    Parameters
    ----------
    path : path
        The file to write.
    tensors : mapping of Tensor
        By name; float16, float32 or float64, on the CPU and contiguous.
    notes : dict
        As for ``write_tensors``.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {NOTES: json.dumps(notes, sort_keys=True)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        kind = f"F{8 * tensor.element_size()}"
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # What follows the header is aligned.
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().numpy().data)


def read_json(text: str) -> Any:
    """What JSON says.

    Raises
    ------
    ValueError
        It is none, or nested so deeply that Python cannot read it.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of the names of tensors and of their values, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        # Viewed as bytes: NumPy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_tensors(path: str | Path, hint: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of a safetensors file, and the notes that ``write_tensors`` left in it.

    Parameters
    ----------
    path : path
        The file to read. Nothing in it is ever run.
    hint : str
        What to do where it cannot be used; ends the message.

    Returns
    -------
    tensors : dict of Tensor
        By name; all of them finite.
    notes : dict
        Empty where the file has none of ours.

    Raises
    ------
    UserError
        The file is missing or damaged, is no safetensors file, or holds a value that is not finite.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; {hint}")
    try:
        with Path(path).open("rb"):
            pass  # safetensors says of a file that may not be read that it is not there
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        tensors = load_file(path)
        notes = read_notes(path)
    except (SafetensorError, OSError, RuntimeError) as error:
        # Anything pickled ends here, too: its first bytes are no header. PyTorch refuses tensors of too many
        # dimensions.
        reason = excerpt(str(error).partition("\n")[0])
        raise UserError(f"{path}: damaged, or not a safetensors file ({reason}); {hint}") from error
    except (KeyError, ValueError):
        notes = {}
    check_finite(path, tensors, hint)
    return tensors, notes if isinstance(notes, dict) else {}


def check_finite(path: str | Path, tensors: dict[str, Tensor], hint: str) -> None:
    """Refuse tensors from a file, with its name and a hint, if one holds a value that is not finite."""
    for name, value in tensors.items():
        try:
            finite = bool(torch.isfinite(value).all())
        except RuntimeError as error:
            # Of 4 and 8 bits, for which PyTorch has no such test and nothing of ours is written.
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{path}: {excerpt(name)} is of type {kind}; {hint}") from error
        if not finite:
            raise UserError(f"{path}: damaged ({excerpt(name)} is not finite); {hint}")


def read_notes(path: str | Path) -> dict[str, Any]:
    """The notes that ``write_tensors`` left in a file.

    Raises
    ------
    safetensors.SafetensorError
        It is no safetensors file.
    KeyError, ValueError
        It has no such notes.
    """
    with safe_open(path, "pt") as file:
        return read_json((file.metadata() or {})[NOTES])
