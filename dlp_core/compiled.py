"""Kernels compiled by numba that read and write torch's tensors, 16-bit floats included, which numba lacks.

Such a kernel takes the address of a tensor and a scalar `like` of its storage type:

    uint16  bfloat16 bits      int16  float16 bits      float32  itself
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LIKE: Mapping[torch.dtype, Any] = {
    torch.bfloat16: np.uint16(0),
    torch.float16: np.int16(0),
    torch.float32: np.float32(0),
}

FAST: Mapping[str, Any] = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "nogil": True}
"""Options of numba: sums may be reordered; infinities and NaN are kept."""

_FLOAT, _HALF, _I16, _I32 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32)

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_SMALLEST = np.float32(-87)
"""exp of less is nothing beside exp(0) = 1, and _power_of_two ends near here."""


def compiled(function: Callable[..., None]) -> Any:
    """Compile a function of numbers and arrays, with FAST."""
    try:
        return njit(cache=True, **FAST)(function)
    except RuntimeError:  # no cache folder is writable
        return njit(**FAST)(function)


@intrinsic
def pointer(_: Any, address: Any, like: Any) -> Any:
    """Cast an address to a pointer to elements of the type of `like`."""
    target = types.CPointer(like)

    def generate(context: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(address, like), generate


@intrinsic
def widen(_: Any, stored: Any) -> Any:
    """Convert a stored number to float32."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        value = arguments[0]
        if stored == types.float32:
            return value
        if stored == types.int16:
            return builder.fpext(builder.bitcast(value, _HALF), _FLOAT)
        return builder.bitcast(builder.shl(builder.zext(value, _I32), _I32(16)), _FLOAT)

    return types.float32(stored), generate


@intrinsic
def narrow(_: Any, value: Any, like: Any) -> Any:
    """Round a float32 to the nearest number of the storage type, ties to even; NaN stays NaN."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        number = arguments[0]
        if like == types.float32:
            return number
        if like == types.int16:
            return builder.bitcast(builder.fptrunc(number, _HALF), _I16)
        bits = builder.bitcast(number, _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        rounded = builder.lshr(builder.add(bits, builder.add(odd, _I32(0x7FFF))), _I32(16))
        nan = builder.fcmp_unordered("uno", number, number)
        return builder.trunc(builder.select(nan, _I32(0x7FC0), rounded), _I16)

    return like(types.float32, like), generate


@intrinsic
def _power_of_two(_: Any, exponent: Any) -> Any:
    """2 ** exponent as a float32, of an int32 between -126 and 127."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.shl(builder.add(arguments[0], _I32(127)), _I32(23)), _FLOAT)

    return types.float32(types.int32), generate


@njit(inline="always", **FAST)
def exp_below(x: Any) -> Any:
    """exp of a number that is not above 0, to 1e-7 of it; NaN stays NaN. Cephes' polynomial: unlike a call, a loop over
    it is vectorised."""
    x = _SMALLEST if x < _SMALLEST else x
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    return (p * r * r + r + np.float32(1)) * _power_of_two(np.int32(n))
