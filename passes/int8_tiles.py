"""Linear layers of 8-bit integers over many rows: one kernel rounds the rows, multiplies tile by
tile and does what follows, a bias, gelu, a gain and a residual, before a tile leaves the registers.
https://arxiv.org/abs/1712.05877"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from arcompile import debug
from arcompile.ir import Builder, Graph, Node, Value
from arcompile.passes.fold import Fold
from arcompile.passes.linears import Use
from arcompile.passes.mixed import _runs, rows
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss


@register("int8-tiles")
class Int8Tiles(Pass):
    """After `int8`: products that mostly meet more than `few` rows at a time.

    Below, reading the weights is what takes time, and other kernels do that.
    """

    few: int = 8

    def __call__(self, p: Program) -> Program:
        runs = _runs(p, 1)
        new = p.on_graphs(lambda g: _Layers(g, self._many(g, runs)).graph())
        return p if new is p else Fold()(new)

    def _many(self, g: Graph, runs: object) -> set[Node]:
        found = set()
        for n in g.nodes:
            if n.op != "matmul_int8":
                continue
            met = rows([Use(g, n)], runs)  # type: ignore[arg-type]
            try:
                _check(n, met, self.few)
                found.add(n)
            except Miss as miss:
                debug.log(4, f"miss int8-tiles at {n.outs[0]}: {miss}")
        return found


def _check(n: Node, met: Counter[int], few: int) -> None:
    _, _, w, scale = n.args
    if not (w.is_weight and scale.is_weight):
        raise Miss(f"{w} or {scale} is not a weight; run fold first")
    k = w.type.shape[0]
    if not isinstance(k, int) or k % 4:
        raise Miss(f"{w.type}: words of four need a multiple of 4 rows")
    half, seen = sum(met.values()) / 2, 0
    median = 0
    for count in sorted(met):
        median, seen = count, seen + met[count]
        if seen >= half:
            break
    if median <= few:
        raise Miss(f"it mostly meets {median} rows, and few={few}")


class _Layers:
    """One graph, and the products of it that are to become layers."""

    def __init__(self, g: Graph, many: set[Node]):
        self.g, self.many = g, many
        self.results = {v for _, v in g.results}
        self.b = Builder(g.name, taken=[v.name for v in g.values()])

    def graph(self) -> Graph:
        if not self.many:
            return self.g
        last: dict[Node, tuple[Node, list[Node]]] = {}  # where a layer ends -> product, all of it
        for n in self.many:
            chain = self._chain(n)
            last[chain[-1]] = n, chain
        gone = {m for _, chain in last.values() for m in chain}
        nodes: list[Node] = []
        for n in self.g.nodes:
            if n in last:
                nodes += self._layer(*last[n])
            elif n not in gone:
                nodes.append(n)
        return self.g.with_nodes(nodes, weights=tuple(dict.fromkeys(
            (*self.g.weights, *self.b.weights.values()))))

    def _next(self, v: Value, op: str) -> Node | None:
        """The one reader of v, where it is this op."""
        users = [*self.g.users.get(v, ())]
        alone = len(users) == 1 and v not in self.results
        return users[0] if alone and users[0].op == op else None

    def _chain(self, n: Node) -> list[Node]:
        """The product, then what follows it: bias, gelu, gain and residual."""
        chain, v = [n], n.outs[0]
        add = self._next(v, "add")
        if add is not None and _other(add, v).is_weight and _other(add, v).type.rank == 1:
            chain, v = [*chain, add], add.outs[0]
        gelu = self._next(v, "gelu")
        if gelu is not None and gelu.attrs.get("approximate", True):
            chain, v = [*chain, gelu], gelu.outs[0]
        gain = self._next(v, "mul")
        total = self._next(gain.outs[0], "add") if gain is not None else None
        if gain is None or total is None:
            return chain
        by, onto = _other(gain, v), _other(total, gain.outs[0])
        t = v.type
        fits = t.rank == 3 and onto.type == t and by.type.shape == (t.shape[0], 1, t.shape[-1])
        return [*chain, gain, total] if fits else chain

    def _layer(self, n: Node, chain: list[Node]) -> list[Node]:
        self.b.origin = f"{n.origin} > int8-tiles"
        q, _, w, scale = n.args
        x = self.g.producer[q].args[0]
        size, at = w.type.shape[1], n.outs[0]
        packed = self.b.pack_linear(w, scale)
        bias, gelu = None, False
        more: list[Value] = []
        for m in chain[1:]:
            if m.op == "gelu":
                gelu = True
            elif m.op == "add" and bias is None and not more and _other(m, at).is_weight:
                bias = _other(m, at)
            else:
                more.append(_other(m, at))
            at = m.outs[0]
        if bias is None:
            bias = self.b.full(shape=(size,), value=0.0, dtype="f32")
        self.b.linear_int8(x, *packed, bias, *more, **({"gelu": True} if gelu else {}))
        *before, made = self.b.take()
        return [*before, replace(made, outs=chain[-1].outs)]  # the old value keeps its name


def _other(n: Node, v: Value) -> Value:
    return n.args[1] if n.args[0] is v else n.args[0]
