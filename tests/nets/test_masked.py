"""Global-Net: nothing of the patch gets in, BatchNorm folds away, and its readings are bilinear."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glance_fast.config import Config
from glance_fast.geometry import PatchGrid
from glance_fast.kernels import partial_conv2d
from glance_fast.kernels.partial_conv import inside_holes
from glance_fast.nets import masked
from glance_fast.nets.masked import (
    ORIGIN,
    MaskedNet,
    PartialConvNorm,
    Reading,
    cells_of,
    fourier,
    mean_seen,
    read_places,
)

SIZE = (128, 160)
PRESETS = {
    "constant": (Config(net="pyramid", width=8).widths, (1, 2, 2), "hole"),
    "doubling": (Config(net="paper", width=16).widths, (1, 1, 1), "pool"),
    "doubling-hole": (Config(net="paper", width=16).widths, (1, 1, 1), "hole"),
    "ragged-pool": ((3, 5, 7, 11), (0, 1, 0), "pool"),
}
# Four at once, far apart; a hole at each border and the corners among them.
FOUR = [
    [(0, 0, 32, 32), (0, 128, 32, 160), (96, 0, 128, 32), (96, 128, 128, 160)],
    [(0, 56, 32, 88), (48, 0, 80, 32), (56, 128, 88, 160), (96, 64, 128, 96)],
]


def shuffle_norms(net, seed=0):
    """BatchNorm as after training: no mean of 0, no variance of 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm1d)):
                for tensor, low, high in (
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.3, 2.0),
                    (module.weight, 0.4, 1.5),
                    (module.bias, -0.2, 0.6),
                ):
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return net


@pytest.fixture(scope="module", params=PRESETS)
def net(request):
    widths, blocks, readout = PRESETS[request.param]
    torch.manual_seed(0)
    return shuffle_norms(MaskedNet(32, widths, blocks, readout, 16)).eval()


def images(count, size=SIZE, seed=0):
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed))


def grid_holes(step=16, size=SIZE):
    return torch.from_numpy(PatchGrid(*size, 32, step).holes)[:, None]


# What a hole hides


