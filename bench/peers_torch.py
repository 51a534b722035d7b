"""Peers in torch: the authors' loop eagerly and through torch.compile, in f32 and bf16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from arcompile.bench import suites
from arcompile.bench.eager_llamagen import LlamaGen, Transformer
from arcompile.bench.eager_vq import tensors
from arcompile.bench.peers import Kind, Stepped
from arcompile.models.llamagen import config

_HELD: dict[str, tuple[Any, dict[str, Any]]] = {}  # suite -> sizes and weights, made once


def transformer(suite: Any, dtype: torch.dtype = torch.float32) -> Transformer:
    """The authors' transformer; all that compute in f32 share one set of weights."""
    if suite.name not in _HELD:
        source = suites.source(suite)
        held = tensors(source.tensors)
        held.pop("freqs_cis", None)
        _HELD[suite.name] = config(source, {}), held
    c, held = _HELD[suite.name]
    with torch.device("meta"):
        gpt = Transformer(c)
    gpt.load_state_dict(held, assign=True)
    return gpt.eval().to(dtype)


class Eager(Stepped):
    """generate.py's loop: guidance and sampling included."""

    def __init__(self, suite: Any, dtype: torch.dtype, compiled: bool):
        gpt = transformer(suite, dtype)
        self.suite, self.loop = suite, LlamaGen(gpt, None)
        if compiled:
            gpt.forward = torch.compile(gpt.forward, dynamic=False)  # type: ignore[method-assign]

    def begin(self) -> None:
        self.loop.begin([1], self.suite.guidance, 1.0, self.suite.top_k)
        self.loop.x = self.loop.gpt.tok_embeddings(torch.zeros((2, 1), dtype=torch.int64))
        self.loop.at = torch.tensor([0])

    def step(self) -> None:
        self.loop.step()


def _kind(name: str, dtype: torch.dtype, compiled: bool, says: str) -> Kind:
    def make(suite: Any, folder: Path) -> Eager:
        return Eager(suite, dtype, compiled)

    return Kind(name, make, dtype == torch.float32, says)


LOOP = "the authors' loop, guidance and top-k sampling included"
KINDS = (
    _kind("torch-f32", torch.float32, False, f"eager; {LOOP}"),
    _kind("torch-bf16", torch.bfloat16, False, f"eager; {LOOP}"),
    _kind("torch-compile-f32", torch.float32, True, f"torch.compile of the step; {LOOP}"),
    _kind("torch-compile-bf16", torch.bfloat16, True, f"torch.compile of the step; {LOOP}"),
)
