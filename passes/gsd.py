"""Grouped speculative decoding: a draft counts with tokens much like it.

https://arxiv.org/abs/2508.07747 (ICCV 2025). The group of a draft are its neighbours in the order
of p, those as likely (within `near`) and as close in the input embedding (within `distance`,
squared).
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.ir import Value
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.raster import embedding
from arcompile.speculation import Method, Tested, residual, speculate


@register("gsd")
class GSD(Pass):
    """sjd that accepts a draft by p and q of its group. A group of 1 is sjd, a `distance` of 0 too.

    It changes the law of images: measure what it does to yours.
    """

    keeps = "quality"
    tries = ({"window": 16}, {"window": 16, "group": 30, "near": 0.3, "distance": 2.0})
    window: int = 16
    group: int = 14
    near: float = 0.15
    distance: float = 0.5
    guess: str = "repeat"

    def __call__(self, p: Program) -> Program:
        if self.group < 1 or not 0 <= self.near <= 1 or self.distance < 0:
            raise ArcError(f"a group of {self.group} within {self.near:g} and {self.distance:g}",
                           hint="group is at least 1, near from 0 to 1, distance at least 0")
        if self.window == 1:
            return p
        table = embedding(p, self.name)
        method = Method(lambda t: self._weight(t, table), residual)
        return speculate(p, self.name, self.window, method, self.guess)

    def _weight(self, t: Tested, table: Value) -> Value:
        b, x = t.b, t.b.reshape(t.p_x, shape=("b", "c", 1))
        half = min(self.group // 2, int(t.p.type.shape[2]) - 1)
        if not half:
            return b.div(t.p_x, t.q_x)
        e, zero = b.weight(table.name, table.type), b.const(dtype="f32", value=0.0)
        none, near, within = (b.const(dtype="f32", value=v)
                              for v in (-2.0, -self.near, self.distance))
        ours = b.reshape(b.gather(e, t.draft, axis=0), shape=("b", "c", 1, table.type.shape[1]))
        gap = b.sub(t.p, x)
        mass = [t.p_x, t.q_x]
        for more, key in ((gap, b.neg(gap)), (b.neg(gap), gap)):  # those above p_x, those below
            least, index = b.topk(b.where(b.greater(more, zero), key, none), k=half)
            apart = b.sub(b.gather(e, index, axis=0), ours)
            far = b.sum(b.mul(apart, apart), axes=(3,))
            alike = b.emit("and", b.less_equal(far, within), b.greater_equal(least, near))[0]
            for i, law in enumerate((t.p, t.q)):
                here = b.where(alike, b.take_along(law, index, axis=2), zero)
                mass[i] = b.add(mass[i], b.sum(here, axes=(2,)))
        return b.div(*mass)
