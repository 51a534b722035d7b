"""Convolutions of image decoders with channels last: weights are packed for a kernel's tiles, and
what stands around a convolution belongs to it.

Packed weights are [sets, panels, k, k, ci/per, width, per]: panels of `width` output channels
(zeros beyond the last), `per` input channels in a word of 32 bits: one f32, two bf16, four i8. Four
sets are the four 2x2 convolutions that nearest enlargement by two and a 3x3 convolution come to,
for the even and odd rows, then columns, of the result: 4/9 of the products.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile import dims
from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.nn import conv2d, group_norm
from arcompile.ops.quant import TINY
from arcompile.ops.tensor import Array

LANES, WIDTH = 16, 32  # channels of a vector, and of a panel
PER = {"f32": 1, "bf16": 2, "i8": 4}
LEAST_SILU = np.float32(-0.27846455)  # the least value of silu
ENLARGED = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # parity -> taps of 2 from 3


def columns(channels: int) -> tuple[int, int]:
    """(panels, width) for so many output channels."""
    width = LANES if channels <= LANES else WIDTH
    return -(-channels // width), width


def _pack(w: Type, *, twice: bool = False) -> list[Type]:
    fixed = [d for d in w.shape if isinstance(d, int)]
    if w.dtype != "f32" or len(fixed) != 4 or fixed[2:] not in ([1, 1], [3, 3]):
        raise IRError(f"cannot pack {w}: it is no kernel of 1x1 or 3x3")
    if fixed[1] % LANES or (twice and fixed[2] != 3):
        raise IRError(f"cannot pack {w}: {fixed[1]} input channels, twice={twice}")
    (panels, width), sets, k = columns(fixed[0]), 4 if twice else 1, 2 if twice else fixed[2]
    return [Type("f32", (sets, panels, k, k, fixed[1], width, 1)),
            Type("f32", (sets, 2, panels * width))]


@op("pack_conv", _pack)
def pack_conv(w: Array, *, twice: bool = False) -> tuple[Array, Array]:
    """(packed, scale) of w [co,ci,k,k]; scale [sets,2,columns] holds ones and, for integers, sums.

    twice: of nearest enlargement by two and then w.
    """
    co, ci, k, _ = w.shape
    sets = [w]
    if twice:
        k, e = 2, ENLARGED.astype(np.float32)
        sets = [np.einsum("ocij,yi,xj->ocyx", w, e[a], e[b], optimize=True)
                for a in (0, 1) for b in (0, 1)]
    panels, width = columns(co)
    full = np.zeros((len(sets), panels * width, ci, k, k), np.float32)
    full[:, :co] = np.stack(sets)
    packed = full.reshape(len(sets), panels, width, ci, k, k).transpose(0, 1, 4, 5, 3, 2)
    scale = np.zeros((len(sets), 2, panels * width), np.float32)
    scale[:, 0] = 1
    return np.ascontiguousarray(packed)[..., None], scale


def _narrow(w: Type, *, dtype: str) -> list[Type]:
    *outer, ci, width, per = w.shape
    if w.dtype != "f32" or len(outer) != 4 or per != 1 or dtype not in ("bf16", "i8"):
        raise IRError(f"cannot narrow {w} to {dtype}")
    n, p = PER[dtype], outer[1]
    assert isinstance(ci, int)
    return [Type(dtype, (*outer, ci // n, width, n)),
            Type("f32", (outer[0], 2, dims.mul(width, p) if isinstance(p, int) else p))]


@op("narrow_conv", _narrow)
def narrow_conv(w: Array, *, dtype: str) -> tuple[Array, Array]:
    """(packed, scale) of packed f32 weights as bf16 (held as uint16), or as i8 with a scale for
    each column of each set."""
    sets, panels, k, _, ci, width, _ = w.shape
    words = w.reshape(sets, panels, k, k, ci // PER[dtype], PER[dtype], width).swapaxes(-1, -2)
    scale = np.zeros((sets, 2, panels * width), np.float32)
    scale[:, 0] = 1
    if dtype == "bf16":
        return to_bf16(words), scale
    most = np.abs(w).max((2, 3, 4, 6))  # [sets,panels,width]
    each = np.maximum(most / np.float32(127), TINY)
    q = np.rint(words / each[:, :, None, None, None, :, None]).astype(np.int8)
    scale[:, 0] = each.reshape(sets, -1)
    scale[:, 1] = q.sum((2, 3, 4, 6), dtype=np.int64).reshape(sets, -1)
    return np.ascontiguousarray(q), scale


def to_bf16(x: Array) -> Array:
    """The upper halves of f32, to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def of_bf16(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


def unpack(w: Array) -> Array:
    """[sets,columns,ci,k,k] f32 of packed weights, without their scale."""
    sets, panels, k, _, words, width, per = w.shape
    values = of_bf16(w) if w.dtype == np.uint16 else w.astype(np.float32)
    turned = values.transpose(0, 1, 5, 4, 6, 2, 3)
    return turned.reshape(sets, panels * width, words * per, k, k)


# --- convolutions --------------------------------------------------------------------------------


def _conv(x: Type, w: Type, scale: Type, bias: Type, *residual: Type) -> Type:
    if x.rank != 4 or w.rank != 7 or bias.rank != 1 or w.dtype not in PER:
        raise IRError(f"cannot convolve {x} by packed {w} with {bias}")
    sets, panels, _, _, words, width, per = w.shape
    whole = panels * width if isinstance(panels, int) and isinstance(width, int) else 0
    co, ci = bias.shape[0], words * per if isinstance(words, int) and isinstance(per, int) else 0
    if x.shape[3] != ci or per != PER[w.dtype] or scale.shape != (sets, 2, whole):
        raise IRError(f"packed {w} and scale {scale} do not fit {x}")
    if not isinstance(co, int) or (panels, width) != columns(co):
        raise IRError(f"bias {bias} does not fit packed {w}")
    f = 2 if sets == 4 else 1
    made = Type(x.dtype, (x.shape[0], dims.mul(x.shape[1], f), dims.mul(x.shape[2], f), co))
    if any(r != made for r in residual):
        raise IRError(f"residual {residual[0]} does not fit {made}")
    return made


@op("conv_last", _conv)
def conv_last(x: Array, w: Array, scale: Array, bias: Array, *residual: Array) -> Array:
    """x [n,h,w,ci] by packed weights -> [n,h,w,co], twice as high and wide by four sets.

    By weights of bf16, x is rounded to that; by i8, each image of x to 255 steps from its least to
    its largest value.
    """
    if w.dtype == np.int8:
        x = np.stack([_rounded(i, i.min(initial=0), i.max(initial=0)) for i in x])
    return _product(x, w, scale, bias, *residual)


def _norm_conv(x: Type, w: Type, scale: Type, bias: Type, weight: Type, shift: Type,
               *residual: Type, groups: int, eps: float) -> Type:
    c = x.shape[-1]
    if weight.shape != (c,) or shift.shape != (c,) or not isinstance(c, int) or c % groups:
        raise IRError(f"cannot normalise {x} in {groups} groups with {weight} and {shift}")
    return _conv(x, w, scale, bias, *residual)


@op("norm_conv_last", _norm_conv)
def norm_conv_last(x: Array, w: Array, scale: Array, bias: Array, weight: Array, shift: Array,
                   *residual: Array, groups: int, eps: float) -> Array:
    """conv_last of silu(group_norm(x, weight, shift)).

    By weights of i8, that is rounded to 255 steps from the least value of silu to its largest.
    """
    y = group_norm(np.moveaxis(x, 3, 1), weight, shift, groups=groups, eps=eps)
    y = np.moveaxis(y / (1 + np.exp(-y)), 1, 3)
    if w.dtype == np.int8:
        y = np.stack([_rounded(i, LEAST_SILU, i.max(initial=0)) for i in y])
    return _product(y, w, scale, bias, *residual)


def _rounded(x: Array, low: Any, high: Any) -> Array:
    step = np.maximum(np.float32(high - low) / np.float32(255), TINY)
    zero = np.rint(-low / step)
    return ((np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step).astype(np.float32)


def _product(x: Array, w: Array, scale: Array, bias: Array, *residual: Array) -> Array:
    x = np.moveaxis(of_bf16(to_bf16(x)) if w.dtype == np.uint16 else x, 3, 1)
    k, co = w.shape[2], len(bias)
    each = unpack(w) * scale[:, 0, :, None, None, None]
    if len(each) == 1:
        y = conv2d(x, each[0, :co], bias, pads=(k // 2,) * 4)
    else:
        n, _, h, wd = x.shape
        y = np.empty((n, co, h, 2, wd, 2), np.float32)
        for i, part in enumerate(each):
            a, b = divmod(i, 2)
            y[:, :, :, a, :, b] = conv2d(x, part[:co], bias, pads=(1 - a, 1 - b, a, b))
        y = y.reshape(n, co, 2 * h, 2 * wd)
    y = np.moveaxis(y, 1, 3)
    return np.ascontiguousarray((y + residual[0] if residual else y).astype(np.float32))
