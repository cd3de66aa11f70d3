"""The teacher: reading its maps, folding a real ResNet's BatchNorm, and the files that it refuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from glance_fast.data.files import read_notes
from glance_fast.errors import UserError
from glance_fast.nets.builtin import builtin_teacher
from glance_fast.nets.preprocess import IMAGENET_MEAN, IMAGENET_STD, to_input
from glance_fast.nets.teacher import (
    ALL_FEATURES,
    STEPS,
    Teacher,
    fold_batch_norm,
    load_teacher,
    read_maps,
    save_teacher,
)

FILE = "resnet18-imagenet-through-layer3-bn-folded.safetensors"


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return Teacher().eval()


def resnet_state(seed=0):
    """A ResNet-18's state dictionary under torchvision's names, random, with more than is needed."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, norm, outputs, inputs, kernel):
        scale = (2 / (inputs * kernel * kernel)) ** 0.5
        state[f"{name}.weight"] = scale * torch.randn(outputs, inputs, kernel, kernel, generator=generator)
        state[f"{norm}.weight"] = 0.5 + torch.rand(outputs, generator=generator)
        state[f"{norm}.bias"] = 0.2 * torch.randn(outputs, generator=generator)
        state[f"{norm}.running_mean"] = 0.2 * torch.randn(outputs, generator=generator)
        # Some as small as BatchNorm's own epsilon, so that it is seen whether it is added.
        state[f"{norm}.running_var"] = torch.rand(outputs, generator=generator).clamp_min(1e-5)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    conv("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for layer, outputs in enumerate((64, 128, 256, 512), 1):
        for block in range(2):
            prefix = f"layer{layer}.{block}"
            conv(f"{prefix}.conv1", f"{prefix}.bn1", outputs, inputs, 3)
            conv(f"{prefix}.conv2", f"{prefix}.bn2", outputs, outputs, 3)
            if inputs != outputs:
                conv(f"{prefix}.downsample.0", f"{prefix}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    state["fc.weight"], state["fc.bias"] = torch.zeros(1000, 512), torch.zeros(1000)
    return state


def real_resnet(state, x):
    """Maps of layers 1 to 3 with BatchNorm computed by PyTorch, in float64."""
    state = {k: v.double() for k, v in state.items()}

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(state[f"{name}.{n}"] for n in names), eps=1e-5)

    x = norm(F.conv2d(x.double(), state["conv1.weight"], None, 2, 3), "bn1")
    x = F.max_pool2d(x.relu(), 3, 2, 1)
    maps = []
    for layer in (1, 2, 3):
        for block in range(2):
            prefix, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = norm(F.conv2d(x, state[f"{prefix}.conv1.weight"], None, stride, 1), f"{prefix}.bn1").relu()
            y = norm(F.conv2d(y, state[f"{prefix}.conv2.weight"], None, 1, 1), f"{prefix}.bn2")
            if stride > 1:
                x = F.conv2d(x, state[f"{prefix}.downsample.0.weight"], None, stride)
                x = norm(x, f"{prefix}.downsample.1")
            x = (x + y).relu()
        maps.append(x)
    return maps


def close(a, b):
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


# Maps and readings


@torch.no_grad()
def test_to_input_normalises_and_turns_the_axes():
    pixels = torch.randint(0, 256, (2, 5, 7, 3)).byte()
    x = to_input(pixels)
    assert x.shape == (2, 3, 5, 7) and x.dtype == torch.float32
    for c in range(3):
        expected = (pixels[..., c].double() / 255 - IMAGENET_MEAN[c]) / IMAGENET_STD[c]
        assert (x[:, c] - expected).abs().max() < 1e-6
    assert x.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (112, 48)], ids="{0[0]}x{0[1]}".format)
