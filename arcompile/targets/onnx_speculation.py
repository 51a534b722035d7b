"""Drafts and their verification as ONNX nodes: see ops.speculation for what they mean."""

from __future__ import annotations

from functools import partial

from arcompile.ir import Node
from arcompile.ops.sampling import BLOCK
from arcompile.ops.speculation import COUPLINGS
from arcompile.targets.onnx_emit import DTYPES, Emitter, Nodes, lowers
from arcompile.targets.onnx_ops import is_f32
from arcompile.targets.onnx_sampling import column, pick, pick_by_block
from arcompile.targets.patterns import excess, one_hot


def _range_of(e: Nodes, x: str, axis: int) -> str:
    """0, 1, .. up to the size of an axis."""
    return e.once(("range", x, axis), lambda: e.op("Range", e.const(0), e.op(
        "Squeeze", e.op("Shape", x, start=axis, end=axis + 1), e.const([0])), e.const(1)))


@lowers("law")
def law(e: Emitter, n: Node, args: list[str]) -> str:
    return str(e.kernel("Law", _law, *args) if is_f32(n) else _law(e, *args))


def _law(e: Nodes, x: str, temperature: str) -> str:
    best = e.op("ArgMax", x, axis=-1, keepdims=1)
    one = e.op("Cast", e.op("Equal", _range_of(e, x, 2), best), to=DTYPES["f32"])
    warm = e.op("Greater", column(e, temperature), e.float(0.0))
    return str(e.op("Where", warm, e.op("Softmax", x, axis=-1), one))


@lowers("draw_from")
def draw_from(e: Emitter, n: Node, args: list[str]) -> str:
    size = n.args[0].type.shape[-1]
    assert isinstance(size, int)
    return _from(e, args[0], args[1], size)


def _from(e: Nodes, p: str, noise: str, size: int) -> str:
    u1, u2 = e.op("Split", noise, e.const([1, 1]), axis=2, outs=2)
    return pick(e, p, u2) if size <= BLOCK else pick_by_block(e, p, size, u1, u2)


@lowers("slide")
def slide(e: Emitter, n: Node, args: list[str]) -> str:
    x, shift, fill = args
    rank = n.args[0].type.rank
    guess = one_hot(e.g, n.args[2]) if e.kernels and rank == 3 else None
    if guess is None:
        return _slide(e, x, shift, fill, rank)
    return str(e.kernel("SlideLaws", _slide_laws, x, shift, e.names[guess]))


def _slide_laws(e: Nodes, x: str, shift: str, guess: str) -> str:
    same = e.op("Equal", _range_of(e, x, 2), e.op("Unsqueeze", guess, e.const([2])))
    return _slide(e, x, shift, e.op("Cast", same, to=DTYPES["f32"]), 3)


def _slide(e: Nodes, x: str, shift: str, fill: str, rank: int) -> str:
    """Rows by number out of both, one after the other: what is too far lies in the second."""
    at = e.op("Add", _range_of(e, fill, 1), e.op("Unsqueeze", shift, e.const([1])))
    here = e.op("Less", at, e.op("Shape", x, start=1, end=2))
    own = e.op("Where", here, at, e.const(0))
    moved = e.op("GatherND", x, e.op("Unsqueeze", own, e.const([-1])), batch_dims=1)
    for axis in range(2, rank):
        here = e.op("Unsqueeze", here, e.const([axis]))
    return str(e.op("Where", here, moved, fill))


@lowers("verify")
def verify(e: Emitter, n: Node, args: list[str]) -> list[str]:
    size, coupling = n.args[0].type.shape[-1], n.attrs["coupling"]
    assert isinstance(size, int)
    body = partial(_verify, size=size, coupling=coupling)
    if n.args[0].type.dtype != "f32":
        return body(e, *args[:7], "", *args[7:])
    q = excess(e.g, n.args[1], n.args[0]) if e.kernels else None
    how = e.const([COUPLINGS.index(coupling), int(q is not None)])
    rest = e.names[q] if q else args[1]
    made = e.kernel("VerifyShared" if args[7:] else "Verify", partial(body, less=q is not None),
                    args[0], rest, *args[2:7], how, *args[7:])
    return list(made)


def _verify(e: Nodes, p: str, rest: str, weight: str, draft: str, chance: str, noise: str,
            done: str, how: str, *gumbel: str, size: int, coupling: str,
            less: bool = False) -> list[str]:
    """less: `rest` is q, and what is left of p without it counts."""
    if less:
        rest = e.op("Relu", e.op("Sub", p, rest))
    slot = _range_of(e, draft, 1)
    kept = e.op("Or", e.op("Less", e.op("Squeeze", chance, e.const([2])), weight),
                e.op("Less", slot, e.op("Unsqueeze", done, e.const([1]))))
    first, accepted = _prefix(e, kept, slot)
    some = e.op("Greater", e.op("ReduceSum", rest, e.const([-1]), keepdims=1), e.float(0.0))
    rest = e.op("Where", some, rest, p)
    before, here = e.op("Less", slot, first), e.op("Equal", slot, first)
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


def _prefix(e: Nodes, kept: str, slot: str) -> tuple[str, str]:
    """(the first slot that is not kept, i64[b,1], or c; the tokens to commit, i64[b])."""
    count = e.op("Shape", kept, start=1, end=2)
    first = e.op("ReduceMin", e.op("Where", kept, count, slot), e.const([1]), keepdims=1)
    least = e.op("Min", e.op("Add", first, e.const(1)), count)
    return first, e.op("Squeeze", least, e.const([1]))
