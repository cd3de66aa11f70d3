"""A region of interest: which patches belong to it, and what a model says with it and without it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import MASKED, SMALL, draw_part

import glance_fast
from glance_fast import Config, Glance, UserError
from glance_fast.calibration import Calibration, Moments, ScaleStatistics
from glance_fast.geometry import PatchGrid
from glance_fast.maps import HeadMaps, combine, confined, interpolate
from glance_fast.roi import Roi

ENGINES = [("surround", "auto"), ("pyramid", "dense"), ("pyramid", "grouped"), ("pyramid", "patchwise")]
CPU = torch.device("cpu")


@st.composite
def regions(draw):
    """A grid, and pixels of its image: some boxes and single pixels."""
    patch = draw(st.integers(2, 9))
    stride, frame = draw(st.integers(1, patch)), draw(st.integers(0, patch // 2))
    rows, cols = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    height, width = ((n - 1) * stride + patch - 2 * frame for n in (rows, cols))
    if min(height, width) < patch:
        frame, height, width = 0, height + 2 * frame, width + 2 * frame
    grid = PatchGrid(height, width, patch, stride, frame)
    pixels = np.zeros((height, width), bool)
    for _ in range(draw(st.integers(1, 3))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        pixels[y : y + draw(st.integers(1, 4)), x : x + draw(st.integers(1, 4))] = True
    return grid, pixels


@settings(deadline=None, max_examples=50)
@given(regions())
def test_a_patch_belongs_where_it_is_the_nearest_to_a_pixel(case):
    grid, pixels = case
    centers = np.stack(np.meshgrid(grid.centers_y, grid.centers_x, indexing="ij"), -1).reshape(-1, 2)
    expected = {
        int(np.argmin(((centers - place) ** 2).sum(1)))  # of equal ones, the first
        for place in np.argwhere(pixels)
    }
    assert grid.patches_of(pixels).tolist() == sorted(expected)


@settings(deadline=None, max_examples=15)
@given(regions(), st.sampled_from([1, 3, 0]), st.sampled_from([0.0, 1.5]))
def test_maps_of_some_patches_are_weighted_means_of_these(case, neighbours, smoothing):
    grid, pixels = case
    config = dataclasses.replace(Config(**SMALL), idw_neighbours=neighbours, smoothing=smoothing)
    roi = roi_on(grid, pixels, config)
    values = torch.randn(2, len(roi.patches[0]), generator=torch.Generator().manual_seed(0))
    found = _maps(roi, values, grid, config)[:, roi.pixels]
    # All that do not belong weigh nothing, and the others more: as each alone says.
    alone = torch.stack(
        [
            interpolate(torch.eye(len(grid))[None, place], grid, config)[0][roi.pixels]
            for place in roi.patches[0]
        ]
    )
    expected = (values[:, :, None] * (alone / alone.sum(0))).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found <= values.amax(1, keepdim=True) + 1e-4).all()


def roi_on(grid, pixels, config):
    """A region on any grid, also on one that no settings allow."""
    fake = type("Settings", (), {"grids": (grid,), **dataclasses.asdict(config)})()
    return Roi.of(pixels, fake, CPU)


def _maps(roi, values, grid, config):
    fake = type("Settings", (), {"grids": (grid,), **dataclasses.asdict(config)})()
    return roi.maps(values, 0, fake)


def test_of_all_pixels_the_maps_are_as_without():
    config = Config(**SMALL)
    roi = Roi.of(np.ones(config.image_size, bool), config, CPU)
    values = torch.randn(2, len(config.grids[0]))
    assert len(roi.patches[0]) == len(config.grids[0])
    torch.testing.assert_close(roi.maps(values, 0, config), interpolate(values, config.grids[0], config))


@pytest.mark.parametrize("blend", ["calibrated", "paper"])
@pytest.mark.parametrize("threshold", [2.0, -3.0, np.inf])
def test_outside_a_map_is_lowest_and_counts_nowhere(blend, threshold):
    config = Config(
        **{**SMALL, "net": "pyramid", "patch": (32, 64), "stride": (16, 32), "blend": blend, "smoothing": 0.0}
    )
    statistics = ScaleStatistics(map=Moments(0.5, 2.0), inconsistency_peak=Moments(1.0, 3.0))
    calibration = Calibration((statistics,) * 2, pixel_threshold=threshold, largest_peaks=True)
    generator = torch.Generator().manual_seed(0)
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[10:20, 5:40] = True
    maps = [HeadMaps(*(5 + torch.rand(3, 64, 64, generator=generator) for _ in range(2))) for _ in range(2)]
    found, scores = combine(maps, config, calibration, inside)
    # The same pixels alone, as if there were no others.
    alone = [HeadMaps(*(m[:, 10:20, 5:40] for m in both)) for both in maps]
    expected, of_these = combine(alone, config, calibration)
    assert (found[:, 10:20, 5:40] == expected).all() and (scores == of_these).all()
    outside = found[:, ~inside]
    assert (outside <= expected.amin((1, 2))[:, None]).all() and (outside <= min(0, threshold)).all()
    for values in (torch.nan, torch.inf, -torch.inf, 1e9):
        odd = [HeadMaps(*(torch.where(inside, m, values) for m in both)) for both in maps]
        for one, other in zip(combine(odd, config, calibration, inside), (found, scores), strict=True):
            assert (one == other).all()


def test_a_map_that_is_no_number_inside_stays_none():
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1, 1:3] = True
    maps = torch.zeros(2, 4, 4)
    maps[0, 1, 1] = torch.nan
    assert confined(maps, inside)[0].isnan().sum() == 15 and not confined(maps, inside)[1].any()


def model_of(net, **more):
    """An untrained model whose whitening and moments are not those of none."""
    settings_ = {"net": net, "pretrained": False, "width": 8, **more}
    model = Glance(Config(**{"image_size": (128, 160), "patch": (32, 64), "stride": (8, 32), **settings_}))
    generator = torch.Generator().manual_seed(0)
    for scale in model.scales:
        scale.residual_mean.normal_(0, 0.3, generator=generator)
        scale.whitening += (0.1 * torch.randn(scale.whitening.shape, generator=generator)).half()
    return model


def box(size, top, left, bottom, right):
    pixels = np.zeros(size, bool)
    pixels[top:bottom, left:right] = True
    return pixels


def photographs(count=2):
    rng = np.random.default_rng(1)
    return [np.ascontiguousarray(draw_part(rng, 160, defect=bool(i))[:128]) for i in range(count)]


@pytest.mark.parametrize(("net", "engine"), ENGINES)
def test_patches_inside_score_as_without_a_region(net, engine):
    model, images = model_of(net), photographs()
    size = model.config.image_size
    whole = model.score(images, engine)
    for pixels in (
        box(size, 30, 41, 77, 90),
        box(size, 0, 0, 1, 1),
        box(size, 127, 3, 128, 151),
        np.ones(size, bool),
    ):
        found = model.score(images, engine, roi=pixels)
        assert (found.inside == pixels).all() and found.inside.shape == found.maps.shape
        for ours, theirs, grid in zip(
            found.patch_scores, whole.patch_scores, model.config.grids, strict=True
        ):
            belongs = np.zeros(len(grid), bool)
            belongs[grid.patches_of(pixels)] = True
            belongs = belongs.reshape(grid.rows, grid.cols)
            np.testing.assert_allclose(
                ours[:, belongs], theirs[:, belongs], rtol=1e-5, atol=1e-6 * np.abs(theirs).max()
            )
            assert np.isnan(ours[:, ~belongs]).all()
        assert np.isfinite(found.maps).all() and np.isfinite(found.scores).all()
    np.testing.assert_allclose(found.maps, whole.maps, rtol=1e-4, atol=1e-5 * np.abs(whole.maps).max())
    np.testing.assert_allclose(found.scores, whole.scores, rtol=1e-4)


@pytest.mark.parametrize(("net", "engine"), ENGINES)
def test_scores_of_patches_outside_change_nothing(net, engine, monkeypatch):
    """Whatever they are: no number, or higher than all others."""
    model, images = model_of(net), photographs()
    pixels = box(model.config.image_size, 30, 41, 77, 90)
    whole = model.score(images, engine, roi=pixels)
    for scale in model.scales:
        outside = np.setdiff1d(np.arange(len(scale.grid)), scale.grid.patches_of(pixels))
        scale.whitening[outside] = 1000
        scale.residual_mean[outside] = torch.nan
    found = model.score(images, engine, roi=pixels)
    assert (found.maps == whole.maps).all() and (found.scores == whole.scores).all()


@pytest.mark.parametrize("net", ["surround", "pyramid"])
def test_one_region_an_image(net):
    model, images = model_of(net), photographs(5)
    size = model.config.image_size
    some = [box(size, 30, 41, 77, 90)] * 2 + [box(size, 0, 0, 20, 30)] + [np.ones(size, bool)] * 2
    found = model.score(images, roi=some)
    for i, (image, pixels) in enumerate(zip(images, some, strict=True)):
        alone = model.score([image], roi=pixels)
        np.testing.assert_allclose(found.maps[i], alone.maps[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.scores[i], alone.scores[0], rtol=1e-4, atol=1e-4)
        assert (found.inside[i] == pixels).all()
    assert model.score([], roi=[]).maps.shape == (0, *size)


def test_a_mask_of_any_size_is_stretched():
    model, images = model_of("surround"), photographs()
    small, large = box((64, 80), 10, 20, 30, 50), box((128, 160), 20, 40, 60, 100)
    assert (model.score(images, roi=small).maps == model.score(images, roi=large).maps).all()


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (np.zeros((8, 8), bool), "^roi: nothing is marked in it"),
        (np.ones((8, 8), np.uint8), r"^roi: a mask is bool \[H, W\], not uint8 \[8, 8\]"),
        ([np.ones((8, 8), bool)], "^roi: 1 masks for 2 images; give one for all, or one an image"),
        ([np.ones((8, 8), bool), np.zeros((8, 8), bool)], "^roi: nothing is marked in it"),
        (box((2000, 2000), 3, 3, 4, 4), "^roi: nothing of it is left at 160x128 pixels; mark more of it"),
    ],
)
def test_what_is_no_region_is_refused(roi, message):
    with pytest.raises(UserError, match=message):
        model_of("surround").score(photographs(), roi=roi)


@pytest.mark.parametrize("settings_", [SMALL, MASKED])
def test_a_models_own_region_is_a_part_of_its_state(settings_):
    images = [draw_part(np.random.default_rng(0))]
    model, other = Glance(Config(**settings_), 1), Glance(Config(**settings_), 2)
    whole = model.score(images)
    model.inside = torch.from_numpy(box((64, 64), 5, 5, 30, 40))
    found = model.score(images)
    assert (found.inside[0] == box((64, 64), 5, 5, 30, 40)).all()
    given = other.load_state_dict(model.state_dict()) and other.score(images)
    assert (given.maps == found.maps).all() and (given.scores == found.scores).all()
    maps, scores = model(torch.from_numpy(images[0]).permute(2, 0, 1)[None] / 255)
    np.testing.assert_allclose(maps, found.maps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores, found.scores, rtol=1e-4, atol=1e-4)
    # Another one for one call, and all of the image.
    everywhere = other.score(images, roi=np.ones((64, 64), bool)).maps
    np.testing.assert_allclose(everywhere, whole.maps, rtol=1e-5, atol=1e-6)
    assert (other.score(images).maps == found.maps).all()
    other.load_state_dict(Glance(Config(**settings_), 1).state_dict())
    assert other.inside is None and (other.score(images).maps == whole.maps).all()


def test_a_saved_model_keeps_its_region(tmp_path):
    from glance_fast.run import save_model

    model = Glance(Config(**SMALL))
    model.inside = torch.from_numpy(box((64, 64), 5, 5, 30, 40))
    save_model(model, tmp_path)
    loaded = glance_fast.load(tmp_path, "cpu")
    assert (loaded.inside == model.inside).all() and loaded.roi is not None


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (
            torch.zeros(64, 64, dtype=torch.bool),
            r"model\.safetensors: damaged \(its region of interest is empty\)",
        ),
        (torch.ones(32, 64, dtype=torch.bool), r"model\.safetensors: does not fit config\.toml .*\(inside\)"),
        (torch.ones(64, 64, dtype=torch.uint8), r"model\.safetensors: damaged \(inside has another type\)"),
        (None, r"calibration\.json: was measured with other weights"),
    ],
)
def test_a_damaged_region_is_one_line(tmp_path, inside, message):
    from glance_fast.data.files import read_tensors, write_tensors
    from glance_fast.run import FORMAT, MODEL, save_model

    model = Glance(Config(**SMALL))
    model.inside = torch.from_numpy(box((64, 64), 5, 5, 30, 40))
    save_model(model, tmp_path)
    tensors, _ = read_tensors(tmp_path / MODEL, "")
    tensors.pop("inside")
    write_tensors(
        tmp_path / MODEL, tensors | ({} if inside is None else {"inside": inside}), {"format": FORMAT}
    )
    with pytest.raises(UserError, match=message) as error:
        glance_fast.load(tmp_path, "cpu")
    assert "\n" not in str(error.value)
