"""Products of many rows by 8-bit weights that are packed for a kernel's tiles, with what follows.

Packed weights are i8 [panels, k/4, width, 4] as in `channels_last`; scale [2, columns] holds the
scale of each column, and the sum of its integers.
"""

from __future__ import annotations

import numpy as np

from arcompile.errors import IRError
from arcompile.ir import OPS, Type, op
from arcompile.ops.channels_last import columns
from arcompile.ops.quant import matmul_int8, quantize_rows
from arcompile.ops.tensor import Array


def _pack(w: Type, scale: Type) -> list[Type]:
    k, n = w.shape if w.rank == 2 else (0, 0)
    if w.dtype != "i8" or not isinstance(k, int) or not isinstance(n, int) or k % 4:
        raise IRError(f"cannot pack {w}")
    if scale.shape != (n,):
        raise IRError(f"scale {scale} does not fit {w}")
    panels, width = columns(n)
    return [Type("i8", (panels, k // 4, width, 4)), Type("f32", (2, panels * width))]


@op("pack_linear", _pack)
def pack_linear(w: Array, scale: Array) -> tuple[Array, Array]:
    """(packed, scale) of quantised columns."""
    k, n = w.shape
    panels, width = columns(n)
    full = np.zeros((k, panels * width), np.int8)
    full[:, :n] = w
    both = np.zeros((2, panels * width), np.float32)
    both[0, :n], both[1] = scale, full.sum(0, dtype=np.int64)
    packed = full.reshape(k // 4, 4, panels, width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(packed), both


def _linear(x: Type, w: Type, scale: Type, bias: Type, *more: Type, gelu: bool = False) -> Type:
    panels, words, width, four = w.shape if w.rank == 4 else (0, 0, 0, 0)
    n, k = bias.shape[0] if bias.rank == 1 else 0, words * 4 if isinstance(words, int) else 0
    if (x.dtype, w.dtype, four) != ("f32", "i8", 4) or x.shape[-1] != k:
        raise IRError(f"cannot multiply {x} by packed {w}")
    if not isinstance(n, int) or (panels, width) != columns(n) or scale.rank != 2:
        raise IRError(f"bias {bias} and scale {scale} do not fit packed {w}")
    made = Type("f32", (*x.shape[:-1], n))
    after = not more or (len(more) == 2 and more[0].shape == (x.shape[0], 1, n) and more[1] == made)
    if not after:
        raise IRError(f"gain and residual {', '.join(map(str, more))} do not fit {made}")
    return made


@op("linear_int8", _linear)
def linear_int8(x: Array, w: Array, scale: Array, bias: Array, *more: Array,
                gelu: bool = False) -> Array:
    """x [..,k] by packed weights + bias, x rounded row by row as `quantize_rows` does.

    gelu: the tanh form of it follows. more: gain [r,1,n] and residual: residual + gain * that.
    """
    n = len(bias)
    y = matmul_int8(*quantize_rows(x), unpack(w)[:, :n], scale[0, :n]) + bias
    y = OPS["gelu"].eval(y, approximate=True)[0] if gelu else y
    return (more[1] + more[0] * y if more else y).astype(np.float32)


def unpack(w: Array) -> Array:
    """[k,columns] i8 of packed weights."""
    panels, words, width, _ = w.shape
    return w.transpose(1, 3, 0, 2).reshape(words * 4, panels * width)
