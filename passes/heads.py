"""The heads of an attention in another order, by the weights before and behind it: exact.

A group of heads that a policy treats alike is then one slice, and one dense attention. Weights are
turned when the engine is built; where what makes a query is not understood, the query itself is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from arcompile.ir import Builder, Graph, Node, Value

Order = tuple[int, ...]  # old places of blocks, in their new order


def blocks(b: Builder, v: Value, axis: int, order: Order) -> Value:
    """v with the blocks of an axis in another order; v itself when they are in order."""
    if order == tuple(range(len(order))):
        return v
    size = v.type.shape[axis]
    assert isinstance(size, int)
    width = size // len(order)
    parts = [b.slice(v, axis=axis, start=r[0] * width, stop=(r[-1] + 1) * width, step=1)
             for r in _runs(order)]
    found: Value = b.concat(*parts, axis=axis)
    return found


def _runs(order: Sequence[int]) -> list[list[int]]:
    """Neighbours that stay neighbours are one slice."""
    runs = [[order[0]]]
    for last, here in pairwise(order):
        runs[-1].append(here) if here == last + 1 else runs.append([here])
    return runs


class Turned:
    """Values of a graph, computed anew with their heads in another order.

    A value has its blocks along its last axis, [..,n*e], or along the one before, [..,n,e].
    """

    def __init__(self, b: Builder, g: Graph):
        self.b, self.g = b, g
        self.made: dict[tuple[Value, Order], Value] = {}

    def __call__(self, v: Value, order: Order) -> Value:
        if order == tuple(range(len(order))):
            return v
        if (v, order) not in self.made:
            n = self.g.producer.get(v)
            how = TURNS.get(n.op) if n is not None else None
            self.made[v, order] = v  # guards nothing but a cycle, which a graph has not
            found = how(self, n, v, order) if how and n is not None else None
            self.made[v, order] = blocks(self.b, v, -1, order) if found is None else found
        return self.made[v, order]

    def axis(self, v: Value, order: Order) -> int:
        """Of the blocks, from the end."""
        return -2 if v.type.rank == 4 and v.type.shape[-2] == len(order) else -1


def _emit(t: Turned, n: Node, *args: Value) -> Value:
    t.b.origin = n.origin
    return t.b.emit(n.op, *args, **n.attrs)[0]


def _reshape(t: Turned, n: Node, v: Value, order: Order) -> Value | None:
    """Between [r,s,h*e] and [r,s,h,e]."""
    x = n.args[0]
    for flat, apart in ((x, v), (v, x)):
        a, f = apart.type.shape, flat.type.shape
        if len(a) == 4 and len(f) == 3 and a[:2] == f[:2] and a[2] == len(order):
            return _emit(t, n, t(x, order))
    return None


def _norm(t: Turned, n: Node, v: Value, order: Order) -> Value | None:
    """Of each head by itself."""
    own = t.axis(v, order) == -2 and n.attrs.get("axis", 3) in (3, -1)
    if not own or any(w.type.shape != v.type.shape[-1:] for w in n.args[1:]):
        return None
    return _emit(t, n, t(n.args[0], order), *n.args[1:])


def _rope(t: Turned, n: Node, v: Value, order: Order) -> Value | None:
    return _emit(t, n, t(n.args[0], order), *n.args[1:]) if (
        n.attrs["heads"] == len(order)) else None


def _pointwise(t: Turned, n: Node, v: Value, order: Order) -> Value | None:
    """Of activations of one shape, and of weights that are spread over them."""
    axis, args = t.axis(v, order), []
    for a in n.args:
        fixed = all(isinstance(d, int) for d in a.type.shape)
        if a.type.shape == v.type.shape:
            args.append(t(a, order))
        elif not fixed:
            return None
        elif a.type.rank < -axis or a.type.shape[axis] == 1:
            args.append(a)
        elif a.type.shape[axis] == v.type.shape[axis]:
            args.append(blocks(t.b, a, axis, order))
        else:
            return None
    return _emit(t, n, *args)


def _split(t: Turned, n: Node, v: Value, order: Order) -> Value | None:
    """A product that holds query, key and value one after the other, turned in all three."""
    if n.attrs["axis"] != 2 or v.type.rank != 3 or len(set(n.attrs["sizes"])) > 1:
        return None
    every = tuple(i + k * len(order) for k in range(len(n.outs)) for i in order)
    t.b.origin = n.origin
    made = t.b.emit("split", t(n.args[0], every), **n.attrs)
    t.made.update({(old, order): new for old, new in zip(n.outs, made, strict=True)})
    return made[n.outs.index(v)]


def _matmul(t: Turned, n: Node, v: Value, order: Order) -> Value | None:
    x, w = n.args
    if not w.is_weight or w.type.rank != 2:
        return None
    return _emit(t, n, x, blocks(t.b, w, -1, order))


TURNS: dict[str, Callable[[Turned, Node, Value, Order], Value | None]] = {
    "reshape": _reshape, "rope": _rope, "split": _split, "matmul": _matmul,
    **dict.fromkeys(("l2_norm", "rms_norm", "layer_norm"), _norm),
    **dict.fromkeys(("add", "sub", "mul", "div"), _pointwise),
}


def readers(b: Builder, g: Graph, out: Value, order: Order) -> dict[Node, tuple[Value, ...]]:
    """New operands for the products that read an attention's result, so that they take it turned;
    `out` stands for it. Nothing when someone else reads it too."""
    users = g.users.get(out, [])
    fits = all(n.op == "matmul" and n.args[0] is out and n.args[1].is_weight
               and n.args[1].type.rank == 2 for n in users)
    if not fits or any(v is out for _, v in g.results):
        return {}
    return {n: (out, blocks(b, n.args[1], 0, order)) for n in users}


def inverse(order: Order) -> Order:
    return tuple(order.index(i) for i in range(len(order)))
