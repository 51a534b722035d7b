"""COOL-SD: accept early drafts of a window more readily than late ones, by a factor that decays.

Cool speculative decoding, AAAI 2026: a draft is kept with probability min(1, w p / q), and a
rejected one is drawn from what is then left of p. w = max(1, delta exp(-nu i)) at the i-th open
slot; below 1 the paper's factor rejects more than an exact test would, for nothing.
"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.ir import Value
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.speculation import Method, Tested, ratio, residual, speculate


@register("cool-sd")
class CoolSD(Pass):
    """sjd that accepts up to `delta` times as readily. At delta=1 it is sjd.

    The law of a token moves by no more than the mass that is accepted beyond p / q.
    """

    keeps = "bound"
    tries = tuple({"window": 16, "delta": x} for x in (1.2, 1.5, 2.0))
    window: int = 16
    delta: float = 1.1
    nu: float = 0.7
    guess: str = "repeat"

    def __call__(self, p: Program) -> Program:
        if self.delta < 1 or self.nu < 0:
            raise ArcError(f"pass cool-sd takes delta >= 1 and nu >= 0, not {self.delta:g} and "
                           f"{self.nu:g}")
        if self.window == 1:
            return p
        exact = self.delta == 1.0
        method = Method(ratio, residual) if exact else Method(self._weight, self._rest)
        return speculate(p, self.name, self.window, method, self.guess)

    def _factor(self, t: Tested) -> Value:
        """w f32[b,c]"""
        b = t.b
        slot = b.reshape(b.arange(dtype="i64", shape=("c",)), shape=(1, "c"))
        open_ = b.cast(b.sub(slot, b.reshape(t.done, shape=("b", 1))), dtype="f32")
        decay = b.exp(b.mul(open_, b.const(dtype="f32", value=-self.nu)))
        w = b.mul(decay, b.const(dtype="f32", value=self.delta))
        return b.maximum(w, b.const(dtype="f32", value=1.0))

    def _weight(self, t: Tested) -> Value:
        return t.b.mul(self._factor(t), ratio(t))

    def _rest(self, t: Tested) -> Value:
        b = t.b
        w = b.reshape(self._factor(t), shape=("b", "c", 1))
        return b.relu(b.sub(t.p, b.minimum(t.q, b.mul(w, t.p))))
