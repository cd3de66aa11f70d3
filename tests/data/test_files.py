"""Tensors that are written without a second copy of them: the same format, readable by all, whole or not."""

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from glance_fast.data.files import read_notes, read_tensors, stream_tensors, write_tensors
from glance_fast.errors import UserError

TENSORS = {
    "odd": torch.arange(7.0).half(),
    "table": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "none": torch.empty(0, 4),
}


@pytest.mark.parametrize("name", ["", "x", "long " * 20])
def test_what_is_streamed_is_read_to_the_bit(tmp_path, name):
    # Headers of any length: what follows is aligned all the same.
    tensors = {name + key: tensor for key, tensor in TENSORS.items()}
    stream_tensors(tmp_path / "f", tensors, {"b": [1, "ü"], "a": None})
    found, notes = read_tensors(tmp_path / "f", "")
    assert notes == {"b": [1, "ü"], "a": None} == read_notes(tmp_path / "f")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor)
    length = int.from_bytes((tmp_path / "f").read_bytes()[:8], "little")
    assert length % 8 == 0


def test_others_may_read_it(tmp_path):
    for write in (stream_tensors, write_tensors):
        write(tmp_path / write.__name__, TENSORS, {})
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    mask = os.umask(0)
    os.umask(mask)
    assert modes == {0o666 & ~mask}


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    stream_tensors(path, TENSORS, {})
    before, opened = path.read_bytes(), Path.open

    class Full:
        def __init__(self, file):
            self.file, self.written = file, 0

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.written += 1
            if self.written > 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda *arguments: Full(opened(*arguments)))
        with pytest.raises(UserError, match=r"f: cannot be written: No space left on device"):
            stream_tensors(path, {**TENSORS, "more": torch.ones(3)}, {})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
