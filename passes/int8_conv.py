"""Convolutions of 8-bit integers, for image decoders. https://arxiv.org/abs/1712.05877"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import ClassVar

from arcompile import debug
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node
from arcompile.passes.bf16_conv import narrowed
from arcompile.passes.fold import Fold
from arcompile.passes.ranges import CONV, mark, of_model
from arcompile.pipeline import Keeps, Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss
from arcompile.weights import Array

LAST = ("conv_last", "norm_conv_last")  # what channels-last makes of convolutions


@register("int8-conv")
class Int8Conv(Pass):
    """Weights with a scale for each channel; what goes in and comes out is rounded to 8 bits.

    ranges: the file of `arcompile calibrate` that knows what goes in and comes out; without it
    nothing changes, unless dynamic: then what goes in is measured image by image while it runs, and
    what comes out stays f32 (`channels-last`). least: the fewest channels on either side of a
    convolution that is worth it. skip: names of weights that stay, with * and ?, apart by spaces.
    """

    keeps: ClassVar[Keeps] = "quality"

    ranges: str = ""
    dynamic: bool = False
    least: int = 16
    skip: str = ""

    def reads(self) -> tuple[str, ...]:
        return mark(self.ranges)

    def __call__(self, p: Program) -> Program:
        if self.dynamic:
            return narrowed(p, "i8", self.skip, self.name)
        if not self.ranges:
            return p
        seen = of_model(self.ranges, p)
        new = p.on_graphs(lambda g: self._graph(g, seen))
        if new is p and any(n.op in LAST for g in p.graphs for n in g.nodes):
            raise ArcError("pass int8-conv: the convolutions have channels last, and those round "
                           "by what each image holds", hint="int8-conv{dynamic=True}")
        return p if new is p else Fold()(new)

    def _graph(self, g: Graph, seen: Mapping[str, Array]) -> Graph:
        b = Builder(g.name, taken=[v.name for v in g.values()])
        nodes: list[Node] = []
        for n in g.nodes:
            try:
                ranges = self._ranges(n, seen) if n.op == "conv2d" else ()
            except Miss as miss:
                debug.log(4, f"miss int8-conv at {n.outs[0]}: {miss}")
                ranges = ()
            nodes += _integers(b, n, ranges) if ranges else [n]
        return g if tuple(nodes) == g.nodes else g.with_nodes(nodes)

    def _ranges(self, n: Node, seen: Mapping[str, Array]) -> tuple[float, ...]:
        w = n.args[1]
        if not w.is_weight:
            raise Miss(f"{w} is not a weight; run fold first")
        if any(fnmatchcase(w.name[1:], s.lstrip("@")) for s in self.skip.split()):
            raise Miss(f"{w} is to be skipped")
        if min(int(d) for d in w.type.shape[:2]) < self.least:
            raise Miss(f"{w} is {w.type}: fewer than {self.least} channels")
        if w.name[1:] + CONV not in seen:
            raise Miss(f"{w} did not run when the ranges were taken")
        less, most, low, high = map(float, seen[w.name[1:] + CONV])
        return (-less, most, -low, high)


def _integers(b: Builder, n: Node, ranges: tuple[float, ...]) -> list[Node]:
    b.origin = f"{n.origin} > int8-conv"
    x, w, *bias = n.args
    q, scale = b.quantize_channels(w, axis=0)
    b.conv2d_int8(x, q, scale, *bias, ranges=ranges, **n.attrs)
    *before, last = b.take()
    return [*before, replace(last, outs=n.outs)]  # the old value keeps its name
