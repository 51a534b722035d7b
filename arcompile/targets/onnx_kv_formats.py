"""Caches in few bits as ONNX nodes: see ops.kv_formats for what they mean."""

from __future__ import annotations

from arcompile.ir import Node
from arcompile.ops.kv_formats import TINY
from arcompile.targets.onnx_emit import DTYPES, Emitter, lowers


@lowers("kv_quantise")
def kv_quantise(e: Emitter, n: Node, x: list[str]) -> list[str]:
    bits, group = n.attrs["bits"], n.attrs["group"]
    keep = [0] * (n.args[0].type.rank - 1)
    slots = n.attrs.get("slots", 1) > 1
    y = x[0] if slots else e.op("Reshape", x[0], e.const([*keep, -1, group]))
    axis = e.const([2 if slots else -1])
    low = e.op("ReduceMin", y, axis, keepdims=1)
    most = e.op("ReduceMax", y, axis, keepdims=1)
    step = e.op("Div", e.op("Sub", most, low), e.float(2**bits - 1))
    code = e.op("Round", e.op("Div", e.op("Sub", y, low), e.op("Max", step, e.float(TINY))))
    if bits == 4:
        pairs = e.op("Reshape", code, e.const([*keep, -1, 2]))
        code = e.op("ReduceSum", e.op("Mul", pairs, e.float([1, 16])), e.const([-1]), keepdims=0)
    codes = e.op("Cast", e.op("Reshape", code, e.const([*keep, -1])), to=DTYPES["u8"])
    e.memo["stored", x[0]] = codes  # what must be made before x can be let go of
    if slots:
        return [codes, step, low]
    return [codes, *(e.op("Squeeze", s, e.const([-1])) for s in (step, low))]


@lowers("kv_dequantise")
def kv_dequantise(e: Emitter, n: Node, x: list[str]) -> str:
    q, step, low = x
    keep = [0] * (n.args[0].type.rank - 1)
    groups = n.args[1].type.shape[-1]
    if n.args[0].type.shape[:-1] != n.args[1].type.shape[:-1]:
        return _by_channel(e, n, x)
    y = _codes(e, n, q, keep)
    apart = e.op("Reshape", y, e.const([*keep, groups, -1]))
    step, low = (e.op("Unsqueeze", s, e.const([-1])) for s in (step, low))
    return e.op("Reshape", e.op("Add", e.op("Mul", apart, step), low), e.const([*keep, -1]))


def _by_channel(e: Emitter, n: Node, x: list[str]) -> str:
    """Steps [r,g,S/n,e] of n slots each: a group of slots is a further axis."""
    slots, width = n.outs[0].type.shape[2:]
    groups = n.args[1].type.shape[2]
    y = _codes(e, n, x[0], [0, 0, 0])
    apart = e.op("Reshape", y, e.const([0, 0, groups, -1, width]))
    step, low = (e.op("Unsqueeze", s, e.const([3])) for s in x[1:])
    return e.op("Reshape", e.op("Add", e.op("Mul", apart, step), low),
                e.const([0, 0, slots, width]))


def _codes(e: Emitter, n: Node, q: str, keep: list[int]) -> str:
    y = e.op("Cast", q, to=DTYPES["f32"])
    if n.attrs["bits"] == 4:
        high = e.op("Floor", e.op("Mul", y, e.float(1 / 16)))
        first = e.op("Sub", y, e.op("Mul", high, e.float(16)))
        y = e.op("Concat", *(e.op("Unsqueeze", h, e.const([-1])) for h in (first, high)), axis=-1)
        y = e.op("Reshape", y, e.const([*keep, -1]))
    return str(y)
