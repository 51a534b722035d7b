"""Policies that keep what is worth most of every cache: how many slots, and whose, for
passes.eviction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from arcompile.errors import ArcError
from arcompile.passes.eviction import Caches, Group, by_row, by_step, caches
from arcompile.pipeline import Keeps, Pass
from arcompile.program import Program
from arcompile.raster import square


@dataclass(frozen=True, repr=False)
class Policy(Pass):
    """The base. ratio: the share of a cache that goes. row: slots that go at a time in a raster
    model, 0 for a row of the image."""

    keeps: ClassVar[Keeps] = "quality"

    ratio: float = 0.5
    row: int = 0

    def shrink(self, c: Caches, row: int) -> Program:
        """The program with smaller caches; row is 0 in a model of scales. Raises ArcError."""
        raise NotImplementedError

    def __call__(self, p: Program) -> Program:
        c = caches(p, self.name, self.ratio)
        if self.ratio == 0:
            return p
        return self.shrink(c, row_of(c, self.name, self.row) if c.raster else 0)


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
