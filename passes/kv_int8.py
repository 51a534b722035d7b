"""Cached keys and values of 8 bits."""

from __future__ import annotations

from arcompile.passes.formats import stored
from arcompile.pipeline import Pass, register
from arcompile.program import Program


@register("kv-int8")
class KvInt8(Pass):
    """Each slot of each head has a least value and a step of its own. After a policy of keeping.

    group: channels that share them, 0 for all of a head. A fourth of the memory, and more time:
    attention restores the numbers first.
    """

    keeps = "quality"
    group: int = 0

    def __call__(self, p: Program) -> Program:
        return stored(p, self.name, 8, self.group)
