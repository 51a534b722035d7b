"""xAR as its authors run it (models/xar.py and its flow sampler), on the CPU.

The first pass of a cell takes the clean cell before it along, whose keys and values join the cache
then; the later passes are over the noisy cell alone. Every block computes its own modulation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_llamagen import rotate
from arcompile.bench.eager_mar import SCALE, _decoder
from arcompile.bench.eager_vq import tensors
from arcompile.family import Source
from arcompile.models.xar import Config, config

CELLS = 2  # a side


class RMSNorm(nn.Module):
    def __init__(self, dim: int, weight: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim)) if weight else None

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x if self.weight is None else x * self.weight


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.held: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, freqs: Tensor, mask: Tensor | None, keep: int) -> Tensor:
        """mask bool[s,t] of a pass that has one; the first `keep` slots stay in the cache."""
        b, s, c = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).unbind(2)
        q, k, v = (y.transpose(1, 2) for y in (rotate(q, freqs), rotate(k, freqs), v))
        if self.held is not None:
            k, v = torch.cat((self.held[0], k), dim=2), torch.cat((self.held[1], v), dim=2)
        if keep:
            now = k.shape[2] - s + keep
            self.held = k[:, :, :now], v[:, :, :now]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(out.transpose(1, 2).reshape(b, s, c))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(c.dim, False), RMSNorm(c.dim, False)
        self.attn = Attention(c.dim, c.heads)
        self.mlp: Any = nn.Module()
        self.mlp.fc1_g, self.mlp.fc1_x = nn.Linear(c.dim, c.hidden), nn.Linear(c.dim, c.hidden)
        self.mlp.fc2 = nn.Linear(c.hidden, c.dim)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))

    def forward(self, x: Tensor, cond: Tensor, freqs: Tensor, mask: Tensor | None,
                keep: int) -> Tensor:
        """cond [b,s,dim]: one vector a cell, repeated over its tokens."""
        g1, g2, s1, s2, t1, t2 = self.ada_lin(cond).chunk(6, dim=-1)
        x = x + g1 * self.attn(self.norm1(x) * (1 + s1) + t1, freqs, mask, keep)
        h, m = self.norm2(x) * (1 + s2) + t2, self.mlp
        return x + g2 * m.fc2(F.gelu(m.fc1_g(h)) * m.fc1_x(h))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c, d = c, c.dim
        self.class_emb = nn.Embedding(c.classes + 1, d)
        self.time_embed: Any = nn.Module()
        self.time_embed.mlp = nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))
        self.z_proj, self.z_proj_ln = nn.Linear(c.channels, d), RMSNorm(d)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.positions, d))
        self.encoder_blocks = nn.ModuleList(Block(c) for _ in range(c.encoder))
        self.encoder_norm, self.decoder_embed = RMSNorm(d), nn.Linear(d, d)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.positions, d))
        self.decoder_blocks = nn.ModuleList(Block(c) for _ in range(c.decoder))
        self.decoder_norm, self.pred = RMSNorm(d), nn.Linear(d, c.channels)

    def forward(self, x: Tensor, times: Tensor, label: Tensor, freqs: Tensor, at: int,
                mask: Tensor | None, keep: int) -> Tensor:
        """x [b,s,C] from position `at` on, times [cells] in thousandths -> velocity [b,s,C]"""
        c, here = self.c, slice(at, at + x.shape[1])
        waves = torch.exp(-math.log(10000) * torch.arange(128).float() / 128)
        args = times[:, None].float() * waves[None]
        time = self.time_embed.mlp(torch.cat((torch.cos(args), torch.sin(args)), dim=-1))
        cond = (self.class_emb(label)[:, None] + time[None]).repeat_interleave(c.cell, 1)
        x = self.z_proj_ln(self.z_proj(x) + self.encoder_pos_embed_learned[:, here])
        for block in self.encoder_blocks:
            x = block(x, cond, freqs[here], mask, keep)
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, here]
        for block in self.decoder_blocks:
            x = block(x, cond, freqs[here], mask, keep)
        return self.pred(self.decoder_norm(x))  # type: ignore[no-any-return]


class XAR:
    """One cell a step. `noise` [turns+1,B,N,C] in cell-major order is what it drew."""

    def __init__(self, net: Transformer, vae: Any):
        self.net, self.vae, c = net, vae, net.c
        self.spent: dict[str, float] = {}
        self.order, self.freqs = places(c.grid), rope(c.grid, c.dim // c.heads)

    @torch.inference_mode()
    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        c, label = self.net.c, torch.as_tensor(cond, dtype=torch.int64)
        self.guidance, self.temperature, self.b = guidance, temperature, len(label)
        self.label = torch.cat((label, torch.full_like(label, c.classes)))
        self.noise = torch.randn(c.steps + 1, self.b, c.positions, c.channels)
        self.cells: list[Tensor] = []
        block: Any
        for block in (*self.net.encoder_blocks, *self.net.decoder_blocks):
            block.attn.held = None

    def jump(self, step: int) -> None:
        """As if so many cells had been drawn: of zeros, whose keys and values are seen once."""
        c = self.net.c
        for k in range(step):
            self.cells.append(torch.zeros(self.b, c.cell, c.channels, dtype=torch.float64))
            if k + 1 < step:
                with torch.inference_mode():
                    self._velocity(self.cells[-1], 1000, True)

    def _velocity(self, x: Tensor, now: int, first: bool) -> Tensor:
        """Of the noisy cell, both halves of the guided batch."""
        c, k = self.net.c, len(self.cells)
        x, times, at, mask, keep = x.float(), torch.tensor([now]), k * c.cell, None, 0
        if first and k:
            x, keep, at = torch.cat((self.cells[-1].float(), x), 1), c.cell, at - c.cell
            times = torch.tensor([0, now])
            mask = torch.ones(2 * c.cell, at + 2 * c.cell, dtype=torch.bool)
            mask[: c.cell, -c.cell :] = False
        v = self.net(x.repeat(2, 1, 1), times, self.label, self.freqs, at, mask, keep)
        return v[:, -c.cell :].double()

    @torch.inference_mode()
    def step(self) -> Tensor:
        c, k = self.net.c, len(self.cells)
        here = slice(k * c.cell, (k + 1) * c.cell)
        t = np.append(np.linspace(1, 0.04, c.steps), 0.0)
        scale = 1 + (self.guidance - 1) * k / (CELLS**2 - 1)
        x = self.noise[0, :, here].double()
        for i in range(c.steps):
            v = self._velocity(x, int(np.float32(t[i]) * np.float32(1000)), not i)
            dt = t[i + 1] - t[i]
            twice = x.repeat(2, 1, 1)
            drift = v - t[i] * (-((1 - t[i]) * v + twice) / t[i])
            given, null = drift.chunk(2)
            x = x + (null + scale * (given - null)) * dt
            if i < c.steps - 1:
                x = x + math.sqrt(2 * t[i] * -dt) * self.temperature * self.noise[i + 1, :, here]
        self.cells.append(x)
        return torch.zeros(self.b, 0, dtype=torch.int64)

    @property
    def latents(self) -> Tensor:
        """f32 [B,N,C] in raster order."""
        found = torch.empty(self.b, self.net.c.positions, self.net.c.channels)
        found[:, self.order] = torch.cat(self.cells, 1).float()
        return found

    @torch.inference_mode()
    def finish(self, tokens: Tensor) -> Tensor:
        side = self.net.c.grid
        z = self.latents.transpose(1, 2).reshape(self.b, -1, side, side) / SCALE
        return self.vae.decoder(self.vae.post_quant_conv(z))  # type: ignore[no-any-return]


def places(grid: int) -> Tensor:
    """i64 [N]: the raster position of each token, cell by cell."""
    side = grid // CELLS
    at = torch.arange(grid * grid).view(CELLS, side, CELLS, side)
    return at.permute(0, 2, 1, 3).reshape(-1)


def rope(grid: int, head: int) -> Tensor:
    """[N, head/2, 2]: cos and sin, by row and then by column, cell by cell."""
    freqs = 10000.0 ** (-torch.arange(0, head // 2, 2).float() / (head // 2))
    at = places(grid)
    angle = torch.cat((torch.outer(at // grid, freqs), torch.outer(at % grid, freqs)), dim=-1)
    return torch.stack((angle.cos(), angle.sin()), dim=-1)


def load(source: Source) -> XAR:
    c = config(source, {})
    with torch.device("meta"):
        net = Transformer(c)
    held = {k: v for k, v in tensors(source.tensors).items() if ".rope." not in k and k != "mask"}
    net.load_state_dict(held, assign=True)
    return XAR(net.eval(), _decoder(source) if source.decoder is not None else None)
