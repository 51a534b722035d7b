"""Which graphs of a loop are too light for threads of their own.

A runtime gives every graph its threads, and these spin for a while after each run, waiting for
more. Those of a light graph then stand in the way of the heavy graph that runs next, on the same
cores: a token's embedding, which takes no time, made a decode step a quarter to a half slower.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from arcompile.cost import Cost, Graphs
from arcompile.program import Program
from arcompile.runtime.bundle import LIGHT
from arcompile.walk import walk

SHARE = 8  # so many times less work than the heaviest graph of the loop
BALANCE = 4  # floating-point operations that take the time of moving a byte, about


def light(p: Program) -> list[str]:
    """Names of such graphs, sorted; the program's graphs must be in it."""
    work: dict[str, int] = defaultdict(int)
    each = Graphs()
    for step in walk(p, 1, True):
        if step.name not in ("prompt", "finish"):
            for run in step.runs:
                work[run.graph.name] += _work(each.cost(run))
    outside = {c.graph for c in (*p.prompt, *p.finish)}
    most = max(work.values(), default=0)
    found = {k for k, n in work.items() if n * SHARE < most} | {c.graph for c in p.preview}
    return sorted(found - outside)


def write(p: Program, folder: Path) -> None:
    (folder / LIGHT).write_text(json.dumps(light(p)))


def _work(c: Cost) -> int:
    return c.bytes + c.flops // BALANCE
