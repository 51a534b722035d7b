"""Steps with a window: rounds of drafts and their verification, each image at its own place.

An image's tokens depend on no other image: each has its own first slot, and noise is drawn by the
position and the number of the round. A cache is rolled back by writing over what was not committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from arcompile.errors import ArcError
from arcompile.program import Step
from arcompile.runtime import rng

if TYPE_CHECKING:
    from arcompile.runtime.loop import Array, Loop

ROUNDS, REACH = 8, 4  # whose noise is drawn at once; windows that they move by at most
AHEAD = 1 << 15  # numbers drawn at once at most

class Window:
    """The windows of one run."""

    def __init__(self, loop: Loop):
        self.loop = loop
        self.first = np.zeros(loop.q.images, np.int64)  # where the last round's window began
        self.places: dict[str, tuple[Array, int]] = {}  # noise [b,N,width], and how many are drawn
        self.ahead: dict[int, tuple[int, Array, Array | None]] = {}  # noise of rounds, by draw

    def run(self, step: Step, before: int) -> Iterator[int]:
        """One step. before: the steps done so far. Yields how many are, after each round."""
        loop, n = self.loop, len(step.commit)
        if loop.q.forced is not None:
            raise ArcError("an engine that drafts has no logits step by step",
                           hint="build it without the passes that speculate")
        begin, base, turn = step.commit[0], loop.past, 0
        at = np.zeros(loop.q.images, np.int64)  # positions of this step that are committed
        while (at < n).any():
            start = np.minimum(at, n - step.window)
            slots = start[:, None] + np.arange(step.window)
            loop.past = loop.env["past"] = (base + start[loop.env["image"]]).astype(np.int32)
            loop.env.update(
                first=begin + start, shift=begin + start - self.first, done=at - start,
                scales=np.take_along_axis(loop.scales[before:].T, slots, 1))
            self.first = begin + start
            self._draw(begin + slots, turn)
            for call in step.calls:
                loop._call(call, None)
            now = start + np.minimum(loop.runner.numpy(loop.env["accepted"]), step.window)
            self._commit(begin + slots, at, now, start)
            loop.rounds.append(now - at)
            at, turn = now, turn + 1
            yield before + int(at.min())
        loop.past = loop.env["past"] = base

    def _draw(self, where: Array, turn: int) -> None:
        loop = self.loop
        for index, d in enumerate(loop.p.draws):
            if d.when == "place":
                loop.env[d.name] = self._place(index, where)
            elif d.when == "step":
                loop.env[d.name] = self._round(index, where, turn)

    def _round(self, index: int, where: Array, turn: int) -> Array:
        """Noise of a round. That of the next is made too: many small arrays cost most."""
        begun, first, made = self.ahead.get(index, (0, where[:, 0], None))
        at = (where[:, 0] - first)[:, None] + np.arange(where.shape[1])
        if made is None or not begun <= turn < begun + len(made) or at.max() >= made.shape[2]:
            begun, first, made = self.ahead[index] = turn, where[:, 0], self._rounds(
                index, where, turn)
            at = np.broadcast_to(np.arange(where.shape[1]), where.shape)
        return made[turn - begun][np.arange(len(where))[:, None], at]

    def _rounds(self, index: int, where: Array, turn: int) -> Array:
        """Noise of rounds from this one on, [rounds,b,positions,width], from its slots on."""
        d, q, b = self.loop.p.draws[index], self.loop.q, len(where)
        reach = REACH * where.shape[1]
        rounds = min(ROUNDS, AHEAD // (b * reach * d.width))
        if rounds < 2:
            return rng.draw(d, index, q.seeds, q.copies, where, turn)[None]
        seeds, copies = (np.tile(x, rounds) for x in (q.seeds, q.copies))
        places = np.tile(where[:, :1] + np.arange(reach), (rounds, 1))
        turns = (turn + np.arange(rounds)).repeat(b)
        return rng.draw(d, index, seeds, copies, places, turns).reshape(rounds, b, reach, d.width)

    def _place(self, index: int, where: Array) -> Array:
        """What belongs to these positions; each is drawn once, as windows reach it."""
        loop, d = self.loop, self.loop.p.draws[index]
        if d.name in loop.q.given:
            return np.take_along_axis(loop.q.given[d.name], where[..., None], 1)
        size = (loop.q.images, loop.p.positions, d.width)
        whole, drawn = self.places.get(d.name, (np.empty(size, np.float32), 0))
        if (lack := np.arange(drawn, where.max() + 1)).size:
            whole[:, lack] = rng.draw(d, index, loop.q.seeds, loop.q.copies, lack)
            self.places[d.name] = whole, drawn + lack.size
        return whole[np.arange(len(where))[:, None], where]

    def _commit(self, where: Array, at: Array, now: Array, start: Array) -> None:
        """New arrays each time: graphs may have handed on the old ones."""
        loop = self.loop
        if ((now <= at) & (at < start.max() + where.shape[1])).any():
            raise ArcError("a round committed nothing", hint="rebuild the engine")
        made = loop.runner.numpy(loop.env["token"])
        slot = np.arange(where.shape[1])
        old, new = ((x - start)[:, None] for x in (at, now))
        rows, columns = np.nonzero((slot >= old) & (slot < new))
        tokens = loop.tokens.copy()
        tokens[rows, where[rows, columns]] = made[rows, columns]
        loop.drew = True
        loop.tokens = tokens
