"""The decode loop over shapes instead of tensors: which graph runs, how often, at what sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from arcompile import dims
from arcompile.ir import Graph, Type
from arcompile.program import BUILTIN, Call, Program, Step

Sizes = Mapping[str, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """`times` runs of a graph at the same sizes; `context`: cache slots its last query sees."""

    graph: Graph
    sizes: Sizes
    times: int
    context: int


@dataclass(frozen=True)
class Turn:
    """One step (the prompt and the finish are steps too) and the runs it takes."""

    name: str
    calls: tuple[Call, ...]
    query: int
    commit: int
    context: int
    runs: tuple[Run, ...]


def guided_rows(p: Program, batch: int = 1, guided: bool = True) -> int:
    """Rows of a batch: twice the images where a step is guided."""
    twins = guided and any(s.guide[1] != 0 or s.guide[0] > 1 for s in p.steps)
    return 2 * batch if twins else batch


def walk(p: Program, batch: int = 1, guided: bool = True, committed: float = 1.0,
         known: Sizes | None = None) -> Iterator[Turn]:
    """Every step in order, for `batch` images; of a step with a window, every round.

    committed: positions that a round commits. Only runs tell; 1 is the least there can be.
    known: sizes that only a request tells.
    """
    w = _Walk(p, p.sizes(batch, guided_rows(p, batch, guided), **(known or {})))
    if p.prompt:
        yield w.turn("prompt", p.prompt)
    for i, s in enumerate(p.steps):
        yield from w.rounds(i, s, committed) if s.window else [w.step(i, s)]
    if p.finish:
        yield w.turn("finish", p.finish)


class _Walk:
    def __init__(self, p: Program, sizes: dict[str, int]):
        self.p, self.sizes, self.past = p, sizes, 0
        self.env: dict[str, Shape] = {}
        given = {**{k: Type.parse(v) for k, v in BUILTIN.items()}, **dict(p.inputs),
                 **dict(p.state)}
        for name, t in given.items():
            known = all(dims.symbols(d) <= set(sizes) for d in t.shape)
            self.env[name] = _shape(t, sizes) if known else ()
        self._draw("start", p.positions)

    def _draw(self, when: str, positions: int) -> None:
        for d in self.p.draws:
            if d.when == when:
                shape = (self.sizes["b"], positions)
                self.env[d.name] = shape if d.kind == "order" else (*shape, d.width)

    def rounds(self, i: int, s: Step, committed: float) -> Iterator[Turn]:
        n, base, append = len(s.commit), self.past, dims.value(s.append, self.sizes)
        self.env["scales"] = (self.sizes["b"], s.window)
        for when in ("step", "place"):
            self._draw(when, s.window)
        for k in range(math.ceil(n / committed)):
            self.past = base + min(int(k * committed), n - s.window)
            yield self.turn(str(i), s.calls, s.window, round(committed), append - n + s.window)
        self.past = base + append

    def step(self, i: int, s: Step) -> Turn:
        for name, value in s.set:
            self.env[name] = _shape_of(value)
        self._draw("step", len(s.commit))
        self._draw("loop", len(s.commit))
        append = dims.value(s.append, self.sizes)
        found = self.turn(str(i), s.calls, len(s.query), len(s.commit), append)
        self.past += append
        return found

    def turn(self, name: str, calls: Iterable[Call], query: int = 0, commit: int = 0,
             append: int = 0) -> Turn:
        context = self.past + append
        runs = []
        for c in calls:
            columns = self.p.tables[c.loop] if c.loop else {}
            self.env.update({k: () for k in columns})
            turns = len(next(iter(columns.values()), ())) if c.loop else 1
            runs.append(self._call(c, turns, context))
        return Turn(name, tuple(calls), query, commit, context, tuple(runs))

    def _call(self, call: Call, turns: int, context: int) -> Run:
        g = self.p.graph(call.graph)
        times = self.sizes["b"] if call.each else 1
        sizes = self._bind(g, times)
        for name, v in g.results:
            shape = _shape(v.type, sizes)
            whole = times > 1 and shape[:1] == (1,)
            self.env[name] = (times, *shape[1:]) if whole else shape
        return Run(g, sizes, times * turns, context)

    def _bind(self, g: Graph, times: int) -> dict[str, int]:
        """The sizes of a run, read off the shapes of its inputs."""
        sizes: dict[str, int] = {}
        for v in g.params:
            shape = self.env.get(v.name, ())
            if times > 1 and shape[:1] == (times,):  # one image of several
                shape = (1, *shape[1:])
            for d, n in zip(v.type.shape, shape, strict=False):
                if isinstance(d, str) and d.isidentifier():
                    sizes.setdefault(d, n)
        return {**{d: self.sizes.get(d, 1) for d in _symbols(g)}, **sizes}


@lru_cache(64)
def _symbols(g: Graph) -> frozenset[str]:
    return frozenset(s for v in g.params for d in v.type.shape for s in dims.symbols(d))


def _shape(t: Type, sizes: Sizes) -> Shape:
    return tuple(dims.value(d, sizes) for d in t.shape)


def _shape_of(value: Any) -> Shape:
    return (len(value), *_shape_of(value[0])) if isinstance(value, tuple) and value else ()
