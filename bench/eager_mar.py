"""MAR as its authors run it (models/mar.py, diffloss.py, gaussian_diffusion.py), on the CPU.

Each iteration encodes what is known, decodes the whole grid, and denoises the fresh cells step by
step with both halves of a guided batch; every block computes its own modulation. No cache.
"""

from __future__ import annotations

import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_ldm import Decoder
from arcompile.bench.eager_vq import tensors
from arcompile.family import Source
from arcompile.models.mar import Config, config

SCALE = 0.2325  # of the latents


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, s, c))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(c.dim, eps=1e-6), nn.LayerNorm(c.dim, eps=1e-6)
        self.attn = Attention(c.dim, c.heads)
        self.mlp: Any = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(c.dim, c.hidden), nn.Linear(c.hidden, c.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        hidden = F.gelu(self.mlp.fc1(self.norm2(x)))
        return x + self.mlp.fc2(hidden)  # type: ignore[no-any-return]


class ResBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        h = self.in_ln(x) * (1 + scale) + shift
        return x + gate * self.mlp(h)  # type: ignore[no-any-return]


class HeadNet(nn.Module):
    """The denoising network of a cell."""

    def __init__(self, c: Config):
        super().__init__()
        self.time_embed: Any = nn.Module()
        self.time_embed.mlp = nn.Sequential(nn.Linear(256, c.width), nn.SiLU(),
                                            nn.Linear(c.width, c.width))
        self.cond_embed = nn.Linear(c.dim, c.width)
        self.input_proj = nn.Linear(c.channels, c.width)
        self.res_blocks = nn.ModuleList(ResBlock(c.width) for _ in range(c.depth))
        self.final_layer: Any = nn.Module()
        self.final_layer.norm_final = nn.LayerNorm(c.width, elementwise_affine=False, eps=1e-6)
        self.final_layer.linear = nn.Linear(c.width, 2 * c.channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(),
                                                          nn.Linear(c.width, 2 * c.width))

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        args = t[:, None].float() * freqs[None]
        time = self.time_embed.mlp(torch.cat((torch.cos(args), torch.sin(args)), dim=-1))
        x, y = self.input_proj(x), time + self.cond_embed(z)
        for block in self.res_blocks:
            x = block(x, y)
        f = self.final_layer
        shift, scale = f.adaLN_modulation(y).chunk(2, dim=-1)
        return f.linear(f.norm_final(x) * (1 + scale) + shift)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c, d = c, c.dim
        self.class_emb = nn.Embedding(c.classes, d)
        self.fake_latent = nn.Parameter(torch.empty(1, d))
        self.mask_token = nn.Parameter(torch.empty(1, 1, d))
        self.z_proj, self.z_proj_ln = nn.Linear(c.channels, d), nn.LayerNorm(d, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.slots, d))
        self.encoder_blocks = nn.ModuleList(Block(c) for _ in range(c.encoder))
        self.encoder_norm, self.decoder_embed = nn.LayerNorm(d, eps=1e-6), nn.Linear(d, d)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.slots, d))
        self.decoder_blocks = nn.ModuleList(Block(c) for _ in range(c.decoder))
        self.decoder_norm = nn.LayerNorm(d, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, c.positions, d))
        self.diffloss: Any = nn.Module()
        self.diffloss.net = HeadNet(c)

    def forward(self, tokens: Tensor, mask: Tensor, label: Tensor) -> Tensor:
        """tokens [B,N,C], mask bool[B,N] (unknown), label [B,dim] -> [B,N,dim]"""
        c, b = self.c, len(tokens)
        x = torch.cat((label[:, None].expand(-1, c.buffer, -1), self.z_proj(tokens)), dim=1)
        hidden = torch.cat((torch.zeros(b, c.buffer, dtype=torch.bool), mask), dim=1)
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned)
        x = x[~hidden].reshape(b, -1, c.dim)
        for block in self.encoder_blocks:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x))
        whole = self.mask_token.repeat(b, c.slots, 1)
        whole[~hidden] = x.reshape(-1, c.dim)
        x = whole + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, c.buffer :] + self.diffusion_pos_embed_learned  # type: ignore[no-any-return]


class Diffusion:
    """Respaced DDPM with a learned range of variances, as improved-diffusion has it."""

    def __init__(self, steps: int):
        bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
        betas = np.array([min(1 - b / a, 0.999) for a, b in pairwise(bar)])
        self.times = [round(i * 999 / (steps - 1)) for i in range(steps)]
        bars = np.cumprod(1 - betas)[self.times]
        before = np.append(1.0, bars[:-1])
        beta = 1 - bars / before
        posterior = beta * (1 - before) / (1 - bars)
        self.recip, self.recipm1 = np.sqrt(1 / bars), np.sqrt(1 / bars - 1)
        self.least, self.most = np.log(np.append(posterior[1], posterior[1:])), np.log(beta)
        self.c0 = beta * np.sqrt(before) / (1 - bars)
        self.cx = (1 - before) * np.sqrt(1 - beta) / (1 - bars)

    def step(self, i: int, x: Tensor, out: Tensor, temperature: float) -> Tensor:
        eps, v = out.chunk(2, dim=1)
        share = (v + 1) / 2
        log_var = share * float(self.most[i]) + (1 - share) * float(self.least[i])
        start = float(self.recip[i]) * x - float(self.recipm1[i]) * eps
        mean = float(self.c0[i]) * start + float(self.cx[i]) * x
        noise = torch.randn_like(x) if i else torch.zeros_like(x)
        return mean + torch.exp(0.5 * log_var) * noise * temperature


