"""One product by several weights side by side instead of a product each."""

from __future__ import annotations

from collections.abc import Iterator

from arcompile import debug
from arcompile.ir import Builder, Graph, Node, Value
from arcompile.passes.fold import Fold
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss

ACTIVATIONS = ("silu", "gelu", "sigmoid", "relu")


@register("qkv")
class Qkv(Pass):
    """Query, key and value projections become one product and a split; so do their biases.

    gate: also the two halves of a gated MLP. Runs after `fold`: operands must be weights.
    """

    gate: bool = False

    def __call__(self, p: Program) -> Program:
        new = p.on_graphs(self._graph)
        return p if new is p else Fold()(new)  # concatenates the weights

    def _graph(self, g: Graph) -> Graph:
        b = Builder(g.name, taken=[v.name for v in g.values()])
        place: dict[Node, list[Node]] = {}  # first product -> what replaces all of them
        gone: set[Node] = set()
        for products in self._groups(g):
            biases = [_bias(g, n) for n in products]
            adds = [add for add in biases if add]
            if len(adds) < len(products):
                adds = []
            place[products[0]] = _join(b, products, adds)
            gone.update(products, adds)
        if not place:
            return g
        nodes = (m for n in g.nodes for m in (*place.get(n, ()), *(() if n in gone else (n,))))
        return g.with_nodes(nodes)

    def _groups(self, g: Graph) -> Iterator[list[Node]]:
        """Products of one input that can be joined, two or more at a time."""
        inputs: dict[Value, list[Node]] = {}
        for n in g.nodes:
            if n.op == "matmul":
                inputs.setdefault(n.args[0], []).append(n)
        for products in inputs.values():
            if len(products) > 1:
                fit = [n for n in products if self._fits(g, n)]
                gates = [n for n in fit if _gated(g, n)]
                groups = (gates, [n for n in fit if n not in gates])
                yield from (group for group in groups if len(group) > 1)

    def _fits(self, g: Graph, n: Node) -> bool:
        try:
            _check(g, n)
            if _gated(g, n) and not self.gate:
                raise Miss("it is half of a gated MLP; gate=True joins those")
        except Miss as miss:
            debug.log(4, f"miss qkv at {n.outs[0]}: {miss}")
            return False
        return True


def _check(g: Graph, n: Node) -> None:
    w = n.args[1]
    if not w.is_weight:
        raise Miss(f"{w} is not a weight" + ("; run fold first" if w in g.producer else ""))
    if w.type.rank != 2:
        raise Miss(f"{w} is {w.type}, not a matrix")
    if len(g.users[w]) > 1:
        raise Miss(f"{w} is read elsewhere and would be stored twice")


def _bias(g: Graph, n: Node) -> Node | None:
    """The node that adds a bias to the product, when nobody else reads the product."""
    out, users = n.outs[0], g.users.get(n.outs[0], [])
    if len(users) != 1 or users[0].op != "add" or any(v is out for _, v in g.results):
        return None
    biases = [a for a in users[0].args if a.is_weight]
    fits = len(biases) == 1 and biases[0].type.shape == n.args[1].type.shape[1:]
    return users[0] if fits else None


def _gated(g: Graph, n: Node) -> bool:
    """Does the product, after its bias, meet an activation or what comes out of one?"""
    out = (_bias(g, n) or n).outs[0]
    for u in g.users.get(out, ()):
        from_act = any(g.producer[a].op in ACTIVATIONS for a in u.args if a in g.producer)
        if u.op in (*ACTIVATIONS, "swiglu") or (u.op == "mul" and from_act):
            return True
    return False


def _join(b: Builder, products: list[Node], adds: list[Node]) -> list[Node]:
    """The old values keep their names: they are the results of the split."""
    first = products[0]
    b.origin = f"{first.origin} > qkv"
    y = b.matmul(first.args[0], b.concat(*(n.args[1] for n in products), axis=1))
    if adds:
        y = b.add(y, b.concat(*(a for n in adds for a in n.args if a.is_weight), axis=0))
    outs = tuple(n.outs[0] for n in adds or products)
    attrs = {"axis": y.type.rank - 1, "sizes": tuple(v.type.shape[-1] for v in outs)}
    return [*b.take(), Node("split", (y,), outs, attrs, b.origin)]
