"""SnapKV: what the latest queries attend to, with its neighbours. https://arxiv.org/abs/2404.14469"""

from __future__ import annotations

from typing import Any

from arcompile.passes.budgets import Policy, shrunk, slots
from arcompile.passes.eviction import Caches
from arcompile.pipeline import register
from arcompile.program import Program

WINDOW, POOL = 64, 5  # queries that are looked at, neighbours that are averaged


@register("kv-snap")
class Snap(Policy):
    """Keep the slots that the last queries saw most, 1 - `ratio` of a cache in all.

    The last queries are those since slots last went (a row of the image, or `row`), in a model of
    scales 64 of the last scale, evenly chosen. Their own slots and the prompt stay.
    """

    def shrink(self, c: Caches, row: int) -> Program:
        most = slots(c, self.name, self.ratio, c.appends[0], row)
        return shrunk(c, self.name, [most] * len(c.layers), row, seen_last(c, row))


def seen_last(c: Caches, row: int) -> dict[str, Any]:
    """What is kept: the first slots, those of the last queries, and what these saw."""
    how = {"recent": row, "forget": True} if row else {"recent": -1, "observe": WINDOW}
    return {"first": c.appends[0], **how, "pool": POOL}
