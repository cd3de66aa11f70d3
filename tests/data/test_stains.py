"""Stains: repeatable, on every patch, small, and of several kinds."""

from __future__ import annotations

import pytest
import torch

from glance_fast.data import stains
from glance_fast.data.stains import stain, stain_images


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


@pytest.mark.parametrize("size", [(96, 130), (40, 20)], ids="{0[0]}x{0[1]}".format)
def test_whole_images_get_several_stains(size):
    images = 128 + 40 * noise(8, size).permute(0, 2, 3, 1)
    images = images.clamp(0, 255)
    before = images.clone()
    out = stain_images(images, torch.Generator().manual_seed(0))
    assert torch.equal(images, before) and out.shape == images.shape
    assert float(out.min()) >= 0 and float(out.max()) <= 255
    share = (out != images).any(-1).float().mean((1, 2))
    assert bool((share > 0).all()) and float(share.max()) < 0.9
    assert torch.equal(out, stain_images(images, torch.Generator().manual_seed(0)))


def test_stains_of_a_whole_image_fall_everywhere():
    images = 128 + 40 * noise(64, (96, 96)).permute(0, 2, 3, 1)
    hits = sum(
        (stain_images(images, torch.Generator().manual_seed(seed)) != images).any(-1).sum(0)
        for seed in range(8)
    ).float()
    corners = hits[:16, :16].mean(), hits[-16:, :16].mean(), hits[:16, -16:].mean(), hits[-16:, -16:].mean()
    assert min(corners) > 0.1 * hits.mean()


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_patches_are_refused(count):
    with pytest.raises(ValueError, match=f"at least 2 are needed, got {count}"):
        stained(noise(count))


def test_two_patches_are_enough():
    patches = noise(2)
    assert all(stained(patches, seed).isfinite().all() for seed in range(20))
