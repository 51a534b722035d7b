"""Quantised products as ONNX Runtime's own: MatMulIntegerToFloat and MatMulNBits."""

from __future__ import annotations

import numpy as np

from arcompile.ir import Node
from arcompile.ops.quant import LEVELS, TINY, ZERO
from arcompile.targets.onnx_emit import Emitter, lowers

INTEGER = 4  # accuracy level of MatMulNBits: activations are rounded to 8 bits group by group


@lowers("quantize_rows")
def quantize_rows(e: Emitter, n: Node, x: list[str]) -> list[str]:
    """The scale of each row is known only here, so it is divided away before QuantizeLinear."""
    most = e.op("ReduceMax", e.op("Abs", x[0]), e.const([-1]), keepdims=1)
    scale = e.op("Div", e.op("Max", most, e.float(TINY)), e.float(LEVELS))
    return [e.op("QuantizeLinear", e.op("Div", x[0], scale), e.float(1.0), _zero(e)), scale]


def _zero(e: Emitter) -> str:
    return e.const(ZERO, np.uint8)


@lowers("matmul_int8")
def matmul_int8(e: Emitter, n: Node, args: list[str]) -> str:
    x, scale, w, columns = args
    made = e.ms("MatMulIntegerToFloat", x, w, e.float(1.0), columns, _zero(e))
    return e.op("Mul", made, scale)


@lowers("matmul_blocks")
def matmul_blocks(e: Emitter, n: Node, x: list[str]) -> str:
    columns, groups, _ = n.args[1].type.shape
    assert isinstance(columns, int)
    assert isinstance(groups, int)
    block = n.attrs["block"]
    return e.ms("MatMulNBits", *x, K=groups * block, N=columns, bits=n.attrs["bits"],
                block_size=block, accuracy_level=INTEGER)
