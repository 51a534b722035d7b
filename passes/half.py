"""Floats of sixteen bits, for GPUs: products and what lies between them.

https://arxiv.org/abs/1710.03740 (mixed precision): products in 16 bits with f32 accumulators, and
f32 where a sum of many steps or a law over tokens is made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from arcompile.errors import ArcError, IRError, did_you_mean
from arcompile.ir import OPS, Builder, Graph, Node, Type, Value
from arcompile.passes.fold import Fold
from arcompile.pipeline import Keeps, Pass, register
from arcompile.program import Program

PRODUCTS = {"matmul", "matmul_blocks", "matmul_columns", "conv2d", "attention",
            "decode_attention"}
CACHES = {"cache_append": (0,), "attention": (1, 2), "decode_attention": (3, 4)}  # operands
DTYPES = ("f32", "f16", "bf16")


@register("half")
class Half(Pass):
    """Products, and what lies between two of them, in 16-bit floats; their weights and caches too.

    What comes before the first product of a graph (embeddings of time, noise) and after the last
    one (guidance, sampling, a sampler's next latent) stays f32. dtype: f16, bf16, or f32 to change
    nothing.
    """

    keeps: ClassVar[Keeps] = "quality"

    dtype: str = "f16"

    def __call__(self, p: Program) -> Program:
        if self.dtype not in DTYPES:
            raise ArcError(f"pass half: no dtype {self.dtype!r}",
                           hint=did_you_mean(self.dtype, DTYPES))
        folded = Fold()(p) if self.dtype != "f32" else p
        if self.dtype == "f32" or not any(_wide(n) for g in folded.graphs for n in g.nodes):
            return p
        caches = {name for g in folded.graphs for name in _caches(g)}
        new = folded.on_graphs(lambda g: _Halved(g, self.dtype, caches).graph())
        state = tuple((k, replace(t, dtype=self.dtype) if k in caches else t)
                      for k, t in folded.state)
        return Fold()(replace(new, state=state))


def _wide(n: Node) -> bool:
    return n.op in PRODUCTS and n.outs[0].type.dtype == "f32"


def _caches(g: Graph) -> set[str]:
    """Parameters that are caches of keys or values."""
    read = {n.args[i] for n in g.nodes for i in CACHES.get(n.op, ()) if n.args[i].type.rank == 4}
    names = {p.name for p in g.params if p in read and p.type.dtype == "f32"}
    return names & {name for name, _ in g.results}


def _between(g: Graph) -> set[Node]:
    """Products, and nodes that depend on one and lead to one."""
    after: set[Value] = set()
    late: set[Node] = set()
    for n in g.nodes:
        if _wide(n) or not after.isdisjoint(n.args):
            after.update(n.outs)
            late.add(n)
    needed: set[Value] = set()
    found: set[Node] = set()
    for n in reversed(g.nodes):
        if _wide(n) or not needed.isdisjoint(n.outs):
            needed.update(n.args)
            found.update({n} & late)
    return found


class _Halved:
    """One graph, built anew with casts where the two widths meet."""

    def __init__(self, g: Graph, dtype: str, caches: set[str]):
        self.g, self.dtype = g, dtype
        self.b = Builder(g.name, taken=[v.name for v in g.values()])
        self.inside = _between(g)
        self.now: dict[Value, Value] = {}  # old value -> what stands for it
        self.casts: dict[tuple[Value, str], Value] = {}
        self.params = tuple(self._param(p, caches) for p in g.params)
        self.nodes: list[Node] = []

    def _param(self, p: Value, caches: set[str]) -> Value:
        if p.name not in caches:
            return p
        self.now[p] = Value(p.name, replace(p.type, dtype=self.dtype))
        return self.now[p]

    def graph(self) -> Graph:
        for n in self.g.nodes:
            self._node(n)
        states = {p.name: p.type.dtype for p in self.params}
        results = [(name, self._as(self._new(v), states.get(name, v.type.dtype)))
                   for name, v in self.g.results]
        self.nodes += self.b.take()
        return replace(self.g, params=self.params, nodes=tuple(self.nodes),
                       results=tuple(results))

    def _new(self, v: Value) -> Value:
        return self.now.get(v, v)

    def _as(self, v: Value, dtype: str) -> Value:
        """v, cast once for all who want it so. Only floats are cast."""
        if v.type.dtype == dtype or v.type.dtype not in DTYPES:
            return v
        if (v, dtype) not in self.casts:
            self.casts[v, dtype] = self.b.cast(v, dtype=dtype)
        return self.casts[v, dtype]

    def _node(self, n: Node) -> None:
        cached = n.op == "cache_append" and self._new(n.args[0]).type.dtype == self.dtype
        width = self.dtype if n in self.inside or cached else "f32"
        self.b.origin = n.origin + " > half"
        args = tuple(self._as(self._new(a), width) for a in n.args)
        self.nodes += self.b.take()
        attrs = dict(n.attrs)
        if attrs.get("dtype") == "f32":
            attrs["dtype"] = width
        types = self._types(n.op, args, attrs)
        if args == n.args and attrs == n.attrs:
            self.nodes.append(n)
            return
        outs = tuple(self._out(v, t) for v, t in zip(n.outs, types, strict=True))
        self.nodes.append(Node(n.op, args, outs, attrs, n.origin))

    def _types(self, op: str, args: tuple[Value, ...], attrs: dict[str, Any]) -> list[Type]:
        try:
            return OPS[op].types(args, attrs)
        except IRError as e:
            raise ArcError(f"pass half: {op} takes no {self.dtype}: {e.what}",
                           hint="leave out passes for the CPU, such as channels-last or int8 "
                                "(qdq is for GPUs)") from None

    def _out(self, v: Value, t: Type) -> Value:
        """The old value where its type is the old one, else one of the same name."""
        if v.type == t:
            return v
        self.now[v] = Value(v.name, t)
        return self.now[v]
