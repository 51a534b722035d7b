"""silu(group_norm(x)) is one kernel, not two: convolutional decoders do little else between two
convolutions. https://arxiv.org/abs/1803.08494"""

from __future__ import annotations

from typing import Any

from arcompile.ir import Builder, Value
from arcompile.pipeline import Pass, register
from arcompile.rewrite import Rule


class Fuse(Rule):
    def pattern(self, op: Any, x: Any, w: Any, b: Any, groups: Any, eps: Any) -> Any:
        return op.silu(op.group_norm(x, w, b, groups=groups, eps=eps))

    def replace(self, op: Builder, x: Value, w: Value, b: Value, groups: int, eps: float) -> Any:
        return op.group_norm_silu(x, w, b, groups=groups, eps=eps)


@register("norm-silu")
class NormSilu(Pass):
    """Fuse the activation of an image decoder into the norm before it."""

    rules = (Fuse(),)
