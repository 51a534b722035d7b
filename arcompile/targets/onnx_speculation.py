"""Drafts and their verification as ONNX nodes: see ops.speculation for what they mean."""

from __future__ import annotations

from arcompile.ir import Node
from arcompile.ops.sampling import BLOCK
from arcompile.targets.onnx_emit import DTYPES, Emitter, lowers
from arcompile.targets.onnx_sampling import column, pick, pick_by_block


def _range_of(e: Emitter, x: str, axis: int) -> str:
    """0, 1, .. up to the size of an axis."""
    return e.once(("range", x, axis), lambda: e.op("Range", e.const(0), e.op(
        "Squeeze", e.op("Shape", x, start=axis, end=axis + 1), e.const([0])), e.const(1)))


@lowers("law")
def law(e: Emitter, n: Node, args: list[str]) -> str:
    x, temperature = args
    best = e.op("ArgMax", x, axis=-1, keepdims=1)
    one = e.op("Cast", e.op("Equal", _range_of(e, x, 2), best), to=DTYPES["f32"])
    warm = e.op("Greater", column(e, temperature), e.float(0.0))
    return e.op("Where", warm, e.op("Softmax", x, axis=-1), one)


@lowers("draw_from")
def draw_from(e: Emitter, n: Node, args: list[str]) -> str:
    size = n.args[0].type.shape[-1]
    assert isinstance(size, int)
    return _from(e, args[0], args[1], size)


def _from(e: Emitter, p: str, noise: str, size: int) -> str:
    u1, u2 = e.op("Split", noise, e.const([1, 1]), axis=2, outs=2)
    return pick(e, p, u2) if size <= BLOCK else pick_by_block(e, p, size, u1, u2)


@lowers("slide")
def slide(e: Emitter, n: Node, args: list[str]) -> str:
    """Rows by number out of both, one after the other: what is too far lies in the second."""
    x, shift, fill = args
    at = e.op("Add", _range_of(e, fill, 1), e.op("Unsqueeze", shift, e.const([1])))
    here = e.op("Less", at, e.op("Shape", x, start=1, end=2))
    own = e.op("Where", here, at, e.const(0))
    moved = e.op("GatherND", x, e.op("Unsqueeze", own, e.const([-1])), batch_dims=1)
    for axis in range(2, n.args[0].type.rank):
        here = e.op("Unsqueeze", here, e.const([axis]))
    return e.op("Where", here, moved, fill)


@lowers("verify")
def verify(e: Emitter, n: Node, args: list[str]) -> list[str]:
    p, rest, weight, draft, chance, noise, done, *gumbel = args
    size = n.args[0].type.shape[-1]
    assert isinstance(size, int)
    slot = _range_of(e, draft, 1)
    kept = e.op("Or", e.op("Less", e.op("Squeeze", chance, e.const([2])), weight),
                e.op("Less", slot, e.op("Unsqueeze", done, e.const([1]))))
    first, accepted = _prefix(e, kept, slot)
    some = e.op("Greater", e.op("ReduceSum", rest, e.const([-1]), keepdims=1), e.float(0.0))
    rest = e.op("Where", some, rest, p)
    before, here = e.op("Less", slot, first), e.op("Equal", slot, first)
    coupling = n.attrs["coupling"]
    if coupling == "independent":
        rest = e.op("Where", e.op("Unsqueeze", here, e.const([2])), rest, p)
    token = _from(e, rest, noise, size)
    if coupling == "gumbel":
        shared = e.op("ArgMax", e.op("Add", e.op("Log", p), gumbel[0]), axis=-1, keepdims=0)
        token = e.op("Where", here, token, shared)
    keeps = kept if coupling == "maximal" else before
    return [e.op("Where", keeps, draft, token), accepted]


@lowers("agree")
def agree(e: Emitter, n: Node, args: list[str]) -> list[str]:
    token, draft, done = args
    slot = _range_of(e, draft, 1)
    old = e.op("Less", slot, e.op("Unsqueeze", done, e.const([1])))
    token = e.op("Where", old, draft, token)
    return [token, _prefix(e, e.op("Equal", token, draft), slot)[1]]


def _prefix(e: Emitter, kept: str, slot: str) -> tuple[str, str]:
    """(the first slot that is not kept, i64[b,1], or c; the tokens to commit, i64[b])."""
    count = e.op("Shape", kept, start=1, end=2)
    first = e.op("ReduceMin", e.op("Where", kept, count, slot), e.const([1]), keepdims=1)
    least = e.op("Min", e.op("Add", first, e.const(1)), count)
    return first, e.op("Squeeze", least, e.const([1]))
