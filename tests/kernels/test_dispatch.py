"""What is chosen before a kernel runs."""

from __future__ import annotations

import pytest
import torch

from glance_fast.kernels.dispatch import tf32_allowed


@pytest.fixture
def conv():
    """Torch's setting for convolutions, as it was afterwards."""
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    yield conv
    conv.fp32_precision = before


@pytest.mark.parametrize(("precision", "allowed"), [("ieee", False), ("tf32", True)])
def test_either_of_torchs_settings_is_read(conv, precision, allowed):
    conv.fp32_precision = precision
    assert tf32_allowed() == allowed
    conv.fp32_precision = "tf32"
    with torch.backends.cudnn.flags(allow_tf32=allowed):
        assert tf32_allowed() == allowed
