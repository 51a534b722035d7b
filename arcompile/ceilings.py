"""What a round of a window takes, told without it: as much as a plain step of that many images.

Both read every weight once for as many rows; a machine's ceilings of memory and of arithmetic, of
each kind of product, at each number of rows, are all in that one measured time. It leaves out what
drafting and verifying take, and that the slots of a window share their caches.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from arcompile.program import Program
from arcompile.quality import condition, settings
from arcompile.runtime import request
from arcompile.runtime.engine import Engine

STEPS, WARM = 6, 3  # that are timed, of each run; that only load


def window_of(p: Program) -> int:
    """Slots of the widest window; 0 where steps have none."""
    return max((s.window for s in p.steps), default=0)


def step_seconds(e: Engine, batch: int) -> float:
    """The median of a few steps that draw `batch` guided images."""
    s, count = settings(e), itertools.count(1)
    q = request.make(e, condition(e, count=batch), [*range(batch)], 1, s["guidance"], None,
                     s["temperature"], s["top_k"], s["top_p"], {})
    out = e._loop(q).run(lambda _: next(count) < STEPS + WARM, finish=False)
    spent: list[Any] = out.timings["steps"]
    return float(np.median(spent[WARM:] or spent))


class Ceilings:
    """Of a plain engine: seconds of a step by the images it draws, each measured once."""

    def __init__(self, plain: Engine):
        self.plain = plain
        self.known: dict[int, float] = {}

    def steps(self, window: int, batch: int) -> float:
        """What a round takes, in plain steps of `batch` images."""
        for n in (batch, window * batch):
            if n not in self.known:
                self.known[n] = step_seconds(self.plain, n)
        return self.known[window * batch] / self.known[batch]
