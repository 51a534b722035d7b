"""Jacobi decoding by shared noise: the tokens of plain decoding, in fewer forwards.

Predictive sampling, https://arxiv.org/abs/2002.09928: with the noise fixed, an image is the fixed
point of drawing all its tokens at once, and rounds of a window find it from left to right.
"""

from __future__ import annotations

from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.speculation import jacobi


@register("jacobi")
class Jacobi(Pass):
    """Draw a raster image in rounds of `window` positions; token for token the same image.

    A draft is right when the noise of its position draws it again behind the right tokens. No laws
    are kept, so a round costs least of all methods; it commits fewer tokens than scd.
    """

    keeps = "distribution"
    tries = tuple({"window": n} for n in (4, 8, 16))
    window: int = 16
    guess: str = "repeat"

    def __call__(self, p: Program) -> Program:
        return p if self.window == 1 else jacobi(p, self.name, self.window, self.guess)
