"""BatchNorm outside training, to be folded into the layer beside it."""

from __future__ import annotations

from torch import Tensor, nn


def affine_of(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and shift of a BatchNorm that keeps running statistics, as ``as_affine`` has them."""
    assert norm.running_mean is not None and norm.running_var is not None
    return as_affine(norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps)


def as_affine(
    weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Gain and shift, both [C], that BatchNorm with these parameters multiplies with and adds.

    ``torch.nn.utils.fusion`` knows no partial convolution and no layer behind the norm, and rounds otherwise.
    """
    gain = weight * (running_var + eps).rsqrt()
    return gain, bias - running_mean * gain
