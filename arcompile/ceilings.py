"""What drawing an image in windows takes, told by parts of it.

A round of a method is what it takes on a network that is nothing (its launches, laws, verification,
the loop's own code) and what the network takes on as many slots, whatever the method. What a run
takes once, as buffers are made, is told by plain decoding with and without a network; a second
model that drafts is a plain engine of its own. Nothing here runs the method on the model.

A machine has another speed in another minute: all parts are run by turns with what they foretell.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from arcompile import light
from arcompile.errors import ArcError
from arcompile.pipeline import Pass
from arcompile.program import Program
from arcompile.quality import condition, settings
from arcompile.raster import hollow
from arcompile.runtime import request
from arcompile.runtime.engine import Engine
from arcompile.runtime.loop import Array
from arcompile.speculation import blind

SETS, TURNS = 4, 3  # of sessions, and their turns; another before them only loads
LEAST = 2  # turns
WARM = 3  # rounds of a run in which its buffers are made
PAUSE = 0.05  # seconds: threads of other sessions spin on after a run, in the way
PLAIN = "plain"
DRAFT = "small_step"  # the graph of a second model that drafts

Make = Callable[[Program, Sequence[Pass]], Engine]  # a program lowered after passes
T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """One request, without what follows the loop. seconds: of the prompt and the loop; forwards:
    of an image, the mean; steps: seconds of every round."""

    seconds: float
    forwards: float
    steps: Array

    @property
    def rounds(self) -> int:
        return len(self.steps)


def drawn(e: Engine, batch: int, turn: int = 0, rounds: int = 0) -> Drawn:
    """`batch` guided images, other ones each turn; of the first `rounds` rounds where told."""
    s, seeds = settings(e), [turn * batch + i for i in range(batch)]
    q = request.make(e, condition(e, count=batch), seeds, 1, s["guidance"], None,
                     s["temperature"], s["top_k"], s["top_p"], {})
    count = itertools.count(1)
    stop = (lambda _: next(count) < rounds) if rounds else None
    out = e._loop(q).run(stop, finish=False)
    took = out.timings["prompt"] + out.timings["loop"]
    each = (out.rounds > 0).sum(0).mean() if len(out.rounds) else forwards_of(e.program)
    return Drawn(took, float(each), np.asarray(out.timings["steps"], float))


def forwards_of(p: Program) -> int:
    """Of an image by a program without windows: its steps, but for those in which a second model
    drafts, as a round of drafts is one forward."""
    return sum(all(c.graph != DRAFT for c in s.calls) for s in p.steps)


def by_turns(sides: Mapping[str, Engine], draw: Callable[[Engine, int | None], T],
             long: float = math.inf) -> dict[str, list[T]]:
    """What `draw(engine, turn)` gave, turn by turn: all engines have their turn one after another,
    so that a machine that slows down slows all of them. Without a turn it is only to load.

    In a few sets of sessions: how threads and buffers came to lie stays as it is for all of one's
    life, and may cost a third. No more than LEAST turns after `long` seconds of them.
    """
    found: dict[str, list[T]] = {name: [] for name in sides}
    spent = 0.0
    for turn in range(SETS * TURNS):
        if spent > long and turn >= LEAST:
            break
        if turn % TURNS == 0:
            close(sides)
            for e in sides.values():
                draw(e, None)
        for name, e in sides.items():
            time.sleep(PAUSE)
            began = time.perf_counter()
            found[name].append(draw(e, turn))
            spent += time.perf_counter() - began
    close(sides)
    return found


def close(sides: Mapping[str, Engine]) -> None:
    """Give back the sessions: their memory and their threads."""
    for e in sides.values():
        e.__dict__.pop("models", None)


@dataclass(frozen=True)
class Spent:
    """Seconds: what a run takes beside its rounds, and a round."""

    start: float
    each: float

    def total(self, rounds: float) -> float:
        return self.start + rounds * self.each


def spent(runs: Sequence[Array]) -> Spent:
    """By the seconds of each round of equal runs, of which the quickest counts."""
    least = min(runs, key=np.sum)
    warm = min(WARM, len(least) // 2)
    each = float(least[warm:].mean())
    return Spent(float(least[:warm].sum()) - warm * each, each)


def window_of(p: Program) -> int:
    """Slots of the widest window; 0 where steps have none."""
    return max((s.window for s in p.steps), default=0)


class Ceilings:
    """Of one plain program and `batch` images. make: lowers a program made from it, after
    passes."""

    def __init__(self, plain: Program, make: Make, batch: int):
        self.plain, self.make, self.batch = plain, make, batch
        self.engines: dict[str, Engine] = {}

    @cached_property
    def nothing(self) -> Program:
        return hollow(self.plain)

    def parts(self, p: Pass) -> dict[str, Engine]:
        """What a round of `p` is made of, beside the plain engine: to be run by turns with it.

        Raises ArcError where `p` draws in no windows, or what makes engines refuses a part.
        """
        window, cheap = self._window(p), p.drafter()
        wide = [blind(x, p.name, window) if window > 1 else x for x in (self.plain, self.nothing)]
        found = {_slots(window): self._engine(_slots(window), wide[0])} if window > 1 else {}
        if cheap is not None:
            found[_drafts(cheap)] = self._engine(_drafts(cheap), self.plain, cheap)
        return found | {
            _nothing(str(p)): self._bare(str(p), self.nothing, p(self.plain), [p]),
            _nothing(_slots(window)): self._bare(_slots(window), wide[1], wide[0]),
            _nothing(PLAIN): self._bare(PLAIN, self.nothing, self.plain)}

    def round(self, p: Pass, took: Mapping[str, Spent]) -> Spent:
        """What `p` takes. took: of the PLAIN engine and of `parts(p)`. Raises ArcError."""
        window, cheap = self._window(p), p.drafter()
        own, bare = took[_nothing(str(p))], took[_nothing(PLAIN)]
        each = took[_slots(window)].each - took[_nothing(_slots(window))].each
        if cheap is not None:
            each += window * (took[_drafts(cheap)].each - bare.each)
        return Spent(own.start + took[PLAIN].start - bare.start, own.each + each)

    def _window(self, p: Pass) -> int:
        window = window_of(p(self.nothing))
        if not window:
            raise ArcError(f"pass {p} draws in no windows")
        return window

    def _bare(self, name: str, p: Program, full: Program, passes: Sequence[Pass] = ()) -> Engine:
        """Without a network. full: with one, beside which other graphs are light."""
        e = self._engine(_nothing(name), p, passes)
        light.write(full, e.folder)
        return e

    def _engine(self, name: str, p: Program, passes: Sequence[Pass] = ()) -> Engine:
        if name not in self.engines:
            self.engines[name] = self.make(p, passes)
        return self.engines[name]


def _slots(window: int) -> str:
    return f"window {window}" if window > 1 else PLAIN


def _drafts(cheap: Sequence[Pass]) -> str:
    return f"drafts by {', '.join(map(str, cheap))}"


def _nothing(name: str) -> str:
    return f"nothing, {name}"
