"""SnapKV: what the latest queries attend to, with its neighbours. https://arxiv.org/abs/2404.14469"""

from __future__ import annotations

from arcompile.passes.budgets import row_of, shrunk, slots
from arcompile.passes.eviction import caches
from arcompile.pipeline import Pass, register
from arcompile.program import Program

WINDOW, POOL = 64, 5  # queries that are looked at, neighbours that are averaged


@register("kv-snap")
class Snap(Pass):
    """Keep the slots that the last queries saw most, 1 - `ratio` of a cache in all.

    The last queries are those since slots last went (a row of the image, or `row`), in a model of
    scales 64 of the last scale, evenly chosen. Their own slots and the prompt stay.
    """

    keeps = "quality"
    ratio: float = 0.5
    row: int = 0

    def __call__(self, p: Program) -> Program:
        c = caches(p, self.name, self.ratio)
        if self.ratio == 0:
            return p
        row = row_of(c, self.name, self.row) if c.raster else 0
        first = c.appends[0]
        most = slots(c, self.name, self.ratio, first, row)
        how = ({"first": first, "recent": row, "forget": True} if row else
               {"first": first, "recent": -1, "observe": WINDOW})
        return shrunk(c, self.name, [most] * len(c.layers), row, {**how, "pool": POOL})
