"""CIFAR-10 in its three forms: read alike, refused by name where damaged, and no pickle is run."""

import pickle
import struct

import numpy as np
import pytest
from PIL import Image
from samples import write_cifar10

from glance_fast.data.cifar10 import BATCHES, BINARY, CLASSES, PICKLED, PIXELS, read_cifar10
from glance_fast.errors import ImageError, UserError

EACH = 12  # images a batch


@pytest.fixture
def batches():
    """By name: planes uint8 [12, 3072] and labels, every class among them."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.integers(0, 256, (EACH, PIXELS), dtype=np.uint8), [(7 * i + k) % 10 for i in range(EACH)])
        for k, name in enumerate(BATCHES)
    }


def text(value):
    """A string as Python 2 pickles it."""
    value = value.encode() if isinstance(value, str) else value
    return (
        b"U" + bytes([len(value)]) + value
        if len(value) < 256
        else b"T" + struct.pack("<i", len(value)) + value
    )


def integer(value):
    return b"J" + struct.pack("<i", value)


def array(values, order=b"\x89"):
    """An array as NumPy under Python 2 pickles it: ``order`` is False for rows, True for columns."""
    raw = values.tobytes("F" if order == b"\x88" else "C")
    empty = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
        + integer(0)
        + b"\x85"
        + text("b")
        + b"\x87R"
    )
    kind = b"cnumpy\ndtype\n" + text("u1") + integer(0) + integer(1) + b"\x87R"
    kind += b"(" + integer(3) + text("|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    shape = integer(values.shape[0]) + integer(values.shape[1]) + b"\x86"
    return empty + b"(" + integer(1) + shape + kind + order + text(raw) + b"tb"


def pickled(planes, labels, **how):
    """A batch, byte for byte as cPickle under Python 2 lays it out, but for what it remembers."""
    return b"".join(
        [
            b"\x80\x02}(",
            text("batch_label") + text("training batch 1 of 5"),
            text("labels") + b"](" + b"".join(map(integer, labels)) + b"e",
            text("data") + array(planes, **how),
            text("filenames")
            + b"]("
            + b"".join(text(f"cat_s_{i:06}.png") for i in range(len(labels)))
            + b"e",
            b"u.",
        ]
    )


def write_pickled(folder, batches):
    folder.mkdir(parents=True)
    for name, batch in batches.items():
        (folder / name).write_bytes(pickled(*batch))
    return folder


def write_folders(folder, batches):
    """Images by class; returns the order in which folders give them."""
    for part, names in (("train", BATCHES[:-1]), ("test", BATCHES[-1:])):
        number = 0
        for name in names:
            for planes, label in zip(*batches[name], strict=True):
                place = folder / part / CLASSES[label]
                place.mkdir(parents=True, exist_ok=True)
                image = planes.reshape(3, 32, 32).transpose(1, 2, 0)
                Image.fromarray(np.ascontiguousarray(image)).save(place / f"{number:05}.png")
                number += 1
    return folder


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize(("write", "name"), [(write_cifar10, BINARY), (write_pickled, PICKLED)])
def test_batches_of_both_kinds(batches, tmp_path, write, name, inner):
    folder = write(tmp_path / name, batches)
    data = read_cifar10(folder if inner else tmp_path)
    assert data.train.images.shape == (5 * EACH, 32, 32, 3) and data.test.images.shape == (EACH, 32, 32, 3)
    planes, labels = batches["data_batch_2"]
    assert data.train.labels[EACH : 2 * EACH].tolist() == labels
    # Red, green and blue lie one after another, rows from above.
    assert data.train.images[EACH + 3, 5, 7].tolist() == [planes[3, c * 1024 + 5 * 32 + 7] for c in range(3)]
    assert np.array_equal(data.test.images[0, ..., 2].ravel(), batches["test_batch"][0][0, 2048:])


def test_all_forms_hold_the_same_images(batches, tmp_path):
    binary = read_cifar10(write_cifar10(tmp_path / "bin", batches))
    python = read_cifar10(write_pickled(tmp_path / "py", batches))
    folders = read_cifar10(write_folders(tmp_path / "png", batches))
    assert python.digest() == binary.digest() != folders.digest()  # which are ordered by class
    for label in range(10):
        for part in ("train", "test"):
            of_class = getattr(binary, part).of(label)
            assert np.array_equal(getattr(folders, part).of(label), of_class)


def test_an_array_may_be_laid_out_by_columns(batches, tmp_path):
    folder = write_pickled(tmp_path / "py", batches)
    before = read_cifar10(folder).digest()
    (folder / "data_batch_4").write_bytes(pickled(*batches["data_batch_4"], order=b"\x88"))
    assert read_cifar10(folder).digest() == before


def test_progress_counts_files(batches, tmp_path):
    said = []
    read_cifar10(write_cifar10(tmp_path / "bin", batches), lambda *done: said.append(done))
    assert said == [(i, 6) for i in range(1, 7)]
    said.clear()
    read_cifar10(write_folders(tmp_path / "png", batches), lambda *done: said.append(done))
    assert said == [(i, 6 * EACH) for i in range(1, 6 * EACH + 1)]


class Trap:
    """What a pickle can do to who loads it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_trap_does_not_snap(batches, tmp_path, protocol):
    folder = write_pickled(tmp_path / "py", batches)
    snapped = tmp_path / "snapped"
    whole = {"labels": [0], "data": Trap(exec, f"open({str(snapped)!r}, 'w')")}
    (folder / "data_batch_3").write_bytes(pickle.dumps(whole, protocol))
    with pytest.raises(UserError, match=r"data_batch_3: asks for (__builtin__|builtins)\.exec") as error:
        read_cifar10(folder)
    assert not snapped.exists() and "\n" not in str(error.value)
    pickle.loads((folder / "data_batch_3").read_bytes())
    assert snapped.exists(), "else the trap proves nothing"


