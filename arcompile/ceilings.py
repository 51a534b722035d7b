"""What drawing an image in windows takes, told by parts of it, each measured once on the machine.

A round of a method is what it takes on a network that is nothing (its launches, laws, verification,
the loop's own code) and what the network takes on as many slots, whatever the method. What a run
takes once, as buffers are made, is told by plain decoding with and without a network; a second
model that drafts is a plain engine of its own. Nothing here runs the method on the model.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.pipeline import Pass
from arcompile.program import Program
from arcompile.quality import condition, settings
from arcompile.raster import hollow
from arcompile.runtime import request
from arcompile.runtime.engine import Engine
from arcompile.speculation import blind

SETS = 3  # of sessions
TURNS, LEAST = 3, 2  # runs at most, and at least; another before them only loads
LONG = 1.0  # seconds after which sessions have had their runs
WARM = 3  # rounds of a run in which its buffers are made
PAUSE = 0.05  # seconds: threads of other sessions spin on after a run, in the way

Make = Callable[[Program, Sequence[Pass]], Engine]  # a program lowered after passes


@dataclass(frozen=True)
class Spent:
    """Seconds: what a run takes beside its rounds, and a round."""

    start: float
    each: float


def window_of(p: Program) -> int:
    """Slots of the widest window; 0 where steps have none."""
    return max((s.window for s in p.steps), default=0)


def spent(e: Engine, batch: int, rounds: int = 0) -> Spent:
    """Of drawing `batch` guided images: the least that each round took in several equal runs, or
    each of the first `rounds`.

    In a few sets of sessions: how threads and buffers came to lie stays as it is for all of one's
    life, and may cost a third.
    """
    times = [t for _ in range(SETS) for t in _runs(e, batch, rounds)]
    least = np.array(times).min(0)
    warm = min(WARM, len(least) // 2)
    each = float(least[warm:].mean())
    return Spent(float(least[:warm].sum()) - warm * each, each)


def _runs(e: Engine, batch: int, rounds: int) -> list[Any]:
    """Seconds of each round, run by run, by sessions of their own."""
    s, began, times = settings(e), time.perf_counter(), list[Any]()
    for turn in itertools.count():
        time.sleep(PAUSE)
        q = request.make(e, condition(e, count=batch), [*range(batch)], 1, s["guidance"], None,
                         s["temperature"], s["top_k"], s["top_p"], {})
        count = itertools.count(1)
        stop = (lambda _, c=count: next(c) < rounds) if rounds else None
        times.append(e._loop(q).run(stop, finish=False).timings["steps"])
        if turn >= LEAST and (turn >= TURNS or time.perf_counter() - began > LONG):
            break
    e.__dict__.pop("models", None)  # its memory
    return times[1:]


class Ceilings:
    """Of one plain program and `batch` images. make: lowers a program made from it, after passes;
    what an engine takes is measured when it is first asked for, of a whole image or of its first
    `most` rounds."""

    def __init__(self, plain: Program, make: Make, batch: int, most: int = 0):
        self.plain, self.make, self.batch, self.most = plain, make, batch, most
        self.known: dict[str, Spent] = {}

    @cached_property
    def nothing(self) -> Program:
        return hollow(self.plain)

    def step(self) -> float:
        """Seconds of a plain step."""
        return self._of("plain", self.plain).each

    def image(self) -> float:
        """Seconds of the images by plain decoding, without the decoder."""
        return self._total(self._of("plain", self.plain), len(self.plain.steps))

    def window(self, p: Pass, rounds: float) -> float:
        """Seconds of the images by a pass that draws in windows, in so many rounds."""
        return self._total(self.round(p), rounds)

    def round(self, p: Pass) -> Spent:
        """What a pass that draws in windows takes. Raises ArcError where there are none."""
        window = window_of(p(self.nothing))
        if not window:
            raise ArcError(f"pass {p} draws in no windows")
        own = self._of(f"nothing, {p}", self.nothing, [p])
        start, each = self._network("plain", self.plain, self.nothing)
        drafts = 0.0
        if (cheap := p.drafter()) is not None:
            name = ", ".join(map(str, cheap))
            drafts = window * (self._of(name, self.plain, cheap).each
                               - self._of("nothing", self.nothing).each)
        if window > 1:
            wide = [blind(x, p.name, window) for x in (self.plain, self.nothing)]
            each = self._network(f"window {window}", *wide)[1]
        return Spent(own.start + start, own.each + each + drafts)

    def _network(self, name: str, full: Program, nothing: Program) -> tuple[float, float]:
        """What the network takes of a start, and of a round."""
        a = self._of(name, full)
        b = self._of("nothing" if name == "plain" else f"nothing, {name}", nothing)
        return a.start - b.start, a.each - b.each

    def _of(self, name: str, p: Program, passes: Sequence[Pass] = ()) -> Spent:
        if name not in self.known:
            self.known[name] = spent(self.make(p, passes), self.batch, self.most)
        return self.known[name]

    @staticmethod
    def _total(s: Spent, rounds: float) -> float:
        return s.start + rounds * s.each
