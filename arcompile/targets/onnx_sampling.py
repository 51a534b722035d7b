"""The sampling chain as ONNX nodes: see ops.sampling for what it means."""

from __future__ import annotations

from functools import partial

import numpy as np

from arcompile.ir import Node
from arcompile.ops.sampling import BLOCK
from arcompile.targets.onnx_emit import DTYPES, Emitter, Nodes, lowers
from arcompile.targets.onnx_ops import END, is_f32
from arcompile.targets.patterns import guided


def column(e: Nodes, x: str) -> str:
    """[b] -> [b,1,1]"""
    return e.once(("column", x), lambda: e.op("Unsqueeze", x, e.const([1, 2])))


@lowers("filter_logits")
def filter_logits(e: Emitter, n: Node, args: list[str]) -> str:
    if n.args[0].type.dtype != "f32":
        return _filter(e, *args)
    if e.kernels and (guide := guided(e.g, n.args[0])) and guide.args[3].type.rank == 3:
        given = [e.names[v] for v in guide.args]
        return str(e.kernel("GuidedFilter", _guided_filter, *given, *args[1:]))
    return str(e.kernel("FilterLogits", _filter, *args))


def _guided_filter(e: Nodes, logits: str, row: str, null_row: str, more: str, *told: str) -> str:
    own, null = (e.op("Gather", logits, r, axis=0) for r in (row, null_row))
    x = e.op("Add", own, e.op("Mul", more, e.op("Sub", own, null)))
    return _filter(e, x, *told)


def _filter(e: Nodes, x: str, temperature: str, top_k: str, top_p: str, most: str) -> str:
    """See ops.sampling.filter_logits; TopK sorts no more than the request needs."""
    x = e.op("Div", x, column(e, e.op("Max", temperature, e.float(1e-5))))
    low, high = e.float(-np.inf), e.float(np.inf)
    best, _ = e.op("TopK", x, most, axis=-1, outs=2)
    last = e.op("Sub", most, e.const([1]))
    at = e.op("Max", e.op("Min", e.op("Sub", top_k, e.const([1])), last), e.const([0]))
    lead = e.op("Concat", e.op("Shape", x, start=0, end=2), e.const([1]), axis=0)
    kth = e.op("GatherElements", best, e.op("Expand", column(e, at), lead), axis=-1)
    wants_k = e.op("Greater", column(e, top_k), e.const(0))
    floor = e.op("Where", wants_k, kth, low)
    inside = e.op("GreaterOrEqual", best, floor)
    peak = e.op("Slice", best, e.const([0]), e.const([1]), e.const([2]))
    mass = e.op("Where", inside, e.op("Exp", e.op("Sub", best, peak)), e.float(0.0))
    p = e.op("Div", mass, e.op("ReduceSum", mass, e.const([-1]), keepdims=1))
    before = e.op("CumSum", p, e.const(-1), exclusive=1)
    kept = e.op("And", e.op("LessOrEqual", before, column(e, top_p)), inside)
    edge = e.op("ReduceMin", e.op("Where", kept, best, high), e.const([-1]), keepdims=1)
    wants_p = e.op("Less", column(e, top_p), e.float(1.0))
    floor = e.op("Where", wants_p, e.op("Max", floor, edge), floor)
    return str(e.op("Where", e.op("GreaterOrEqual", x, floor), x, low))


@lowers("draw")
def draw(e: Emitter, n: Node, args: list[str]) -> str:
    size = n.args[0].type.shape[-1]
    assert isinstance(size, int)
    body = partial(_draw, size=size)
    return str(e.kernel("Draw", body, *args) if is_f32(n) else body(e, *args))


def _draw(e: Nodes, x: str, noise: str, temperature: str, size: int) -> str:
    """See ops.sampling.draw: a block of 128 tokens, then a token in it."""
    p = e.op("Exp", e.op("Sub", x, e.op("ReduceMax", x, e.const([-1]), keepdims=1)))
    u1, u2 = e.op("Split", noise, e.const([1, 1]), axis=2, outs=2)
    token = pick(e, p, u2) if size <= BLOCK else pick_by_block(e, p, size, u1, u2)
    warm = e.op("Greater", e.op("Unsqueeze", temperature, e.const([1])), e.float(0.0))
    return str(e.op("Where", warm, token, e.op("ArgMax", x, axis=-1, keepdims=0)))


def pick_by_block(e: Nodes, p: str, size: int, u1: str, u2: str) -> str:
    if size % BLOCK:
        p = e.op("Pad", p, e.const([0, 0, 0, 0, 0, -size % BLOCK]), e.float(0.0))
    p = e.op("Reshape", p, e.const([0, 0, -(-size // BLOCK), BLOCK]))
    block = pick(e, e.op("ReduceSum", p, e.const([-1]), keepdims=0), u1)
    inner = e.op("GatherND", p, e.op("Unsqueeze", block, e.const([-1])), batch_dims=2)
    return str(e.op("Add", e.op("Mul", block, e.const(BLOCK)), pick(e, inner, u2)))


def pick(e: Nodes, p: str, u: str) -> str:
    total = e.op("CumSum", p, e.const(-1))
    whole = e.op("Slice", total, e.const([-1]), e.const([END]), e.const([2]))
    past = e.op("Greater", total, e.op("Mul", u, whole))
    return str(e.op("ArgMax", e.op("Cast", past, to=DTYPES["f32"]), axis=-1, keepdims=0))
