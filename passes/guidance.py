"""Guidance in some steps only: the others run without unconditional twins.

An interval of guidance, https://arxiv.org/abs/2404.07724; SkipVAR drops the unconditional branch
of the last scales, https://arxiv.org/abs/2506.08908. Once no later step is guided, the runtime
lets the twins go: half the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from arcompile.errors import ArcError
from arcompile.pipeline import Pass, register
from arcompile.program import Program


@register("guidance")
class Guidance(Pass):
    """Guide by the steps from `first` on, and no more from step `last` on; 0 is the end.

    From 0 to the end is the program as it is. It changes the law of images: measure what it does
    to yours.
    """

    keeps = "quality"
    first: int = 0
    last: int = 0

    @classmethod
    def worth(cls, p: Program) -> Iterable[Pass]:
        """Late steps without twins; those without them in early ones save nothing."""
        ends = {round(share * len(p.steps)) for share in (0.8, 0.6, 0.4)} - {0, len(p.steps)}
        return (cls(last=n) for n in sorted(ends))

    def __call__(self, p: Program) -> Program:
        last = self.last or len(p.steps)
        if not 0 <= self.first < last <= len(p.steps):
            raise ArcError(f"pass guidance cannot guide {p.name} by steps {self.first} to {last}",
                           hint=f"it has {len(p.steps)} steps; first=0 and last=0 are all of them")
        if (self.first, last) == (0, len(p.steps)):
            return p
        return replace(p, steps=tuple(
            s if self.first <= i < last else replace(s, guide=(1.0, 0.0))
            for i, s in enumerate(p.steps)))
