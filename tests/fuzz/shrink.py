"""A failing graph made as small as it gets while it fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from fuzz.grow import inputs, weights

from arcompile.errors import ArcError
from arcompile.ir import Graph, Node, Value, dce, evaluate, verify

Fails = Callable[[Graph], str]  # "" where it does not, else what fails


def reduced(g: Graph, fails: Fails) -> Graph:
    """The smallest graph found whose failure starts as that of `g` does."""
    what = _kind(fails(g))
    assert what, "this graph does not fail"
    while (smaller := _step(g, fails, what)) is not None:
        g = smaller
    return g


def _kind(said: str) -> str:
    return said.partition(":")[0]


def _step(g: Graph, fails: Fails, what: str) -> Graph | None:
    for candidate in _smaller(g):
        try:
            verify(candidate)
        except ArcError:
            continue
        if _weight(candidate) < _weight(g) and _kind(fails(candidate)) == what:
            return candidate
    return None


def _weight(g: Graph) -> tuple[int, int, int]:
    return len(g.nodes), len(g.results), len(g.params) + len(g.weights)


def _smaller(g: Graph) -> Iterator[Graph]:
    for keep in g.results:
        yield _clean(g, results=[keep])
    for i in range(len(g.results)):
        yield _clean(g, results=[r for j, r in enumerate(g.results) if j != i])
    for n in reversed(g.nodes):  # cut above it: its result becomes an input
        yield _cut(g, n)
    for n in g.nodes:  # an operand in its place
        for a in n.args:
            if a.type == n.outs[0].type:
                yield _clean(g, swap={n.outs[0]: a})


def _cut(g: Graph, n: Node) -> Graph:
    with np.errstate(all="ignore"):
        try:
            made = evaluate(g.with_nodes(g.nodes, [(str(i), v) for i, v in enumerate(n.outs)]),
                            inputs(g), weights(g.weights))
        except (ArcError, ArithmeticError, LookupError, ValueError, TypeError):
            made = {}
    params, swap = list(g.params), {}
    for i, v in enumerate(n.outs):
        p = Value(f"{_stem(v, made.get(str(i)))}_cut{v.name}", v.type)
        params.append(p)
        swap[v] = p
    held = Graph(g.name, tuple(params), tuple(m for m in g.nodes if m is not n), g.results,
                 g.weights)
    return _clean(held, swap=swap)


def _stem(v: Value, value) -> str:
    """A name whose meaning (see grow.array) is like what the value was."""
    if value is None or not value.size:
        return "x"
    if v.type.dtype[0] in "iu" and value.min() >= 0:
        return f"below{int(value.max()) + 1}"
    return "above" if v.type.dtype == "f32" and value.min() > 0 else "x"


def _clean(g: Graph, results=None, swap=None) -> Graph:
    swap = swap or {}

    def final(v: Value) -> Value:
        while v in swap:
            v = swap[v]
        return v

    nodes = [Node(n.op, tuple(map(final, n.args)), n.outs, n.attrs) for n in g.nodes
             if not swap.keys() & {*n.outs}]
    kept = [(k, final(v)) for k, v in (g.results if results is None else results)]
    small = dce(g.with_nodes(nodes, kept))
    read = {a for n in small.nodes for a in n.args} | {v for _, v in small.results}
    return Graph(g.name, tuple(p for p in small.params if p in read), small.nodes, small.results,
                 small.weights)
