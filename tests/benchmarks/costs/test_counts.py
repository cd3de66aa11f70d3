"""Operations and bytes against torch's own counter, windows against what a hole changes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.costs import counts
from benchmarks.costs.counts import Conv, Work
from glance_fast.geometry import PatchGrid
from glance_fast.kernels.patch_score import score_patches
from glance_fast.nets.heads import DistortionHead
from glance_fast.nets.local_net import LocalNet
from glance_fast.nets.masked import MaskedNet, PartialConvNorm


def counted(run) -> int:
    """Operations that torch counts."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def random_net(patch: int, **settings) -> MaskedNet:
    """An untrained Global-Net whose BatchNorm is not the identity."""
    torch.manual_seed(0)
    net = MaskedNet(patch, **settings)
    for module in net.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor.detach() if tensor.requires_grad else tensor)
    return net.eval()


@torch.no_grad()
def outputs(net: MaskedNet, x: torch.Tensor, holes: torch.Tensor) -> list[torch.Tensor]:
    """The output of every convolution, [N, C, h, w]; after the addition where there is one."""
    found = []

    def keep(module, _, result):
        found.append(result[0])

    def keep_block(module, _, result):
        found[-1] = result[0]

    handles = [m.register_forward_hook(keep) for m in net.modules() if isinstance(m, PartialConvNorm)]
    handles += [b.register_forward_hook(keep_block) for s in net.stages for b in s.blocks]
    net(x, holes)
    for handle in handles:
        handle.remove()
    return found


class TestWork:
    def test_adds_and_multiplies(self):
        assert Work(1, 2, 3) + Work(10, 20, 30) * 2 == Work(21, 42, 63)
        assert counts.total([]) == Work()

    def test_the_slower_of_the_two_sets_the_floor(self):
        work = Work(100, 6, 4)
        assert work.intensity == 10
        assert work.floor(rate=10, bandwidth=10) == 10 and work.bound(10, 10) == "arithmetic"
        assert work.floor(rate=1000, bandwidth=10) == 1 and work.bound(1000, 10) == "bytes"


class TestConvolutions:
    @pytest.mark.parametrize("blocks", [(1, 2, 2), (0, 1, 3)])
    def test_global_net_agrees_with_torch(self, blocks):
        net = random_net(32, widths=(8, 12, 16, 24), blocks=blocks)
        convs = counts.global_layers(net, (96, 64))
        x, holes = torch.randn(2, 3, 96, 64), torch.zeros(2, 1, 4, dtype=torch.long)
        shapes = [tuple(y.shape[1:]) for y in outputs(net, x, holes)]
        assert shapes == [(c.outputs, *c.out) for c in convs]
        for conv, layer in zip(
            convs, (m for m in net.modules() if isinstance(m, PartialConvNorm)), strict=True
        ):
            x = torch.randn(2, conv.inputs, *conv.size)
            once = counted(lambda x=x, m=layer: F.conv2d(x, m.weight, None, m.stride, m.padding))
            assert once == counts.forward(conv, 2, 4).operations
        gathered = torch.randn(5, net.head[0].num_features)
        assert counted(lambda: net.head(gathered)) == counts.global_head(net, 5).operations

    @pytest.mark.parametrize(("patch", "stride"), [(32, 8), (32, 4), (64, 16)])
    def test_local_net_agrees_with_torch(self, patch, stride):
        net = LocalNet(patch)
        convs = counts.local_layers(net, (96, 128), stride)
        x = torch.randn(1, 3, 96, 128)
        assert (
            counted(lambda: net(x, stride)) == counts.total(counts.forward(c, 1, 4) for c in convs).operations
        )
        grid = PatchGrid(96, 128, patch, stride)
        assert convs[-1].out == (grid.rows, grid.cols)

    def test_both_gradients_agree_with_torch(self):
        conv = Conv("", 6, 10, 3, 2, 1, (17, 12))
        x = torch.randn(3, 6, 17, 12, requires_grad=True)
        weight = torch.randn(10, 6, 3, 3, requires_grad=True)
        y = torch.nn.functional.conv2d(x, weight, None, 2, 1)
        mine = counts.backward_input(conv, 3, 4) + counts.backward_weight(conv, 3, 4)
        assert counted(lambda: y.backward(torch.ones_like(y))) == mine.operations
        assert counts.backward_input(conv, 3, 4).bytes == 4 * (y.numel() + weight.numel() + x.numel())
        assert counts.backward_weight(conv, 3, 4).bytes == 4 * (y.numel() + weight.numel() + x.numel())

    def test_bytes_of_a_residual_layer(self):
        conv = Conv("", 6, 10, 3, 1, 1, (5, 7), residual=True)
        work = counts.forward(conv, 2, 2)
        assert work.read == 2 * (2 * 35 * 6 + 6 * 10 * 9 + 2 * 35 * 10)
        assert work.written == 2 * 2 * 35 * 10


