"""The next-scale demo's training modules: plain torch, with VAR's tensor names.

Training only; arcompile has its own modules for inference. https://arxiv.org/abs/2404.02905
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcompile.models.demo.nets import Decoder

PATCH_NUMS = (1, 2, 3, 5, 8)
WIDTH = 8  # of a code
STARTS = tuple(np.cumsum([0, *(n * n for n in PATCH_NUMS)]).tolist())

# ---------------------------------------------------------------- tokenizer


def _resize(n: int, m: int, mode: str) -> Tensor:
    """Resizing n x n cells to m x m as a matrix [n*n, m*m]."""
    flat = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(torch.eye(n * n).view(-1, 1, n, n), (m, m), mode=mode, **flat).flatten(1)


class Phi(nn.Conv2d):
    """Half a map, and half its 3x3 convolution; starts as the map itself."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, 3, padding=1)
        nn.init.dirac_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * super().forward(x)


class Quantizer(nn.Module):
    """A latent [b, 8, 8, 8] as a sum of maps, one a scale; codes are moved by running averages."""

    def __init__(self, codes: int = 512, phis: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, WIDTH)
        self.embedding.weight.requires_grad_(False)
        self.quant_resi = nn.Module()
        self.quant_resi.qresi_ls = nn.ModuleList(Phi() for _ in range(phis))
        self.register_buffer("count", torch.ones(codes), persistent=False)
        full = PATCH_NUMS[-1]
        for s, n in enumerate(PATCH_NUMS):
            self.register_buffer(f"down{s}", _resize(full, n, "area"), persistent=False)
            self.register_buffer(f"up{s}", _resize(n, full, "bicubic"), persistent=False)

    def phi(self, scale: int) -> nn.Module:
        """Of the tick nearest to how far the schedule is."""
        k = len(self.quant_resi.qresi_ls)
        ticks = np.linspace(1 / 3 / k, 1 - 1 / 3 / k, k)
        return self.quant_resi.qresi_ls[
            int(np.argmin(np.abs(ticks - scale / (len(PATCH_NUMS) - 1))))]

    def down(self, x: Tensor, scale: int) -> Tensor:
        """Averages over a scale's cells; [b, c, 8, 8] -> [b, n*n, c]."""
        return (x.flatten(2) @ getattr(self, f"down{scale}")).mT

    def map(self, index: Tensor, scale: int) -> Tensor:
        """Codes [b, n*n] -> the scale's share of the latent [b, c, 8, 8]."""
        x = self.embedding(index).mT @ getattr(self, f"up{scale}")
        return self.phi(scale)(x.unflatten(2, (PATCH_NUMS[-1],) * 2))

    def nearest(self, z: Tensor) -> Tensor:
        """The code of each vector; [..., c] -> i64 [...]."""
        book = self.embedding.weight
        return (2 * z @ book.mT - book.square().sum(-1)).argmax(-1)

    def forward(self, f: Tensor,
                slip: Tensor | None = None) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """f [b, c, 8, 8] -> per scale: what was to code, the nearest codes, f_hat after it.

        slip [b]: noise under which a code is taken in place of the nearest; later scales then make
        up for it, as they must when the transformer errs. https://arxiv.org/abs/2412.04431
        """
        f_hat, wanted, codes, maps = torch.zeros_like(f), [], [], []
        for scale in range(len(PATCH_NUMS)):
            z = self.down(f - f_hat, scale)
            index = used = self.nearest(z)
            if slip is not None:
                used = self.nearest(z + slip[:, None, None] * torch.randn_like(z))
            f_hat = f_hat + self.map(used, scale)
            wanted.append(z)
            codes.append(index)
            maps.append(f_hat)
        return wanted, codes, maps

    @torch.no_grad()
    def learn(self, z: Tensor, index: Tensor, decay: float = 0.98) -> None:
        """One running-average step; starving codes move to where the codes fit worst."""
        weight, share = self.embedding.weight, len(z) / len(self.count)
        miss = (z - weight[index]).square().sum(-1) + 1e-9
        hits = torch.bincount(index, minlength=len(weight)).to(z)
        sums = torch.zeros_like(weight).index_add_(0, index, z)
        kept = self.count * decay
        self.count.copy_(kept + hits * (1 - decay))
        weight.copy_((kept[:, None] * weight + sums * (1 - decay)) / self.count[:, None])
        dead = (self.count < 0.05 * share).nonzero()[:8, 0]
        weight[dead] = z[torch.multinomial(miss, 8)[:len(dead)]]
        self.count[dead] = 0.5 * share


