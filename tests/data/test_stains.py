"""Stains: repeatable, on every patch, small, and of several kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glance_fast.data import stains
from glance_fast.data.stains import VISIBLE, stain, stain_image


def noise(count=256, size=(32, 32), seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def stained(patches, seed=0):
    return stain(patches, torch.Generator().manual_seed(seed))


def changed(patches, seed=0):
    """Bool [P, h, w]."""
    return (stained(patches, seed) != patches).any(1)


def test_same_seed_same_stains_and_no_other_source_of_chance():
    patches = noise(16)
    torch.manual_seed(1)
    first = stained(patches)
    torch.manual_seed(2)
    assert torch.equal(first, stained(patches))
    assert not torch.equal(first, stained(patches, seed=1))


def test_a_generator_goes_on():
    patches, generator = noise(16), torch.Generator().manual_seed(0)
    assert not torch.equal(stain(patches, generator), stain(patches, generator))


def test_inputs_are_left_alone():
    patches = noise(16)
    before = patches.clone()
    stained(patches)
    assert torch.equal(patches, before)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (32, 48)], ids="{0[0]}x{0[1]}".format)
def test_nearly_every_patch_is_changed_visibly(size):
    patches = noise(512, size)
    out = stained(patches)
    assert out.shape == patches.shape and out.dtype == patches.dtype and out.isfinite().all()
    largest = (out - patches).abs().amax((1, 2, 3))
    # A stain is drawn about a point of the patch, so that none can fall beside it.
    assert bool((largest > 0).all())
    assert float((largest > 0.1).float().mean()) > 0.99


def test_stains_are_small():
    share = torch.cat([changed(noise(256, seed=s), s).float().mean((1, 2)) for s in range(3)])
    assert float(share.median()) < 0.25
    assert float(share.quantile(0.99)) < 0.6
    assert float(share.max()) < 0.9
    # Neither all of one size.
    assert float(share.quantile(0.9)) > 3 * float(share.quantile(0.1))


def test_unchanged_pixels_are_unchanged_to_the_bit():
    patches = noise()
    kept = ~changed(patches)
    assert bool((kept.flatten(1).float().mean(1) > 0.1).all())
    out = stained(patches).movedim(1, -1)[kept]
    assert torch.equal(out, patches.movedim(1, -1)[kept])


def test_stains_are_connected_to_one_spot():
    # The bounding box is mostly filled by a blob, and less so by a stroke; scattered pixels would fill none.
    where = changed(noise(128))
    for mask in where:
        rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert len(rows) == rows[-1] - rows[0] + 1 and len(cols) == cols[-1] - cols[0] + 1


def test_stains_fall_everywhere():
    hits = changed(noise(1024)).float().mean(0)
    assert float(hits.min()) > 0.25 * float(hits.mean())


def test_colours_textures_and_opaque_pieces_of_other_patches_appear(monkeypatch):
    # Stains that cover all leave of a patch's own pattern what their opacity lets through.
    def everywhere(count, height, width, generator):
        return torch.ones(count, height, width)

    monkeypatch.setattr(stains, "_strokes", everywhere)
    monkeypatch.setattr(stains, "_blobs", everywhere)
    patches = noise(300, (16, 16))
    values = patches.flatten(1).sort(1).values
    shares, pieces, textures = [], 0, 0
    for patch, out in zip(patches, stained(patches), strict=True):
        pattern, left = (t - t.mean((1, 2), keepdim=True) for t in (patch, out))
        share = (pattern * left).sum() / pattern.square().sum()
        if (values - out.flatten().sort().values).abs().amax(1).min() < 1e-4:
            pieces += 1
        elif (left - share * pattern).abs().max() < 1e-4:
            shares.append(float(share))
        else:
            textures += 1
    assert min(pieces, textures, len(shares)) > 30, (pieces, textures, len(shares))
    # From opaque to faint, and never so faint that nothing is to be seen.
    assert abs(min(shares)) < 0.1 and max(shares) - min(shares) > 0.3 and max(shares) < 0.8


def test_strokes_and_blobs_appear():
    elongated = 0
    where = changed(noise(300))
    for mask in where:
        if mask.sum() < 4:
            continue
        values = torch.linalg.eigvalsh(torch.cov(mask.nonzero().double().T))
        elongated += bool(values[1] > 6 * values[0].clamp_min(0.05))
    assert 0.2 * len(where) < elongated < 0.8 * len(where)


def test_scale_and_dtype_of_the_patches_are_kept():
    patches = noise(64)
    assert torch.allclose(stained(patches * 100 + 7), stained(patches) * 100 + 7, atol=1e-2)
    assert stained(patches.double()).dtype == torch.float64


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_patches_are_refused(count):
    with pytest.raises(ValueError, match=f"at least 2 are needed, got {count}"):
        stained(noise(count))


def test_two_patches_are_enough():
    patches = noise(2)
    assert all(stained(patches, seed).isfinite().all() for seed in range(20))


# Whole images


def parts_of(size, count=5, seed=0):
    """Images with a pattern in grey, neither dark nor bright, so that no stain is cut off."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    waves = 128 + 20 * np.sin(x / 5) + 15 * np.cos(y / 7)
    return np.rint(waves[..., None] + rng.normal(0, 3, (count, *size, 3))).astype(np.uint8)


def stained_parts(size, seeds, images=None):
    """Stained images, their masks and the images, one for each seed."""
    images = parts_of(size) if images is None else images
    found = [stain_image(images[0], images, np.random.default_rng(seed)) for seed in seeds]
    return [np.stack(part) for part in zip(*found, strict=True)]