@torch.no_grad()
@pytest.mark.parametrize("value", [-3.0, 1e30, float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("count", [1, 4], ids="{}-holes".format)
def test_what_is_in_the_hole_changes_no_bit(net, value, count):
    holes = grid_holes(16 if value != value else 32) if count == 1 else torch.tensor(FOUR)
    x = images(1).expand(len(holes), -1, -1, -1)
    changed = torch.where(inside_holes(holes, *SIZE), value, x)
    assert torch.equal(net(x, holes), net(changed, holes))


@torch.no_grad()
def test_one_hole_of_four_hides_its_pixels_from_all_four_features(net):
    holes = torch.tensor(FOUR)
    x = images(2)
    expected = net(x, holes)
    for k in range(4):
        other = torch.where(inside_holes(holes[:, k], *SIZE), torch.nan, x)
        assert torch.equal(net(other, holes), expected)


@torch.no_grad()
@pytest.mark.parametrize("hole", [(0, 0), (0, 64), (96, 128), (48, 0), (48, 64)], ids="{}".format)
def test_a_pixel_just_outside_the_hole_changes_the_feature(net, hole):
    top, left = hole
    holes = torch.tensor([[[top, left, top + 32, left + 32]]])
    x = images(1)
    expected = net(x, holes)
    for y, col in ((top - 1, left + 13), (top + 32, left + 13), (top + 13, left - 1), (top + 13, left + 32)):
        if 0 <= y < SIZE[0] and 0 <= col < SIZE[1]:
            changed = x.clone()
            changed[..., y, col] += 5
            assert not torch.equal(net(changed, holes), expected), (y, col)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["constant", "ragged-pool"])
def test_the_whole_image_hidden_gives_a_finite_feature(preset):
    net = shuffle_norms(MaskedNet(32, *PRESETS[preset], 16)).eval()
    x = torch.full((1, 3, 32, 32), torch.nan)
    assert net(x, torch.tensor([[[0, 0, 32, 32]]])).isfinite().all()


@torch.no_grad()
def test_hidden_places_are_zero_in_every_map(net):
    holes = torch.cat([torch.tensor(FOUR), torch.tensor([[(0, 0, 128, 96)] + [(0, 0, 0, 0)] * 3])])
    y, inner = net.stem(images(3).masked_fill(inside_holes(holes, *SIZE), 0), holes)
    hidden = 0
    for stage in net.stages:
        y, inner = stage(y, inner)
        inside = inside_holes(inner, *y.shape[2:])
        assert (y[inside.expand_as(y)] == 0).all()
        hidden += int(inside.sum())
    assert hidden > 50


@torch.no_grad()
@pytest.mark.parametrize("count", [1, 2, 4], ids="{}-holes".format)
def test_every_layer_sees_all_that_is_outside_the_holes(net, count):
    holes = torch.tensor(FOUR)[:, :count]
    maps = []
    handles = [s.register_forward_hook(lambda module, given, out: maps.append(out[0])) for s in net.stages]
    net(images(2), holes)
    for handle in handles:
        handle.remove()

    # The same layers under a mask of pixels, which knows nothing of boxes.
    def masked(layer, x, mask):
        return partial_conv2d(x, *layer.folded(), mask, layer.stride, layer.padding)

    y, mask = masked(net.stem, images(2), (~inside_holes(holes, *SIZE)).float())
    y = F.relu(y)
    for stage, got in zip(net.stages, maps, strict=True):
        y, mask = masked(stage.down, y, mask)
        y = F.relu(y)
        for block in stage.blocks:
            inner, mask = masked(block.conv1, y, mask)
            inner, mask = masked(block.conv2, F.relu(inner), mask)
            y = F.relu(y + inner)
        assert (got - y).abs().max() <= 2e-5 * y.abs().max()


# Batches and sizes


@torch.no_grad()
def test_empty_holes_beside_others_change_nothing(net):
    holes = torch.tensor(FOUR)[:, :2]
    expected = net(images(2), holes)
    empty = torch.tensor([[(0, 0, 0, 0), (7, 7, 7, 9)]]).expand(2, -1, -1)
    filled = net(images(2), torch.cat([holes[:, :1], empty, holes[:, 1:]], 1))
    assert filled.shape == (2, 4, 16) and filled.isfinite().all()
    assert (filled[:, [0, 3]] - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("size", [(96, 96), (64, 160), (168, 72), (100, 90)], ids="{0[0]}x{0[1]}".format)
def test_images_of_a_batch_do_not_mix(net, size):
    holes = torch.tensor([[(0, 0, 32, 32)], [(size[0] - 32, size[1] - 32, *size)], [(16, 24, 48, 56)]])
    x = images(3, size)
    together = net(x, holes)
    assert together.shape == (3, 1, 16) and together.dtype == torch.float32
    for i in range(3):
        alone = net(x[i : i + 1], holes[i : i + 1])[0]
        assert (together[i] - alone).abs().max() <= 1e-5 * together.abs().max()


@torch.no_grad()
def test_readout_at_the_hole_tells_places_of_a_flat_image_apart():
    torch.manual_seed(0)
    x, holes = torch.ones(2, 3, *SIZE), torch.tensor([[(32, 32, 64, 64)], [(32, 64, 64, 96)]])
    differences = []
    for readout in ("hole", "pool"):
        z = shuffle_norms(MaskedNet(32, (4, 4, 4, 4), (1, 1, 1), readout, 16)).eval()(x, holes)
        differences.append(float((z[0] - z[1]).abs().max() / z.abs().max()))
    assert differences[0] > 0.05 > differences[1]


@torch.no_grad()
def test_pooling_is_the_mean_over_what_is_seen():
    last = torch.randn(2, 6, 5, 7)
    holes = torch.tensor([[(1, 2, 3, 6), (0, 0, 0, 0)], [(0, 0, 5, 2), (4, 3, 5, 7)]])
    last.masked_fill_(inside_holes(holes, 5, 7), 0)
    pooled = mean_seen(last, holes)
    for i, seen in enumerate((35 - 8, 35 - 10 - 4)):
        assert torch.allclose(pooled[i], last[i].sum((1, 2)) / seen, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("patch", "near", "far"), [(32, 24, 16), (64, 40, 32)], ids=["patch32", "patch64"])
def test_readout_reads_at_the_hole_and_in_two_rings_around_it(patch, near, far):
    net = MaskedNet(patch, (2, 2, 2, 2), (0, 0, 0), "hole", 16)
    size, top, left = (288, 320), 96, 128
    # Maps that hold their own cells' centres, so that a reading says where it was taken.
    maps = []
    for stride in (8, 16, 32):
        y, x = (torch.arange(s // stride) * stride + ORIGIN for s in size)
        maps.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1])[None])
    places = torch.tensor([[[top, left, top + patch, left + patch]]])
    pooled = mean_seen(maps[-1], torch.zeros_like(places))[:, None]
    read = net.read([Reading(m) for m in maps], pooled, read_places(net.patch, places, size))[0, 0]
    center = torch.tensor([left, top]) + (patch - 1) / 2
    ring = torch.tensor([[dx, dy] for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    pooled, at_hole, near_ring, far_ring, position = read.split([2, 2, 18, 18, 16])
    assert torch.allclose(pooled, maps[-1].mean((0, 2, 3)))
    assert torch.allclose(at_hole, center)
    assert torch.allclose(near_ring.view(9, 2), center + near * ring)
    assert torch.allclose(far_ring.view(9, 2), center + far * ring)
    assert torch.equal(position, fourier(center / torch.tensor([320.0, 288.0])))


@torch.no_grad()
def test_the_head_in_half_precision_is_close(net):
    read = torch.randn(5, 2, net.inputs)
    exact = net.predict(read)
    for outer in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            assert torch.equal(net.predict(read), exact)
            z = net.predict(read, torch.bfloat16)
        assert z.dtype == torch.float32
        assert 0 < (z - exact).abs().max() <= 0.05 * exact.abs().max()


@torch.no_grad()
def test_autocast_gives_close_float32_features(net):
    holes = torch.tensor(FOUR)
    expected = net(images(2), holes)
    with torch.autocast("cpu", torch.bfloat16):
        z = net(images(2), holes)
    assert z.dtype == torch.float32
    assert 0 < (z - expected).abs().max() <= 0.05 * expected.abs().max()


def test_every_parameter_learns_and_no_gradient_reaches_the_hole(net):
    net = MaskedNet(32, (4, 4, 4, 4), (1, 1, 1), net.readout, 16).train()
    x, holes = images(2).requires_grad_(), torch.tensor(FOUR)
    net(x, holes).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert (x.grad[inside_holes(holes, *SIZE).expand_as(x)] == 0).all()
    assert x.grad[:, :, 40, 40].any()


# BatchNorm


def unfolded(layer, x, holes, residual=0):
    """Convolution, then BatchNorm's running statistics written out, residual and ReLU."""
    y, after = partial_conv2d(x, layer.weight, None, holes, layer.stride, layer.padding)
    norm = layer.norm
    shape = (1, -1, 1, 1)
    y = (y - norm.running_mean.view(shape)) / torch.sqrt(norm.running_var.view(shape) + norm.eps)
    y = y * norm.weight.view(shape) + norm.bias.view(shape)
    return (torch.where(inside_holes(after, *y.shape[2:]), 0, y) + residual).relu(), after


@torch.no_grad()
@pytest.mark.parametrize("layer", [(3, 5, 8, 4, 2), (5, 7, 3, 2, 1), (6, 6, 3, 1, 1)], ids="{}".format)
def test_folding_equals_batch_norm_after_the_convolution(layer):
    torch.manual_seed(0)
    module = shuffle_norms(PartialConvNorm(*layer)).double().eval()
    x, holes = torch.randn(2, layer[0], 48, 48, dtype=torch.float64), torch.tensor(FOUR)[:, :1] // 2
    x = x.masked_fill(inside_holes(holes, 48, 48), 0)  # as every layer finds it
    y, after = module(x, holes)
    expected, expected_after = unfolded(module, x, holes)
    assert torch.equal(after, expected_after)
    assert (y - expected).abs().max() <= 1e-12 * expected.abs().max()


@torch.no_grad()
def test_the_folded_net_equals_the_unfolded_one(net, monkeypatch):
    holes = torch.tensor(FOUR)
    folded = net(images(2), holes)
    monkeypatch.setattr(masked.PartialConvNorm, "forward", unfolded)
    expected = net(images(2), holes)
    assert (folded - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_holes_a_pixel_apart_stay_apart_in_every_layer(net, monkeypatch):
    # The nearest that training puts them; the layers trust it, the checked operator would refuse.
    holes = torch.tensor([[(31, 30, 63, 62), (31, 63, 63, 95), (64, 30, 96, 62), (64, 63, 96, 95)]])
    x = images(1)
    got = net(x, holes)
    monkeypatch.setattr(masked.PartialConvNorm, "forward", unfolded)
    expected = net(x, holes)
    assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()


@torch.no_grad()
def test_training_equals_evaluation_once_the_statistics_are_the_batchs():
    torch.manual_seed(0)
    module = PartialConvNorm(3, 5, 3, 2, 1).double().train()
    module.norm.momentum = 1.0
    x, holes = torch.randn(4, 3, 40, 40, dtype=torch.float64), torch.tensor([[[8, 0, 32, 20]]] * 4)
    x = x.masked_fill(inside_holes(holes, 40, 40), 0)
    trained, after = module(x, holes)
    assert (trained[inside_holes(after, 20, 20).expand_as(trained)] == 0).all()
    # BatchNorm normalises with the biased variance and stores the unbiased one.
    count = 4 * 20 * 20
    module.norm.running_var *= (count - 1) / count
    assert (module.eval()(x, holes)[0] - trained).abs().max() <= 1e-12


# Readings


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.sampled_from([8, 16, 32]),
    st.lists(st.tuples(st.integers(-80, 500), st.integers(-80, 500)), min_size=1, max_size=6),
)
def test_sample_is_grid_sample_with_the_border_held(size, stride, points):
    features = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    points = torch.tensor([[points], [points[::-1]]]).float() / 2
    got = Reading(features).sample(cells_of(points, stride)).flatten(2)
    cells = (points - ORIGIN) / stride
    limits = torch.tensor([max(size[1] - 1, 1), max(size[0] - 1, 1)])
    wanted = F.grid_sample(features, cells * 2 / limits - 1, padding_mode="border", align_corners=True)
    assert got.shape == (2, 1, 3 * points.shape[2])
    assert torch.allclose(got.unflatten(2, (-1, 3)), wanted.permute(0, 2, 3, 1), atol=2e-5)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_cell_centres_are_where_the_convolutions_look(stride):
    # The field of a cell through stem and halvings is symmetric about its centre.
    low, high = 10, 10
    for kernel, step, padding in [(3, 2, 1)] * {8: 1, 16: 2, 32: 3}[stride] + [(8, 4, 2)]:
        low, high = low * step - padding, high * step - padding + kernel - 1
    features = torch.zeros(1, 1, 1, 24)
    features[..., 10] = 1
    cell = cells_of(torch.tensor([[[[(low + high) / 2, 0.0]]]]), stride)
    assert Reading(features).sample(cell) == 1


def test_fourier_is_sines_and_cosines_of_octaves():
    got = fourier(torch.tensor([0.25, 0.6]))
    angles = torch.tensor([[torch.pi * p * 2**f for f in range(4)] for p in (0.25, 0.6)])
    expected = torch.cat([angles.sin(), angles.cos()], 1).flatten()
    assert torch.allclose(got, expected, atol=1e-6)
