"""Linear layers of 8-bit integers: a kernel of ours, and what it stands for in standard ops."""

from __future__ import annotations

from functools import partial

import numpy as np

from arcompile.ir import Node
from arcompile.ops.quant import LEVELS, TINY, ZERO
from arcompile.targets.onnx_emit import Emitter, Nodes, lowers


@lowers("linear_int8")
def linear_int8(e: Emitter, n: Node, args: list[str]) -> str:
    gelu = n.attrs.get("gelu", False)
    given = args if len(args) > 4 else [*args, e.float([1.0]), e.float([0.0])]
    return str(e.kernel("TiledInt8Gelu" if gelu else "TiledInt8", partial(_linear, gelu=gelu),
                        *given))


def _linear(e: Nodes, x: str, w: str, scale: str, bias: str, gain: str, residual: str,
            gelu: bool) -> str:
    most = e.op("ReduceMax", e.op("Abs", x), e.const([-1]), keepdims=1)
    step = e.op("Div", e.op("Max", most, e.float(TINY)), e.float(LEVELS))
    zero = e.const(ZERO, np.uint8)
    rounded = e.op("QuantizeLinear", e.op("Div", x, step), e.float(1.0), zero)
    turned = e.op("Transpose", w, perm=[1, 3, 0, 2])
    size = e.op("Concat", e.op("Shape", x, start=-1), e.const([-1]), axis=0)
    n = e.op("Shape", bias)
    integers = e.op("Slice", e.op("Reshape", turned, size), e.const([0]), n, e.const([1]))
    each = e.op("Reshape", e.op("Slice", scale, e.const([0]), e.const([1]), e.const([0])),
                e.const([-1]))
    columns = e.op("Slice", each, e.const([0]), n, e.const([0]))
    y = e.ms("MatMulIntegerToFloat", rounded, integers, e.float(1.0), columns, zero)
    y = e.op("Add", e.op("Mul", y, step), bias)
    y = e.op("Gelu", y, approximate="tanh") if gelu else y
    return str(e.op("Add", e.op("Mul", y, gain), residual))
