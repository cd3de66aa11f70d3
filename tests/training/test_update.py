"""New photographs join earlier ones: statistics of all together, from what is kept of the earlier ones."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from samples import draw_part

from glance_fast.config import Config
from glance_fast.data.cache import ImageCache
from glance_fast.device import has_bf16
from glance_fast.engines.memory import MIB
from glance_fast.errors import UserError
from glance_fast.model import Glance
from glance_fast.run import weights
from glance_fast.training.calibrate import calibrate, digest
from glance_fast.training.normal import Normal, read_names, read_normal, write_normal
from glance_fast.training.update import join

COUNT = 16


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Sixteen photographs, two of them wider than high."""
    folder, rng = tmp_path_factory.mktemp("good"), np.random.default_rng(3)
    paths = []
    for i in range(COUNT):
        paths.append(folder / f"{i}.png")
        Image.fromarray(draw_part(rng)).resize((80, 64) if i > 13 else (64, 64)).save(paths[-1])
    with ImageCache(paths, (64, 64)) as cache:
        yield cache


@pytest.fixture(params=["calibrated", "masked", "paper's blend"])
def model_of(request, small, masked):
    given = {"calibrated": small, "masked": masked, "paper's blend": {**small, "blend": "paper"}}

    def make():
        return Glance(Config(**given[request.param], false_alarms=0.2), seed=1)

    return make


def names_of(cache, indices):
    return {digest(cache.batch([index])[0]): int(index) for index in indices}


def trained(model, cache, indices, path):
    calibrate(model, cache, np.asarray(indices), keep=path)
    return model


def joined(model, cache, new, path):
    found = join(model, (path, read_names(path, model)), cache, {}, names_of(cache, new))
    write_normal(path, model, found.normal)
    return found


def state(model):
    return {name: tensor.clone() for name, tensor in weights(model).items()}


