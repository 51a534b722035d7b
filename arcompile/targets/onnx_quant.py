"""Quantised products as ONNX Runtime's own: MatMulIntegerToFloat, MatMulNBits, QLinearConv."""

from __future__ import annotations

import numpy as np

from arcompile.ir import Node
from arcompile.ops.quant_conv import steps
from arcompile.targets.onnx_emit import DTYPES, Emitter, lowers

INTEGER = 4  # accuracy level of MatMulNBits: activations are rounded to 8 bits group by group


@lowers("matmul_blocks")
def matmul_blocks(e: Emitter, n: Node, x: list[str]) -> str:
    columns, groups, _ = n.args[1].type.shape
    assert isinstance(columns, int)
    assert isinstance(groups, int)
    block = n.attrs["block"]
    return e.ms("MatMulNBits", *x, K=groups * block, N=columns, bits=n.attrs["bits"],
                block_size=block, accuracy_level=INTEGER)


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
