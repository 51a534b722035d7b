"""Fewer scales: a picture of next-scale prediction is whole after any of them.

SkipVAR leaves out the last scales where they add little, https://arxiv.org/abs/2506.08908. Here
they are left out for every picture; to decide picture by picture, give `generate` an `on_step`
that returns False.
"""

from __future__ import annotations

from dataclasses import replace

from arcompile.errors import ArcError
from arcompile.pipeline import Pass, register
from arcompile.program import Program


@register("trim")
class Trim(Pass):
    """Leave out the last `scales` scales; 0 leaves out none.

    It changes the law of images: measure what it does to yours.
    """

    keeps = "quality"
    tries = ({"scales": 1},)
    scales: int = 0

    def __call__(self, p: Program) -> Program:
        if not self.scales:
            return p
        whole = {v.name for c in p.finish for v in p.graph(c.graph).params}
        if p.accept != "all" or "f_hat" not in dict(p.state) or not p.finish or "tokens" in whole:
            raise ArcError(f"pass trim needs a program of scales, and {p.name} is none",
                           hint="`arcompile list models` tells the order of each family")
        if not 0 < self.scales < len(p.steps):
            raise ArcError(f"pass trim cannot leave out {self.scales} of {len(p.steps)} scales",
                           hint=f"give 0 to {len(p.steps) - 1}")
        kept = p.steps[:-self.scales]
        gone = {c.graph for s in p.steps for c in s.calls} - {
            c.graph for s in kept for c in s.calls}
        return replace(p, steps=kept, positions=sum(len(s.commit) for s in kept),
                       graphs=tuple(g for g in p.graphs if g.name not in gone))
