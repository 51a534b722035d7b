"""Image decoders with channels last: a convolution takes the norm, the activation and the
enlargement before it and the residual after it along, in one kernel.

Nearest enlargement by two and a 3x3 convolution are four 2x2 convolutions of the small image, one
for each parity of row and column (sub-pixel convolution, https://arxiv.org/abs/1609.05158).
"""

from __future__ import annotations

from typing import Any

from arcompile import debug
from arcompile.ir import Builder, Graph, Node, Value, dce
from arcompile.ops.channels_last import LANES
from arcompile.passes.fold import Fold
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


@register("channels-last")
class ChannelsLast(Pass):
    """Convolutions of 1x1 and 3x3 that keep the size, with what stands around them.

    least: the fewest input channels of a convolution that is worth it; there must be a multiple of
    16. Only graphs with a convolution of at least 3x3 are looked at.
    """

    least: int = 16

    def __call__(self, p: Program) -> Program:
        new = p.on_graphs(lambda g: _Images(g, self.least).graph())
        return p if new is p else Fold()(new)


class _Images:
    """One graph; `last` knows the channels-last twin of a value [n,c,h,w]."""

    def __init__(self, g: Graph, least: int):
        self.g, self.least = g, least
        self.b = Builder(g.name, taken=[v.name for v in g.values()])
        self.last: dict[Value, Value] = {}
        self.results = {v for _, v in g.results}

    def graph(self) -> Graph:
        fit = {n for n in self.g.nodes if n.op == "conv2d" and self._fits(n)}
        if not any(n.args[1].type.shape[2] == 3 for n in fit):
            return self.g
        nodes: list[Node] = []
        for n in self.g.nodes:
            self.b.origin = f"{n.origin} > channels-last"
            if n in fit:
                self._conv(n)
            elif n.op == "add" and {*n.args} <= self.last.keys():
                self._add(n)
            nodes += self.b.take()
            if n.outs[0] in self.last:  # for readers that want channels first; else it is dropped
                twin = self.last[n.outs[0]]
                nodes.append(Node("transpose", (twin,), n.outs, {"perm": FIRST}, self.b.origin))
            else:
                nodes.append(n)
        weights = dict.fromkeys((*self.g.weights, *self.b.weights.values()))
        return dce(self.g.with_nodes(nodes, weights=tuple(weights)))

    def _fits(self, n: Node) -> bool:
        try:
            self._check(n)
        except Miss as miss:
            debug.log(4, f"miss channels-last at {n.outs[0]}: {miss}")
            return False
        return True

    def _check(self, n: Node) -> None:
        w, a = n.args[1], n.attrs
        _, ci, *size = w.type.shape
        same = {(1, 1): (0, 0, 0, 0), (3, 3): (1, 1, 1, 1)}
        if not w.is_weight or n.args[0].type.dtype != "f32":
            raise Miss(f"{w} is not a weight, or not of f32; run fold first")
        if a.get("stride", 1) != 1 or a.get("groups", 1) != 1:
            raise Miss("it strides or has groups")
        if same.get(tuple(size)) != tuple(a.get("pads", (0, 0, 0, 0))):  # type: ignore[call-overload]
            raise Miss(f"{w.type} with these pads does not keep the size")
        if not isinstance(ci, int) or ci < self.least or ci % LANES:
            raise Miss(f"{ci} input channels are not a multiple of {LANES} from {self.least} on")

    # --- nodes ---

    def _twin(self, v: Value) -> Value:
        if v not in self.last:
            self.last[v] = self.b.transpose(v, perm=LAST)
        return self.last[v]

    def _alone(self, v: Value, op: str) -> Node | None:
        """The node that makes v, where it is this op."""
        n = self.g.producer.get(v)
        return n if n is not None and n.op == op else None

    def _conv(self, n: Node) -> None:
        x, w = n.args[:2]
        co = w.type.shape[0]
        bias = n.args[2] if len(n.args) > 2 else self.b.full(shape=(co,), value=0.0, dtype="f32")
        norm, up = self._alone(x, "group_norm_silu"), self._alone(x, "upsample")
        twice = up is not None and up.attrs["factor"] == 2 and w.type.shape[2] == 3
        packed = self.b.pack_conv(w, **({"twice": True} if twice else {}))
        if norm is not None:
            y = self.b.norm_conv_last(self._twin(norm.args[0]), *packed, bias, *norm.args[1:],
                                      **norm.attrs)
        else:
            y = self.b.conv_last(self._twin(up.args[0] if up and twice else x), *packed, bias)
        self.last[n.outs[0]] = y

    def _add(self, n: Node) -> None:
        """A residual: the convolution that nothing else reads adds it up."""
        for x, y in (n.args, n.args[::-1]):
            made = self._fusable(y)
            if made is not None and x.type == y.type:
                self.last[n.outs[0]] = self._with(made, self.last[x])
                return
        self.last[n.outs[0]] = self.b.add(*(self.last[a] for a in n.args))

    def _fusable(self, v: Value) -> Node | None:
        """The convolution that made v here, unless v is read by more than the sum."""
        n = self._alone(v, "conv2d")
        if n is None or v in self.results or len(self.g.users[v]) > 1:
            return None
        return n

    def _with(self, n: Node, residual: Value) -> Value:
        self._conv(n)  # once more, now with the residual; the first becomes dead
        node = self.b.nodes[-1]
        made: Any = self.b.emit(node.op, *node.args, residual, **node.attrs)
        return made[0]  # type: ignore[no-any-return]
