"""VAR as its authors run it (models/var.py, basic_var.py, quant.py), on the CPU.

Keys and values are concatenated scale by scale, every block computes its modulation vectors in
every step, attention is scaled_dot_product_attention, guidance and sampling are separate ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_ldm import Decoder
from arcompile.bench.eager_vq import tensors
from arcompile.family import Source
from arcompile.models.var import Config, config


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.head, self.most = heads, dim // heads, math.log(100)
        self.scale_mul_1H11 = nn.Parameter(torch.empty(1, heads, 1, 1))
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        b, s, c = x.shape
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias).view(b, s, 3, self.heads, self.head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q = F.normalize(q, dim=-1).mul(self.scale_mul_1H11.clamp_max(self.most).exp())
        k = F.normalize(k, dim=-1)
        if self.k is not None and self.v is not None:
            k, v = torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2)
        self.k, self.v = k, v
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        return self.proj(out.transpose(1, 2).reshape(b, s, c))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.attn = SelfAttention(c.dim, c.heads)
        self.ffn: Any = nn.Module()
        self.ffn.fc1, self.ffn.fc2 = nn.Linear(c.dim, c.hidden), nn.Linear(c.hidden, c.dim)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        dim = x.shape[-1]
        g1, g2, s1, s2, b1, b2 = self.ada_lin(cond).view(-1, 1, 6, dim).unbind(2)
        norm = F.layer_norm(x, (dim,), eps=1e-6).mul(s1.add(1)).add_(b1)
        x = x + self.attn(norm).mul_(g1)
        norm = F.layer_norm(x, (dim,), eps=1e-6).mul(s2.add(1)).add_(b2)
        hidden = F.gelu(self.ffn.fc1(norm), approximate="tanh")
        return x + self.ffn.fc2(hidden).mul(g2)  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.pos_start = nn.Parameter(torch.empty(1, c.patch_nums[0] ** 2, c.dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, c.positions, c.dim))
        self.lvl_embed = nn.Embedding(len(c.patch_nums), c.dim)
        self.class_emb = nn.Embedding(c.classes + 1, c.dim)
        self.word_embed = nn.Linear(c.width, c.dim)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.head_nm: Any = nn.Module()
        self.head_nm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 2 * c.dim))
        self.head = nn.Linear(c.dim, c.vocabulary)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, cond)
        scale, shift = self.head_nm.ada_lin(cond).view(-1, 1, 2, self.c.dim).unbind(2)
        normed = F.layer_norm(x, (self.c.dim,), eps=1e-6).mul(scale.add(1)).add_(shift)
        return self.head(normed)  # type: ignore[no-any-return]


class Phi(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.5) + super().forward(x).mul_(0.5)


class Tokenizer(nn.Module):
    """The half that draws: codes to latent, latent to pixels."""

    def __init__(self, t: dict[str, Tensor]):
        super().__init__()
        codes, width = t["quantize.embedding.weight"].shape
        phis = sum(k.startswith("quantize.quant_resi.") for k in t) // 2
        self.quantize: Any = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, width)
        self.quantize.quant_resi = nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(
            Phi(width, width, 3, padding=1) for _ in range(phis))
        self.post_quant_conv = nn.Conv2d(width, width, 3, padding=1)
        self.decoder = Decoder(t)

    def phi(self, at: float) -> Any:
        layers = self.quantize.quant_resi.qresi_ls
        k = len(layers)
        edge = 1 / 3 / k if k == 4 else 1 / 2 / k
        return layers[int(np.argmin(np.abs(np.linspace(edge, 1 - edge, k) - at)))]


def sample(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """logits [B, l, V] -> tokens [B, l]; temperature 0: the most probable."""
    if temperature == 0:
        return logits.argmax(-1)
    b, cells, v = logits.shape
    if top_k > 0:
        least = logits.topk(min(top_k, v), largest=True, sorted=False)[0].amin(-1, keepdim=True)
        logits = logits.masked_fill(logits < least, -torch.inf)
    law = logits.div(temperature).softmax(dim=-1).view(-1, v)
    return torch.multinomial(law, 1).view(b, cells)


class Var:
    """autoregressive_infer_cfg, one scale a step."""

    def __init__(self, gpt: Transformer, vae: Tokenizer):
        self.gpt, self.vae = gpt, vae

    @torch.inference_mode()
    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        g, label = self.gpt, torch.as_tensor(cond, dtype=torch.int64)
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        self.b, self.scale, self.at = len(label), 0, 0
        self.cond = g.class_emb(torch.cat((label, torch.full_like(label, g.c.classes))))
        levels = torch.repeat_interleave(torch.arange(len(g.c.patch_nums)),
                                         torch.tensor([n * n for n in g.c.patch_nums]))
        self.place = g.lvl_embed(levels)[None] + g.pos_1LC
        first = g.c.patch_nums[0] ** 2
        start = self.cond.unsqueeze(1).expand(-1, first, -1)
        self.x = start + g.pos_start + self.place[:, :first]
        side = g.c.patch_nums[-1]
        self.f_hat = torch.zeros(self.b, g.c.width, side, side)
        block: Any
        for block in g.blocks:
            block.attn.k = block.attn.v = None

    @torch.inference_mode()
    def step(self) -> Tensor:
        g, sides = self.gpt, self.gpt.c.patch_nums
        share = self.scale / max(len(sides) - 1, 1)
        logits, t = g(self.x, self.cond), self.guidance * share
        token = sample((1 + t) * logits[: self.b] - t * logits[self.b :], self.temperature,
                       self.top_k)
        self._feed(token, sides[self.scale], share)
        self.scale, self.at = self.scale + 1, self.at + token.shape[1]
        if self.scale < len(sides):
            self._next(sides[self.scale])
        return token

    def _feed(self, token: Tensor, n: int, share: float) -> None:
        h = self.vae.quantize.embedding(token).transpose(1, 2).reshape(self.b, -1, n, n)
        side = self.f_hat.shape[-1]
        if n != side:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        self.f_hat.add_(self.vae.phi(share)(h))

    def _next(self, n: int) -> None:
        cells = F.interpolate(self.f_hat, size=(n, n), mode="area").view(self.b, -1, n * n)
        x = self.gpt.word_embed(cells.transpose(1, 2)) + self.place[:, self.at : self.at + n * n]
        self.x = x.repeat(2, 1, 1)

    @torch.inference_mode()
    def finish(self, tokens: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(self.f_hat))  # type: ignore[no-any-return]


def opened(source: Source, transformer: Callable[[], nn.Module]) -> tuple[Any, Tokenizer]:
    """The transformer and the tokenizer with the weights of the checkpoint, ready to run."""
    with torch.device("meta"):
        gpt = transformer()
    gpt.load_state_dict(tensors(source.tensors), assign=True)
    assert source.decoder is not None
    held = tensors(source.decoder, ("decoder.", "post_quant_conv.", "quantize."))
    with torch.device("meta"):
        vae = Tokenizer(held)
    vae.load_state_dict(held, assign=True)
    return gpt.eval(), vae.eval()


def load(source: Source) -> Var:
    c = config(source, {})
    return Var(*opened(source, lambda: Transformer(c)))
