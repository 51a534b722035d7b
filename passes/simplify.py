"""Remove shape ops that do nothing, and chains of them that are one."""

from __future__ import annotations

from typing import Any

from arcompile.ir import Builder, Node, Value
from arcompile.pipeline import Pass, register
from arcompile.rewrite import Miss, Rule


class Nothing(Rule):
    """An op that leaves shape and dtype as they are."""

    def __init__(self, op: str):
        self.op = op

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self.op)(x)

    def check(self, x: Value, node: Node) -> None:
        if node.outs[0].type != x.type:
            raise Miss(f"{self.op} makes {node.outs[0].type} of {x.type}")
        if node.attrs.get("step", 1) != 1:
            raise Miss("the slice runs backwards")

    def replace(self, op: Builder, x: Value) -> Value:
        return x


class Last(Rule):
    """Of two in a row, the last one counts."""

    shares = True

    def __init__(self, op: str):
        self.op = op

    def pattern(self, op: Any, x: Any) -> Any:
        return getattr(op, self.op)(getattr(op, self.op)(x))

    def replace(self, op: Builder, x: Value, node: Node) -> Any:
        return op.emit(self.op, x, **node.attrs)


class Transposes(Rule):
    shares = True

    def pattern(self, op: Any, x: Any, first: Any, then: Any) -> Any:
        return op.transpose(op.transpose(x, perm=first), perm=then)

    def replace(self, op: Builder, x: Value, first: Any, then: Any) -> Any:
        return op.transpose(x, perm=tuple(first[i] for i in then))


class Identity(Rule):
    """A transpose that moves nothing."""

    def pattern(self, op: Any, x: Any, perm: Any) -> Any:
        return op.transpose(x, perm=perm)

    def check(self, perm: Any) -> None:
        if tuple(perm) != tuple(range(len(perm))):
            raise Miss(f"perm {perm} moves axes")

    def replace(self, op: Builder, x: Value) -> Value:
        return x


@register("simplify")
class Simplify(Pass):
    """Reshapes, casts, slices and expands to the same type go; reshapes and transposes merge."""

    rules = (
        *(Nothing(op) for op in ("reshape", "cast", "expand", "slice")),
        *(Last(op) for op in ("reshape", "expand")),
        Transposes(),
        Identity(),
    )
