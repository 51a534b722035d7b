"""Cached keys and values in few bits: a least value and a step for every group of numbers.

After KIVI, https://arxiv.org/abs/2402.02750. Whatever the group, a number is low + code * step; in
a group of equal numbers the step is 0. Groups never span rows or slots, so that a row keeps what it
would keep alone, and a slot what it would keep whenever it came.
"""

from __future__ import annotations

import numpy as np

from arcompile import dims
from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.tensor import Array

TINY = np.float32(1e-30)  # divides what is 0


def _quantise(x: Type, *, bits: int, group: int, slots: int = 1) -> list[Type]:
    last = x.shape[-1]
    if slots > 1:
        if x.rank != 4 or x.shape[2] != slots or x.dtype != "f32" or bits not in (4, 8):
            raise IRError(f"cannot quantise {x} channel by channel of {slots} slots")
        many = Type("f32", (*x.shape[:2], 1, last))
        return [Type("u8", (*x.shape[:3], dims.mul(last, bits) // 8)), many, many]  # type: ignore[operator]
    if x.dtype != "f32" or bits not in (4, 8) or not isinstance(last, int) or group < 2 or (
            last % group or group % 2):
        raise IRError(f"groups of {group} do not divide {x}",
                      hint="a group is an even number of a head's channels")
    many = Type("f32", (*x.shape[:-1], last // group))
    return [Type("u8", (*x.shape[:-1], last * bits // 8)), many, many]


@op("kv_quantise", _quantise)
def kv_quantise(x: Array, *, bits: int, group: int, slots: int = 1) -> tuple[Array, Array, Array]:
    """(codes u8, steps, least values) of groups of numbers along the last axis.

    slots: of a cache [r,g,slots,e], each channel of all its slots is a group instead. Of two codes
    of 4 bits in a byte, the low half is the first.
    """
    y = x.swapaxes(2, 3)[:, :, None] if slots > 1 else x.reshape(*x.shape[:-1], -1, group)
    low = y.min(-1)
    step = (y.max(-1) - low) / np.float32(2**bits - 1)
    code = np.rint((y - low[..., None]) / np.maximum(step, TINY)[..., None]).astype(np.uint8)
    code = code[:, :, 0].swapaxes(2, 3) if slots > 1 else code.reshape(x.shape)
    if bits == 4:
        code = code[..., ::2] | code[..., 1::2] << 4
    return code, step, low


def _dequantise(q: Type, step: Type, low: Type, *, bits: int) -> Type:
    last, groups = q.shape[-1], step.shape[-1]
    fits = step == low and q.dtype == "u8" and isinstance(last, int) and isinstance(groups, int)
    few = step.rank == q.rank and (q.shape[:-1] == step.shape[:-1] or _shared(q, step) > 1)
    if not fits or not few or last * 8 // bits % groups:  # type: ignore[operator]
        raise IRError(f"codes {q} do not go with {step} and {low}")
    return Type("f32", (*q.shape[:-1], dims.mul(last, 8 // bits)))


def _shared(q: Type, step: Type) -> int:
    """How many slots of a cache share their steps."""
    have, groups = q.shape[2], step.shape[2]
    known = q.rank == 4 and q.shape[:2] == step.shape[:2]
    if not known or not isinstance(have, int) or not isinstance(groups, int) or have % groups:
        return 0
    return have // groups


@op("kv_dequantise", _dequantise)
def kv_dequantise(q: Array, step: Array, low: Array, *, bits: int) -> Array:
    """The numbers that codes stand for. Steps are of each slot, or of so many neighbours."""
    if bits == 4:
        q = np.stack((q & 15, q >> 4), -1).reshape(*q.shape[:-1], -1)
    step, low = (x.repeat(q.shape[-2] // x.shape[-2], -2) for x in (step, low))
    y = q.reshape(*step.shape, -1).astype(np.float32)
    out: Array = (y * step[..., None] + low[..., None]).reshape(q.shape)
    return out
