"""ScaleKV: layers that look back at everything keep much, layers that refine what is there little.

https://arxiv.org/abs/2505.19602. A layer is a drafter of a scale where its attention is spread over
the scales before it, and a refiner where it stays with the scale that is drawn, or with few slots.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from arcompile.errors import ArcError
from arcompile.passes.eviction import Caches, Group, by_step, caches_of_scales, held
from arcompile.passes.ranges import mark, selectivity
from arcompile.pipeline import Pass, register
from arcompile.program import Program

OBSERVE, POOL = 16, 5  # queries that are looked at, neighbours that are averaged

Roles = tuple[frozenset[int], ...]  # of each step: the layers that are its drafters


@register("kv-scale")
class Scale(Pass):
    """Keep 1 - `ratio` of all caches: much in drafters, and in refiners less from scale to scale.

    ranges: the file of `arcompile calibrate`, by which drafters are known; without it there are
    none, and all layers keep the same. share: of all pairs of a layer and a scale that finds more
    than it may keep, those that are drafters. fall: what refiners lose from a scale to the next, as
    a share of what all would have alike; drafters have it. A cache is as large as what its layer
    ever keeps.
    """

    keeps = "quality"
    ratio: float = 0.5
    ranges: str = ""
    share: float = 0.1
    fall: float = 0.05

    def reads(self) -> tuple[str, ...]:
        return mark(self.ranges)

    def __call__(self, p: Program) -> Program:
        if not 0 <= self.share < 1 or not 0 <= self.fall < 1:
            raise ArcError(f"pass {self.name}: share and fall are shares, got {self.share!r} and "
                           f"{self.fall!r}", hint="give numbers from 0 to less than 1")
        c = caches_of_scales(p, self.name, self.ratio)
        if self.ratio == 0:
            return p
        each = self.budgets(c, self.roles(c))
        how = {"first": c.appends[0], "observe": OBSERVE, "pool": POOL}
        groups = [Group(tuple(tuple(range(x.kv_heads)) if own == budget else ()
                              for x, own in zip(c.layers, each, strict=True)), budget, how)
                  for budget in dict.fromkeys(each)]
        return by_step(c, self.name, groups)

    def roles(self, c: Caches) -> Roles:
        """The pairs of layer and step with the lowest index, each step's brought to one mean and
        one spread."""
        if not self.ranges:
            return (frozenset(),) * len(c.appends)
        index = np.array(selectivity(self.ranges, len(c.layers), len(c.appends)))
        z = (index - index.mean(0)) / np.maximum(index.std(0), 1e-12)
        full = (k for k, n in enumerate(filled(c)) if n > (1 - self.ratio) * c.slots)
        pairs = sorted((z[i, k], k, i) for k in full for i in range(len(c.layers)))
        chosen = pairs[: round(self.share * len(pairs)) or bool(self.share)]
        return tuple(frozenset(i for _, at, i in chosen if at == k) for k in range(len(c.appends)))

    def budgets(self, c: Caches, roles: Roles) -> list[tuple[int, ...]]:
        """Of each layer: the slots it keeps after each step. All caches together are as large as
        they may be."""
        def room(mean: int) -> int:
            return sum(max(held(c.appends, own)) for own in _budgets(c, roles, mean, self.fall))

        most = int((1 - self.ratio) * c.slots * len(c.layers))
        mean = bisect_right(range(1, c.history + 1), most, key=room)
        found = _budgets(c, roles, mean, self.fall) if mean else []
        if not found or any(least <= c.appends[0] < n for own in found for least, n in zip(
                own[:-1], filled(c)[1:], strict=True)):
            raise ArcError(f"pass {self.name}: ratio {self.ratio} leaves {mean} of {c.slots} slots "
                           f"a layer, and the first {c.appends[0]} are always kept",
                           hint="give a smaller ratio, or a smaller fall")
        return found


def filled(c: Caches) -> list[int]:
    """Slots there are before each step where none ever goes."""
    return [0, *accumulate(c.appends[:-1])]


def _budgets(c: Caches, roles: Roles, mean: int, fall: float) -> list[tuple[int, ...]]:
    """After each step, `mean` slots a layer: by the roles in the next one, which reads them."""
    layers, steps = len(c.layers), []
    for k, most in enumerate(filled(c)[1:], 1):
        many, total = len(roles[k]), mean * layers
        few = int(mean * max(0.0, 1 - fall * k)) if many else mean
        much = min((total - (layers - many) * few) // many, most) if many else 0
        few = max(few, min((total - many * much) // (layers - many), most)) if (
            many < layers) else few  # what drafters have no use for
        steps.append([much if i in roles[k] else few for i in range(layers)])
    return [(*own, own[-1]) for own in zip(*steps, strict=True)]
