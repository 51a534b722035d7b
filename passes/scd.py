"""Speculative coupled decoding: drafts that stay as they were. https://arxiv.org/abs/2510.24211"""

from __future__ import annotations

from arcompile.errors import ArcError, did_you_mean
from arcompile.ops.speculation import COUPLINGS
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.speculation import Method, ratio, residual, speculate


@register("scd")
class SCD(Pass):
    """Like sjd, with drafts that are redrawn in step with what they were: the same law of images.

    coupling: `maximal` keeps a draft where its new law allows; `gumbel` gives each position noise
    of its own for good, so that near laws draw the same token; `independent` is sjd.
    """

    keeps = "distribution"
    tries = tuple({"window": n} for n in (2, 4, 8, 16, 32))
    window: int = 16
    coupling: str = "maximal"
    guess: str = "repeat"

    def __call__(self, p: Program) -> Program:
        if self.coupling not in COUPLINGS:
            raise ArcError(f"pass scd has no coupling {self.coupling!r}",
                           hint=did_you_mean(self.coupling, COUPLINGS))
        if self.window == 1:
            return p
        method = Method(ratio, residual, self.coupling)
        return speculate(p, self.name, self.window, method, self.guess)
