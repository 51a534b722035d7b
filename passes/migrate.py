"""What moves the scale of channels from activations into weights, exactly: what `smooth` and `awq`
share. What a norm or a gate hands to products is divided by a factor for each channel, and the
rows of their weights are multiplied by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from arcompile import debug
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Value
from arcompile.passes.fold import Fold
from arcompile.passes.ranges import HINT, mark, of_model, read
from arcompile.pipeline import Pass
from arcompile.program import Program
from arcompile.rewrite import Miss
from arcompile.weights import Array, Weights

LEAST = 0.01  # of the largest: what every channel is taken to reach, seen or not


@dataclass(frozen=True)
class Site:
    """Where channels can be scaled: operands `at` of `node` are divided, `products` multiplied."""

    node: Node
    at: tuple[int, ...]
    products: list[Node]

    @property
    def weights(self) -> list[Value]:
        return [n.args[1] for n in self.products]

    @property
    def name(self) -> str:
        """Of the first matrix, which tells the place."""
        return self.weights[0].name[1:]


@dataclass(frozen=True, repr=False)
class Migrate(Pass):
    """The base. ranges: the file of `arcompile calibrate`; without it nothing changes. `kind`: of
    the numbers that a pass reads there, f32[k] for a matrix [k,n]."""

    kind: ClassVar[str] = ""

    ranges: str = ""

    def factor(self, b: Builder, site: Site, seen: Value) -> Value:
        """f32[k], of what was seen of the channels f32[k]. Raises Miss."""
        raise NotImplementedError

    def brings(self) -> Weights:
        found = read(self.ranges) if self.ranges else {}

        def held(a: Array) -> Callable[[], Array]:
            return lambda: a

        return Weights({f"@{k}": held(a) for k, a in found.items() if k.endswith(self.kind)})

    def reads(self) -> tuple[str, ...]:
        return mark(self.ranges)

    def __call__(self, p: Program) -> Program:
        if not self.ranges:
            return p
        seen = self.known(p)
        new = p.on_graphs(lambda g: self._graph(g, seen))
        return p if new is p else Fold()(new)

    def known(self, p: Program) -> set[str]:
        """The matrices that the file knows."""
        found = {k.removesuffix(self.kind) for k in of_model(self.ranges, p)
                 if k.endswith(self.kind)}
        if not found:
            raise ArcError(f"{self.ranges} does not hold what pass {self.name} reads", hint=HINT)
        return found

    def sites(self, g: Graph, seen: set[str]) -> Iterator[Site]:
        for n in g.nodes:
            try:
                if (source := _source(g, n)) is not None:
                    yield Site(*source, _products(g, n, seen))
            except Miss as miss:
                debug.log(4, f"miss {self.name} at {n.outs[0]}: {miss}")

    def _graph(self, g: Graph, seen: set[str]) -> Graph:
        b = Builder(g.name, taken=[v.name for v in g.values()])
        b.weights.update({w.name: w for w in g.weights})
        swap: dict[Node, list[Node]] = {}
        for site in self.sites(g, seen):
            b.origin = f"{site.node.origin} > {self.name}"
            try:
                given = b.weight(f"{site.weights[0].name}{self.kind}",
                                 f"f32[{site.weights[0].type.shape[0]}]")
                self._move(b, site, self.factor(b, site, given), swap)
            except Miss as miss:
                debug.log(4, f"miss {self.name} at {site.node.outs[0]}: {miss}")
        if not swap:
            return g
        return g.with_nodes([m for n in g.nodes for m in swap.get(n, [n])],
                            weights=b.weights.values())

    def _move(self, b: Builder, site: Site, factor: Value, swap: dict[Node, list[Node]]) -> None:
        _renew(b, site.node, swap, lambda i, a: b.div(a, factor) if i in site.at else a)
        column = (factor.type.shape[0], 1)
        for n in site.products:
            _renew(b, n, swap, lambda i, a: b.mul(a, b.reshape(factor, shape=column)) if i else a)


def power(b: Builder, x: Value, y: float) -> Value:
    """x^y, of channels that all reach LEAST."""
    least = b.mul(b.max(x, axes=(0,)), b.const(dtype="f32", value=LEAST))
    found: Value = b.pow(b.maximum(x, least), b.const(dtype="f32", value=y))
    return found


def _renew(b: Builder, n: Node, swap: dict[Node, list[Node]],
           fn: Callable[[int, Value], Value]) -> None:
    """n, or what replaces it already, with other operands; what makes those stands before it."""
    *before, now = swap.get(n, [n])
    first = b.take()
    args = tuple(fn(i, a) for i, a in enumerate(now.args))
    swap[n] = [*before, *first, *b.take(), Node(n.op, args, n.outs, n.attrs, b.origin)]


def _source(g: Graph, n: Node) -> tuple[Node, tuple[int, ...]] | None:
    """The node whose operands scale the channels of n's first result, and which those are."""
    first = {"rms_norm": 1, "layer_norm": 1, "residual_norm": 2}.get(n.op)
    if first is not None:
        if len(n.args) == first:
            raise Miss("the norm has no weight to divide")
        if not all(a.is_weight for a in n.args[first:]):
            raise Miss("the norm's scale is not a weight")
        return n, tuple(range(first, len(n.args)))
    if n.op != "swiglu":
        return None
    up = g.producer.get(n.args[1])
    if up is None or up.op != "matmul" or not up.args[1].is_weight or len(g.users[up.outs[0]]) > 1:
        raise Miss("what is gated is not a product by a weight alone")
    return up, (1,)


def _products(g: Graph, n: Node, seen: set[str]) -> list[Node]:
    """The readers of n's first result, which must all be products by weights that were seen."""
    x, readers = n.outs[0], g.users.get(n.outs[0], [])
    if not readers or any(v is x for _, v in g.results):
        raise Miss("it is a result of the graph")
    for r in readers:
        if r.op != "matmul" or r.args[0] is not x or not r.args[1].is_weight:
            raise Miss(f"{r.op} reads it, not a product by a weight")
        if r.args[1].type.rank != 2 or r.args[1].name[1:] not in seen:
            raise Miss(f"{r.args[1]} is no matrix that was seen")
    return readers