class Tokenizer(nn.Module):
    """The decoding half of the tokenizer; latents come from the first demo's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = Quantizer()
        self.post_quant_conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.decoder = Decoder(64, (1, 1, 1, 1), WIDTH)
        nn.init.dirac_(self.post_quant_conv.weight)
        nn.init.zeros_(self.post_quant_conv.bias)

    def picture(self, f_hat: Tensor) -> Tensor:
        """Latent [b, 8, 8, 8] -> [b, 3, 64, 64]."""
        return self.decoder(self.post_quant_conv(f_hat))


# -------------------------------------------------------------- transformer


def _modulation(dim: int, count: int) -> nn.Sequential:
    layer = nn.Linear(dim, count * dim)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (scale + 1) + shift


class Attention(nn.Module):
    """Self-attention of unit queries and keys; `seen` [t, t] is 0, or -inf where it may not."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.mat_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in "qv")
        self.register_buffer("zero_k_bias", torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = F.linear(x, self.mat_qkv.weight, bias).unflatten(
            -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        gain = self.scale_mul_1H11.clamp(max=math.log(100)).exp()
        q, k = F.normalize(q, dim=-1) * gain, F.normalize(k, dim=-1)
        # spelt out: the fused kernel's backward is ten times slower at this size on CPU
        score = q.to(v) @ k.to(v).mT + seen.to(v)
        return self.proj((score.softmax(-1).to(v) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Gains, scales and shifts are of one linear that all blocks share, plus `ada_gss`."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn, self.ffn = Attention(dim, heads), FeedForward(dim, hidden)
        self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, dim) * 0.02)
        with torch.no_grad():
            self.ada_gss[:, :, :2] += 0.3

    def forward(self, x: Tensor, vectors: Tensor, seen: Tensor) -> Tensor:
        """x [b, t, dim], vectors [b, 6, dim]."""
        gain1, gain2, scale1, scale2, shift1, shift2 = (
            (vectors + self.ada_gss[0])[:, None].unbind(2))
        x = x + gain1 * self.attn(_modulate(x, scale1, shift1), seen)
        return x + gain2 * self.ffn(_modulate(x, scale2, shift2))


class HeadNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ada_lin = _modulation(dim, 2)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return _modulate(x, *self.ada_lin(cond)[:, None].chunk(2, -1))


class VAR(nn.Module):
    """The class-conditional transformer over all cells of all scales."""

    def __init__(self, dim: int = 192, layers: int = 5, heads: int = 6, hidden: int = 512,
                 codes: int = 512, classes: int = 36) -> None:
        super().__init__()
        self.dim = dim
        self.pos_start = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_1LC = nn.Parameter(torch.randn(1, STARTS[-1], dim) * 0.02)
        self.lvl_embed = nn.Embedding(len(PATCH_NUMS), dim)
        self.class_emb = nn.Embedding(classes + 1, dim)
        self.word_embed = nn.Linear(WIDTH, dim)
        self.shared_ada_lin = _modulation(dim, 6)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(layers))
        self.head_nm, self.head = HeadNorm(dim), nn.Linear(dim, codes)
        for m in self.modules():
            if isinstance(m, nn.Linear | nn.Embedding):
                nn.init.normal_(m.weight, std=0.02)
        level = torch.arange(len(PATCH_NUMS)).repeat_interleave(
            torch.tensor([n * n for n in PATCH_NUMS]))
        later = level[None] > level[:, None]
        self.register_buffer("level", level, persistent=False)
        self.register_buffer("seen", torch.zeros(later.shape).masked_fill(later, -torch.inf),
                             persistent=False)

    def forward(self, label: Tensor, words: Tensor) -> Tensor:
        """label [b], words [b, L-1, c] of earlier scales at each later cell -> logits [b, L, V]."""
        cond = self.class_emb(label)
        x = torch.cat([cond[:, None] + self.pos_start, self.word_embed(words)], 1)
        x = x + self.pos_1LC + self.lvl_embed(self.level)
        vectors = self.shared_ada_lin(cond).unflatten(-1, (6, self.dim))
        for block in self.blocks:
            x = block(x, vectors, self.seen)
        return self.head(self.head_nm(x, cond))
