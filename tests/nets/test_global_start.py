"""Global-Net's start: shared body, its file, and nets of another shape."""

import pytest
import torch

from glance_fast.config import Config
from glance_fast.errors import UserError
from glance_fast.nets.builtin import start_global_net
from glance_fast.nets.global_start import GlobalStart, load_global_start
from glance_fast.nets.masked import MaskedNet


def net(patch, width=64):
    config = Config(net="pyramid", width=width)
    torch.manual_seed(1)
    return MaskedNet(patch, config.widths, config.blocks, config.readout).eval()


def test_what_is_saved_is_what_a_global_net_starts_from(tmp_path):
    torch.manual_seed(0)
    start = GlobalStart((32, 64)).eval()
    start.save(tmp_path / "start.safetensors", {})
    assert (tmp_path / "start.safetensors").stat().st_size < 4e6
    x, hole = torch.randn(1, 3, 128, 128), torch.tensor([[[16, 24, 48, 56]]])
    for patch in (32, 64):
        hole[..., 2:] = hole[..., :2] + patch
        single = net(patch)
        single.load_state_dict(load_global_start(tmp_path / "start.safetensors", patch))
        with torch.no_grad():
            wanted = start(x, hole, patch)
            # Half precision is what is lost on the way.
            torch.testing.assert_close(single(x, hole), wanted, rtol=0.02, atol=0.02)
            assert (net(patch)(x, hole) - wanted).abs().max() > 0.1


def test_body_is_shared_and_heads_are_not():
    start = GlobalStart((32, 64))
    names = set(dict(start.named_parameters()))
    assert any(name.startswith("heads.32.") for name in names)
    assert any(name.startswith("heads.64.") for name in names)
    single = sum(p.numel() for p in net(32).parameters())
    head = sum(p.numel() for p in net(32).head.parameters())
    assert sum(p.numel() for p in start.parameters()) == single + head


@pytest.mark.parametrize("patch", [32, 64])
def test_the_built_in_start_is_taken_by_the_default_shape_alone(patch):
    single, before = net(patch), net(patch).state_dict()
    assert start_global_net(single)
    assert all(v.isfinite().all() for v in single.state_dict().values())
    assert not torch.equal(single.stem.weight, before["stem.weight"])
    other = net(patch, width=32)
    kept = other.stem.weight.clone()
    assert not start_global_net(other)
    assert torch.equal(other.stem.weight, kept)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "start.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"start\.safetensors: damaged, or not a safetensors file .*distill"):
        load_global_start(tmp_path / "start.safetensors", 32)
