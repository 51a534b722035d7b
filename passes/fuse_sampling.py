"""Sample in the graph that makes the logits: one launch less a step, and no copy between."""

from __future__ import annotations

from dataclasses import replace

from arcompile import debug
from arcompile.ir import merge
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss


@register("fuse-sampling")
class FuseSampling(Pass):
    """Every `X call` of the steps becomes X, which then ends in the graph `call`."""

    call: str = "sample"

    def __call__(self, p: Program) -> Program:
        try:
            into = _callers(p, self.call)
        except Miss as miss:
            debug.log(4, f"miss fuse-sampling at {self.call}: {miss}")
            return p
        if not into:
            return p
        then = p.graph(self.call)
        graphs = [merge(g, then) if g.name in into else g for g in p.graphs if g is not then]
        steps = [
            replace(s, calls=tuple(c for c in s.calls if c.graph != self.call)) for s in p.steps
        ]
        return replace(p, graphs=tuple(graphs), steps=tuple(steps))


def _callers(p: Program, name: str) -> set[str]:
    """The graphs that `name` always follows. Raises Miss when it cannot move into them."""
    into, alone = set[str](), {c.graph for c in (*p.prompt, *p.finish)}
    if name in alone:
        raise Miss("the prompt or the finish calls it")
    for s in p.steps:
        for before, c, after in zip((None, *s.calls), s.calls, (*s.calls[1:], None), strict=False):
            if c.graph == name:
                if before is None or before.graph == name:
                    raise Miss("a step calls it first, or twice in a row")
                if c.loop or c.each or before.loop or before.each:
                    raise Miss(f"{before} or {c} is not a plain call")
                into.add(before.graph)
            elif after is None or after.graph != name:
                alone.add(c.graph)
    if both := into & alone:
        raise Miss(f"{min(both)} also runs without it")
    for graph in sorted(into):
        _check(p, graph, name)
    return into


def _check(p: Program, first: str, then: str) -> None:
    g = p.graph(first)
    for v in p.graph(then).params:
        here = g.result(v.name) or g.param(v.name)
        if here is not None and here.type != v.type:
            raise Miss(f"{first} has {v.name} as {here.type}, not {v.type}")
