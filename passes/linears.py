"""What the passes that quantise weights share: which weights, how, and when it costs too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np

from arcompile import debug
from arcompile.errors import ArcError
from arcompile.ir import OPS, Builder, Graph, Node, Value
from arcompile.ops.quant import unpack
from arcompile.passes.fold import Fold
from arcompile.pipeline import Keeps, Pass
from arcompile.program import Program
from arcompile.rewrite import Miss
from arcompile.weights import Array, Store, Weights


@dataclass(frozen=True)
class Form:
    """How a weight is stored. block 0: one scale a column, for products of integers."""

    bits: int
    block: int = 0

    def apply(self, b: Builder, n: Node, rows: dict[Any, Any]) -> Value:
        """The product of node n with its weight in this form; `rows` are rounded already."""
        x, w = n.args
        if self.block:
            q, scale = b.quantize_blocks(w, bits=self.bits, block=self.block)
            return b.matmul_blocks(x, q, scale, bits=self.bits, block=self.block)
        q, scale = b.quantize_channels(w, axis=1, bits=self.bits)
        if x not in rows:
            rows[x] = b.quantize_rows(x)
        return b.matmul_int8(*rows[x], q, scale)

    def stored(self, w: Array) -> Array:
        """What is left of w [k,n]."""
        if self.block:
            q, scale = OPS["quantize_blocks"].eval(w, bits=self.bits, block=self.block)
            return unpack(q, scale, self.bits)
        q, scale = OPS["quantize_channels"].eval(w, axis=1, bits=self.bits)
        return q * scale

    def error(self, w: Array) -> float:
        """|w - what is stored| / |w|."""
        return distance(self.stored(w), w)


@dataclass(frozen=True)
class Table(Form):
    """Rows of an embedding, each with its scale; they are widened after they are looked up."""

    bits: int = 8

    def apply(self, b: Builder, n: Node, rows: dict[Any, Any]) -> Value:
        q, scale = b.quantize_channels(n.args[0], axis=0, bits=self.bits)
        found = b.cast(b.gather(q, n.args[1], axis=0), dtype="f32")
        each = b.gather(scale, n.args[1], axis=0)
        return b.mul(found, b.reshape(each, shape=(*each.type.shape, 1)))

    def stored(self, w: Array) -> Array:
        q, scale = OPS["quantize_channels"].eval(w, axis=0, bits=self.bits)
        return q * scale[:, None]


def distance(x: Array, y: Array) -> float:
    """|x - y| / |y|; 0 for two of zeros."""
    return float(np.linalg.norm(x - y) / max(float(np.linalg.norm(y)), 1e-30))


@dataclass(frozen=True)
class Use:
    """A node that reads a weight, and the graph it stands in."""

    graph: Graph
    node: Node


How = Callable[[Value, list[Use]], Form]


@dataclass(frozen=True, repr=False)
class Quantise(Pass):
    """The base of the passes that quantise weights; they say how by `forms`.

    bound: the largest relative error of a weight; those beyond it stay as they are, and at 0 all
    do. embeddings, head, sampler, decoder: whether those are quantised too (the decoder with
    whatever only runs after the last step; sampler: a head that is itself one, as MAR's, whose
    loop makes errors thousands of times larger). least: the fewest numbers of a matrix that is
    worth it. skip: names of weights that stay, with * and ?, apart by spaces.
    """

    keeps: ClassVar[Keeps] = "quality"

    bound: float = 0.05
    embeddings: bool = True
    head: bool = True
    sampler: bool = False
    decoder: bool = False
    least: int = 4096
    skip: str = ""

    def forms(self, p: Program) -> How:
        """What tells how to store a matrix of p; it raises Miss with the reason to leave it."""
        raise NotImplementedError

    def __call__(self, p: Program) -> Program:
        if not self.bound >= 0:
            raise ArcError(f"pass {self.name}: bound must be 0 or more, got {self.bound!r}")
        folded = Fold()(p) if self.bound > 0 else p
        chosen = dict(self.choices(folded)) if self.bound > 0 else {}
        if not chosen:
            return p
        return Fold()(folded.on_graphs(lambda g: _rewritten(g, chosen, self.name)))

    def choices(self, p: Program) -> Iterator[tuple[str, Form]]:
        """The weights to quantise by name, and their form. Near misses go to the log."""
        for w, found in self._choices(p):
            if isinstance(found, Form):
                yield w.name, found
            else:
                debug.log(4, f"miss {self.name} at {w.name}: {found}")

    def left(self, p: Program) -> Mapping[str, str]:
        """Matrices of products that keep their precision."""
        mine = {w.name for w, uses in weights_of(p).items() if w.type.dtype == "f32"
                and w.type.rank == 2 and any(u.node.op == "matmul" for u in uses)}
        return {w.name: str(found) for w, found in self._choices(p)
                if w.name in mine and not isinstance(found, Form)}

    def _choices(self, p: Program) -> Iterator[tuple[Value, Form | Miss]]:
        late, heads, how = _late(p), _heads(p), self.forms(p)
        samplers = set() if self.sampler else _samplers(p)
        for w, uses in weights_of(p).items():
            try:
                if any(u.graph.name in samplers for u in uses):
                    raise Miss("it is of a head that samples; sampler=True quantises that")
                yield w, self._choice(w, uses, late, heads, how)
            except Miss as miss:
                yield w, miss

    def _choice(self, w: Value, uses: list[Use], late: set[str], heads: set[str],
                how: How) -> Form:
        if w.type.dtype != "f32" or w.type.rank != 2 or w.type.size() < self.least:
            raise Miss(f"it is {w.type}, not a matrix of {self.least} f32 numbers or more")
        if named(w, self.skip):
            raise Miss("it is to be skipped, or beyond the bound")
        if not self.decoder and all(u.graph.name in late for u in uses):
            raise Miss("it belongs to the image decoder; decoder=True quantises that")
        if not self.head and w.name in heads:
            raise Miss("it is the head; head=True quantises that")
        if all(u.node.op == "matmul" and u.node.args[1] is w for u in uses):
            return how(w, uses)
        if all(_looks_up(u.node, w) for u in uses):
            if not self.embeddings:
                raise Miss("it is an embedding; embeddings=True quantises those")
            return Table()
        ops = ", ".join(dict.fromkeys(u.node.op for u in uses))
        raise Miss(f"it is read by {ops}, not as the matrix of a product alone")

    def errors(self, p: Program, source: Weights) -> dict[str, tuple[Form, float]]:
        """Of every weight that would be quantised: its form, and the relative error of that."""
        folded = Fold()(p)
        store = Store(source, folded.fold)
        return {name: (form, form.error(store[name]))
                for name, form in self.choices(folded)}

    def prepared(self, p: Program, source: Weights) -> Pass:
        """With the names of weights whose error is beyond the bound added to `skip`."""
        if self.bound <= 0:
            return self
        found = self.errors(p, source)
        beyond = [name.lstrip("@") for name, (_, e) in found.items() if e > self.bound]
        return replace(self, skip=" ".join((*self.skip.split(), *beyond))) if beyond else self


def named(w: Value, names: str) -> bool:
    """Is w one of these names, apart by spaces, with * and ? in them?"""
    return any(fnmatchcase(w.name.lstrip("@"), s.lstrip("@")) for s in names.split())


def _looks_up(n: Node, w: Value) -> bool:
    return n.op == "gather" and n.args[0] is w and n.attrs["axis"] == 0


def weights_of(p: Program) -> dict[Value, list[Use]]:
    """Every weight that graphs read, and by which nodes."""
    by_name: dict[str, Value] = {}
    found: dict[Value, list[Use]] = {}
    for g in p.graphs:
        for w in g.weights:
            one = by_name.setdefault(w.name, w)
            uses = [Use(g, _as(n, w, one)) for n in g.users.get(w, ())]
            found.setdefault(one, []).extend(uses)
    return {w: uses for w, uses in found.items() if uses}


def _as(n: Node, w: Value, one: Value) -> Node:
    """Graphs have values of their own for one weight; here it is one value."""
    return n if w is one else replace(n, args=tuple(one if a is w else a for a in n.args))


def _late(p: Program) -> set[str]:
    """Graphs that run after the last step, or not in the loop at all."""
    loop = {c.graph for s in p.steps for c in s.calls} | {c.graph for c in p.prompt}
    return {g.name for g in p.graphs} - loop


def _samplers(p: Program) -> set[str]:
    """Graphs that a step runs time and again, if the smaller part of what it reads is theirs."""
    calls = [c for s in p.steps for c in s.calls]
    again = {c.graph for c in calls if c.loop}
    size = {g.name: sum(int(w.type.size()) for w in g.weights) for g in p.graphs}
    rest = {c.graph for c in calls} - again
    return again if sum(size[g] for g in again) < sum(size[g] for g in rest) else set()


def _heads(p: Program) -> set[str]:
    """Weights of the products that make logits."""
    found = set()
    for g in p.graphs:
        v = g.result("logits")
        while v is not None and v in g.producer:
            n = g.producer[v]
            if n.op == "matmul":
                found.add(n.args[1].name)
                break
            v = next((a for a in n.args if not a.is_weight), None)
    return found


def _rewritten(g: Graph, chosen: Mapping[str, Form], by: str) -> Graph:
    if not any(w.name in chosen for w in g.weights):
        return g
    b = Builder(g.name, taken=[v.name for v in g.values()])
    rows: dict[Any, Any] = {}
    nodes: list[Node] = []
    for n in g.nodes:
        form = next((chosen[a.name] for a in n.args if a.name in chosen and a.is_weight), None)
        if form is None:
            nodes.append(n)
            continue
        b.origin = f"{n.origin} > {by}"
        form.apply(b, n, rows)
        *before, last = b.take()
        nodes += [*before, replace(last, outs=n.outs)]  # the old value keeps its name
    return g.with_nodes(nodes)


