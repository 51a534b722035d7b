"""Where an engine's time goes: one run, its kernels traced back to model code and passes."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from arcompile.bench.attribute import Spot, attribute
from arcompile.program import Program
from arcompile.program_text import parse_program
from arcompile.runtime.engine import Engine
from arcompile.runtime.loop import Env
from arcompile.target import RUN, TARGETS, Event

PROGRAM = "program.arc"  # the program as it was lowered


@dataclass(frozen=True)
class Span:
    """One run of a graph as the loop saw it, binding and all: seconds since the epoch, and long."""

    graph: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Asked:
    """What is run: so many first steps of the loop (0: all, and the decoder), for this request."""

    cond: Any
    guidance: float | None = None
    top_k: int = 0
    seed: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Profile:
    """total: seconds of the profiled run; plain: of the same run, not watched."""

    engine: Engine
    plain: float
    total: float
    start: float
    spans: list[Span] = field(repr=False)
    events: list[Event] = field(repr=False)
    spots: list[Spot] = field(repr=False)

    @property
    def kernels(self) -> float:
        """Seconds inside kernels."""
        return sum(s.seconds for s in self.spots)

    @property
    def lost(self) -> list[str]:
        """Graphs some of whose runs the runtime took no notes of."""
        noted = Counter(e.graph for e in self.events if e.kind == RUN)
        ran = Counter(s.graph for s in self.spans)
        return sorted(g for g in ran if noted[g] != ran[g])

    @property
    def runtime(self) -> float:
        """Seconds inside the runtime, between its kernels and around them."""
        return sum(s.seconds for s in self.spans) - self.kernels

    @property
    def loop(self) -> float:
        """Seconds of the loop itself: noise, bookkeeping, copies of what it reads."""
        return self.total - sum(s.seconds for s in self.spans)


def measure(engine: Engine, asked: Asked, say: Callable[[str], None] = lambda text: None
            ) -> Profile:
    """Run it plain, then watched, each once to warm up. Raises ArcError."""
    with tempfile.TemporaryDirectory() as notes:
        m = engine.manifest
        watch = Watch(TARGETS[m["target"]].profile(
            engine.program, engine.folder, engine.threads, Path(notes)))
        say("a plain run")
        _run(engine, asked)
        plain = _run(engine, asked)
        say("a watched run")
        watched = copy(engine)
        watched.__dict__["models"] = watch
        _run(watched, asked)
        watch.spans.clear()
        start = time.time()
        total = _run(watched, asked)
        events = [e for e in watch.models.events() if e.start >= start]
    p = _shortened(parse_program((engine.folder / PROGRAM).read_text()), asked.steps)
    images = _images(asked.cond)
    guided = (asked.guidance if asked.guidance is not None else engine.defaults["guidance"]) != 1
    spots = attribute(p, events, Counter(s.graph for s in watch.spans), images, guided)
    return Profile(engine, plain, total, start, watch.spans, events, spots)


def _run(engine: Engine, asked: Asked) -> float:
    """Seconds of one run."""
    short = copy(engine)
    short.program = _shortened(engine.program, asked.steps)
    start = time.perf_counter()
    short.generate(asked.cond, seed=asked.seed, guidance=asked.guidance, top_k=asked.top_k)
    return time.perf_counter() - start


def _shortened(p: Program, steps: int) -> Program:
    return replace(p, steps=p.steps[:steps], finish=()) if steps else p


def _images(cond: Any) -> int:
    if isinstance(cond, Mapping):
        return len(next(iter(cond.values())))
    return len(cond) if isinstance(cond, list | tuple) else 1


class Watch:
    """A target's models whose runs are timed."""

    def __init__(self, models: Any):
        self.models = models
        self.spans: list[Span] = []

    def runner(self) -> Any:
        return _Runner(self.models.runner(), self.spans)


class _Runner:
    def __init__(self, inner: Any, spans: list[Span]):
        self.inner, self.spans = inner, spans

    def run(self, graph: str, env: Env) -> Env:
        began, start = time.time(), time.perf_counter()
        out: Env = self.inner.run(graph, env)
        self.spans.append(Span(graph, began, time.perf_counter() - start))
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
