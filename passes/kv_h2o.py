"""H2O: what all queries so far attended to most. https://arxiv.org/abs/2306.14048"""

from __future__ import annotations

from arcompile.passes.budgets import Policy, shrunk, slots
from arcompile.passes.eviction import Caches
from arcompile.pipeline import register
from arcompile.program import Program


@register("kv-h2o")
class H2O(Policy):
    """Keep the slots with the largest sum of attention, 1 - `ratio` of a cache in all.

    Half of what is kept are the latest slots, in a model of scales those of the last scale. row:
    slots that go at a time in a raster model, 0 for a row of the image.
    """

    def shrink(self, c: Caches, row: int) -> Program:
        first = c.appends[0]
        most = slots(c, self.name, self.ratio, first, row)
        recent = (most - row - first) // 2 if row else -1
        return shrunk(c, self.name, [most] * len(c.layers), row,
                      {"first": first, "recent": recent}, add=True)
