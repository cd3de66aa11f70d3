"""Random batches: seeded by step, disjoint holes, crops that are what lies under them."""

import numpy as np
import pytest
import torch

from glance_fast.training.sampling import augment, crop, draw_holes, draw_indices, step_generator


def test_a_step_draws_the_same_whatever_came_before():
    first = torch.rand(5, generator=step_generator(3, "global-32", 17))
    torch.rand(100)
    assert torch.equal(first, torch.rand(5, generator=step_generator(3, "global-32", 17)))


@pytest.mark.parametrize("other", [(4, "global-32", 17), (3, "global-64", 17), (3, "global-32", 18)])
def test_seed_stage_and_step_all_matter(other):
    first = torch.rand(5, generator=step_generator(3, "global-32", 17))
    assert not torch.equal(first, torch.rand(5, generator=step_generator(*other)))


@pytest.mark.parametrize(
    ("size", "patch", "holes"),
    [((256, 256), 32, 10), ((256, 256), 64, 4), ((272, 144), 32, 8), ((64, 96), 32, 1), ((33, 32), 32, 1)],
)
def test_holes_are_disjoint_inside_and_never_touch(size, patch, holes):
    drawn = draw_holes(50, holes, patch, size, step_generator(0, "x", 0))
    assert drawn.shape == (50, holes, 4)
    assert (drawn[..., 2:] - drawn[..., :2] == patch).all()
    assert drawn.min() >= 0
    assert (drawn[..., 2] <= size[0]).all() and (drawn[..., 3] <= size[1]).all()
    # One pixel of space: the boxes grown by one still share nothing.
    grown = drawn + torch.tensor([0, 0, 1, 1])
    low = torch.maximum(grown[:, :, None, :2], grown[:, None, :, :2])
    high = torch.minimum(grown[:, :, None, 2:], grown[:, None, :, 2:])
    common = (high - low).clamp_min(0).prod(-1)
    assert (common.sum((1, 2)) == holes * (patch + 1) ** 2).all()


@pytest.mark.parametrize(("patch", "holes"), [(64, 4), (32, 10)])
def test_every_place_is_drawn_about_as_often(patch, holes):
    drawn = draw_holes(3000, holes, patch, (256, 256), step_generator(0, "x", 0))
    for axis in (0, 1):
        counts = np.bincount(drawn[..., axis].flatten(), minlength=257 - patch)
        assert len(counts) == 257 - patch
        # In bins of 8 pixels; the borders, with fewer neighbours in the way, are somewhat likelier.
        bins = counts[: len(counts) // 8 * 8].reshape(-1, 8).sum(1)
        assert bins.min() > 0.4 * bins.mean() and bins.max() < 2.5 * bins.mean()


def test_images_too_small_for_chance_get_a_lattice():
    drawn = draw_holes(20, 4, 31, (64, 64), step_generator(0, "x", 0))
    assert len({tuple(corner) for corner in drawn[0, :, :2].tolist()}) == 4


def test_crop_is_what_lies_under_the_hole():
    images = torch.rand(3, 40, 50, 3)
    holes = torch.tensor([[[0, 0, 8, 8], [32, 42, 40, 50]]] * 2 + [[[5, 7, 13, 15], [20, 1, 28, 9]]])
    patches = crop(images, holes)
    assert patches.shape == (6, 3, 8, 8)
    assert torch.equal(patches[1], images[0, 32:40, 42:50].permute(2, 0, 1))
    assert torch.equal(patches[4], images[2, 5:13, 7:15].permute(2, 0, 1))


def test_augment_shifts_each_image_by_its_own_amount():
    image = torch.zeros(1, 20, 30, 3, dtype=torch.uint8)
    image[0, 10, 15] = 200
    moved = augment(image.expand(40, -1, -1, -1), 3, 0.0, step_generator(0, "x", 0))
    places = {tuple(p[0, :2].tolist()) for p in (m.nonzero() for m in moved)}
    assert len(places) > 10
    assert all(abs(y - 10) <= 3 and abs(x - 15) <= 3 for y, x in places)


def test_augment_without_shift_and_brightness_changes_nothing():
    images = torch.randint(0, 256, (2, 9, 11, 3), dtype=torch.uint8)
    assert torch.equal(augment(images, 0, 0.0, step_generator(0, "x", 0)), images.float())


def test_indices_repeat_only_where_images_are_too_few():
    assert len(np.unique(draw_indices(12, 12, step_generator(0, "x", 0)))) == 12
    few = draw_indices(3, 12, step_generator(0, "x", 0))
    assert len(few) == 12 and few.max() < 3
