"""Kernels back to ops of the IR: what each cost, where it was written, which passes touched it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from arcompile.cost import Cost, constants, node_cost
from arcompile.ir import Graph
from arcompile.program import Program
from arcompile.target import RUN, Event
from arcompile.walk import walk

# `origin/op:value#k`, and whatever a runtime that fused or moved the node appended
NAME = re.compile(r"(?P<origin>.*)/(?P<op>\w+):(?P<value>[^#:/]+)#\d+")
NOTHING = Cost()
OWN = "(the runtime's own)"  # nodes that no op of ours asked for: layouts, copies


@dataclass(frozen=True)
class Spot:
    """One op of a graph, over all runs of the graph. origin: see Node.origin."""

    graph: str
    op: str
    value: str
    origin: str
    seconds: float = 0.0
    runs: int = 0
    kernels: frozenset[str] = frozenset()
    cost: Cost = NOTHING
    peak: int = 0

    @property
    def module(self) -> str:
        return self.origin.partition(" > ")[0].partition("@")[0]

    @property
    def line(self) -> str:
        """file:line of model code."""
        return self.origin.partition(" > ")[0].partition("@")[2]

    @property
    def passes(self) -> tuple[str, ...]:
        """Those that made it what it is, in order."""
        return tuple(self.origin.split(" > ")[1:])


@dataclass
class Group:
    """Spots that have something in common."""

    name: str
    seconds: float = 0.0
    cost: Cost = NOTHING
    spots: list[Spot] = field(default_factory=list)

    def roof(self, flops: float, read: float) -> float:
        """Share of what the machine can do, for ceilings in flop/s and bytes/s: 1 is the roof."""
        least = max(self.cost.flops / flops, self.cost.bytes / read)
        return least / self.seconds if self.seconds else 0.0


def attribute(p: Program, events: Iterable[Event], runs: Mapping[str, int], batch: int = 1,
              guided: bool = True) -> list[Spot]:
    """Every op that took time, dearest first. runs: how often each graph ran."""
    found: dict[tuple[str, str, str], Spot] = {}
    for e in events:
        if e.kind == RUN:
            continue
        m = NAME.match(e.name)
        at = (e.graph, m["op"], m["value"]) if m else (e.graph, e.kind, OWN)
        old = found.get(at) or Spot(*at, m["origin"] if m else OWN)
        found[at] = replace(old, seconds=old.seconds + e.seconds, runs=runs.get(e.graph, 0),
                            kernels=old.kernels | {e.kind}, peak=max(old.peak, e.peak))
    cost = _costs(p, runs, batch, guided)
    spots = (replace(s, cost=cost.get((s.graph, s.value), Cost())) for s in found.values())
    return sorted(spots, key=lambda s: -s.seconds)


def _costs(p: Program, runs: Mapping[str, int], batch: int, guided: bool
           ) -> dict[tuple[str, str], Cost]:
    """By graph and first result. Rounds of a window are as many as there were."""
    told: dict[tuple[str, str], Cost] = {}
    expected: dict[str, int] = {}
    seen: dict[tuple[Graph, tuple[tuple[str, int], ...], int], dict[str, Cost]] = {}
    for turn in walk(p, batch, guided):
        for run in turn.runs:
            g, at = run.graph, (run.graph, tuple(sorted(run.sizes.items())), run.context)
            expected[g.name] = expected.get(g.name, 0) + run.times
            if at not in seen:
                seen[at] = _nodes(g, run.sizes, run.context)
            for value, cost in seen[at].items():
                key = (g.name, value)
                told[key] = told.get(key, Cost()) + cost * run.times
    return {k: _scaled(c, runs.get(k[0], 0) / expected[k[0]]) for k, c in told.items()}


def _nodes(g: Graph, sizes: Mapping[str, int], context: int) -> dict[str, Cost]:
    constant = constants(g)
    return {n.outs[0].name: node_cost(n, sizes, context, constant) for n in g.nodes
            if n.outs[0] not in constant}


def _scaled(c: Cost, by: float) -> Cost:
    return c if by == 1 else Cost(*(round(x * by) for x in (c.flops, c.weights, c.activations,
                                                           c.cache)))


def group(spots: Iterable[Spot], key: Callable[[Spot], str]) -> list[Group]:
    """Dearest first."""
    found: dict[str, Group] = {}
    for s in spots:
        g = found.setdefault(key(s), Group(key(s)))
        g.seconds += s.seconds
        g.cost += s.cost
        g.spots.append(s)
    return sorted(found.values(), key=lambda g: -g.seconds)


KEYS: dict[str, Callable[[Spot], str]] = {
    "op": lambda s: s.op,
    "pass": lambda s: s.passes[-1] if s.passes else OWN if s.value == OWN else "(model code)",
    "line": lambda s: s.line or s.origin,
    "node": lambda s: f"{s.graph}: {s.module} {s.op} %{s.value}",
}
