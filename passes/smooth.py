"""Outliers of activations move into the weights, where they round better.
https://arxiv.org/abs/2211.10438"""

from __future__ import annotations

from collections.abc import Callable

from arcompile import debug
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Value
from arcompile.passes.fold import Fold
from arcompile.passes.ranges import INPUT, of_model, read
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss
from arcompile.weights import Array, Weights

LEAST = 0.01  # of the largest: what every channel is taken to reach, seen or not


@register("smooth")
class Smooth(Pass):
    """What a norm or a gate hands to products is divided channel by channel, their rows multiplied.

    The factor is max|x|^alpha / max|w|^(1 - alpha). Exact but for rounding, and of use only before
    a pass that quantises. ranges: the file of `arcompile calibrate`; without it nothing changes.
    """

    ranges: str = ""
    alpha: float = 0.5

    def brings(self) -> Weights:
        found = read(self.ranges) if self.ranges else {}

        def held(a: Array) -> Callable[[], Array]:
            return lambda: a

        return Weights({f"@{k}": held(a) for k, a in found.items() if k.endswith(INPUT)})

    def __call__(self, p: Program) -> Program:
        if not 0 <= self.alpha <= 1:
            raise ArcError(f"pass smooth: alpha must be from 0 to 1, got {self.alpha!r}")
        if not self.ranges:
            return p
        seen = {k.removesuffix(INPUT) for k in of_model(self.ranges, p)}
        new = p.on_graphs(lambda g: self._graph(g, seen))
        return p if new is p else Fold()(new)

    def _graph(self, g: Graph, seen: set[str]) -> Graph:
        b = Builder(g.name, taken=[v.name for v in g.values()])
        b.weights.update({w.name: w for w in g.weights})
        swap: dict[Node, list[Node]] = {}
        for n in g.nodes:
            try:
                if (source := _source(g, n)) is not None:
                    self._move(b, *source, _products(g, n, seen), swap)
            except Miss as miss:
                debug.log(4, f"miss smooth at {n.outs[0]}: {miss}")
        if not swap:
            return g
        return g.with_nodes([m for n in g.nodes for m in swap.get(n, [n])],
                            weights=b.weights.values())

    def _move(self, b: Builder, source: Node, at: tuple[int, ...], products: list[Node],
              swap: dict[Node, list[Node]]) -> None:
        """Operands `at` of the source are divided by the factor; rows of the weights multiplied."""
        b.origin = f"{source.origin} > smooth"
        factor = self._factor(b, [n.args[1] for n in products])
        _renew(b, source, swap, lambda i, a: b.div(a, factor) if i in at else a)
        column = (factor.type.shape[0], 1)
        for n in products:
            _renew(b, n, swap, lambda i, a: b.mul(a, b.reshape(factor, shape=column)) if i else a)

    def _factor(self, b: Builder, weights: list[Value]) -> Value:
        """f32[k]; of several products by one input, the weights' peaks are those of all."""
        reach = b.weight(f"{weights[0].name}{INPUT}", f"f32[{weights[0].type.shape[0]}]")
        most: Value = b.max(b.abs(weights[0]), axes=(1,))
        for w in weights[1:]:
            most = b.maximum(most, b.max(b.abs(w), axes=(1,)))

        def power(x: Value, y: float) -> Value:
            least = b.mul(b.max(x, axes=(0,)), b.const(dtype="f32", value=LEAST))
            found: Value = b.pow(b.maximum(x, least), b.const(dtype="f32", value=y))
            return found

        found: Value = b.div(power(reach, self.alpha), power(most, 1 - self.alpha))
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
