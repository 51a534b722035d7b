"""Quantised products in torch: integers are widened, so that they save memory rather than time."""

from __future__ import annotations

from typing import Any

from arcompile.ops.quant import LEVELS, TINY, ZERO
from arcompile.ops.quant_conv import steps
from arcompile.targets.torch_ops import conv2d, means


@means("quantize_rows")
def quantize_rows(t: Any, x: Any) -> Any:
    scale = t.clamp(x.abs().amax(-1, keepdim=True), min=float(TINY)) / LEVELS
    return t.clamp(t.round(x / scale) + ZERO, 0, 255).to(t.uint8), scale


@means("matmul_int8")
def matmul_int8(t: Any, x: Any, s: Any, w: Any, ws: Any) -> Any:
    """Sums of products of 8-bit integers are exact in f64."""
    total = (x.double() - ZERO) @ w.double()
    return total.float() * ws * s


@means("matmul_blocks")
def matmul_blocks(t: Any, x: Any, w: Any, s: Any, bits: int, block: int) -> Any:
    if bits == 4:
        w = t.stack((w & 15, w >> 4), -1).reshape(*w.shape[:2], -1)
    wide = (w.float() - 2 ** (bits - 1)) * s.float()[..., None]
    return x @ wide.reshape(len(w), -1).T.to(x.dtype)


@means("matmul_columns")
def matmul_columns(t: Any, x: Any, w: Any, s: Any) -> Any:
    wide = w if w.dtype == t.int8 else w.view(t.float8_e4m3fn)
    return x @ (wide.float() * s.float()).to(x.dtype)


@means("fake_quantize")
def fake_quantize(t: Any, x: Any, step: float, form: str) -> Any:
    y = x.float() / step
    y = (t.clamp(t.round(y), -128, 127) if form == "int8"
         else t.clamp(y, -448, 448).to(t.float8_e4m3fn).float())
    return (y * step).to(x.dtype)


@means("conv2d_int8")
def conv2d_int8(t: Any, x: Any, w: Any, scale: Any, *bias: Any,
                ranges: tuple[float, float, float, float], **how: Any) -> Any:
    (xs, xz), (ys, yz) = steps(*ranges[:2]), steps(*ranges[2:])
    q = t.clamp(t.round(x / float(xs)) + xz, 0, 255) - xz
    total = conv2d(t, q.double(), w.double(), **how)
    each = (float(xs) * scale)[:, None, None]
    if bias:
        total = total + t.round(bias[0][:, None, None] / each)
    y = t.clamp(t.round(total * (each / float(ys))) + yz, 0, 255)
    return ((y - yz) * float(ys)).float()