def test_an_update_is_a_calibration_on_all_together(model_of, cache, tmp_path):
    together = trained(model_of(), cache, range(COUNT), tmp_path / "all")
    model = trained(model_of(), cache, range(10), tmp_path / "some")
    nets = state(model)
    joined(model, cache, range(10, COUNT), tmp_path / "some")
    # Residuals of photographs that were looked at in other company are rounded otherwise, and no more.
    a, b = (dict(one.named_buffers()) for one in (model, together))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-3)
    for one, other in zip(model.calibration.scales, together.calibration.scales, strict=True):
        for field in dataclasses.fields(one):
            x, y = getattr(one, field.name), getattr(other, field.name)
            x, y = ((x.mean, x.std), (y.mean, y.std)) if hasattr(x, "mean") else (x, y)
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3, err_msg=field.name)
    one, other = model.calibration, together.calibration
    np.testing.assert_allclose(one.scores, other.scores, rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(one.peaks, other.peaks, rtol=5e-3, atol=5e-3)
    assert one.threshold == pytest.approx(other.threshold, abs=5e-3)
    assert set(one.trained_on) == set(other.trained_on) and one.aspect == other.aspect
    # The nets were not touched.
    changed = {n for n, t in state(model).items() if not torch.equal(t, nets[n])}
    assert changed == {n for n in nets if n.endswith(("residual_mean", "whitening"))}


def test_of_the_same_residuals_it_is_the_same_to_the_bit(model_of, cache, tmp_path, monkeypatch):
    # Looked at alone in both cases, photographs leave the same residuals: nothing else may differ.
    monkeypatch.setattr(Glance, "at_once", lambda *arguments: 1)
    together = trained(model_of(), cache, range(COUNT), tmp_path / "all")
    model = trained(model_of(), cache, range(10), tmp_path / "some")
    joined(model, cache, range(10, COUNT), tmp_path / "some")
    assert (tmp_path / "some").read_bytes() == (tmp_path / "all").read_bytes()
    assert all(torch.equal(tensor, state(together)[name]) for name, tensor in state(model).items())
    same = dataclasses.replace(together.calibration, trained_on=model.calibration.trained_on)
    assert model.calibration == same


def test_two_updates_are_one(model_of, cache, tmp_path):
    found = []
    for parts in ([range(10, COUNT)], [range(10, 13), range(13, COUNT)], [range(12, COUNT), [11, 10]]):
        path = tmp_path / "normal"
        model = trained(model_of(), cache, range(10), path)
        for part in parts:
            joined(model, cache, part, path)
        found.append((model, path.read_bytes()))
    (first, file), *others = found
    for model, other in others:
        assert other == file and model.calibration == first.calibration
        assert all(torch.equal(tensor, state(first)[name]) for name, tensor in state(model).items())


def test_earlier_photographs_may_be_given_as_images(model_of, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(Glance, "at_once", lambda *arguments: 1)
    model = trained(model_of(), cache, range(10), tmp_path / "some")
    other = trained(model_of(), cache, range(10), None)
    joined(model, cache, range(10, COUNT), tmp_path / "some")
    join(other, None, cache, names_of(cache, range(10)), names_of(cache, range(10, COUNT)))
    assert other.calibration == model.calibration
    assert all(torch.equal(tensor, state(other)[name]) for name, tensor in state(model).items())


def test_what_is_said_of_the_new_ones(model_of, cache, tmp_path):
    model = trained(model_of(), cache, range(10), tmp_path / "some")
    new = names_of(cache, [15, 12])
    precision = "bf16" if has_bf16(model.device) else "fp32"
    before = model.score(list(cache.batch([15, 12])), precision=precision).scores
    done = []
    found = join(
        model,
        (tmp_path / "some", read_names(tmp_path / "some", model)),
        cache,
        {},
        new,
        lambda *far: done.append(far),
    )
    # In the order given, by the model as it was.
    np.testing.assert_allclose(found.before, before, rtol=1e-3, atol=1e-3)
    scores = dict(zip(found.normal.names, model.calibration.scores, strict=True))
    assert found.after.tolist() == [scores[name] for name in new] and done == [(1, 2), (2, 2)]


def test_what_a_user_has_set_stays(small, cache, tmp_path):
    model = trained(Glance(Config(**small)), cache, range(10), tmp_path / "some")
    scale = dataclasses.replace(model.calibration.scales[0], lambda_s=0.3, weight=0.7)
    model.calibration = dataclasses.replace(model.calibration, scales=(scale,), false_alarms=0.3)
    joined(model, cache, [12], tmp_path / "some")
    after = model.calibration
    assert (after.false_alarms, after.scales[0].lambda_s, after.scales[0].weight) == (0.3, 0.3, 0.7)
    assert after.threshold == sorted(after.scores)[8]


def test_a_file_keeps_all_to_the_bit_also_of_twins(small, cache, tmp_path):
    model = Glance(Config(**small))
    names = ["b", "a", "b", "c"]
    normal = Normal.empty(model, names)
    assert normal.names == ("a", "b", "b", "c")
    generator = torch.Generator().manual_seed(0)
    for tensor in normal.tensors().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    write_normal(tmp_path / "n", model, normal)
    assert read_names(tmp_path / "n", model) == normal.names
    wider = Normal.empty(model, ["bb", *names, "0"])
    read_normal(tmp_path / "n", wider, normal.names)
    for name, tensor in normal.tensors().items():
        assert torch.equal(wider.tensors()[name][[1, 2, 3, 5]], tensor)
    size = 4 * sum(len(s.grid) * (s.local.features * 2 + 4) + 8 for s in model.scales)
    assert size < (tmp_path / "n").stat().st_size < size + 1000


def test_damaged_files_are_named(small, cache, tmp_path):
    path = tmp_path / "normal.safetensors"
    model = trained(Glance(Config(**small)), cache, range(10), path)
    whole = path.read_bytes()

    def refused(content):
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            names = read_names(path, model)
            read_normal(path, Normal.empty(model, names), names)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
        return str(caught.value)

    for content in (b"", b"no file", whole[:100], whole[:-100], whole.replace(b"residual.0", b"residual.1")):
        assert "damaged (" in refused(content)
    assert "not finite" in refused(whole[:-16] + b"\xff" * 16)
    # The names in a mess.
    one, two = read_names_of(whole)
    swapped = whole.replace(one, b"-" * 16).replace(two, one).replace(b"-" * 16, two)
    assert "no list of names in order" in refused(swapped)
    assert "not of this version" in refused(whole.replace(b'\\"format\\": 1', b'\\"format\\": 7'))
    path.write_bytes(whole)
    with torch.no_grad():
        next(model.scales[0].distortion.parameters()).add_(1)
    with pytest.raises(UserError, match="of another model than the one beside it"):
        read_names(path, model)


def read_names_of(content):
    """The first two names in a file, as bytes."""
    start = content.index(b"names")
    return [part.strip(b'\\" ,[') for part in content[start:].split(b"[")[1].split(b",")[:2]]


def test_memory_that_does_not_suffice(small, cache, tmp_path, monkeypatch):
    model = trained(Glance(Config(**small)), cache, range(10), tmp_path / "some")
    monkeypatch.setattr("glance_fast.training.calibrate._fits", lambda model, images: images < 12)
    before = model.calibration
    with pytest.raises(
        UserError, match=r"2048 MiB beside the model are too few for 13 photographs; .*memory_mib"
    ):
        joined(model, cache, [10, 11, 12], tmp_path / "some")
    assert model.calibration == before and model.memory_limit == 2048 * MIB
    joined(model, cache, [10], tmp_path / "some")