def test_an_images_stains_are_their_generators_alone():
    images = parts_of((64, 80))
    torch.manual_seed(1)
    first, mask = stain_image(images[0], images, np.random.default_rng(3))
    torch.manual_seed(2)
    again, other_mask = stain_image(images[0], images, np.random.default_rng(3))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(mask, other_mask)
    assert (first != stain_image(images[0], images, np.random.default_rng(4))[0]).any()
    rng = np.random.default_rng(3)
    stain_image(images[0], images, rng)
    assert (stain_image(images[0], images, rng)[0] != first).any(), "a generator goes on"


@pytest.mark.parametrize(
    "size", [(96, 130), (40, 20), (256, 256), (16, 16), (7, 300)], ids="{0[0]}x{0[1]}".format
)
def test_images_of_any_size_are_stained_and_left_alone(size):
    images = parts_of(size)
    before = images.copy()
    out, masks = stained_parts(size, range(40), images)
    np.testing.assert_array_equal(images, before)
    assert out.shape == (40, *size, 3) and out.dtype == np.uint8
    assert masks.shape == (40, *size) and masks.dtype == bool
    assert (masks.any((1, 2))).mean() > 0.8


def test_an_image_may_be_the_only_one():
    images = parts_of((48, 48), count=1)
    out, masks = stained_parts((48, 48), range(60), images)
    assert masks.any((1, 2)).mean() > 0.8 and (out != images[0]).any((1, 2, 3)).mean() > 0.8


def test_the_mask_is_where_an_image_changed_visibly():
    images = parts_of((96, 128))
    one = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        # With one stain alone the change is what the mask was made of, up to rounding and cutting off.
        single = _Once(rng)
        out, mask = stain_image(images[0], images, single)
        change = np.abs(out.astype(float) - images[0])
        inside = (out > 0).all(2) & (out < 255).all(2)
        assert (change.mean(2)[mask & inside] > VISIBLE - 0.51).all()
        assert (change.mean(2)[~mask] <= VISIBLE + 0.51).all()
        one += bool(mask.any())
    assert one > 100


class _Once:
    """A generator that draws one stain where up to three might be drawn."""

    def __init__(self, rng):
        self.rng, self.asked = rng, False

    def integers(self, *arguments):
        if not self.asked:
            self.asked = True
            return self.rng.integers(1, 2)
        return self.rng.integers(*arguments)

    def __getattr__(self, name):
        return getattr(self.rng, name)


def test_pixels_outside_the_mask_are_nearly_as_they_were():
    images = parts_of((96, 128))
    out, masks = stained_parts((96, 128), range(200), images)
    change = np.abs(out.astype(float) - images[0])
    outside = change.mean(3)[~masks]
    # Of up to three stains each may add what is not visible.
    assert outside.max() <= stains.MOST_STAINS * VISIBLE + 0.51
    assert outside.mean() < 0.1 and (outside == 0).mean() > 0.8
    assert change.mean(3)[masks].mean() > 4 * VISIBLE


def test_stains_of_a_whole_image_are_of_all_sizes():
    _, masks = stained_parts((128, 128), range(400))
    share = masks.mean((1, 2))[masks.any((1, 2))]
    # From a speck of a few pixels to a good part of the image, and never all of it.
    assert np.quantile(share, 0.1) < 40 / 128**2 * 2 and np.quantile(share, 0.9) > 0.05
    assert 0.15 < share.max() < 0.75
    across = [
        max(np.ptp(np.flatnonzero(mask.any(axis))) + 1 for axis in (0, 1)) for mask in masks if mask.any()
    ]
    assert min(across) < 8 and max(across) > 64


def test_stains_of_a_whole_image_fall_everywhere():
    _, masks = stained_parts((96, 96), range(1500), parts_of((96, 96)))
    hits = masks.sum(0).astype(float)
    ends = slice(16), slice(-16, None)
    corners = [hits[y, x].mean() for y in ends for x in ends]
    assert min(corners) > 0.2 * hits.mean() and hits.min() > 0


def test_an_image_gets_one_to_three_stains(monkeypatch):
    drawn = []

    def noted(draw):
        return lambda *arguments: (drawn.append(draw), draw(*arguments))[1]

    for name in ("_stroke", "_blob"):
        monkeypatch.setattr(stains, name, noted(getattr(stains, name)))
    counts = set()
    for seed in range(60):
        drawn.clear()
        stained_parts((64, 64), [seed])
        counts.add(len(drawn))
    assert counts == {1, 2, 3}


def test_colours_textures_tints_and_pieces_of_other_images_appear(monkeypatch):
    def everywhere(rng, height, width):
        return np.ones((height, width), bool)

    monkeypatch.setattr(stains, "_stroke", everywhere)
    monkeypatch.setattr(stains, "_blob", everywhere)
    rng = np.random.default_rng(0)
    image = rng.integers(100, 150, (32, 32, 3), dtype=np.uint8)
    others = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    kinds = {"faint": 0, "piece": 0, "tint": 0, "texture": 0}
    for seed in range(400):
        out, _ = stain_image(image, others, _Once(np.random.default_rng(seed)))
        pattern, left = (t - t.mean((0, 1)) for t in (image.astype(float), out.astype(float)))
        share = (pattern * left).sum() / np.square(pattern).sum()
        rest = np.abs(left - share * pattern).max()
        # A piece has the values of another image, in another order.
        red = np.sort(out[..., 0].ravel()).astype(float)
        same = [np.abs(np.sort(other[..., 0].ravel()) - red).max() for other in others]
        if min(same) <= 1:
            kinds["piece"] += 1
        elif rest < 2 and share > 0.95:
            kinds["tint"] += 1
        elif rest < 2:
            kinds["faint"] += 1
        else:
            kinds["texture"] += 1
    assert min(kinds.values()) > 30, kinds
