"""Convolutions of bfloat16 products, f32 sums, for image decoders. https://arxiv.org/abs/1905.12322"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import ClassVar

from arcompile import debug
from arcompile.ir import Builder, Graph, Node
from arcompile.passes.channels_last import ChannelsLast
from arcompile.passes.fold import Fold
from arcompile.pipeline import Keeps, Pass, register
from arcompile.program import Program

OPS = ("conv_last", "norm_conv_last")


@register("bf16-conv")
class Bf16Conv(Pass):
    """Weights and what is multiplied by them keep 8 bits of their mantissas; 3x less is read and
    twice as much multiplied at once. Everything between two convolutions stays f32.

    skip: names of weights that stay, with * and ?, apart by spaces.
    """

    keeps: ClassVar[Keeps] = "quality"

    skip: str = ""

    def __call__(self, p: Program) -> Program:
        return narrowed(p, "bf16", self.skip, self.name)


def narrowed(p: Program, dtype: str, skip: str, by: str) -> Program:
    """Convolutions with channels last, by weights of this dtype where they are of f32."""
    last = ChannelsLast()(p)
    new = last.on_graphs(lambda g: _graph(g, dtype, skip.split(), by))
    return p if new is last else Fold()(new)


def _graph(g: Graph, dtype: str, skip: list[str], by: str) -> Graph:
    b, nodes = Builder(g.name, taken=[v.name for v in g.values()]), list[Node]()
    for n in g.nodes:
        w = n.args[1] if n.op in OPS else None
        if w is None or w.type.dtype != "f32":
            nodes.append(n)
            continue
        if any(fnmatchcase(w.name[1:], f"{s.lstrip('@')}*") for s in skip):
            debug.log(4, f"miss {by} at {n.outs[0]}: {w} is to be skipped")
            nodes.append(n)
            continue
        b.origin = f"{n.origin} > {by}"
        packed, scale = b.narrow_conv(w, dtype=dtype)
        nodes += b.take()
        nodes.append(Node(n.op, (n.args[0], packed, scale, *n.args[3:]), n.outs, n.attrs, b.origin))
    return g if tuple(nodes) == g.nodes else g.with_nodes(nodes)