class TestSurround:
    def test_agrees_with_torch_where_all_is_seen(self):
        # 72 places of a ring, as those of an 8 x 9 kernel.
        x, weight, dy = torch.randn(2, 3, 17, 20), torch.randn(5, 3, 8, 9), torch.randn(2, 5, 10, 12)
        sizes = 72 * 120, 72, 2, (17 * 20, 120), (3, 5), 4
        work = counts.surround(*sizes)
        assert work.operations == counted(lambda: F.conv2d(x, weight))
        assert (work.read, work.written) == (4 * (x.numel() + weight.numel()), 4 * dy.numel())
        layer = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
        back = lambda: torch.ops.aten.convolution_backward(dy, x, weight, *layer)  # noqa: E731
        assert counts.surround_backward(*sizes).operations == counted(back)


class TestWindows:
    @pytest.mark.parametrize(
        ("patch", "stride", "size", "blocks"),
        [(32, 16, (96, 64), (1, 1, 1)), (32, 8, (64, 64), (1, 2, 2)), (64, 16, (128, 96), (1, 0, 1))],
    )
    def test_hold_all_that_a_hole_changes_and_little_more(self, patch, stride, size, blocks):
        net = random_net(patch, widths=(8, 8, 8, 8), blocks=blocks)
        holes = PatchGrid(*size, patch, stride).holes
        x = torch.randn(1, 3, *size).expand(len(holes), -1, -1, -1)
        masked = outputs(net, x, torch.from_numpy(holes)[:, None])
        base = outputs(net, x[:1], torch.zeros(1, 1, 4, dtype=torch.long))
        found = counts.windows(counts.global_layers(net, size), holes)
        assert len(found) == len(masked)
        for w, changed, same in zip(found, masked, base, strict=True):
            # Exactly: outside, the very same numbers are added up. oneDNN may add them in another order.
            differs = ((changed - same).abs() > 1e-5 * same.abs().max()).any(1).numpy()
            inside = np.zeros_like(differs)
            for mask, (top, left, bottom, right) in zip(inside, w.after, strict=True):
                mask[top:bottom, left:right] = True
            assert not (differs & ~inside).any()
            # Only ReLU can keep a window from being reached; eight channels do not all die.
            assert (differs.any(2).sum(1) == w.after[:, 2] - w.after[:, 0]).mean() > 0.9
            for y, (top, left, bottom, right) in zip(changed, w.hidden, strict=True):
                assert not y[:, top:bottom, left:right].any()

    def test_hidden_places_are_not_computed(self):
        convs = counts.global_layers(MaskedNet(64), (256, 256))
        stem, down, *_ = counts.windows(convs, PatchGrid(256, 256, 64, 16).holes)
        middle = stem.before[:, :2].tolist().index([64, 64])
        # 64 pixels, kernel 8 at stride 4 with padding 2: outputs 15 to 32 read them, 17 to 30 nothing else.
        assert stem.after[middle].tolist() == [15, 15, 33, 33]
        assert stem.hidden[middle].tolist() == [17, 17, 31, 31]
        assert stem.seen < stem.places
        work = counts.window_forward(stem, 1, 2)
        assert work.operations == 2 * stem.products * 3 * 64 < 2 * stem.seen * stem.conv.weights
        assert down.first is False and stem.first is True

    @pytest.mark.parametrize("layer", [0, 1, 3])
    def test_products_are_the_taps_that_read_what_differs(self, layer):
        convs = counts.global_layers(MaskedNet(32), (64, 96))
        w = counts.windows(convs, PatchGrid(64, 96, 32, 16).holes)[layer]
        conv, found = w.conv, 0
        for before, after, hidden in zip(w.before, w.after, w.hidden, strict=True):
            differs, output = np.zeros(conv.size, bool), np.zeros(conv.out, bool)
            differs[before[0] : before[2], before[1] : before[3]] = True
            output[after[0] : after[2], after[1] : after[3]] = True
            output[hidden[0] : hidden[2], hidden[1] : hidden[3]] = False
            padded = np.pad(differs, conv.padding)
            for i, j in np.argwhere(output) * conv.stride:
                found += padded[i : i + conv.kernel, j : j + conv.kernel].sum()
        assert w.products == found

    def test_placed_windows_are_equal_hold_the_exact_ones_and_lie_within_the_map(self):
        for patch, stride in ((32, 8), (64, 16)):
            convs = counts.global_layers(MaskedNet(patch), (256, 256))
            for w in counts.windows(convs, PatchGrid(256, 256, patch, stride).holes):
                assert {tuple(s) for s in w.placed[:, 2:] - w.placed[:, :2]} == {w.largest}
                assert (w.placed[:, :2] >= 0).all() and (w.placed[:, 2:] <= w.conv.out).all()
                assert (w.placed[:, :2] <= w.after[:, :2]).all() and (w.placed[:, 2:] >= w.after[:, 2:]).all()

    def test_bytes_of_a_window_layer(self):
        convs = counts.global_layers(MaskedNet(32), (64, 64))
        found = counts.windows(convs, PatchGrid(64, 64, 32, 16).holes)
        w = found[3]
        assert w.conv.residual
        own = int(counts.areas(w.before).sum()) * 64
        added = w.places * 64
        places = counts.area(w.conv.out) * 64
        read = 2 * (3 * (own + added + 2 * places) + w.conv.weights) + 4 * 3 * places
        assert counts.window_forward(w, 3, 2).read == read
        assert counts.window_forward(w, 3, 2).written == 2 * 3 * w.places * 64

    def test_one_image_of_patches_is_never_more_than_the_passes(self):
        for patch, stride in ((32, 8), (64, 16)):
            grid = PatchGrid(256, 256, patch, stride)
            convs = counts.global_layers(MaskedNet(patch), (256, 256))
            exact = sum(2 * w.places * w.conv.weights for w in counts.windows(convs, grid.holes))
            square = sum(2 * counts.rectangles(w) * w.conv.weights for w in counts.windows(convs, grid.holes))
            passes = counts.total(counts.forward(c, len(grid), 4) for c in convs).operations
            assert exact < square < passes


