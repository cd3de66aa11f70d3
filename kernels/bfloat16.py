"""bfloat16 in Numba, which has no such type: arrays hold its bits as uint16, arithmetic is float32."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor


@intrinsic
def _float_of_bits(typing, bits):
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.uint32), generate


@intrinsic
def _bits_of_float(typing, value):
    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], cgutils.int32_t)

    return types.uint32(types.float32), generate


@njit(cache=True)
def bits_to_float(bits):
    """float32 of a bfloat16's bits (uint16)."""
    return _float_of_bits(np.uint32(np.uint32(bits) << np.uint32(16)))


@njit(cache=True)
def float_to_bits(value):
    """Bits (uint16) of the bfloat16 nearest to a float32, ties to even; NaN stays NaN."""
    bits = _bits_of_float(np.float32(value))
    if value != value:
        return np.uint16(0x7FC0)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


def widen(value):
    """A number to compute with: float32 of bfloat16's bits, any other as it is. Only within Numba."""
    raise RuntimeError("widen runs within compiled functions alone")


def narrow(value, like):
    """The inverse of ``widen``: ``value`` as an array element of the type of ``like``. Only within Numba."""
    raise RuntimeError("narrow runs within compiled functions alone")


@overload(widen)
def _widen(value):
    if value == types.uint16:
        return lambda value: bits_to_float(value)
    return lambda value: value


@overload(narrow)
def _narrow(value, like):
    if like == types.uint16:
        return lambda value, like: float_to_bits(value)
    return lambda value, like: value


def as_array(tensor: Tensor) -> np.ndarray:
    """A NumPy view of a tensor of the CPU; bfloat16 as its bits."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
