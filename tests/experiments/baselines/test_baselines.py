"""Both baselines by plain versions of them."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import mahalanobis

from glance_fast.experiments.baselines import padim, patchcore, places
from glance_fast.nets.teacher import Teacher


@pytest.fixture(scope="module")
def teacher():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Teacher().eval().requires_grad_(False)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 64, 48, 3), dtype=np.uint8)


@pytest.fixture
def points():
    return torch.from_numpy(np.random.default_rng(1).normal(5, 1, (300, 7)).astype(np.float32))


class TestPatchCore:
    def test_the_coreset_is_that_of_a_plain_loop(self, points):
        chosen = [11]
        while len(chosen) < 20:
            gaps = torch.cdist(points.double(), points[chosen].double()).amin(1)
            chosen.append(int(gaps.argmax()))
        assert patchcore.greedy_coreset(points, 20, first=11).tolist() == chosen

    def test_no_point_is_chosen_twice(self):
        points = torch.ones(6, 3).index_fill_(0, torch.tensor([2]), 1e4)
        assert sorted(patchcore.greedy_coreset(points, 6).tolist()) == list(range(6))

    def test_neighbours_are_those_of_a_tree(self, points):
        bank, asked = points[:40], points[40:]
        found, _ = cKDTree(bank.double().numpy()).query(asked.double().numpy())
        torch.testing.assert_close(
            patchcore.nearest(asked, bank).double(), torch.from_numpy(found), rtol=1e-5, atol=1e-5
        )
        assert patchcore.nearest(bank, bank).max() < 5e-3

    def test_places_are_described_by_means_of_two_layers(self, teacher, images):
        with torch.inference_mode():
            found = patchcore.features(teacher, torch.from_numpy(images))
            _, second, third = places.trunk(teacher, torch.from_numpy(images))
        assert found.shape == (4, 8, 6, 384)
        torch.testing.assert_close(found[0, 2, 3, :128], second[0, :, 1:4, 2:5].mean((1, 2)))
        # Beyond the border there is zero; a corner of the fine grid reads the coarse corner alone.
        torch.testing.assert_close(found[0, 0, 0, :128], second[0, :, :2, :2].sum((1, 2)) / 9)
        torch.testing.assert_close(found[0, 0, 0, 128:], third[0, :, :2, :2].sum((1, 2)) / 9)

    def test_what_was_learned_scores_lower(self, teacher, images, monkeypatch):
        monkeypatch.setattr(patchcore, "SHARE", 0.5)
        model = patchcore.PatchCore(teacher).fit(images[:3])
        maps = model.maps(images)
        assert model.bank.shape == (72, 384) and maps.shape == (4, 64, 48)
        assert maps[:3].mean() < maps[3].mean()
        assert np.array_equal(maps, patchcore.PatchCore(teacher).fit(images[:3]).maps(images))
        np.testing.assert_allclose(model.maps(images[3:])[0], maps[3], rtol=1e-3)


class TestPaDiM:
    def test_distances_are_those_of_scipy(self):
        rng = np.random.default_rng(2)
        normal, asked = rng.normal(1, 2, (5, 12, 4)), rng.normal(0, 3, (5, 3, 4))
        found = padim.mahalanobis(torch.from_numpy(asked), *padim.gaussians(torch.from_numpy(normal)))
        for place in range(5):
            inverse = np.linalg.inv(np.cov(normal[place].T) + padim.RIDGE * np.eye(4))
            expected = [mahalanobis(x, normal[place].mean(0), inverse) for x in asked[place]]
            np.testing.assert_allclose(found[place], expected, rtol=1e-9)

    def test_a_map_is_made_of_the_distances_at_every_place(self, teacher, images, monkeypatch):
        monkeypatch.setattr(padim, "to_maps", lambda distances, size: distances.numpy())
        model = padim.PaDiM(teacher, seed=3).fit(images[:3])
        assert len(set(model.kept.tolist())) == 100 and model.mean.shape == (16 * 12, 100)
        maps = model.maps(images)
        assert maps.shape == (4, 16, 12)
        with torch.inference_mode():
            places = padim.features(teacher, torch.from_numpy(images))[:, 5, 7, model.kept].numpy()
        inverse = np.linalg.inv(np.cov(places[:3].T.astype(np.float64)) + padim.RIDGE * np.eye(100))
        expected = [mahalanobis(x, places[:3].mean(0), inverse) for x in places]
        np.testing.assert_allclose(maps[:, 5, 7], expected, rtol=1e-3)

    def test_the_first_layer_is_taken_as_it_is(self, teacher, images):
        with torch.inference_mode():
            found = padim.features(teacher, torch.from_numpy(images))
            first = places.trunk(teacher, torch.from_numpy(images))[0]
        assert found.shape == (4, 16, 12, 448)
        assert torch.equal(found[..., :64], first.permute(0, 2, 3, 1))


class TestPlaces:
    def test_the_trunk_is_the_teacher(self, teacher, images):
        with torch.inference_mode():
            _, second, third = places.trunk(teacher, torch.from_numpy(images))
            *_, averaged, whole = teacher(places.to_input(torch.from_numpy(images)))
        assert torch.equal(third, whole)
        torch.testing.assert_close(averaged[..., 2, 2], second[..., 1:4, 1:4].mean((2, 3)))

    def test_maps_are_as_large_as_the_image_and_as_high_as_the_distances(self):
        maps = places.to_maps(torch.full((2, 4, 6), 3.0), (32, 48))
        assert maps.shape == (2, 32, 48)
        np.testing.assert_allclose(maps, 3, rtol=1e-6)