class Mar:
    """sample_tokens, one iteration a step. `orders` and `noise` are what it drew, `spent` the
    seconds of its two stages so far."""

    def __init__(self, net: Transformer, vae: Any):
        self.net, self.vae = net, vae
        self.diffusion = Diffusion(net.c.steps)
        self.spent: dict[str, float] = {}

    @torch.inference_mode()
    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        n, c, label = self.net, self.net.c, torch.as_tensor(cond, dtype=torch.int64)
        self.guidance, self.temperature, self.b, self.turn = guidance, temperature, len(label), 0
        self.guided = guidance != 1
        shuffle = np.random.default_rng(0)
        self.orders = torch.from_numpy(np.stack([shuffle.permutation(c.positions)
                                                 for _ in range(self.b)]))
        self.noise = torch.randn(self.b, c.positions, c.channels)
        self.tokens = torch.zeros(self.b, c.positions, c.channels)
        self.mask = torch.ones(self.b, c.positions, dtype=torch.bool)
        self.label = n.class_emb(label)
        if self.guided:
            self.label = torch.cat((self.label, n.fake_latent.repeat(self.b, 1)))

    def _next_mask(self) -> Tensor:
        c, left = self.net.c, int(self.mask.sum(-1)[0])
        ratio = math.cos(math.pi / 2 * (self.turn + 1) / c.iterations)
        keep = max(1, min(left - 1, math.floor(c.positions * ratio)))
        keep = 0 if self.turn == c.iterations - 1 else keep
        mask = torch.zeros_like(self.mask)
        return mask.scatter(1, self.orders[:, :keep], True)

    def jump(self, step: int) -> None:
        """As if so many iterations had been done, with nothing drawn."""
        while self.turn < step:
            self.mask, self.turn = self._next_mask(), self.turn + 1

    @torch.inference_mode()
    def step(self) -> Tensor:
        n, c, twice = self.net, self.net.c, 2 if self.guided else 1
        start = time.perf_counter()
        z = n(self.tokens.repeat(twice, 1, 1), self.mask.repeat(twice, 1), self.label)
        after = self._next_mask()
        fresh = self.mask ^ after
        left = int(after.sum(-1)[0])
        share = 1.0 if c.schedule == "constant" else (c.positions - max(left, 1)) / c.positions
        share = 1.0 if not left else share
        scale = 1 + (self.guidance - 1) * share
        middle = time.perf_counter()
        x = self._sample(z[fresh.repeat(twice, 1)], self.noise[fresh], scale)
        self.spent["transformer"] = self.spent.get("transformer", 0.0) + middle - start
        self.spent["head"] = self.spent.get("head", 0.0) + time.perf_counter() - middle
        self.tokens[fresh] = x
        self.mask, self.turn = after, self.turn + 1
        return torch.zeros(self.b, 0, dtype=torch.int64)

    def _sample(self, z: Tensor, x: Tensor, scale: float) -> Tensor:
        if self.guided:
            x = torch.cat((x, x))
        d, channels = self.diffusion, self.net.c.channels
        for i in range(len(d.times) - 1, -1, -1):
            if self.guided:
                x = x[: len(x) // 2].repeat(2, 1)
            out = self.net.diffloss.net(x, torch.full((len(x),), d.times[i]), z)
            if self.guided:
                given, null = out[:, :channels].chunk(2)
                mixed = (null + scale * (given - null)).repeat(2, 1)
                out = torch.cat((mixed, out[:, channels:]), dim=1)
            x = d.step(i, x, out, self.temperature)
        return x[: len(x) // 2] if self.guided else x

    @torch.inference_mode()
    def finish(self, tokens: Tensor) -> Tensor:
        side = math.isqrt(self.net.c.positions)
        latent = self.tokens.transpose(1, 2).reshape(self.b, -1, side, side) / SCALE
        return self.vae.decoder(self.vae.post_quant_conv(latent))  # type: ignore[no-any-return]


def load(source: Source) -> Mar:
    c = config(source, {})
    with torch.device("meta"):
        net = Transformer(c)
    net.load_state_dict(tensors(source.tensors), assign=True)
    return Mar(net.eval(), _decoder(source) if source.decoder is not None else None)


def _decoder(source: Source) -> nn.Module:
    assert source.decoder is not None
    held = tensors(source.decoder, ("decoder.", "post_quant_conv."))
    vae: Any = nn.Module()
    with torch.device("meta"):
        z = held["post_quant_conv.weight"].shape[0]
        vae.post_quant_conv, vae.decoder = nn.Conv2d(z, z, 1), Decoder(held)
    vae.load_state_dict(held, assign=True)
    return vae.eval()  # type: ignore[no-any-return]
