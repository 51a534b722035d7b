"""LlamaGen as its authors run it (autoregressive/models/gpt.py and generate.py), on the CPU.

Preallocated caches of the whole length, a row of a boolean causal mask by position, rotation in
f32 by the table's row, scaled_dot_product_attention in the kernel torch chooses, guidance and
sampling as separate ops. Nothing is fused or compiled, as in their default setting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_vq import VQ, tensors
from arcompile.family import Source
from arcompile.models.llamagen import Config, config


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        f = x.float()
        normed = f * torch.rsqrt(torch.mean(f * f, dim=-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.dim, self.heads, self.head = dim, heads, dim // heads
        self.wqkv = nn.Linear(dim, 3 * dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.k_cache = self.v_cache = torch.empty(0)

    def forward(self, x: Tensor, freqs: Tensor, at: Tensor, mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (t.view(b, s, self.heads, self.head)
                   for t in self.wqkv(x).split([self.dim, self.dim, self.dim], dim=-1))
        q, k = rotate(q, freqs), rotate(k, freqs)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        self.k_cache[:, :, at] = k
        self.v_cache[:, :, at] = v
        out = F.scaled_dot_product_attention(q, self.k_cache, self.v_cache, attn_mask=mask)
        return self.wo(out.transpose(1, 2).contiguous().view(b, s, self.dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.attention, self.feed_forward = Attention(c.dim, c.heads), FeedForward(c.dim, c.hidden)
        self.attention_norm, self.ffn_norm = RMSNorm(c.dim), RMSNorm(c.dim)

    def forward(self, x: Tensor, freqs: Tensor, at: Tensor, mask: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs, at, mask)
        return h + self.feed_forward(self.ffn_norm(h))  # type: ignore[no-any-return]


class Condition(nn.Module):
    """A class table with the null class last, or a projection of caption features."""

    def __init__(self, c: Config):
        super().__init__()
        if c.classes:
            self.embedding_table = nn.Embedding(c.classes + 1, c.dim)
            return
        self.uncond_embedding = nn.Parameter(torch.empty(c.prompt, c.features))
        self.cap_proj: Any = nn.Module()
        self.cap_proj.fc1 = nn.Linear(c.features, c.dim, bias=False)
        self.cap_proj.fc2 = nn.Linear(c.dim, c.dim, bias=False)

    def caption(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.cap_proj.fc1(x), approximate="tanh")
        return self.cap_proj.fc2(hidden)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.cls_embedding = Condition(c)
        self.tok_embeddings = nn.Embedding(c.vocabulary, c.dim)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.dim)
        self.output = nn.Linear(c.dim, c.vocabulary, bias=False)

    def setup_caches(self, rows: int) -> None:
        c = self.c
        slots = -(-(c.prompt + c.positions) // 8) * 8
        shape = (rows, c.heads, slots, c.dim // c.heads)
        layer: Any
        for layer in self.layers:
            layer.attention.k_cache, layer.attention.v_cache = torch.zeros(
                2, *shape, dtype=self.output.weight.dtype)
        causal = torch.tril(torch.ones(slots, slots, dtype=torch.bool))
        self.causal_mask = causal.unsqueeze(0).repeat(rows, 1, 1)
        self.freqs_cis = rope_2d(c.grid, c.dim // c.heads, c.prompt)

    def forward(self, h: Tensor, at: Tensor) -> Tensor:
        mask = self.causal_mask[: len(h), None, at]
        freqs = self.freqs_cis[at]
        for layer in self.layers:
            h = layer(h, freqs, at, mask)
        return self.output(self.norm(h)).float()  # type: ignore[no-any-return]


def rope_2d(grid: int, head: int, prompt: int, base: float = 10000.0) -> Tensor:
    """[prompt + grid^2, head/2, 2]: cos and sin by row, then by column; zeros for the prompt."""
    half = head // 2
    freqs = 1.0 / (base ** (torch.arange(0, half, 2)[: half // 2].float() / half))
    turned = torch.outer(torch.arange(grid), freqs)
    both = torch.concat((turned[:, None].expand(-1, grid, -1), turned[None].expand(grid, -1, -1)),
                        dim=-1).flatten(0, 1)
    table = torch.stack((torch.cos(both), torch.sin(both)), dim=-1)
    return torch.cat((torch.zeros(prompt, half, 2), table))


def rotate(x: Tensor, freqs: Tensor) -> Tensor:
    """x [b, s, h, e] turned in adjacent pairs."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 2)
    f = freqs.view(1, pairs.size(1), 1, pairs.size(3), 2)
    a, b, cos, sin = pairs[..., 0], pairs[..., 1], f[..., 0], f[..., 1]
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return turned.flatten(3).type_as(x)


def sample(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """logits [B, V] -> tokens [B, 1], as upstream's `sample`; temperature 0: the most probable."""
    logits = logits / max(temperature or 1.0, 1e-5)
    if top_k > 0:
        least = torch.topk(logits, min(top_k, logits.shape[-1]))[0][..., -1, None]
        logits[logits < least] = -float("inf")
    probabilities = F.softmax(logits, dim=-1)
    if temperature == 0:
        return torch.topk(probabilities, 1)[1]
    return torch.multinomial(probabilities, 1)


class LlamaGen:
    """generate.py's loop, one call a step."""

    def __init__(self, gpt: Transformer, vq: Any):
        self.gpt, self.vq = gpt, vq

    @torch.inference_mode()
    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        c, embed = self.gpt.c, self.gpt.cls_embedding
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        self.guided = guidance > 1
        if c.classes:
            label = torch.as_tensor(cond, dtype=torch.int64)
            self.b = len(label)
            if self.guided:
                label = torch.cat((label, torch.full_like(label, c.classes)))
            self.x = embed.embedding_table(label)[:, None]
        else:
            features = torch.as_tensor(cond["features"])
            self.b = len(features)
            if self.guided:
                null = torch.zeros_like(features) + embed.uncond_embedding
                features = torch.cat((features, null))
            self.x = embed.caption(features)
        self.gpt.setup_caches(len(self.x))
        if not c.classes and "mask" in cond:
            self._hide(torch.as_tensor(cond["mask"]))
        self.at = torch.arange(c.prompt)

    def _hide(self, mask: Tensor) -> None:
        """Columns of padding are masked for all rows, but for a slot's own."""
        table, twice = self.gpt.causal_mask, torch.cat((mask, mask)) if self.guided else mask
        table[:, :, : mask.shape[1]] &= twice.bool()[:, None]
        table |= torch.eye(table.shape[1], dtype=torch.bool)

    @torch.inference_mode()
    def step(self) -> Tensor:
        logits = self.gpt(self.x, self.at)[:, -1]
        if self.guided:
            given, null = torch.split(logits, len(logits) // 2, dim=0)
            logits = null + (given - null) * self.guidance
        token = sample(logits, self.temperature, self.top_k)
        self.at = self.at[-1:] + 1
        again = torch.cat((token, token)) if self.guided else token
        self.x = self.gpt.tok_embeddings(again)
        return token

    @torch.inference_mode()
    def finish(self, tokens: Tensor) -> Tensor:
        return self.vq.decode_code(tokens, self.gpt.c.grid)  # type: ignore[no-any-return]


def load(source: Source) -> LlamaGen:
    c = config(source, {})
    with torch.device("meta"):
        gpt = Transformer(c)
    held = tensors(source.tensors)
    held.pop("freqs_cis", None)
    gpt.load_state_dict(held, assign=True)
    vq = VQ(source.decoder) if source.decoder is not None else None
    return LlamaGen(gpt.eval(), vq)
