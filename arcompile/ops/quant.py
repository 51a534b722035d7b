"""Quantised weights and the products that read them.

Weights are symmetric: a value is its integer times its scale. The integers are made when an engine
is built (`Program.fold`), activations are rounded while it runs, each row by its own largest value,
so that what a row gets never depends on who else is in the batch.
"""

from __future__ import annotations

from math import prod

import numpy as np

from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.tensor import Array, axis_of

ZERO = 128  # what u8 activations count from
LEVELS = 127  # the largest integer of an activation
TINY = np.float32(1e-30)  # a row or group of zeros has this scale, and zeros for integers
SHRINK = (1.0, 0.9, 0.8, 0.72)  # of the range of a group; the best one is taken
CHUNK = 1 << 16  # numbers at a time: what a cache holds


def _channels(w: Type, *, axis: int, bits: int = 8) -> list[Type]:
    if w.dtype != "f32" or not 2 <= bits <= 8:
        raise IRError(f"cannot quantise {w} to {bits} bits")
    return [Type("i8", w.shape), Type("f32", (w.shape[axis_of(w, axis)],))]


@op("quantize_channels", _channels)
def quantize_channels(w: Array, *, axis: int, bits: int = 8) -> tuple[Array, Array]:
    """(integers, scales): one scale for each index of `axis`; w is about integers * scale."""
    rest = tuple(i for i in range(w.ndim) if i != axis % w.ndim)
    most = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(w).max(rest, keepdims=True, initial=0) / np.float32(most), TINY)
    return np.rint(w / scale).astype(np.int8), scale.reshape(-1)


def _blocks(w: Type, *, bits: int, block: int) -> list[Type]:
    if w.dtype != "f32" or w.rank != 2 or bits not in (4, 8):
        raise IRError(f"cannot quantise {w} to blocks of {bits} bits")
    k, n = w.shape
    if not isinstance(k, int) or k % block or block % 16:
        raise IRError(f"groups of {block} do not divide the {k} rows of {w}",
                      hint="block is a multiple of 16 that divides them")
    return [Type("u8", (n, k // block, block * bits // 8)), Type("f32", (n, k // block))]


@op("quantize_blocks", _blocks)
def quantize_blocks(w: Array, *, bits: int, block: int) -> tuple[Array, Array]:
    """(integers [n,k/block,block*bits/8], scales [n,k/block]) of w [k,n].

    Each group of `block` values down a column has a scale: the range that leaves the smallest
    squared error among a few. Integers count from 2^(bits-1); of two 4-bit ones in a byte, the
    low half is the first. The largest value of a group lies at the side that has one level more.
    """
    k, n = w.shape
    groups, half = w.T.reshape(n, k // block, block), 2 ** (bits - 1)
    q = np.empty((n, k // block, block), np.uint8)
    scales = np.empty((n, k // block), np.float32)
    step = max(1, CHUNK // k)
    for at in range(0, n, step):
        part = slice(at, at + step)
        q[part], scales[part] = _groups(groups[part], half)
    return (q if bits == 8 else q[..., ::2] | (q[..., 1::2] << 4)), scales


def _groups(x: Array, half: int) -> tuple[Array, Array]:
    """Integers and scales of groups [.., block]."""
    x = np.ascontiguousarray(x)
    peak = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)
    scale = np.where(peak == 0, TINY, peak / np.float32(-half))
    best, least = scale, np.full(scale.shape, np.inf, np.float32)
    for share in SHRINK if half < 128 else ():
        trial = scale * np.float32(share)
        error = np.square(_round(x, trial, half) * trial - x).sum(-1, keepdims=True)
        best, least = np.where(error < least, trial, best), np.minimum(error, least)
    return (_round(x, best, half) + half).astype(np.uint8), best[..., 0]


def _round(x: Array, scale: Array, half: int) -> Array:
    found = x / scale
    np.rint(found, out=found)
    return np.clip(found, -half, half - 1, out=found)


def unpack(q: Array, scale: Array, bits: int) -> Array:
    """What `quantize_blocks` made, as [k,n] again."""
    if bits == 4:
        q = np.stack((q & 15, q >> 4), -1).reshape(*q.shape[:2], -1)
    w = (q.astype(np.float32) - 2 ** (bits - 1)) * scale[..., None]
    return w.reshape(len(q), -1).T


# --- products ------------------------------------------------------------------------------------


def _rows(x: Type) -> list[Type]:
    if x.dtype != "f32" or x.rank < 1:
        raise IRError(f"cannot quantise the rows of {x}")
    return [Type("u8", x.shape), Type("f32", (*x.shape[:-1], 1))]


@op("quantize_rows", _rows)
def quantize_rows(x: Array) -> tuple[Array, Array]:
    """(integers u8, scales [..,1]) of activations: x is about (integers - 128) * scale."""
    scale = np.maximum(np.abs(x).max(-1, keepdims=True), TINY) / np.float32(LEVELS)
    q = np.rint(x / scale) + ZERO
    return np.clip(q, 0, 255).astype(np.uint8), scale


def _matmul_int8(x: Type, s: Type, w: Type, ws: Type) -> Type:
    if (x.dtype, w.dtype, w.rank) != ("u8", "i8", 2) or x.shape[-1] != w.shape[0]:
        raise IRError(f"cannot multiply {x} by {w}")
    if s.shape != (*x.shape[:-1], 1) or ws.shape != w.shape[1:]:
        raise IRError(f"scales {s} and {ws} do not fit {x} and {w}")
    return Type("f32", (*x.shape[:-1], w.shape[1]))


@op("matmul_int8", _matmul_int8)
def matmul_int8(x: Array, s: Array, w: Array, ws: Array) -> Array:
    """Rows of `quantize_rows` by columns of `quantize_channels`: exact sums, then scaled."""
    total = (x.astype(np.float64) - ZERO) @ w.astype(np.float64)
    return total.astype(np.float32) * ws * s


def _matmul_blocks(x: Type, w: Type, s: Type, *, bits: int, block: int) -> Type:
    n, groups, size = w.shape if w.rank == 3 else (0, 0, 0)
    whole = prod((groups, block)) if isinstance(groups, int) else 0
    floats = x.dtype in ("f32", "f16", "bf16")
    if not floats or w.dtype != "u8" or x.shape[-1] != whole or size != block * bits // 8:
        raise IRError(f"cannot multiply {x} by groups of {block} in {w}")
    if s.shape != (n, groups) or s.dtype != x.dtype:
        raise IRError(f"scales {s} do not fit {x} and {w}")
    return Type(x.dtype, (*x.shape[:-1], n))


@op("matmul_blocks", _matmul_blocks)
def matmul_blocks(x: Array, w: Array, s: Array, *, bits: int, block: int) -> Array:
    """x [..,k] by weights of `quantize_blocks`, activations rounded to 8 bits group by group.

    A target without integer products may leave activations as they are.
    """
    groups = x.reshape(*x.shape[:-1], -1, block)
    scale = np.maximum(np.abs(groups).max(-1, keepdims=True), TINY) / np.float32(LEVELS)
    rounded = (np.rint(groups / scale) * scale).reshape(x.shape)
    return (rounded @ unpack(w, s, bits)).astype(np.float32)


