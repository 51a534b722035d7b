"""Early exit: the first layers of a transformer, and its head. https://arxiv.org/abs/2404.16710"""

from __future__ import annotations

from dataclasses import replace

from arcompile import debug
from arcompile.errors import ArcError
from arcompile.ir import Graph, Node, Value, dce
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss

SUMS = {"add": 0, "residual_norm": 1}  # op -> which result is the sum


@register("shallow")
class Shallow(Pass):
    """Leave out all layers after the first `layers`. 0 leaves out none.

    For drafters (`draft{by='shallow{layers=4}'}`): a model that was not trained for it draws
    poorly.
    """

    keeps = "quality"
    layers: int = 0

    def __call__(self, p: Program) -> Program:
        if self.layers < 0:
            raise ArcError(f"pass shallow cannot keep {self.layers} layers")
        if not self.layers:
            return p
        cut: dict[str, Graph] = {}
        for g in p.graphs:
            try:
                cut[g.name] = _cut(g, self.layers)
            except Miss as miss:
                debug.log(4, f"miss shallow at {g.name}: {miss}")
        if not cut:
            raise ArcError(f"pass shallow finds no more than {self.layers} layers in {p.name}",
                           hint="`arcompile show` tells the layers; it takes fewer than all")
        return _without(replace(p, graphs=tuple(cut.get(g.name, g) for g in p.graphs)), p)


def _cut(g: Graph, layers: int) -> Graph:
    """The residual stream ends after so many layers, each two sums: attention, MLP."""
    x, logits = g.param("x"), g.result("logits")
    if x is None or logits is None:
        raise Miss("it makes no logits of x")
    sums = _stream(g, x)
    held = sum(n.op in ("attention", "decode_attention") for n in g.nodes)
    if len(sums) != 2 * held:
        raise Miss(f"{held} layers add {len(sums)} times")
    if layers >= held:
        raise Miss(f"it has {held} layers")
    last, early = sums[-1], sums[2 * layers - 1]
    changed = replace(last, args=(*early.args[:2], *last.args[2:]))
    kept = g.with_nodes(changed if n is last else n for n in g.nodes)
    reach = _ancestors(kept, logits)
    return dce(replace(kept, results=tuple(
        (k, v) for k, v in g.results if v is logits or v in reach or g.param(k) is None)))


def _stream(g: Graph, x: Value) -> list[Node]:
    """The sums that carry x through the layers, in order."""
    found: list[Node] = []
    while True:
        after = [n for n in g.users.get(x, ())
                 if n.op in SUMS and x in n.args[:2] and n.outs[SUMS[n.op]].type == x.type]
        if not after:
            return found
        found.append(after[0])
        x = after[0].outs[SUMS[after[0].op]]


def _ancestors(g: Graph, v: Value) -> set[Value]:
    """What v is computed from, with all results of the nodes on the way."""
    seen, todo = set[Value](), [v]
    while todo:
        n = g.producer.get(todo.pop())
        if n is None or n.outs[0] in seen:
            continue
        seen.update(n.outs)
        todo += n.args
    return seen


def _without(p: Program, old: Program) -> Program:
    """Without the inputs and states that only the layers left out had."""
    graphs = []
    for g in p.graphs:
        read = {a for n in g.nodes for a in n.args} | {v for _, v in g.results}
        graphs.append(replace(g, params=tuple(v for v in g.params if v in read)))
    used = {v.name for g in graphs for v in g.params} | {k for g in graphs for k, _ in g.results}
    had = {v.name for g in old.graphs for v in g.params}
    state = tuple((k, t) for k, t in p.state if k in used or k not in had)
    return replace(p, graphs=tuple(graphs), state=state)