@pytest.mark.parametrize(
    "harm",
    [
        b"\x80\x02cos\nsystem\nU\x04trueq\x85R.",
        b"\x80\x02c__builtin__\ngetattr\n.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x0bnumpy.dtype\x8c\x08__init__\x93.",
        b"(i__builtin__\nexec\n.",
    ],
    ids=["system", "getattr", "scalar", "load", "dotted", "inst"],
)
def test_names_that_no_batch_needs_are_refused(batches, tmp_path, harm):
    folder = write_pickled(tmp_path / "py", batches)
    (folder / "test_batch").write_bytes(harm)
    with pytest.raises(UserError, match=r"test_batch: asks for .* nothing of it was run"):
        read_cifar10(folder)


def test_what_is_kept_elsewhere_is_refused(batches, tmp_path):
    folder = write_pickled(tmp_path / "py", batches)
    (folder / "test_batch").write_bytes(b"\x80\x02U\x01aQ.")
    with pytest.raises(UserError, match="test_batch: asks for an object kept elsewhere"):
        read_cifar10(folder)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda whole: whole[: len(whole) // 2], "cut short"),
        (lambda whole: whole[:-1], "cut short"),
        (lambda whole: b"", "cut short"),
        (lambda whole: b"no pickle", "cut short"),
        (lambda whole: b"\x80\x02K\x01.", "holds no data and labels"),
        (lambda whole: b"\x80\x02}.", "holds no data and labels"),
        (lambda whole: whole.replace(b"cnumpy\ndtype\nU\x02u1", b"cnumpy\ndtype\nU\x02O8"), "no batch of"),
        (lambda whole: whole.replace(b"cnumpy\nndarray\n", b"N"), None),
        # BUILD on the classes themselves: they must not change.
        (lambda whole: b"\x80\x02cnumpy\ndtype\n}U\x04nameK\x01sb.", "no batch of"),
    ],
)
def test_damaged_pickles(batches, tmp_path, harm, said):
    folder = write_pickled(tmp_path / "py", batches)
    path = folder / "data_batch_2"
    path.write_bytes(harm(path.read_bytes()))
    if said is None:
        assert read_cifar10(folder).train.labels[EACH] == batches["data_batch_2"][1][0]
        return
    with pytest.raises(UserError, match=f"data_batch_2: .*{said}") as error:
        read_cifar10(folder)
    assert "\n" not in str(error.value)


