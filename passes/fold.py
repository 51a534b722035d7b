"""Constant folding: what depends on weights alone is computed when the engine is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from arcompile.ir import OPS, Builder, Graph, Node, Value, dce
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.program_text import FOLD
from arcompile.weights import used

# Layouts for kernels: padded, yet never made at run time.
PACKS = ("pack_conv", "narrow_conv", "pack_linear")


@register("fold")
class Fold(Pass):
    """Nodes over weights move into `Program.fold`; graphs read the result as a new weight.

    grow: how much larger a new weight may be than the weights it is made of, so that a broadcast
    stays where it is. small: a result of consts alone becomes a const of up to so many numbers.
    """

    grow: float = 1.0
    small: int = 16

    def __call__(self, p: Program) -> Program:
        made = _Made(p)
        new = p.on_graphs(lambda g: self._graph(g, made))
        return p if new is p else replace(new, fold=made.graph(new))

    def _graph(self, g: Graph, made: _Made) -> Graph:
        leaves = {w: made.leaves(w) for w in g.weights}  # of consts: none
        here, numbers = {w.name: w for w in g.weights}, dict[Value, Any]()
        pinned, gone, nodes = {v for _, v in g.results}, set[Value](), list[Node]()

        def read(a: Value) -> Value:
            w = made.weight(a, g.producer) if a in gone else a
            return here.setdefault(w.name, w) if a in gone else a

        for n in g.nodes:
            fixed = all(isinstance(d, int) for v in n.outs for d in v.type.shape)
            if fixed and leaves.keys() >= {*n.args} and pinned.isdisjoint(n.outs):
                made_of = {w for a in n.args for w in leaves[a]}
                leaves.update(dict.fromkeys(n.outs, tuple(made_of)))
                size, whole = (sum(v.type.nbytes() for v in vs) for vs in (n.outs, made_of))
                if made_of and (size <= self.grow * whole or n.op in PACKS):
                    gone.update(n.outs)
                    continue
                n = n if made_of else self._literal(n, numbers)
            args = tuple(map(read, n.args))
            nodes.append(n if args == n.args else replace(n, args=args))
        return g if tuple(nodes) == g.nodes else dce(g.with_nodes(nodes, weights=here.values()))

    def _literal(self, n: Node, numbers: dict[Value, Any]) -> Node:
        """A node over few known numbers, as a const."""
        t, known = n.outs[0].type, numbers.keys() >= {*n.args}
        if len(n.outs) > 1 or not 0 < t.size() <= self.small or not known:
            return n
        value = OPS[n.op].eval(*(numbers[a] for a in n.args), **n.attrs)[0]
        numbers[n.outs[0]] = value
        if not n.args or not np.isfinite(value).all():  # text has no literal for inf
            return n
        attrs = {"dtype": t.dtype, "value": value.tolist()}
        return Node("const", (), n.outs, attrs, f"{n.origin} > fold")


class _Made:
    """The graph of folded weights as it grows. Equal expressions are one value, of one name."""

    def __init__(self, p: Program):
        old = p.fold or Graph(FOLD, (), (), ())
        self.b = Builder(FOLD, taken=[v.name for v in old.values()])
        self.b.nodes += old.nodes
        self.b.weights.update({w.name: w for w in old.weights})
        self.values: dict[Any, tuple[Value, ...]] = {}  # expression -> its results
        self.called: dict[Value, tuple[str, tuple[Value, ...]]] = {}  # name to give, its weights
        self.called.update({w: (w.name, (w,)) for w in old.weights})
        for n in old.nodes:
            self._learn(n)
        self.results = {f"@{name}": v for name, v in old.results}
        self.weights = {v: Value(name, v.type) for name, v in self.results.items()}
        self.taken = {*used(p.graphs), *self.b.weights, *self.results}
        self.done: dict[Value, Value] = {}  # a graph's value -> the same here

    def _learn(self, n: Node) -> None:
        if known := [self.called[a] for a in n.args if a in self.called]:
            needs = tuple(dict.fromkeys(w for _, ws in known for w in ws))
            turned = n.op == "transpose" and n.attrs["perm"] == (1, 0)
            name = f"{known[0][0]}.T" if turned else f"{needs[0].name}.{n.op}"
            self.called.update(dict.fromkeys(n.outs, (name, needs)))
        self.values.setdefault(_expression(n.op, n.args, n.attrs), n.outs)

    def _weight(self, w: Value) -> Value:
        """What a graph's weight is here: the result of that name, or a weight to load."""
        v = self.results.get(w.name) or self.b.weight(w.name, w.type)
        self.called.setdefault(v, (w.name, (v,)))
        return v

    def leaves(self, w: Value) -> tuple[Value, ...]:
        """The loaded weights that a graph's weight is made of."""
        return self.called[self._weight(w)][1]

    def weight(self, v: Value, producer: dict[Value, Node]) -> Value:
        """The weight to read instead of v, which `producer` computes from weights."""
        if (x := self._value(v, producer)) not in self.weights:
            base, n = self.called[x][0], 1
            while (name := base if n == 1 else f"{base}.{n}") in self.taken:
                n += 1
            self.taken.add(name)
            self.weights[x] = Value(name, x.type)
        return self.weights[x]

    def _value(self, v: Value, producer: dict[Value, Node]) -> Value:
        if v.is_weight:
            return self._weight(v)
        if v not in self.done:
            n = producer[v]
            args = tuple(self._value(a, producer) for a in n.args)
            if (key := _expression(n.op, args, n.attrs)) not in self.values:
                self.b.origin = f"{n.origin} > fold"
                self.b.emit(n.op, *args, **n.attrs)
                self._learn(self.b.nodes[-1])
            self.done.update(zip(n.outs, self.values[key], strict=True))
        return self.done[v]

    def graph(self, p: Program) -> Graph | None:
        read = used(p.graphs)
        results = tuple((w.name[1:], v) for v, w in self.weights.items() if w.name in read)
        g = Graph(FOLD, (), tuple(self.b.nodes), results, tuple(self.b.weights.values()))
        return dce(g) if results else None


def _expression(op: str, args: tuple[Value, ...], attrs: Any) -> Any:
    return op, args, repr(sorted(attrs.items()))
