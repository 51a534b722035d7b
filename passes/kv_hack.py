"""HACK: heads that look everywhere alike keep few keys, heads that look nearby keep many.

https://arxiv.org/abs/2504.09261. Contextual heads attend to the same keys whatever the query,
structural ones to the neighbours of the query in every scale.
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.passes.eviction import Caches, Group, by_step, caches_of_scales
from arcompile.passes.ranges import mark, spread
from arcompile.pipeline import Pass, register
from arcompile.program import Program

SCALES = 2  # the first ones, which structural heads keep whole


@register("kv-hack")
class Hack(Pass):
    """Keep 1 - `ratio` of a cache on average: little of it in contextual heads, more in others.

    ranges: the file of `arcompile calibrate`, by which heads are told apart; without it all are
    taken for structural ones. share: of all heads that are contextual; few: what those keep, as a
    share of the whole cache, or more where the others need not all that is left. twins: the
    unconditional row of an image keeps what the conditional one does. What a step appends is never
    stored for the last step, whatever the ratio.
    """

    keeps = "quality"
    ratio: float = 0.5
    ranges: str = ""
    share: float = 0.5
    few: float = 0.1
    twins: bool = False

    def reads(self) -> tuple[str, ...]:
        return mark(self.ranges)

    def __call__(self, p: Program) -> Program:
        if not 0 < self.few <= 1 or not 0 <= self.share <= 1:
            raise ArcError(f"pass {self.name}: few and share are shares, got {self.few!r} and "
                           f"{self.share!r}", hint="give numbers from 0 to 1")
        c = caches_of_scales(p, self.name, self.ratio)
        if self.ratio == 0:
            return p
        return by_step(c, self.name, self._groups(c), share=self.twins)

    def _groups(self, c: Caches) -> list[Group]:
        alike = contextual(spread(self.ranges, [x.heads for x in c.layers]), self.share) if (
            self.ranges) else tuple(() for _ in c.layers)
        if any(alike) and any(x.heads != x.kv_heads for x in c.layers):
            raise ArcError(f"pass {self.name} needs heads with keys of their own",
                           hint="leave ranges out: then heads are not told apart")
        others = tuple(tuple(h for h in range(x.kv_heads) if h not in few)
                       for x, few in zip(c.layers, alike, strict=True))
        few, many = self.budgets(c, sum(map(len, alike)) / sum(x.kv_heads for x in c.layers))
        first = sum(c.appends[:SCALES])
        last = max((held for held in _filled(c, few)), default=0)
        found = [Group(alike, (few,) * len(c.appends), {"merge": last}),
                 Group(others, (many,) * len(c.appends), {"first": first, "recent": -1})]
        return [g for g in found if any(g.heads)]

    def budgets(self, c: Caches, share: float) -> tuple[int, int]:
        """(slots of a contextual head, of a structural one); their mean is within 1 - ratio."""
        mean, first = int(c.slots * (1 - self.ratio)), sum(c.appends[:SCALES])
        few = min(int(self.few * c.slots), mean) if share else mean
        many = mean if share == 0 else int((mean - share * few) / (1 - share)) if share < 1 else 0
        if many > c.history and share:  # more than there is: the others get what is left
            many = c.history
            few = min(int((mean - (1 - share) * many) / share), c.history)
        if few < 1 or (share < 1 and many <= first and many < c.history):
            raise ArcError(f"pass {self.name}: ratio {self.ratio} leaves {few} and {many} of "
                           f"{c.slots} slots, and the first {first} are always kept",
                           hint="give a smaller ratio")
        return few, min(many, c.history)


def _filled(c: Caches, most: int) -> list[int]:
    """How many slots there are whenever some go."""
    held, found = 0, []
    for n in c.appends[:-1]:
        held += n
        if held > most:
            found.append(held)
            held = most
    return found


def contextual(spread: list[list[float]], share: float) -> tuple[tuple[int, ...], ...]:
    """Of each layer the heads whose attention differs least from query to query, over all layers
    a share of all heads; equal ones in order."""
    every = sorted((x, layer, head) for layer, row in enumerate(spread)
                   for head, x in enumerate(row))
    chosen = every[: round(share * len(every))]
    return tuple(tuple(sorted(h for _, at, h in chosen if at == layer))
                 for layer in range(len(spread)))
