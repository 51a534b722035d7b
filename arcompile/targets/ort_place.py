"""What the place of a graph in a program says of how it is best run."""

from __future__ import annotations

import statistics
from collections.abc import Set

from arcompile.program import Program, Step

FEW = 16  # rows up to which our own products are the quicker ones


def spinning(heavy: Set[str]) -> Set[str]:
    """Of the loop's graphs with threads of their own, those whose threads may wait awake for the
    next run: only where there is one. Those of any other graph would still be awake while the next
    one runs, on the same cores; waking them takes some 20 us."""
    return heavy if len(heavy) == 1 else frozenset()


def wide(p: Program, graph: str) -> bool:
    """Does some step with a past query more than one slot through this graph?"""
    past = False
    for s in p.steps:
        many = _slots(s, graph) > 1 if s.window else s.append != 1
        if past and many and any(c.graph == graph for c in s.calls):
            return True
        past = past or s.append != 0
    return False


def _slots(s: Step, graph: str) -> int:
    """The slots of a window that a round queries through this graph at a time: what it calls again
    and again draws draft by draft."""
    return 1 if sum(c.graph == graph for c in s.calls) > 1 else s.window


def few_slots(p: Program, graph: str) -> bool:
    """Do the steps mostly give this graph a few positions? A loop works on those it commits."""
    counts = [_slots(s, graph) if s.window else len(s.commit if c.loop else s.query)
              for s in p.steps for c in s.calls if c.graph == graph]
    return bool(counts) and statistics.median(counts) <= FEW
