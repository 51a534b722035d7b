"""Speculative Jacobi decoding: drafts are what the last round drew. https://arxiv.org/abs/2410.01699"""

from __future__ import annotations

from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.speculation import Method, ratio, residual, speculate


@register("sjd")
class SJD(Pass):
    """Draw a raster image in rounds that test `window` drafts at once; the same law of images.

    guess: what is tried where nothing was drawn yet, `repeat`, `above` or `copy`. A window of 1 is
    plain decoding.
    """

    keeps = "distribution"
    window: int = 16
    guess: str = "repeat"

    def __call__(self, p: Program) -> Program:
        if self.window == 1:
            return p
        return speculate(p, self.name, self.window, Method(ratio, residual), self.guess)
