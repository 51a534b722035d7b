"""Large maps of an image decoder in bands of rows, so that one of them is in memory, not three.

A convolution takes a margin of rows along; a norm looks at every band before any goes on, so its
statistics are those of the whole map: exact but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Value, dce
from arcompile.pipeline import Pass, register
from arcompile.program import Program

CONVS = ("conv_last", "norm_conv_last")


@register("tile-decoder")
class TileDecoder(Pass):
    """Maps of `least` numbers or more are made `bands` rows-wise parts, from the first of them on.

    Between the two convolutions of a residual block nothing is kept: the first is computed once for
    the norm's statistics, and again band by band, half as much work again where maps are in bands.
    Attention, and what lies below it, stays whole. bands: 1 changes nothing.
    """

    bands: int = 1
    least: int = 1 << 21

    def __call__(self, p: Program) -> Program:
        if self.bands < 1 or self.least < 1:
            raise ArcError(f"pass {self.name}: bands={self.bands}, least={self.least}",
                           hint="give 1 or more of both; bands=1 changes nothing")
        if self.bands == 1:
            return p
        ends = {c.graph for c in p.finish}
        found = [g for g in p.graphs if g.name in ends and any(self._large(n) for n in g.nodes)]
        if not found:
            raise ArcError(f"pass {self.name} finds no convolution of {self.least} numbers with "
                           f"channels last in the finish of {p.name}",
                           hint="it follows channels-last; a smaller least takes smaller maps")
        for g in found:
            if lost := [n for n in g.nodes if self._large(n) and n.args[1].type.dtype == "i8"]:
                raise ArcError(f"pass {self.name} cannot split {lost[0].outs[0]}: convolutions of "
                               "8 bits round by what the whole map holds",
                               hint="bf16-conv, or a smaller batch")
        return p.on_graphs(lambda g: _Tiled(g, self).graph() if g in found else g)

    def _large(self, n: Node) -> bool:
        shape = n.outs[0].type.shape
        return n.op in CONVS and all(isinstance(d, int) for d in shape[1:]) and (
            prod(int(d) for d in shape[1:]) >= self.least)


Rows = Callable[[int, int], Value]  # rows [from, to) of a map [n,h,w,c]


@dataclass
class _Map:
    """A map in bands: made already, or made anew whenever rows of it are read."""

    height: int
    make: Rows
    bands: list[tuple[int, int, Value]] = field(default_factory=list)


class _Tiled:
    def __init__(self, g: Graph, how: TileDecoder):
        self.g, self.how = g, how
        self.b = Builder(g.name, taken=[v.name for v in g.values()])
        self.b.weights.update({w.name: w for w in g.weights})
        self.maps: dict[Value, _Map] = {}

    def graph(self) -> Graph:
        nodes: list[Node] = []
        for n in self.g.nodes:
            self.b.origin = f"{n.origin} > {self.how.name}"
            mine = n.op in CONVS and (n.args[0] in self.maps or self.how._large(n))
            mine = mine or (n.op == "add" and all(a in self.maps for a in n.args))
            if mine:
                self._split(n)
                nodes += self.b.take()
                continue
            args = tuple(self._whole(a) for a in n.args)
            nodes += [*self.b.take(), n if args == n.args else Node(n.op, args, n.outs, n.attrs,
                                                                    n.origin)]
        results = [(k, self._whole(v)) for k, v in self.g.results]
        nodes += self.b.take()
        return dce(self.g.with_nodes(nodes, results))

    def _split(self, n: Node) -> None:
        out = n.outs[0]
        height = out.type.shape[1]
        assert isinstance(height, int)
        made = _Map(height, self._add(n) if n.op == "add" else self._conv(n))
        readers = self.g.users.get(out, [])
        again = n.op in CONVS and [r.op for r in readers] == ["norm_conv_last"] and (
            readers[0].args[0] is out and not any(v is out for _, v in self.g.results)
            and self._kept(n.args[0]))
        if not again:
            made.bands = [(*ends, made.make(*ends)) for ends in self._ends(height)]
        self.maps[out] = made

    def _ends(self, height: int) -> list[tuple[int, int]]:
        cuts = [height * i // self.how.bands for i in range(self.how.bands + 1)]
        return [(a, b) for a, b in pairwise(cuts) if a < b]

    def _kept(self, v: Value) -> bool:
        return v not in self.maps or bool(self.maps[v].bands)

    def _rows(self, v: Value, lo: int, hi: int) -> Value:
        if v not in self.maps:
            return self._cut(v, lo, hi, int(v.type.shape[1]))
        held = self.maps[v]
        if not held.bands:
            return held.make(lo, hi)
        parts = [self._cut(x, max(lo - a, 0), min(hi, b) - a, b - a)
                 for a, b, x in held.bands if a < hi and lo < b]
        found: Value = parts[0] if len(parts) == 1 else self.b.concat(*parts, axis=1)
        return found

    def _cut(self, v: Value, lo: int, hi: int, height: int) -> Value:
        found: Value = v if (lo, hi) == (0, height) else self.b.slice(
            v, axis=1, start=lo, stop=hi, step=1)
        return found

    def _whole(self, v: Value) -> Value:
        return self._rows(v, 0, self.maps[v].height) if v in self.maps else v

    # --- what makes rows ---

    def _add(self, n: Node) -> Rows:
        return lambda lo, hi: self.b.add(*(self._rows(a, lo, hi) for a in n.args))

    def _conv(self, n: Node) -> Rows:
        x, w, scale, bias, *more = n.args
        affine, residual = (more[:2], more[2:]) if n.op == "norm_conv_last" else ([], more)
        height = x.type.shape[1]
        assert isinstance(height, int)
        times, margin = 2 if w.type.shape[0] == 4 else 1, 0 if w.type.shape[2] == 1 else 1
        known = self._affine(n, x, *affine) if affine else None

        def rows(lo: int, hi: int) -> Value:
            top = max(0, lo // times - margin)
            end = min(height, -(-hi // times) + margin)
            given = self._rows(x, top, end)
            if known:
                given = self.b.silu(self.b.add(self.b.mul(given, known[0]), known[1]))
            made = self.b.conv_last(given, w, scale, bias)
            made = self._cut(made, lo - top * times, hi - top * times, (end - top) * times)
            found: Value = self.b.add(made, self._rows(residual[0], lo, hi)) if residual else made
            return found

        return rows

    def _affine(self, n: Node, x: Value, weight: Value, shift: Value) -> tuple[Value, Value]:
        """(factor, summand), both [n,1,1,c], that a norm over the whole map comes to: moments of
        the bands, put together. https://doi.org/10.1080/00031305.1983.10483115"""
        b, (_, height, width, c) = self.b, x.type.shape
        groups, images = n.attrs["groups"], x.type.shape[0]
        assert isinstance(c, int)
        each, total = (images, groups, c // groups), height * width * (c // groups)
        sums, squares, means, counts = [], [], [], []
        for lo, hi in self._ends(int(height)):
            part = self._rows(x, lo, hi)
            mean = b.mean(part, axes=(1, 2), keepdims=True)
            off = b.sub(part, mean)
            counts.append(b.const(dtype="f32", value=float((hi - lo) * width)))
            means.append(b.reshape(mean, shape=each))
            squares.append(b.reshape(b.sum(b.mul(off, off), axes=(1, 2)), shape=each))
            sums.append(b.mul(means[-1], counts[-1]))
        size = b.const(dtype="f32", value=float(total))
        middle = b.div(b.sum(self._total(sums), axes=(2,), keepdims=True), size)
        for i, (mean, count) in enumerate(zip(means, counts, strict=True)):
            away = b.sub(mean, middle)
            squares[i] = b.add(squares[i], b.mul(b.mul(away, away), count))
        spread = b.div(b.sum(self._total(squares), axes=(2,), keepdims=True), size)
        rate = b.rsqrt(b.add(spread, b.const(dtype="f32", value=n.attrs["eps"])))
        factor = b.mul(b.reshape(weight, shape=(1, *each[1:])), rate)
        summand = b.sub(b.reshape(shift, shape=(1, *each[1:])), b.mul(middle, factor))
        flat = (images, 1, 1, c)
        return b.reshape(factor, shape=flat), b.reshape(summand, shape=flat)

    def _total(self, parts: list[Value]) -> Value:
        total = parts[0]
        for x in parts[1:]:
            total = self.b.add(total, x)
        return total
