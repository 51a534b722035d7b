"""The Llama decoder block over explicit KV caches: LlamaGen, NAR, PAR, Janus."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from arcompile import nn as arc


def grid_rope(height: int, width: int, head: int, prompt: int = 0,
              base: float = 10000.0) -> dict[str, np.ndarray]:
    """{"cos", "sin"} f32 [prompt + height*width, head/2] of the 2-D rotary embedding.

    The first half of the pairs turns by the row, the second by the column. Prompt slots have
    cos = sin = 0, so their queries and keys become zero vectors, as LlamaGen trains them.
    """
    half = head // 2
    freq = 1.0 / base ** (np.arange(0, half, 2)[: half // 2].astype(np.float32) / half)
    row = np.arange(height, dtype=np.float32)[:, None] * freq
    col = np.arange(width, dtype=np.float32)[:, None] * freq
    angle = np.concatenate((row.repeat(width, 0), np.tile(col, (height, 1))), -1)
    zero = np.zeros((prompt, half), np.float32)
    return {"cos": np.concatenate((zero, np.cos(angle))).astype(np.float32),
            "sin": np.concatenate((zero, np.sin(angle))).astype(np.float32)}


class Attention(nn.Module):
    """Rotary self-attention over a cache; `wqkv` rows are all q, then all k, then all v."""

    def __init__(self, dim: int, heads: int, mask: str = "causal"):
        super().__init__()
        self.dim, self.heads, self.mask = dim, heads, mask
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], past: Tensor, table: nn.Module,
                keep: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.wqkv(x).split(self.dim, -1)
        q = arc.rope(q, table.cos, table.sin, past, self.heads, True)
        k = arc.rope(k, table.cos, table.sin, past, self.heads, True)
        kc, vc = arc.cache_append(cache[0], k, past), arc.cache_append(cache[1], v, past)
        scale = (self.dim // self.heads) ** -0.5
        out = arc.attention(q, kc, vc, self.heads, self.heads, scale, self.mask, past, keep)
        return self.wo(out), kc, vc


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x). https://arxiv.org/abs/2002.05202"""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(nn.functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm attention and gated MLP, each with a residual."""

    def __init__(self, dim: int, heads: int, hidden: int, mask: str = "causal", eps: float = 1e-5):
        super().__init__()
        self.attention_norm, self.ffn_norm = arc.RMSNorm(dim, eps), arc.RMSNorm(dim, eps)
        self.attention = Attention(dim, heads, mask)
        self.feed_forward = SwiGLU(dim, hidden)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor], past: Tensor, table: nn.Module,
                keep: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        out, kc, vc = self.attention(self.attention_norm(x), cache, past, table, keep)
        x = x + out
        return x + self.feed_forward(self.ffn_norm(x)), kc, vc


class RopeTable(nn.Module):
    """Holds cos and sin [P, head/2] as buffers, so that they become one shared weight."""

    def __init__(self, slots: int, head: int):
        super().__init__()
        self.register_buffer("cos", torch.empty(slots, head // 2))
        self.register_buffer("sin", torch.empty(slots, head // 2))
