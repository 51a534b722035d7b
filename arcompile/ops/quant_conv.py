"""Convolution of 8-bit integers with ranges that are known beforehand."""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.errors import IRError
from arcompile.ir import OPS, Type, op
from arcompile.ops.nn import conv2d
from arcompile.ops.tensor import Array

Ranges = tuple[float, float, float, float]


def steps(lo: float, hi: float) -> tuple[np.float32, int]:
    """(scale, zero) of u8 integers for values in [lo, hi]; zero itself is always exact."""
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    scale = np.float32(max((hi - lo) / 255, 1e-30))
    return scale, int(np.clip(np.rint(-lo / scale), 0, 255))


def _conv2d_int8(x: Type, w: Type, scale: Type, *bias: Type, ranges: Ranges, **attrs: Any) -> Type:
    if (x.dtype, w.dtype, scale.shape) != ("f32", "i8", w.shape[:1]) or len(ranges) != 4:
        raise IRError(f"cannot convolve {x} by {w} with scales {scale} and ranges {ranges}")
    found = OPS["conv2d"].infer(x, Type("f32", w.shape), *bias, **attrs)
    assert isinstance(found, Type)
    return found


@op("conv2d_int8", _conv2d_int8)
def conv2d_int8(x: Array, w: Array, scale: Array, *bias: Array, ranges: Ranges, stride: int = 1,
                pads: tuple[int, ...] = (0, 0, 0, 0), groups: int = 1) -> Array:
    """conv2d of x and w * scale[channel], x rounded to 8 bits before and the result after.

    ranges: the least and the largest value of x, then those of the result; beyond them is cut.
    """
    (xs, xz), (ys, yz) = steps(*ranges[:2]), steps(*ranges[2:])
    q = np.clip(np.rint(x / xs) + xz, 0, 255) - xz  # what is padded counts as zero
    total = conv2d(q.astype(np.float64), w.astype(np.float64), stride=stride, pads=pads,
                   groups=groups)
    each = (xs * scale)[:, None, None]
    if bias:
        total += np.rint(bias[0][:, None, None] / each)
    y = np.clip(np.rint(total * (each / ys)) + yz, 0, 255)
    return ((y - yz) * ys).astype(np.float32)
