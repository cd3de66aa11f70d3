"""Local-Net over an image against patch by patch, what a feature sees, whitening, and a student's file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from glance_fast.config import PATCH_STEPS
from glance_fast.data.files import write_tensors
from glance_fast.errors import UserError
from glance_fast.geometry import PatchGrid
from glance_fast.nets.local_net import LAYOUTS, LocalNet, ValidBlock
from glance_fast.nets.preprocess import to_input
from glance_fast.nets.student import Student
from glance_fast.nets.teacher import Teacher


@pytest.fixture(scope="module", params=sorted(LAYOUTS), ids="patch{}".format)
def net(request):
    torch.manual_seed(0)
    return LocalNet(request.param, 16).double()


def images(height, width, count=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, height, width, generator=generator, dtype=torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 4, 8], ids="stride{}steps".format)
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (2, 4), (4, 1)], ids="{}".format)
def test_one_pass_equals_patch_by_patch(net, steps, rows, cols):
    # 4, 8, 16, 32 pixels for patches of 32, and 8 to 64 for those of 64.
    stride = steps * net.step
    grid = PatchGrid(net.patch + stride * (rows - 1), net.patch + stride * (cols - 1), net.patch, stride)
    x = images(grid.height, grid.width, 2)
    features = net(x, stride)
    assert features.shape == (2, 16, rows, cols)
    patches = torch.stack(
        [x[:, :, top:bottom, left:right] for top, left, bottom, right in grid.holes], 1
    ).flatten(0, 1)
    one_by_one = net(patches).reshape(2, len(grid), 16)
    assert (features.flatten(2).mT - one_by_one).abs().max() <= 1e-12 * one_by_one.abs().max()
    # Neighbours must differ, or the order of the places would go unchecked.
    assert len(grid) == 1 or (one_by_one[:, 0] - one_by_one[:, 1]).abs().max() > 1e-4


@torch.no_grad()
def test_settings_know_the_patch_sizes_and_strides_that_there_are():
    assert {patch: LocalNet(patch).step for patch in LAYOUTS} == PATCH_STEPS


def test_without_a_stride_it_is_the_nets_own(net):
    x = images(net.patch + 3 * net.step, net.patch + net.step)
    assert net(x).shape[2:] == (4, 2)
    assert torch.equal(net(x), net(x, net.step))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pixels_keep_their_levels_in_bfloat16(dtype):
    net, seen = LocalNet(32), []
    net.conv1.register_forward_hook(lambda _module, given, found: seen.append((given[0], found)))
    x = images(40, 40, 2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        features = net(x)
    assert features.dtype == torch.bfloat16
    ((given, found),) = seen
    assert torch.equal(given, x.float())
    assert torch.equal(found, net.conv1(x.float()))


@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 3)], ids=["top-left", "middle", "bottom-right"])
def test_a_feature_sees_its_patch_and_nothing_else(net, place):
    grid = PatchGrid(net.patch + 2 * 16, net.patch + 3 * 16, net.patch, 16)
    top, left, bottom, right = grid.holes[place[0] * grid.cols + place[1]]
    x = images(grid.height, grid.width).requires_grad_()
    feature = net(x, 16)[0, :, *place]
    gradient = torch.autograd.grad(feature.square().sum(), x)[0][0].abs().sum(0)
    # Nearly to every border of the patch: a field that is too small would pass the rest.
    inside = gradient[top:bottom, left:right]
    assert all(side.sum() > 0 for side in (inside[:2], inside[-3:], inside[:, :2], inside[:, -3:]))
    inside.zero_()
    assert gradient.sum() == 0

    with torch.no_grad():
        other = 10 * images(grid.height, grid.width, seed=1)
        other[:, :, top:bottom, left:right] = x[:, :, top:bottom, left:right]
        assert (net(other, 16)[0, :, *place] - feature).abs().max() <= 1e-12


@pytest.mark.parametrize("stride", [3, 6, 12, 1])
def test_strides_off_the_nets_own_are_refused(stride):
    net = LocalNet(64)
    with pytest.raises(ValueError, match=f"stride {stride} is no multiple of 8"):
        net(torch.zeros(1, 3, 64, 64), stride)


def test_unknown_patch_sizes_are_refused():
    with pytest.raises(ValueError, match=r"48 pixels: use one of \[32, 64\]"):
        LocalNet(48)


@torch.no_grad()
def test_the_shortcut_is_the_middle_of_what_the_convolutions_see():
    block, x = ValidBlock(4), torch.randn(1, 4, 9, 11)
    block.conv2.weight.zero_()
    block.conv2.bias.fill_(0.25)
    assert torch.equal(block(x), torch.relu(x[:, :, 2:7, 2:9] + 0.25))


@torch.no_grad()
def test_start_from_copies_the_stem():
    torch.manual_seed(0)
    net, teacher = LocalNet(64), Teacher()
    net.start_from(teacher)
    assert torch.equal(net.conv1.weight, teacher.conv1.weight)
    for i in range(2):
        assert torch.equal(net.layer1[i].conv2.bias, teacher.layer1[i].conv2.bias)
    net.conv1.weight.zero_()
    assert teacher.conv1.weight.any()


# Whitening


def moments(net, x):
    features = net(x).transpose(0, 1).flatten(1)
    return features.mean(1), torch.cov(features)


@torch.no_grad()
def test_whitening_with_no_floor_gives_unit_covariance():
    torch.manual_seed(1)
    net, x = LocalNet(32, 8).double(), images(96, 96, 4)
    before = net(x)
    mean, covariance = moments(net, x)
    assert (covariance - torch.eye(8)).abs().max() > 0.5
    zca = net.whiten(mean, covariance, eps=0.0)
    mean_after, covariance_after = moments(net, x)
    assert mean_after.abs().max() < 1e-8
    assert (covariance_after - torch.eye(8, dtype=torch.float64)).abs().max() < 1e-6
    # ZCA, not just any whitening: the matrix is symmetric, so that features keep their places.
    assert (zca - zca.T).abs().max() <= 1e-6 * zca.abs().max()
    expected = torch.einsum("ij,bjhw->bihw", zca.double(), before - mean[:, None, None])
    assert (net(x) - expected).abs().max() <= 1e-5


@torch.no_grad()
def test_the_floor_under_the_eigenvalues_is_a_share_of_their_mean():
    torch.manual_seed(1)
    net, x = LocalNet(32, 8).double(), images(96, 96, 4)
    mean, covariance = moments(net, x)
    values = torch.linalg.eigvalsh(covariance)
    net.whiten(mean, covariance)
    _, after = moments(net, x)
    expected = values / (values + 0.1 * values.mean())
    assert torch.allclose(torch.linalg.eigvalsh(after), expected, rtol=1e-6)


# A student


@pytest.fixture
def student():
    torch.manual_seed(2)
    student = Student(32)
    student.mean.normal_()
    student.std.uniform_(0.5, 2)
    return student


def photographs(count, height, width):
    return torch.randint(0, 256, (count, height, width, 3), generator=torch.Generator().manual_seed(3)).byte()


@torch.no_grad()
def test_whitening_a_student_leaves_what_it_decodes(student):
    batch = photographs(5, 64, 80)
    x = to_input(batch)
    decoded, spread = student.decoder(student.local(x, 8)), student.local(x, 8).std()
    student.whiten(batch)
    features = student.local(x, 8)
    again = student.decoder(features)
    assert (again - decoded).abs().max() <= 1e-4 * decoded.std()
    # It did something, and what it should: centred features of about unit variance.
    assert features.transpose(0, 1).flatten(1).mean(1).abs().max() < 1e-3
    assert spread < 0.2 < features.std() < 1.0


def test_student_round_trip(student, tmp_path):
    path = tmp_path / "local.safetensors"
    student.save(path, {"origin": "a test"})
    again = Student.load(path)
    assert again.local.patch == 32
    states = student.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    x = torch.randn(1, 3, 40, 48)
    assert torch.equal(student.local(x), again.local(x))


def renote(path, notes):
    write_tensors(path, load_file(path), notes)


def altered(path, change):
    tensors = load_file(path)
    change(tensors)
    write_tensors(path, tensors, {"patch": 32})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda p: p.unlink(), "no such file", id="missing"),
        pytest.param(lambda p: p.write_text("not tensors at all"), "not a safetensors file", id="text"),
        pytest.param(lambda p: p.write_bytes(b""), "not a safetensors file", id="empty"),
        pytest.param(
            lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a safetensors file", id="truncated"
        ),
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[:50]), "not a safetensors file", id="header-cut"),
        pytest.param(
            lambda p: write_tensors(p, {"a": torch.zeros(3)}, {"patch": 32}), "not a Local-Net", id="others"
        ),
        pytest.param(lambda p: save_file(load_file(p), p), "not a Local-Net", id="no-patch"),
        pytest.param(lambda p: renote(p, {"patch": 64}), "not a Local", id="patch-64"),
        pytest.param(lambda p: renote(p, {"patch": 33}), "33 pixels", id="unknown-patch"),
        pytest.param(lambda p: renote(p, {"patch": "big"}), "patches of 'big'", id="no-number"),
        pytest.param(lambda p: altered(p, lambda t: t.pop("mean")), "not a Local-Net", id="one-missing"),
        pytest.param(
            lambda p: altered(p, lambda t: t.update(std=torch.ones(2))), "not a Local-Net", id="other-shape"
        ),
        pytest.param(
            lambda p: altered(p, lambda t: t["std"].fill_(torch.nan)), "not finite", id="not-a-number"
        ),
    ],
)
def test_bad_student_files(student, damage, words, tmp_path):
    path = tmp_path / "local.safetensors"
    student.save(path, {})
    damage(path)
    with pytest.raises(UserError, match=rf"local\.safetensors: .*{words}") as caught:
        Student.load(path)
    # One line, for the command line prints it as it is.
    assert "\n" not in str(caught.value)
