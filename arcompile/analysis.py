"""Views of a graph: as networkx, as a dot picture, by longest path. Needs networkx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import networkx as nx  # type: ignore[import-untyped]

from arcompile.cost import constants, node_cost
from arcompile.ir import Graph, Node

START = "start"  # the vertex before every node without operands: the root of `dominators`


def as_networkx(g: Graph) -> nx.MultiDiGraph:
    """Nodes as vertices, values as edges (`value`); params and weights are vertices too."""
    out = nx.MultiDiGraph(name=g.name)
    for v in (*g.params, *g.weights):
        out.add_node(v, label=str(v))
    for n in g.nodes:
        out.add_node(n, label=n.op)
        for a in n.args:
            out.add_edge(g.producer.get(a, a), n, value=a)
    return out


# --- paths ---------------------------------------------------------------------------------------


def critical_path(g: Graph, sizes: Mapping[str, int] | None = None,
                  weight: Callable[[Node], float] | None = None) -> list[Node]:
    """The dependent chain of nodes whose weights (flops, unless given) add up to the most."""
    cost = weight or (lambda n: node_cost(n, sizes or {}).flops)
    best: dict[Node, float] = {}
    came: dict[Node, Node | None] = {}
    for n in g.nodes:
        before = {g.producer[a] for a in n.args if a in g.producer}
        came[n] = max(before, key=best.__getitem__, default=None)
        best[n] = cost(n) + (best[came[n]] if came[n] else 0)  # type: ignore[index]
    at = max(best, key=best.__getitem__, default=None)
    path = []
    while at is not None:
        path.append(at)
        at = came[at]
    return path[::-1]


def dominators(g: Graph) -> dict[Node, Node | None]:
    """The last node that every path from the parameters to a node runs through, None when none.

    Nodes over weights alone take no part.
    """
    fixed, graph = constants(g), nx.DiGraph()
    for n in (n for n in g.nodes if n.outs[0] not in fixed):
        graph.add_node(n)
        for a in n.args:
            if a not in fixed:
                graph.add_edge(g.producer.get(a, START), n)
        if not graph.in_degree(n):
            graph.add_edge(START, n)
    found = nx.immediate_dominators(graph, START) if graph else {}
    return {n: at if isinstance(at := found[n], Node) else None for n in graph if n != START}


# --- picture -------------------------------------------------------------------------------------


def dot(g: Graph, weights: bool = False) -> str:
    """Graphviz text: ops with the types they make; weights are left out, or light grey."""
    names: dict[Any, str] = {}
    lines = [f"digraph {_quote(g.name)} {{", '  node [shape=box, fontname="monospace"]']

    def vertex(x: Any, label: str, style: str = "") -> None:
        names[x] = f"n{len(names)}"
        lines.append(f"  {names[x]} [label={_quote(label)}{style}]")

    for p in g.params:
        vertex(p, f"{p}\n{p.type}", ", shape=ellipse")
    for w in g.weights if weights else ():
        vertex(w, f"{w}\n{w.type}", ', color=lightgrey, fontcolor="grey60"')
    for n in g.nodes:
        vertex(n, "\n".join([n.op, *(str(v.type) for v in n.outs)]))
        for a in n.args:
            if (source := g.producer.get(a, a)) in names:
                grey = " [color=lightgrey]" if a.is_weight else ""
                lines.append(f"  {names[source]} -> {names[n]}{grey}")
    for name, v in g.results:
        vertex((name,), name, ", shape=ellipse")
        if (source := g.producer.get(v, v)) in names:
            lines.append(f"  {names[source]} -> {names[(name,)]}")
    return "\n".join([*lines, "}"])


def _quote(text: str) -> str:
    body = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{body}"'
