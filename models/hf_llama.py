"""Llama as Hugging Face stores it: apart projections, grouped keys, rotation by halves.

https://arxiv.org/abs/2307.09288
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.models.llama import RopeTable


@dataclass(frozen=True)
class Shape:
    """Widths of one decoder: `head` is the size of a head, `kv` the number of key heads."""

    dim: int
    layers: int
    heads: int
    kv: int
    head: int
    hidden: int
    eps: float = 1e-6
    theta: float = 10000.0


def rope(slots: int, head: int, theta: float) -> dict[str, np.ndarray]:
    """{"cos", "sin"} f32 [slots, head/2]; pair (i, i + head/2) turns by theta^(-2i/head)."""
    freq = theta ** (-np.arange(0, head, 2, dtype=np.float64) / head)
    angle = np.arange(slots)[:, None] * freq
    return {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}


class Attention(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.dim, c.heads * c.head, bias=False)
        self.k_proj = nn.Linear(c.dim, c.kv * c.head, bias=False)
        self.v_proj = nn.Linear(c.dim, c.kv * c.head, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head, c.dim, bias=False)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], past: Tensor, table: RopeTable,
                keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        c = self.c
        q = arc.rope(self.q_proj(x), table.cos, table.sin, past, c.heads, False)
        k = arc.rope(self.k_proj(x), table.cos, table.sin, past, c.kv, False)
        kc = arc.cache_append(cache[0], k, past)
        vc = arc.cache_append(cache[1], self.v_proj(x), past)
        out = arc.attention(q, kc, vc, c.heads, c.kv, c.head**-0.5, "causal", past, keep)
        return self.o_proj(out), kc, vc


class MLP(nn.Module):
    """down(silu(gate x) * up x). https://arxiv.org/abs/2002.05202"""

    def __init__(self, c: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(c.dim, c.hidden, bias=False)
        self.up_proj = nn.Linear(c.dim, c.hidden, bias=False)
        self.down_proj = nn.Linear(c.hidden, c.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Pre-norm attention and gated MLP, each with a residual."""

    def __init__(self, c: Shape):
        super().__init__()
        self.input_layernorm = arc.RMSNorm(c.dim, c.eps)
        self.post_attention_layernorm = arc.RMSNorm(c.dim, c.eps)
        self.self_attn, self.mlp = Attention(c), MLP(c)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], past: Tensor, table: RopeTable,
                keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        out, kc, vc = self.self_attn(self.input_layernorm(x), cache, past, table, keep)
        x = x + out
        return x + self.mlp(self.post_attention_layernorm(x)), kc, vc


class Decoder(nn.Module):
    """`embed_tokens`, `layers` and `norm`, as under `model.` of a Llama checkpoint."""

    def __init__(self, c: Shape, vocabulary: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, c.dim)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = arc.RMSNorm(c.dim, c.eps)

    def forward(self, x: Tensor, past: Tensor, table: RopeTable, cache: dict[str, Tensor],
                keep: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """x [r,s,dim] -> what the last layer makes of it, before the norm, and the new caches."""
        out: dict[str, Tensor] = {}
        for i, block in enumerate(self.layers):
            kv = (cache[f"k{i}"], cache[f"v{i}"])
            x, out[f"k{i}"], out[f"v{i}"] = block(x, kv, past, table, keep)
        return x, out


def kept(mask: Tensor, more: int) -> Tensor:
    """bool [r,p] and `more` slots that all are seen."""
    return torch.cat((mask, torch.ones_like(mask[:, :1]).expand(-1, more)), 1)
