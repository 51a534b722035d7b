"""Quantised products: ONNX Runtime's own, or widened weights (QDQ) that every runtime takes."""

from __future__ import annotations

import numpy as np

from arcompile.ir import Node
from arcompile.ops.quant_conv import steps
from arcompile.targets.onnx_emit import DTYPES, Emitter, lowers

FP8 = 17  # FLOAT8E4M3FN in ONNX
INTEGER = 4  # accuracy level of MatMulNBits: activations are rounded to 8 bits group by group


@lowers("matmul_blocks")
def matmul_blocks(e: Emitter, n: Node, x: list[str]) -> str:
    columns, groups, _ = n.args[1].type.shape
    assert isinstance(columns, int)
    assert isinstance(groups, int)
    block = n.attrs["block"]
    return e.ms("MatMulNBits", *x, K=groups * block, N=columns, bits=n.attrs["bits"],
                block_size=block, accuracy_level=INTEGER)


@lowers("matmul_columns")
def matmul_columns(e: Emitter, n: Node, x: list[str]) -> str:
    """u8 are the bytes of floats."""
    if n.args[1].type.dtype == "u8":
        next(t for t in e.inits if t.name == x[1]).data_type = FP8
    return e.op("MatMul", x[0], e.op("DequantizeLinear", *x[1:], axis=1))


@lowers("fake_quantize")
def fake_quantize(e: Emitter, n: Node, x: list[str]) -> str:
    """ONNX Runtime would fuse a pair of floats with the product into an op of integers."""
    dtype = n.args[0].type.dtype
    if n.attrs["form"] == "int8":
        return pair(e, n, x)
    step = e.number(n.attrs["step"], dtype)
    eight = e.op("Cast", e.op("Div", x[0], step), to=FP8, saturate=1)
    return e.op("Mul", e.op("Cast", eight, to=DTYPES[dtype]), step)


def pair(e: Emitter, n: Node, x: list[str]) -> str:
    """QuantizeLinear and DequantizeLinear, by which runtimes know products of 8 bits."""
    step = e.number(n.attrs["step"], n.args[0].type.dtype)
    zero = _zero(e, n.attrs["form"])
    return str(e.op("DequantizeLinear", e.op("QuantizeLinear", x[0], step, zero), step, zero))


def _zero(e: Emitter, form: str) -> str:
    """What says which 8 bits are meant."""
    if form == "int8":
        return e.const(0, np.int8)

    def make() -> str:
        name = e.fresh("const")
        e.inits.append(e.onnx.TensorProto(name=name, data_type=FP8, raw_data=b"\0"))
        return name

    return e.once(("zero", form), make)


@lowers("conv2d_int8")
def conv2d_int8(e: Emitter, n: Node, args: list[str]) -> str:
    """ONNX Runtime moves neighbours to channels-last by itself, and takes integer biases only."""
    x, w, scale, *bias = args
    a = n.attrs
    (xs, xz), (ys, yz) = steps(*a["ranges"][:2]), steps(*a["ranges"][2:])
    before = (e.float(xs), e.const(xz, np.uint8))
    after = (e.float(ys), e.const(yz, np.uint8))
    channels = n.args[1].type.shape[0]
    zeros = e.const(np.zeros(channels), np.int8)
    more = [e.op("Cast", e.op("Round", e.op("Div", bias[0], e.op("Mul", scale, before[0]))),
                 to=DTYPES["i32"])] if bias else []
    q = e.op("QuantizeLinear", x, *before)
    y = e.op("QLinearConv", q, *before, w, scale, zeros, *after, *more, group=a.get("groups", 1),
             strides=[a.get("stride", 1)] * 2, pads=list(a.get("pads", (0, 0, 0, 0))))
    return e.op("DequantizeLinear", y, *after)
