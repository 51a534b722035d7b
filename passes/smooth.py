"""Outliers of activations move into the weights, where they round better.
https://arxiv.org/abs/2211.10438"""

from __future__ import annotations

from typing import ClassVar

from arcompile.errors import ArcError
from arcompile.ir import Builder, Value
from arcompile.passes.migrate import Migrate, Site, power
from arcompile.passes.ranges import INPUT
from arcompile.pipeline import register
from arcompile.program import Program


@register("smooth")
class Smooth(Migrate):
    """What a norm or a gate hands to products is divided channel by channel, their rows multiplied.

    The factor is max|x|^alpha / max|w|^(1 - alpha). Exact but for rounding, and of use only before
    a pass that quantises. ranges: the file of `arcompile calibrate`; without it nothing changes.
    """

    kind: ClassVar[str] = INPUT

    alpha: float = 0.5

    def __call__(self, p: Program) -> Program:
        if not 0 <= self.alpha <= 1:
            raise ArcError(f"pass smooth: alpha must be from 0 to 1, got {self.alpha!r}")
        return super().__call__(p)

    def factor(self, b: Builder, site: Site, seen: Value) -> Value:
        """Of several products by one input, the weights' peaks are those of all."""
        first, *rest = site.weights
        most: Value = b.max(b.abs(first), axes=(1,))
        for w in rest:
            most = b.maximum(most, b.max(b.abs(w), axes=(1,)))
        found: Value = b.div(power(b, seen, self.alpha), power(b, most, 1 - self.alpha))
        return found
