"""silu(gate) * x is one kernel, not two. https://arxiv.org/abs/2002.05202"""

from __future__ import annotations

from typing import Any

from arcompile.ir import Builder, Value
from arcompile.pipeline import Pass, register
from arcompile.rewrite import Miss, Rule


class Fuse(Rule):
    def pattern(self, op: Any, gate: Any, x: Any) -> Any:
        return op.mul(op.silu(gate), x)

    def check(self, gate: Value, x: Value) -> None:
        if gate.type != x.type:
            raise Miss(f"gate is {gate.type}, x is {x.type}")

    def replace(self, op: Builder, gate: Value, x: Value) -> Any:
        return op.swiglu(gate, x)


@register("swiglu")
class SwiGLU(Pass):
    """Fuse the gated activation of a transformer's MLP."""

    rules = (Fuse(),)
