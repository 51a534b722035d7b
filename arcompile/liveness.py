"""What of a graph is in memory at the same time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from arcompile.cost import constants
from arcompile.ir import Graph, Node, Value


@dataclass(frozen=True)
class Live:
    """What is in memory while `node` runs: its operands, its results, and what is read later."""

    node: Node
    values: tuple[Value, ...]
    bytes: int


def liveness(g: Graph, sizes: Mapping[str, int] | None = None) -> list[Live]:
    """Per node, the live values and their bytes. Weights and what they fold to do not count."""
    fixed = constants(g)
    held = {v: v.type.nbytes(sizes) for v in g.values() if v not in fixed}
    last = {a: i for i, n in enumerate(g.nodes) for a in n.args}
    last.update({v: len(g.nodes) for _, v in g.results})
    live = dict.fromkeys(p for p in g.params if p in last)
    found = []
    for i, n in enumerate(g.nodes):
        live.update(dict.fromkeys(v for v in n.outs if v in held))
        found.append(Live(n, tuple(live), sum(held[v] for v in live)))
        for v in [v for v in live if last.get(v, i) <= i]:
            del live[v]
    return found


def peak(g: Graph, sizes: Mapping[str, int] | None = None) -> Live | None:
    """The node while which most bytes are live; None for a graph without nodes."""
    return max(liveness(g, sizes), key=lambda x: x.bytes, default=None)
