"""Passes of Global-Net over whole images, as the engines need them: folded once, layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glance_fast.errors import UserError
from glance_fast.kernels.partial_conv import partial_conv2d_inner
from glance_fast.nets.masked import Level, MaskedNet, PartialBlock, PartialConvNorm

# What only holds layers; all else in a net must be a layer whose reach the plan knows.
CONTAINERS = (MaskedNet, Level, PartialBlock, nn.ModuleList)
# Weight and bias of every layer, BatchNorm folded in.
Weights = list[tuple[Tensor, Tensor]]


def check(net: MaskedNet) -> None:
    """Refuse a net whose layers are not all known: a place of a map could depend on far ones.

    Raises
    ------
    UserError
        It names what is not.
    """
    known: set[nn.Module] = set(net.head.modules())
    for layer in net.layers():
        norm = getattr(layer.module, "norm", None)
        if type(layer.module) is PartialConvNorm and type(norm) is nn.BatchNorm2d:
            known |= {layer.module, norm}
    for name, module in net.named_modules():
        if module not in known and type(module) not in CONTAINERS:
            raise UserError(
                f"engines dense and grouped: {name or 'the net'} ({type(module).__name__}) may let a patch "
                "change the whole map, and dense computes only what lies around it; use engine patchwise"
            )
    if net.training:
        raise UserError(
            "engines dense and grouped: BatchNorm in training depends on the whole image; call eval() first"
        )


def as_computed(x: Tensor) -> Tensor:
    """Images in the precision that is asked for (autocast's) and channels-last."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        x = x.to(torch.get_autocast_dtype(kind))
    return x.contiguous(memory_format=torch.channels_last)


def folded(net: MaskedNet, dtype: torch.dtype) -> Weights:
    """The weights of ``net.layers()``, channels-last."""
    layers = [[t.to(dtype) for t in layer.module.folded()] for layer in net.layers()]
    return [(w.contiguous(memory_format=torch.channels_last), b) for w, b in layers]


def layer_outputs(net: MaskedNet, x: Tensor, holes: Tensor, weights: Weights) -> tuple[list[Tensor], Tensor]:
    """The input and the output of every layer, and the last one's holes.

    Parameters
    ----------
    net : MaskedNet
        In evaluation mode.
    x : Tensor
        Images [N, 3, H, W], 0 in their holes.
    holes : Tensor
        Int64 [N, K, 4], all K masked at once.
    weights : Weights
        From ``folded``, of the dtype of ``x``.
    """
    maps = [x]
    for layer, (weight, bias) in zip(net.layers(), weights, strict=True):
        stride, padding = layer.module.stride, layer.module.padding
        added = maps[-2] if layer.residual else None
        y, holes, _ = partial_conv2d_inner(maps[-1], weight, bias, holes, stride, padding, added, relu=True)
        maps.append(y)
    return maps, holes
