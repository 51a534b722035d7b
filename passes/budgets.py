"""How many slots a policy may keep, and whose: groups of heads and layers for passes.eviction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arcompile.errors import ArcError
from arcompile.passes.eviction import Caches, Group, by_row, by_step
from arcompile.program import Program
from arcompile.raster import square


def slots(c: Caches, name: str, ratio: float, first: int, row: int = 0,
          unit: int = 1) -> int:
    """Slots of each cache, of which `first` are always kept, and `row` go whenever it is full.

    Those behind the first are a multiple of `unit`.
    """
    most = int(c.slots * (1 - ratio))
    most -= (most - first) % unit
    if most - row <= first:
        raise ArcError(f"pass {name}: ratio {ratio} leaves {max(most, 0)} of {c.slots} slots, and "
                       f"{first + row} are always kept", hint="give a smaller ratio")
    return most


def row_of(c: Caches, name: str, row: int) -> int:
    """Slots that go at a time: as given, or a row of a square image."""
    found = row or square(c.program, name)
    if not 1 <= found < c.slots:
        raise ArcError(f"pass {name}: row must be from 1 to {c.slots - 1}, got {row}",
                       hint="0 is a row of the image")
    return found


def layers(c: Caches, budgets: Sequence[int], how: dict[str, Any]) -> list[Group]:
    """A group for each budget: all heads of the layers that have it."""
    return [Group(tuple(tuple(range(x.kv_heads)) if b == most else ()
                        for x, b in zip(c.layers, budgets, strict=True)),
                  (most,) * len(c.appends), how) for most in dict.fromkeys(budgets)]


def shrunk(c: Caches, name: str, budgets: Sequence[int], row: int, how: dict[str, Any],
           watch: bool = True, add: bool = False) -> Program:
    """A budget for each layer; in rows where `row`, else in steps."""
    groups = layers(c, budgets, how)
    if row:
        return by_row(c, name, groups, row, watch, how)
    if all(b >= c.history for b in budgets):
        add = False  # nothing is ever dropped
    return by_step(c, name, groups, add=add)
