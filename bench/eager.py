"""The loops of the families' authors, in plain torch: what an engine is compared with."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from arcompile.family import Source

# family -> the module whose `load(source)` makes its Eager
EAGER = {"llamagen": "arcompile.bench.eager_llamagen", "var": "arcompile.bench.eager_var",
         "mar": "arcompile.bench.eager_mar", "hmar": "arcompile.bench.eager_hmar",
         "xar": "arcompile.bench.eager_xar", "janus": "arcompile.bench.eager_janus"}


class Eager(Protocol):
    """One model, run step by step as its authors run it. Steps are those of the engine."""

    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        """Forget the last run: empty caches, the condition embedded."""

    def step(self) -> Tensor:
        """One pass of the loop; the tokens it committed, i64 [B, n]."""

    def finish(self, tokens: Tensor) -> Tensor:
        """tokens i64 [B, N] -> pixels f32 [B, 3, H, W]."""


def load(family: str, source: Source) -> Eager | None:
    """The family's eager loop with these weights, or None when there is none yet."""
    if family not in EAGER:
        return None
    made: Eager = importlib.import_module(EAGER[family]).load(source)
    return made
