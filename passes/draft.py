"""Speculative decoding with a second model, or with a cheap version of the same one.

https://arxiv.org/abs/2211.17192. A drafter made of the model itself needs no training: fewer bits,
fewer layers, a smaller cache. What it gets wrong costs time, never the law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from arcompile import partner
from arcompile.drafting import draft, renamed
from arcompile.errors import ArcError
from arcompile.pipeline import Pass, parse_pipeline, register, run
from arcompile.program import Program
from arcompile.speculation import Method, ratio, residual
from arcompile.weights import Weights

MARK = "small"


@register("draft")
class Draft(Pass):
    """Draw `window` tokens by a small model, then test them at once: the same law of images.

    by: the passes that make the small model of this one, such as `int4` or `shallow{layers=4}`;
    each weight that they change is stored once more. engine: the folder of an engine of the same
    image tokens, to draft instead. A window of 1 is plain decoding.
    """

    keeps = "distribution"
    tries = tuple({"window": n} for n in (3, 4, 6))
    window: int = 4
    by: str = "int4"
    engine: str = ""

    def __call__(self, p: Program) -> Program:
        if self.window == 1:
            return p
        small = self._other() if self.engine else run(p, parse_pipeline(self.by))
        return draft(p, self.name, self.window, small, Method(ratio, residual), MARK)

    def _other(self) -> Program:
        p = partner.program(self.engine)
        if p.accept != "all":
            raise ArcError(f"pass draft takes a plain engine, and {self.engine} drafts itself",
                           hint="build it without passes that speculate")
        swap = {g: renamed(g, g.name, {}, _own) for g in p.graphs}
        return replace(p, graphs=tuple(swap.values()))

    def prepared(self, p: Program, source: Weights) -> Pass:
        """Choices by weights' values are made now; two models must mean the same by a token."""
        if self.window == 1:
            return self
        if self.engine:
            partner.same_codes(p, source, partner.program(self.engine),
                               partner.weights(self.engine), self.name)
            return self
        done: list[Pass] = []
        run(p, parse_pipeline(self.by), source, done)
        return replace(self, by=", ".join(map(str, done)))

    def brings(self) -> Weights:
        if not self.engine or self.window == 1:
            return Weights({})
        return partner.brought(self.engine, _own)

    def drafter(self) -> Sequence[Pass] | None:
        return None if self.engine else parse_pipeline(self.by)

    def reads(self) -> tuple[str, ...]:
        return (partner.digest(self.engine),) if self.engine else ()


def _own(weight: str) -> str:
    return f"@{MARK}.{weight.lstrip('@')}"