class TestHeads:
    def test_scores_agree_with_torch(self):
        head = DistortionHead(16, 24).eval()
        local, global_ = torch.randn(2, 3, 5, 16)
        whitening = torch.randn(5, 16, 16).half()
        weights = head.folded()
        run = lambda: score_patches(local, global_, weights, whitening=whitening, backend="reference")  # noqa: E731
        # torch counts products alone, and not the one with the last layer's vector.
        mine = counts.score_patches(3, 5, 16, 24).operations - 3 * 5 * (4 * 16 + 2 * 24)
        assert counted(run) == mine

    def test_bytes_of_scores(self):
        work = counts.score_patches(3, 5, 16, 24)
        perceptron = 3 * 16 * 24 + 24 * 24 + 3 * 24
        assert work.read == 4 * (2 * 15 * 16 + 5 * 16 + perceptron) + 2 * 5 * 16 * 16
        assert work.written == 4 * 3 * 15

    def test_maps(self):
        work = counts.idw_map(2, 9, 100, 4)
        assert work == Work(100 * 4 * 4, 2 * 9 * 4 + 100 * 4 * 8, 2 * 100 * 4)
        assert counts.idw_map(2, 9, 100, None).operations == 900 * (4 + counts.IDW_WEIGHT)
        assert counts.idw_map(2, 9, 100, 4, tabled=False).read == 2 * 9 * 4
