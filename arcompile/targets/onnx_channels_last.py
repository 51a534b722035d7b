"""Convolutions with channels last: kernels of ours, and what they stand for in standard ops.

A form that rounds activations leaves them as they are where no kernel of ours runs.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from arcompile.ir import Node
from arcompile.targets.onnx_emit import DTYPES, Emitter, Nodes, lowers
from arcompile.targets.onnx_ops import _group_norm

NAMES = {"f32": "F32", "bf16": "Bf16", "i8": "Int8"}  # of the weights -> of the kernel
LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
END = np.iinfo(np.int64).max


@lowers("conv_last", "norm_conv_last")
def conv_last(e: Emitter, n: Node, args: list[str]) -> str:
    w, norm = n.args[1].type, n.op == "norm_conv_last"
    twice = w.shape[0] == 4
    x, packed, scale, bias, *more = args
    affine, residual = (more[:2], more[2:]) if norm else ([], more)
    given = [x, packed, scale, bias, *(residual or [e.float([0.0])]), *affine]
    if norm:
        given += [e.const([n.attrs["groups"]]), e.float([n.attrs["eps"]])]
    body = partial(_conv, twice=twice, groups=n.attrs.get("groups", 0),
                   epsilon=n.attrs.get("eps", 0.0))
    name = f"{'Norm' * norm}{'Twice' * twice}Conv{NAMES[w.dtype]}"
    return str(e.kernel(name, body, *given))


def _conv(e: Nodes, x: str, packed: str, scale: str, bias: str, residual: str, *affine: str,
          twice: bool, groups: int, epsilon: float) -> str:
    first = e.op("Transpose", x, perm=FIRST)
    if affine:
        first = _group_norm(e, first, *affine[:2], shape=(1,) * 4, dtype="f32", groups=groups,
                            epsilon=epsilon, silu=True)
    w = _unpacked(e, packed, scale, first)
    y = _enlarged(e, first, w, bias) if twice else _same(e, first, w, bias)
    return str(e.op("Add", e.op("Transpose", y, perm=LAST), residual))


def _unpacked(e: Nodes, packed: str, scale: str, x: str) -> str:
    """[sets * columns, ci, k, k] of packed weights; x has the channels first."""
    turned = e.op("Transpose", e.op("Cast", packed, to=DTYPES["f32"]), perm=[0, 1, 5, 4, 6, 2, 3])
    size = e.op("Concat", e.const([-1]), e.op("Shape", x, start=1, end=2),
                e.op("Shape", packed, start=2, end=4), axis=0)
    each = e.op("Reshape", e.op("Slice", scale, e.const([0]), e.const([1]), e.const([1])),
                e.const([-1, 1, 1, 1]))
    return str(e.op("Mul", e.op("Reshape", turned, size), each))


def _same(e: Nodes, x: str, w: str, bias: str) -> str:
    own = e.op("Slice", w, e.const([0]), e.op("Shape", bias), e.const([0]))
    return str(e.op("Conv", x, own, bias, auto_pad="SAME_UPPER"))


def _enlarged(e: Nodes, x: str, w: str, bias: str) -> str:
    """Four convolutions of 2x2, whose results are the even and odd rows and columns."""
    y = e.op("Conv", x, w, pads=[1, 1, 1, 1])
    parts, co = e.op("Split", y, axis=1, num_outputs=4, outs=4), e.op("Shape", bias)
    found = []
    for i, part in enumerate(parts):
        a, b = divmod(i, 2)
        ends = e.op("Concat", co, e.const([END if a else -1, END if b else -1]), axis=0)
        found.append(e.op("Slice", part, e.const([0, a, b]), ends, e.const([1, 2, 3])))
    y = e.op("DepthToSpace", e.op("Concat", *found, axis=1), blocksize=2, mode="DCR")
    return str(e.op("Add", y, e.op("Reshape", bias, e.const([-1, 1, 1]))))
