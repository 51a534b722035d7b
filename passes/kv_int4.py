"""Cached keys and values of 4 bits, in groups. https://arxiv.org/abs/2402.02750"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.passes.eviction import FULL, caches
from arcompile.passes.formats import stored
from arcompile.passes.residual import windowed
from arcompile.pipeline import Pass, register
from arcompile.program import Program


@register("kv-int4")
class KvInt4(Pass):
    """Groups of numbers have a least value and a step. After a policy of keeping.

    group: channels of a slot in a group, or half as many and so on where a head is narrower; 0 for
    all of a head. window: in a raster model whose slots all stay, a channel of so many slots is a
    group of keys, and slots are rounded when there are so many new ones; 0 for groups in a slot.
    A fifth of the memory, and more time: attention restores the numbers first.
    """

    keeps = "quality"
    group: int = 32
    window: int = 32

    def __call__(self, p: Program) -> Program:
        widths = [t.shape[3] for _, t in p.state if t.rank == 4 and isinstance(t.shape[3], int)]
        group = self.group
        while group > 2 and any(w % group for w in widths if isinstance(w, int)):
            group //= 2
        if self.window < 0:
            raise ArcError(f"pass {self.name}: window must be 0 or more, got {self.window}",
                           hint="0 rounds every slot at once")
        if self.window and p.cache == FULL and p.accept == "all":
            try:
                c = caches(p, self.name, 0.0)
            except ArcError:  # caches of another kind are stored slot by slot
                return stored(p, self.name, 4, group)
            if c.raster and c.appends[0] <= self.window < sum(c.appends):
                return windowed(c, self.name, 4, group, self.window)
        return stored(p, self.name, 4, group)
