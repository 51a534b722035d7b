"""Numbers of 8 bits by scales that are known when an engine is built: what GPUs multiply.

Integers, or floats E4M3 of https://arxiv.org/abs/2209.05433, whose bytes are carried as u8. Scales
are symmetric: zero is zero.
"""

from __future__ import annotations

import numpy as np

from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.quant import TINY
from arcompile.ops.tensor import Array

MOST = {"int8": 127.0, "fp8": 448.0}  # the largest value of each form
LEAST = -6  # the exponent of the smallest normal E4M3, and of all below it
MANTISSA = 3  # bits


def _codes() -> Array:
    """Values of the codes 0 to 126, f32; 127 is not a number."""
    code = np.arange(127)
    exponent, mantissa = code >> MANTISSA, code & 7
    normal = np.where(exponent > 0, 8 + mantissa, mantissa) / 8.0
    return np.asarray(normal * 2.0 ** (np.maximum(exponent, 1) - 7), np.float32)


CODES = _codes()


def to_fp8(x: Array) -> Array:
    """The nearest E4M3 values, ties to even mantissas; beyond the largest, the largest."""
    _, exponent = np.frexp(x)
    step = np.ldexp(np.float32(1), np.maximum(exponent - 1, LEAST) - MANTISSA)
    return np.asarray(np.clip(np.rint(x / step) * step, -448, 448), np.float32)


def fp8_codes(x: Array) -> Array:
    """E4M3 values as bytes."""
    return np.where(np.signbit(x), 128, 0).astype(np.uint8) | np.searchsorted(
        CODES, np.abs(x)).astype(np.uint8)


def fp8_values(code: Array) -> Array:
    """Bytes as f32."""
    found = np.append(CODES, np.float32(np.nan))[code & 127]
    return np.where(code & 128, -found, found)


def _quantize(w: Type) -> list[Type]:
    if w.dtype != "f32" or w.rank != 2:
        raise IRError(f"cannot quantise {w} to floats of 8 bits")
    return [Type("u8", w.shape), Type("f32", w.shape[1:])]


@op("quantize_fp8", _quantize)
def quantize_fp8(w: Array) -> tuple[Array, Array]:
    """(codes u8, scales [n]) of w [k,n]: the largest value of a column becomes the largest E4M3."""
    scale = np.maximum(np.abs(w).max(0) / np.float32(MOST["fp8"]), TINY)
    return fp8_codes(to_fp8(w / scale)), scale


def _matmul(x: Type, w: Type, s: Type) -> Type:
    floats = x.dtype in ("f32", "f16", "bf16")
    if not floats or w.dtype not in ("i8", "u8") or w.rank != 2 or x.shape[-1:] != w.shape[:1]:
        raise IRError(f"cannot multiply {x} by columns of {w}")
    if s != Type(x.dtype, w.shape[1:]):
        raise IRError(f"scales {s} do not fit {x} and {w}")
    return Type(x.dtype, (*x.shape[:-1], *w.shape[1:]))


@op("matmul_columns", _matmul)
def matmul_columns(x: Array, w: Array, s: Array) -> Array:
    """x [..,k] by weights [k,n] that are 8 bits times a scale for each column: i8 of
    `quantize_channels`, or u8 of `quantize_fp8`."""
    wide = w.astype(np.float32) if w.dtype == np.int8 else fp8_values(w)
    return np.asarray(x @ (wide * s), np.float32)


def _fake(x: Type, *, step: float, form: str) -> Type:
    if x.dtype not in ("f32", "f16", "bf16") or form not in MOST or not step > 0:
        raise IRError(f"cannot round {x} to {form} in steps of {step}")
    return x


@op("fake_quantize", _fake)
def fake_quantize(x: Array, *, step: float, form: str) -> Array:
    """x rounded to `step` times an integer of 8 bits, or times an E4M3; beyond these is cut."""
    scale = np.float32(step)
    found = x / scale
    found = np.clip(np.rint(found), -128, 127) if form == "int8" else to_fp8(found)
    return np.asarray(found * scale, np.float32)
