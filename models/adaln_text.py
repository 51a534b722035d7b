"""The block of `adaln` with attention to text in its middle: Infinity.

https://arxiv.org/abs/2412.04431
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.models.adaln import Attention, Block, Cache, FeedForward, modulate


class CrossAttention(nn.Module):
    """Over text, whose keys and values are the same at every step and computed with the prompt."""

    def __init__(self, dim: int, heads: int, width: int, pool: bool = False):
        super().__init__()
        self.heads, self.scale, self.dim = heads, (dim // heads) ** -0.5, dim
        if pool:
            self.mat_q = nn.Parameter(torch.empty(1, heads, dim // heads))
        else:
            self.mat_q = nn.Linear(dim, dim)
        self.mat_kv = nn.Linear(width, 2 * dim, bias=False)
        self.v_bias = nn.Parameter(torch.empty(dim))
        self.register_buffer("zero_k_bias", torch.empty(dim))
        self.proj = nn.Linear(dim, dim)

    def memory(self, text: Tensor) -> tuple[Tensor, Tensor]:
        bias = torch.cat((self.zero_k_bias, self.v_bias))
        k, v = nn.functional.linear(text, self.mat_kv.weight, bias).split(self.dim, -1)
        return k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return self.proj(arc.attention(q, k, v, self.heads, self.heads, self.scale, "full",
                                       bias=bias))

    def pool(self, text: Tensor, bias: Tensor) -> Tensor:
        """One vector of a whole text, [r,dim]."""
        q = self.mat_q.flatten(1)[:, None].expand(text.shape[0], -1, -1)
        return self.attend(q, *self.memory(text), bias)[:, 0]


class TextBlock(nn.Module):
    """Block of `adaln`, with attention to text between its two halves."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.sa = Attention(dim, heads)
        self.ca = CrossAttention(dim, heads, dim)
        self.ca_norm = nn.LayerNorm(dim, eps=1e-6)
        self.ffn = FeedForward(dim, hidden)
        self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, dim))

    vectors = Block.vectors

    def forward(self, x: Tensor, ada: tuple[Tensor, ...], cache: Cache, past: Tensor,
                rope: nn.Module, memory: tuple[Tensor, Tensor],
                bias: Tensor) -> tuple[Tensor, Cache]:
        gain1, gain2, scale1, scale2, shift1, shift2 = ada
        out, kept = self.sa(modulate(x, scale1, shift1), cache, past, rope)
        x = x + out * gain1
        x = x + self.ca.attend(self.ca.mat_q(self.ca_norm(x)), *memory, bias)
        return x + self.ffn(modulate(x, scale2, shift2)) * gain2, kept


class Chunk(nn.Module):
    def __init__(self, blocks: list[TextBlock]):
        super().__init__()
        self.module = nn.ModuleList(blocks)
