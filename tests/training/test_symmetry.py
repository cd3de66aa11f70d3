"""Which turns and mirrorings a category allows."""

import pytest
import torch

from glance_fast.geometry import PatchGrid
from glance_fast.nets.builtin import builtin_local_net
from glance_fast.training.sampling import step_generator
from glance_fast.training.symmetry import Symmetry, find_symmetry, turn, vary


def pictures(kind: str, count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Noise, noise with a bright left half, or noise with a bright top half."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(60, 110, (count, height, width, 3), generator=generator, dtype=torch.uint8)
    if kind == "left":
        images[:, :, : width // 2] += 120
    if kind == "top":
        images[:, : height // 2] += 120
    return images


@pytest.mark.parametrize("frame", [0, 8])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [("noise", Symmetry(True, True)), ("left", Symmetry(False, False)), ("top", Symmetry(False, True))],
)
def test_found_is_what_the_images_have(kind, expected, frame):
    grid = PatchGrid(64, 64, 32, 16, frame)
    local = builtin_local_net(32).local.eval()
    found, said = find_symmetry(local, grid, pictures(kind, 12), pictures(kind, 5))
    assert found == expected, said


def test_images_that_are_not_square_are_never_turned():
    local = builtin_local_net(32).local.eval()
    found, said = find_symmetry(
        local, PatchGrid(64, 96, 32, 16), pictures("noise", 12, 64, 96), pictures("noise", 5, 64, 96)
    )
    assert found == Symmetry(False, True) and "turned" not in said


def test_vary_does_only_what_is_allowed():
    images = torch.arange(8 * 4 * 4 * 3).reshape(8, 4, 4, 3)
    generator = step_generator(0, "x", 0)
    assert torch.equal(vary(images, Symmetry(False, False), generator), images)
    mirrored = vary(images, Symmetry(False, True), generator)
    for image, result in zip(images, mirrored, strict=True):
        assert torch.equal(result, image) or torch.equal(result, image.flip(1))
    assert not torch.equal(mirrored, images)
    turned = vary(images, Symmetry(True, False), generator)
    for image, result in zip(images, turned, strict=True):
        assert any(torch.equal(result, torch.rot90(image, k, (0, 1))) for k in range(4))


def test_turn_is_a_quarter():
    image = torch.arange(4).reshape(1, 2, 2, 1)
    assert turn(image, 1).flatten().tolist() == [1, 3, 0, 2]
