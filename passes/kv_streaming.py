"""StreamingLLM: the first tokens, which attract attention whatever they are, and the latest.

https://arxiv.org/abs/2309.17453
"""

from __future__ import annotations

from arcompile.passes.budgets import Policy, shrunk, slots
from arcompile.passes.eviction import Caches
from arcompile.pipeline import register
from arcompile.program import Program


@register("kv-streaming")
class Streaming(Policy):
    """Keep `sinks` first slots (at least the prompt) and the latest, 1 - `ratio` of a cache in all.

    row: slots that go at a time in a raster model, 0 for a row of the image. Keys stay rotated by
    their own positions: places in an image are not relative to the cache.
    """

    sinks: int = 4

    def shrink(self, c: Caches, row: int) -> Program:
        first = max(self.sinks, c.appends[0])
        most = slots(c, self.name, self.ratio, first, row)
        how = {"first": first} if row else {"first": first, "score": "recency"}
        return shrunk(c, self.name, [most] * len(c.layers), row, how, watch=False)
