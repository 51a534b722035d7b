"""PyramidKV: early layers look everywhere and keep much, late ones keep little.

https://arxiv.org/abs/2406.02069
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.passes.budgets import Policy, shrunk, slots
from arcompile.passes.eviction import Caches
from arcompile.passes.kv_snap import seen_last
from arcompile.pipeline import register
from arcompile.program import Program


@register("kv-pyramid")
class Pyramid(Policy):
    """Keep what kv-snap does, but from layer to layer less: 1 - `ratio` of a cache on average.

    Budgets fall in a line, and the last layer's is the mean's share beta of the way from nothing
    (but what is always kept). Where the first layer would keep more than there is, the line is as
    steep as it can be.
    """

    beta: float = 20.0

    def __call__(self, p: Program) -> Program:
        if self.beta < 1:
            raise ArcError(f"pass {self.name}: beta must be 1 or more, got {self.beta!r}",
                           hint="1 gives all layers the same")
        return super().__call__(p)

    def shrink(self, c: Caches, row: int) -> Program:
        budgets = self.budgets(c, row, c.appends[0])
        return shrunk(c, self.name, budgets, row, seen_last(c, row))

    def budgets(self, c: Caches, row: int, first: int) -> list[int]:
        """Of each layer; their mean is at most that of all alike."""
        mean = slots(c, self.name, self.ratio, first, row)
        window = first + 2 * row if row else first + 1  # what every layer must keep
        top = c.slots if row else c.history
        least = max(window + (mean - window) / self.beta, 2 * mean - top, window)
        n = len(c.layers)
        found = [(2 * mean - least) - (2 * mean - 2 * least) * i / max(n - 1, 1) for i in range(n)]
        return [min(top, int(x)) for x in found]