def test_at_cells_it_reads_the_maps_themselves(teacher, size):
    x = torch.randn(2, 3, *size)
    first, second, third = teacher(x)
    assert first.shape == (2, 64, size[0] // 8, size[1] // 8)
    assert second.shape == (2, 128, size[0] // 8, size[1] // 8)
    assert third.shape == (2, 256, size[0] // 16, size[1] // 16)
    read = teacher.at(x, *(16.0 * torch.arange(s // 16) for s in size))
    assert read.shape == (2, 384, size[0] // 16, size[1] // 16)
    assert close(read[:, :128], second[:, :, ::2, ::2]) < 1e-5
    assert close(read[:, 128:], third) < 1e-5


@torch.no_grad()
def test_between_cells_it_interpolates_and_beyond_them_it_holds_the_border(teacher):
    x = torch.randn(1, 3, 64, 96)
    _, second, third = teacher(x)
    read = teacher.at(x, torch.tensor([12.0, 500.0]), torch.tensor([-40.0, 18.0]))
    assert close(read[:, :128, 0, 0], second[:, :, 1:3, 0].mean(2)) < 1e-5
    both_ways = (second[:, :, 1:3, 2] * 0.75 + second[:, :, 1:3, 3] * 0.25).mean(2)
    assert close(read[:, :128, 0, 1], both_ways) < 1e-5
    assert close(read[:, 128:, 1, 0], third[:, :, -1, 0]) < 1e-5
    assert close(read[:, 128:, 1, 1], third[:, :, -1, 1] * 0.875 + third[:, :, -1, 2] * 0.125) < 1e-5


@torch.no_grad()
def test_layer2_is_averaged_over_neighbours_that_exist(teacher):
    raw = []
    handle = teacher.layer2.register_forward_hook(lambda module, given, out: raw.append(out))
    _, second, _ = teacher(torch.randn(1, 3, 48, 40))
    handle.remove()
    for y, x in ((0, 0), (2, 3), (5, 4)):
        window = raw[0][:, :, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert close(second[:, :, y, x], window.mean((2, 3))) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 40), (52, 44)], ids=["even", "odd"])
def test_layer1_is_averaged_over_each_two_by_two(teacher, size):
    raw = []
    handle = teacher.layer1.register_forward_hook(lambda module, given, out: raw.append(out))
    first, _, _ = teacher(torch.randn(1, 3, *size))
    handle.remove()
    assert first.shape[2:] == (-(-raw[0].shape[2] // 2), -(-raw[0].shape[3] // 2))
    for y in range(first.shape[2]):
        for x in range(first.shape[3]):
            window = raw[0][:, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
            assert close(first[:, :, y, x], window.mean((2, 3))) < 1e-5


@torch.no_grad()
def test_all_maps_are_read_where_their_cells_lie(teacher):
    # Cells 0 and 1 of layer1 at stride 4 lie at pixels 0 and 4, and their mean at 2; the others' at 0.
    assert STEPS == ((8, 2.0), (8, 0.0), (16, 0.0))
    x = torch.randn(2, 3, 64, 96)
    first, second, third = maps = teacher(x)
    read = read_maps(maps, torch.tensor([2.0, 18.0, 16.0]), torch.tensor([10.0, 32.0]))
    assert read.shape == (2, ALL_FEATURES, 3, 2) and ALL_FEATURES == 64 + 128 + 256
    assert close(read[:, :64, 0, 0], first[:, :, 0, 1]) < 1e-5
    assert close(read[:, :64, 1, 0], first[:, :, 2, 1]) < 1e-5
    assert close(read[:, :64, 2, 0], first[:, :, 1, 1] / 4 + first[:, :, 2, 1] * 3 / 4) < 1e-5
    assert close(read[:, 64:192, 2, 1], second[:, :, 2, 4]) < 1e-5
    assert close(read[:, 192:, 2, 1], third[:, :, 1, 2]) < 1e-5
    # Fewer maps are the last of them.
    centres = torch.tensor([16.0]), torch.tensor([31.0, 50.0])
    assert torch.equal(read_maps(maps[1:], *centres), read_maps(maps, *centres)[:, 64:])
    assert torch.equal(teacher.at(x, *centres), read_maps(maps, *centres)[:, 64:])


# Weights


@torch.no_grad()
@pytest.mark.parametrize("kept", ["whole", "folded"])
def test_a_files_features_are_the_real_resnets(kept, tmp_path):
    state = resnet_state()
    path = tmp_path / "resnet18.safetensors"
    save_file(state if kept == "whole" else fold_batch_norm(state), path)
    teacher = load_teacher(path)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    x = torch.randn(2, 3, 64, 48)
    first, second, third = teacher(x)
    expected_first, expected_second, expected_third = real_resnet(state, x)
    assert close(first, F.avg_pool2d(expected_first, 2)) < 1e-4
    assert close(third, expected_third) < 1e-4
    assert close(second, F.avg_pool2d(expected_second, 3, 1, 1, count_include_pad=False)) < 1e-4


def test_folding_knows_every_convolution_and_nothing_else():
    state = resnet_state()
    folded = fold_batch_norm(state)
    convolutions = {k.removesuffix(".weight") for k, v in state.items() if v.dim() == 4}
    assert folded.keys() == {f"{c}.{kind}" for c in convolutions for kind in ("weight", "bias")}
    assert Teacher().state_dict().keys() <= folded.keys()


def test_folding_names_what_is_missing():
    state = resnet_state()
    del state["layer2.0.downsample.1.running_var"]
    with pytest.raises(UserError, match=r"layer2\.0\.downsample\.1\.running_var is missing"):
        fold_batch_norm(state)


def changed(**tensors):
    def damage(path):
        state = load_file(path)
        for name, tensor in tensors.items():
            if tensor is None:
                del state[name]
            else:
                state[name] = tensor
        save_file(state, path)

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda p: p.unlink(), "no such file", id="missing"),
        pytest.param(lambda p: p.write_text("weights"), "damaged, or not a safetensors file", id="text"),
        pytest.param(lambda p: p.write_bytes(b""), "not a safetensors file", id="empty"),
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[:-9]), "not a safetensors file", id="truncated"),
        pytest.param(lambda p: torch.save({"a": torch.zeros(1)}, p), "not a safetensors file", id="pickle"),
        pytest.param(changed(**{"conv1.weight": None}), "not a ResNet-18: conv1.weight", id="lacks-one"),
        pytest.param(
            changed(**{"layer3.0.conv1.bias": torch.zeros(3)}), "layer3.0.conv1.bias is missing", id="shape"
        ),
        pytest.param(
            changed(**{"conv1.bias": torch.full((64,), torch.inf)}), "conv1.bias is not finite", id="infinite"
        ),
        pytest.param(
            changed(**{"bn1.weight": torch.ones(64)}), "is missing", id="half-folded"
        ),
        pytest.param(
            lambda p: save_file(resnet_state() | {"bn1.weight": torch.ones(3)}, p),
            "not a torchvision ResNet-18: bn1 does not fit conv1",
            id="batch-norm-shape",
        ),
    ],
)  # fmt: skip
def test_bad_files(damage, words, tmp_path, teacher):
    path = tmp_path / "resnet18.safetensors"
    save_file(teacher.state_dict(), path)
    damage(path)
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: [^\n]*{words}"):
        load_teacher(path)


@torch.no_grad()
def test_saved_in_half_precision_and_loaded_again(teacher, tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_teacher(teacher, path, {"from": "noise"})
    assert read_notes(path) == {"from": "noise"}
    assert path.stat().st_size < 2.01 * sum(p.numel() for p in teacher.parameters())
    again = load_teacher(path)
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    x = torch.randn(1, 3, 48, 64)
    for mine, theirs in zip(again(x), teacher(x), strict=True):
        assert mine.dtype == torch.float32 and mine.shape == theirs.shape
        assert 0 < close(mine, theirs) < 1e-2


@torch.no_grad()
def test_the_built_in_teacher_tells_things_apart():
    teacher = builtin_teacher()
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    ramp = torch.arange(96, dtype=torch.float32).expand(96, 96)
    pixels = torch.stack([ramp, 95 - ramp, (ramp // 8 % 2) * 95], -1).mul(2).byte()[None]
    centres = torch.tensor([16.0, 48.0]), torch.tensor([16.0, 48.0, 80.0])
    features = read_maps(teacher(to_input(pixels)), *centres)
    assert features.shape == (1, ALL_FEATURES, 2, 3) and features.isfinite().all()
    for part in features.split((64, 128, 256), dim=1):
        assert part.std() > 0.1 and (part[..., 0] - part[..., 2]).abs().max() > 0.1


@torch.no_grad()
def test_real_weights_give_finite_features_that_differ():
    folder = os.environ.get("GLANCE_FAST_WEIGHTS")
    if not folder:
        pytest.skip("GLANCE_FAST_WEIGHTS names no folder with a ResNet-18's weights")
    teacher = load_teacher(Path(folder) / FILE)
    ramp = torch.arange(96, dtype=torch.float32).expand(96, 96)
    pixels = torch.stack([ramp, 95 - ramp, (ramp // 8 % 2) * 95], -1).mul(2).byte()[None]
    features = teacher.at(to_input(pixels), torch.tensor([16.0, 48.0]), torch.tensor([16.0, 48.0, 80.0]))
    assert features.shape == (1, 384, 2, 3) and features.isfinite().all()
    assert features.std() > 0.1 and (features[..., 0] - features[..., 2]).abs().max() > 0.1
