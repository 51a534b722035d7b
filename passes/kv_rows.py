"""Whole rows of a raster image: the first ones, the latest, and those looked back at most.

After LineAR, https://arxiv.org/abs/2512.04857.
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.passes.budgets import Policy, shrunk, slots
from arcompile.passes.eviction import Caches
from arcompile.pipeline import register
from arcompile.program import Program


@register("kv-rows")
class Rows(Policy):
    """Keep 1 - `ratio` of the rows: `anchors` first and `latest` last ones, and of the others those
    that the row just drawn attended to most.

    Rows are dropped when the next one begins. row: tokens in a row, 0 for a square image.
    """

    anchors: int = 1
    latest: int = 2

    def __call__(self, p: Program) -> Program:
        if self.anchors < 0 or self.latest < 1:
            raise ArcError(f"pass {self.name}: {self.anchors} first and {self.latest} latest rows",
                           hint="give anchors=0 or more, latest=1 or more")
        return super().__call__(p)

    def shrink(self, c: Caches, row: int) -> Program:
        if not row:
            raise ArcError(f"pass {self.name} needs rows, and {c.program.name} draws in larger "
                           "steps", hint="kv-hack and kv-scale are for models of scales")
        first = c.appends[0] + self.anchors * row
        most = slots(c, self.name, self.ratio, first + (self.latest - 1) * row, row,
                     unit=row)
        how = {"first": first, "recent": self.latest * row, "row": row, "forget": True}
        return shrunk(c, self.name, [most] * len(c.layers), row, how)
