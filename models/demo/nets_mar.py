"""The masked demo's training modules: plain torch, with MAR's tensor names.

Training only; arcompile has its own modules for inference. https://arxiv.org/abs/2406.11838
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcompile.models.demo.nets import Decoder
from arcompile.models.diffusion import WAVES, sinusoid

CHANNELS, GRID, BUFFER, TIMES = 8, 8, 4, 1000
LOUD = 4.0
CELLS = GRID * GRID


class KL(nn.Module):
    """The decoding half of the autoencoder; latents come from the first demo's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.post_quant_conv = nn.Conv2d(CHANNELS, 64, 1)
        self.decoder = Decoder(64, (1, 1, 1, 1), 64)

    def picture(self, z: Tensor) -> Tensor:
        """Latent [b, 8, 8, 8] -> [b, 3, 64, 64]."""
        return self.decoder(self.post_quant_conv(z))


# -------------------------------------------------------------- transformer


class Attention(nn.Module):
    """Self-attention over all slots; `hidden` [b, 1, 1, t] is 0, or -inf where nothing is known."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # spelt out: the fused kernel's backward is ten times slower at this size on CPU
        score = q @ k.mT * q.shape[-1] ** -0.5
        if hidden is not None:
            score = score + hidden.to(score)
        return self.proj((score.softmax(-1).to(v) @ v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm ViT block."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.mlp = Attention(dim, heads), MLP(dim, hidden)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), hidden)
        return x + self.mlp(self.norm2(x))


class MAR(nn.Module):
    """An encoder over the known cells, a decoder over all, and the head that denoises a cell."""

    def __init__(self, dim: int = 192, encoder: int = 3, decoder: int = 3, heads: int = 6,
                 hidden: int = 512, width: int = 192, depth: int = 3, classes: int = 36) -> None:
        super().__init__()
        slots = BUFFER + CELLS
        self.class_emb = nn.Embedding(classes, dim)
        self.fake_latent = nn.Parameter(torch.zeros(1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.z_proj, self.z_proj_ln = nn.Linear(CHANNELS, dim), nn.LayerNorm(dim, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, dim))
        self.encoder_blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(encoder))
        self.encoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.decoder_embed = nn.Linear(dim, dim)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, dim))
        self.decoder_blocks = nn.ModuleList(Block(dim, heads, hidden) for _ in range(decoder))
        self.decoder_norm = nn.LayerNorm(dim, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, CELLS, dim))
        self.diffloss = nn.Module()
        self.codes = nn.Linear(dim, 512)  # of training: it teaches the rest, and is not stored
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        # as loud as what is told of the cells, or attention cannot find neighbours for long
        nn.init.normal_(self.encoder_pos_embed_learned, std=0.06)
        nn.init.normal_(self.decoder_pos_embed_learned, std=0.3)
        self.diffloss.net = Head(dim, width, depth)

    def forward(self, label: Tensor, z: Tensor, known: Tensor) -> Tensor:
        """What the head is told of every cell when only some are known.

        label [b], the number of classes where there is none; z [b, cells, channels]; known bool
        [b, cells] -> [b, cells, dim]. Unknown cells are masked where inference leaves them out.
        """
        table = torch.cat([self.class_emb.weight, self.fake_latent])
        prefix = table[label][:, None].expand(-1, BUFFER, -1)
        known = torch.cat([torch.ones_like(known[:, :BUFFER]), known], 1)
        hidden = torch.zeros(known.shape).masked_fill(~known, -torch.inf)[:, None, None]
        x = torch.cat([prefix, self.z_proj(z)], 1) + self.encoder_pos_embed_learned
        x = self.z_proj_ln(x)
        for block in self.encoder_blocks:
            x = block(x, hidden)
        x = self.decoder_embed(self.encoder_norm(x))
        x = torch.where(known[..., None], x, self.mask_token) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, BUFFER:] + self.diffusion_pos_embed_learned


# --------------------------------------------------------------------- head


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class TimeEmbed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        waves = torch.from_numpy(sinusoid(range(TIMES)))
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, time: Tensor) -> Tensor:
        return self.mlp(self.waves[time])


class AdaBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = _modulation(width, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class Final(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, 2 * CHANNELS)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class Head(nn.Module):
    """Noise and variance share of noisy cells: x [n, channels], times [n], conditions [n, dim].

    It starts as the identity. The sampler multiplies an error of the noise by 20,000 at the
    noisiest time, where the right answer is x, and norms stand in its way; so two numbers of the
    stream start as constants `LOUD` times the rest, which makes the norms all but linear.
    """

    def __init__(self, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed, self.cond_embed = TimeEmbed(width), nn.Linear(dim, width)
        self.input_proj = nn.Linear(CHANNELS, width)
        self.res_blocks = nn.ModuleList(AdaBlock(width) for _ in range(depth))
        self.final_layer = Final(width)
        for m in self.modules():
            if isinstance(m, AdaBlock | Final):
                nn.init.zeros_(m.adaLN_modulation[1].weight)
                nn.init.zeros_(m.adaLN_modulation[1].bias)
        self._start_loud(LOUD * math.sqrt(width / 2))

    @torch.no_grad()
    def _start_loud(self, level: float) -> None:
        first, last = self.input_proj, self.final_layer.linear
        first.bias.zero_()
        first.bias[:2] = torch.tensor([level, -level])
        first.weight[:2] = 0
        last.bias.zero_()
        last.weight.zero_()
        last.weight[:CHANNELS] = torch.linalg.pinv(first.weight) * LOUD
        for block in self.res_blocks:
            block.in_ln.weight.fill_(LOUD)
            block.in_ln.weight[:2] = 1 / LOUD

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        y = self.time_embed(time) + self.cond_embed(cond)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y).chunk(2, -1)