def test_a_pickle_whose_parts_do_not_fit(batches, tmp_path):
    folder = write_pickled(tmp_path / "py", batches)
    planes, labels = batches["data_batch_1"]
    for others in ((planes[:-1], labels), (planes, labels[:-1]), (planes[:, :-3], labels), (planes[:0], [])):
        (folder / "data_batch_1").write_bytes(pickled(*others))
        with pytest.raises(UserError, match=r"data_batch_1: damaged: .* labels, an array \["):
            read_cifar10(folder)


@pytest.mark.parametrize(("write", "suffix"), [(write_cifar10, ".bin"), (write_pickled, "")])
def test_labels_out_of_range_and_missing_batches(batches, tmp_path, write, suffix):
    planes, labels = batches["data_batch_3"]
    batches["data_batch_3"] = planes, [*labels[:4], 10, *labels[5:]]
    folder = write(tmp_path / "batches", batches)
    with pytest.raises(
        UserError, match=rf"data_batch_3{suffix}: image 4 has the label 10, CIFAR-10's are 0 to 9"
    ):
        read_cifar10(folder)
    (folder / f"data_batch_3{suffix}").unlink()
    with pytest.raises(
        UserError, match=rf"data_batch_3{suffix}: no such file; CIFAR-10 has data_batch_1{suffix} to"
    ):
        read_cifar10(folder)


def test_binary_batches_cut_short(batches, tmp_path):
    folder = write_cifar10(tmp_path / "bin", batches)
    path = folder / "data_batch_5.bin"
    whole = path.read_bytes()
    for rest, said in ((whole[:-1], "36875 bytes are no whole number"), (b"", "0 bytes are no whole number")):
        path.write_bytes(rest)
        with pytest.raises(UserError, match=f"data_batch_5.bin: {said} of images of 3073; it was cut short"):
            read_cifar10(folder)
    # Between two images.
    path.write_bytes(whole[: -2 * (1 + PIXELS)])
    with pytest.raises(
        UserError, match=r"data_batch_5.bin: holds 10 images, another batch 12; it was cut short"
    ):
        read_cifar10(folder)


def test_folders_that_are_none_of_its_classes_or_missing(batches, tmp_path):
    folder = write_folders(tmp_path / "png", batches)
    (folder / "train/.thumbnails").mkdir()
    read_cifar10(folder)
    (folder / "train/lion").mkdir()
    with pytest.raises(UserError, match=r"train/lion: no class of CIFAR-10 \(airplane, automobile, "):
        read_cifar10(folder)
    (folder / "train/lion").rmdir()
    (folder / "test/ship").rename(tmp_path / "ship")
    with pytest.raises(UserError, match="test/ship: no such folder"):
        read_cifar10(folder)
    (folder / "test").rename(tmp_path / "test")
    with pytest.raises(UserError, match=r"test: no such folder; CIFAR-10 has train/<class> and test/<class>"):
        read_cifar10(folder)


def test_images_of_another_size_or_damaged(batches, tmp_path):
    folder = write_folders(tmp_path / "png", batches)
    path = next((folder / "test/cat").iterdir())
    Image.new("RGB", (48, 32)).save(path)
    with pytest.raises(ImageError, match=rf"{path}: is 48x32; images of CIFAR-10 are 32x32"):
        read_cifar10(folder)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=rf"{path}: is not an image"):
        read_cifar10(folder)


def test_no_cifar10_there(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        read_cifar10(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file, not a folder"):
        read_cifar10(tmp_path / "file")
    with pytest.raises(
        UserError, match=r"no CIFAR-10 in it; expected cifar-10-batches-bin, cifar-10-batches-py, or"
    ):
        read_cifar10(tmp_path)
