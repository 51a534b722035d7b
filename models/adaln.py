"""Transformer blocks whose norms are modulated by a condition: VAR, HMAR, FlexVAR, Infinity.

The condition of a row is the same for every token of every step, so all modulation vectors are
computed once, with the prompt, and carried as one tensor `ada` [r, n, dim].
https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from arcompile import nn as arc

MOST = math.log(100)  # cap of the learned log scale of normalised queries
Cache = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Self-attention, over a cache where there is one; `mat_qkv` rows are all q, all k, all v.

    Queries and keys are L2-normalised and queries scaled by a learned factor per head; without
    that (`cosine=False`) the scale is 0.25/sqrt(head), as upstream has it.
    """

    def __init__(self, dim: int, heads: int, cosine: bool = True):
        super().__init__()
        self.dim, self.heads, self.cosine = dim, heads, cosine
        self.scale = 1.0 if cosine else 0.25 / math.sqrt(dim // heads)
        if cosine:
            self.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1))
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.empty(dim)) for _ in "qv")
        self.register_buffer("zero_k_bias", torch.empty(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, cache: Cache | None = None, past: Tensor | None = None,
                rope: nn.Module | None = None) -> tuple[Tensor, Cache | None]:
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        q, k, v = nn.functional.linear(x, self.mat_qkv.weight, bias).split(self.dim, -1)
        if self.cosine:
            q = self._unit(q, self.scale_mul_1H11.clamp(max=MOST).exp().flatten(0, 2))
            k = self._unit(k)
        if rope is not None:
            q, k = (arc.rope(y, rope.cos, rope.sin, past, self.heads, True) for y in (q, k))
        if cache is None:
            out = arc.attention(q, k, v, self.heads, self.heads, self.scale, "full")
            return self.proj(out), None
        kc, vc = arc.cache_append(cache[0], k, past), arc.cache_append(cache[1], v, past)
        out = arc.attention(q, kc, vc, self.heads, self.heads, self.scale, "full", past)
        return self.proj(out), (kc, vc)

    def _unit(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Each head of [r,s,dim] to length one, times a scale [heads,1]."""
        y = arc.l2_norm(x.unflatten(-1, (self.heads, -1)), -1)
        return (y if scale is None else y * scale).flatten(2)


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm without weights, then a scale and a shift of the row, [r,1,dim]."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * scale + shift


def _plus_one(rows: Tensor, first: int, count: int) -> Tensor:
    """Checkpoints store scale - 1 in `count` of the rows [r,n,dim]."""
    parts = (rows[:, :first], rows[:, first : first + count] + 1.0, rows[:, first + count :])
    return torch.cat([p for p in parts if p.shape[1]], 1)


def linear(dim: int, count: int) -> nn.Sequential:
    """Modulation vectors from a condition: `.1` holds the weights."""
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, count * dim))


class Block(nn.Module):
    """x += gain1 * attn(norm1(x)); x += gain2 * ffn(norm2(x)).

    Its six vectors are gain1, gain2, scale1, scale2, shift1, shift2: of its own linear, or of one
    that all blocks share plus its own constants (`shared`).
    """

    sizes = 6

    def __init__(self, dim: int, heads: int, hidden: int, shared: bool = False,
                 cosine: bool = True):
        super().__init__()
        self.dim = dim
        self.attn = Attention(dim, heads, cosine)
        self.ffn = FeedForward(dim, hidden)
        if shared:
            self.ada_gss = nn.Parameter(torch.empty(1, 1, 6, dim))
        else:
            self.ada_lin = linear(dim, 6)

    def vectors(self, cond: Tensor, shared: Tensor | None) -> Tensor:
        """cond [r,dim], or what the shared linear makes of it [r,6,dim] -> [r,6,dim]."""
        if shared is not None:
            return _plus_one(shared + self.ada_gss[0], 2, 2)
        return _plus_one(self.ada_lin(cond).unflatten(-1, (6, self.dim)), 2, 2)

    def forward(self, x: Tensor, ada: tuple[Tensor, ...], cache: Cache | None = None,
                past: Tensor | None = None) -> tuple[Tensor, Cache | None]:
        gain1, gain2, scale1, scale2, shift1, shift2 = ada
        out, cache = self.attn(modulate(x, scale1, shift1), cache, past)
        x = x + out * gain1
        return x + self.ffn(modulate(x, scale2, shift2)) * gain2, cache


class HeadNorm(nn.Module):
    """The norm before the head; its vectors are scale and shift."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim
        self.ada_lin = linear(dim, 2)

    def vectors(self, cond: Tensor) -> Tensor:
        return _plus_one(self.ada_lin(cond).unflatten(-1, (2, self.dim)), 0, 1)

    def forward(self, x: Tensor, ada: tuple[Tensor, ...]) -> Tensor:
        return modulate(x, *ada)
