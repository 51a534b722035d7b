"""The loops of the families' authors, in plain torch: what an engine is compared with."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from arcompile.family import Source

# family -> the module whose `load(source)` makes its Eager
EAGER = {"llamagen": "arcompile.bench.eager_llamagen"}


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


def tensors(held: Any, only: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """A checkpoint's weights under these prefixes, as torch tensors in memory."""
    return {k: torch.from_numpy(held.load(k)) for k in held if k.startswith(only)}


def sample(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """logits [B, V] -> tokens [B, 1], as LlamaGen's `sample`; temperature 0: the most probable."""
    logits = logits / max(temperature or 1.0, 1e-5)
    if top_k > 0:
        least = torch.topk(logits, min(top_k, logits.shape[-1]))[0][..., -1, None]
        logits[logits < least] = -float("inf")
    probabilities = F.softmax(logits, dim=-1)
    if temperature == 0:
        return torch.topk(probabilities, 1)[1]
    return torch.multinomial(probabilities, 1)
