"""LANTERN: a draft also counts what its neighbours in the codebook weigh.

https://arxiv.org/abs/2410.03355 and, by a factor instead of a sum, https://arxiv.org/abs/2502.06352
(LANTERN++). Here the drafts are sjd's; the papers train a drafter.
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.ir import Value
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.raster import neighbours
from arcompile.speculation import Method, Tested, ratio, residual, speculate


@register("lantern")
class Lantern(Pass):
    """sjd that accepts a draft x by p(x) + p of its nearest codes, as long as these sum to `most`.

    near: codes looked at. most: with times=0, at most this mass (LANTERN's delta); else at most
    (times - 1) p(x) (LANTERN++'s lambda). near=0, most=0 or times=1 is sjd. What is bounded is the
    mass that is counted for a draft, not the distance of the law of images: measure that.
    """

    keeps = "quality"
    tries = ({"window": 16}, {"window": 16, "most": 0.3}, {"window": 16, "times": 5.0})
    window: int = 16
    near: int = 10
    most: float = 0.1
    times: float = 0.0
    guess: str = "repeat"

    def __call__(self, p: Program) -> Program:
        if self.near < 0 or not 0 <= self.most <= 1 or not (self.times == 0 or self.times >= 1):
            raise ArcError(f"pass lantern takes near >= 0, most from 0 to 1, and times 0 or >= 1, "
                           f"not {self.near}, {self.most:g} and {self.times:g}")
        if self.window == 1:
            return p
        if not self.near:
            return speculate(p, self.name, self.window, Method(ratio, residual), self.guess)
        p, table = neighbours(p, self.name, self.near)
        method = Method(lambda t: self._weight(t, table), residual)
        return speculate(p, self.name, self.window, method, self.guess)

    def _weight(self, t: Tested, table: Value) -> Value:
        b = t.b
        near = b.gather(b.weight(table.name, table.type), t.draft, axis=0)
        theirs = b.take_along(t.p, near, axis=2)
        bound = b.const(dtype="f32", value=self.most)
        if self.times:
            x = b.reshape(t.p_x, shape=("b", "c", 1))
            bound = b.mul(x, b.const(dtype="f32", value=self.times - 1))
        within = b.less_equal(b.cumsum(theirs, axis=2), bound)
        more = b.sum(b.where(within, theirs, b.const(dtype="f32", value=0.0)), axes=(2,))
        return b.div(b.add(t.p_x, more), t.q_x)
