"""PyramidKV: early layers look everywhere and keep much, late ones keep little.

https://arxiv.org/abs/2406.02069
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.passes.budgets import row_of, shrunk, slots
from arcompile.passes.eviction import Caches, caches
from arcompile.passes.kv_snap import POOL, WINDOW
from arcompile.pipeline import Pass, register
from arcompile.program import Program


@register("kv-pyramid")
class Pyramid(Pass):
    """Keep what kv-snap does, but from layer to layer less: 1 - `ratio` of a cache on average.

    Budgets fall in a line, and the last layer's is the mean's share beta of the way from nothing
    (but what is always kept). Where the first layer would keep more than there is, the line is as
    steep as it can be.
    """

    keeps = "quality"
    ratio: float = 0.5
    beta: float = 20.0
    row: int = 0

    def __call__(self, p: Program) -> Program:
        if self.beta < 1:
            raise ArcError(f"pass {self.name}: beta must be 1 or more, got {self.beta!r}",
                           hint="1 gives all layers the same")
        c = caches(p, self.name, self.ratio)
        if self.ratio == 0:
            return p
        row = row_of(c, self.name, self.row) if c.raster else 0
        first = c.appends[0]
        how = ({"first": first, "recent": row, "forget": True} if row else
               {"first": first, "recent": -1, "observe": WINDOW})
        return shrunk(c, self.name, self.budgets(c, row, first), row, {**how, "pool": POOL})

    def budgets(self, c: Caches, row: int, first: int) -> list[int]:
        """Of each layer; their mean is at most that of all alike."""
        mean = slots(c, self.name, self.ratio, first, row)
        window = first + 2 * row if row else first + 1  # what every layer must keep
        top = c.slots if row else c.history
        least = max(window + (mean - window) / self.beta, 2 * mean - top, window)
        n = len(c.layers)
        found = [(2 * mean - least) - (2 * mean - 2 * least) * i / max(n - 1, 1) for i in range(n)]
        return [min(top, int(x)) for x in found]
