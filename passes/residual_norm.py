"""Add the residual and normalise the sum in one pass over it. https://arxiv.org/abs/1910.07467"""

from __future__ import annotations

from arcompile import debug
from arcompile.ir import Graph, Node
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss


@register("residual-norm")
class ResidualNorm(Pass):
    """rms_norm(x + y) with its sum becomes residual_norm(x, y), which gives norm and sum."""

    def __call__(self, p: Program) -> Program:
        return p.on_graphs(_graph)


def _graph(g: Graph) -> Graph:
    fused: dict[Node, Node] = {}  # the norm -> what replaces it
    sums: set[Node] = set()
    for n in g.nodes:
        add = g.producer.get(n.args[0]) if n.op == "rms_norm" else None
        if add is None or add.op != "add":
            continue
        try:
            _check(g, add, n)
        except Miss as miss:
            debug.log(4, f"miss residual-norm at {n.outs[0]}: {miss}")
            continue
        sums.add(add)
        fused[n] = Node("residual_norm", (*add.args, *n.args[1:]), (*n.outs, *add.outs), n.attrs,
                        f"{n.origin} > residual-norm")
    if not fused:
        return g
    return g.with_nodes(fused.get(n, n) for n in g.nodes if n not in sums)


def _check(g: Graph, add: Node, norm: Node) -> None:
    (x, y), total = add.args, add.outs[0]
    if x.type != y.type:
        raise Miss(f"the sum broadcasts {x.type} and {y.type}")
    readers = g.users[total]
    if readers[0] is not norm:
        raise Miss(f"{readers[0].outs[0]} reads the sum before the norm does")
    if len(readers) == 1 and all(v is not total for _, v in g.results):
        raise Miss("nobody else reads the sum")
