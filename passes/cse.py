"""Compute equal things once: common subexpression elimination by hash-consing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from arcompile.ir import OPS, Graph, Node, Value
from arcompile.pipeline import Pass, register
from arcompile.program import Program


@register("cse")
class Cse(Pass):
    """Nodes of equal op, operands and attributes become one: ops are pure."""

    def __call__(self, p: Program) -> Program:
        return p.on_graphs(_graph)


def _graph(g: Graph) -> Graph:
    seen: dict[Any, Node] = {}
    swap: dict[Value, Value] = {}
    nodes: list[Node] = []
    for n in g.nodes:
        args = tuple(swap.get(a, a) for a in n.args)
        order = tuple(sorted(args, key=id)) if OPS[n.op].commutes else args
        key = (n.op, order, repr(sorted(n.attrs.items())))
        if key in seen:
            swap.update(zip(n.outs, seen[key].outs, strict=True))
            continue
        seen[key] = n if args == n.args else replace(n, args=args)
        nodes.append(seen[key])
    if not swap:
        return g
    return g.with_nodes(nodes, [(name, swap.get(v, v)) for name, v in g.results])
