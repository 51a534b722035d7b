"""VAR's residual multi-scale VQ tokenizer. https://arxiv.org/abs/2404.02905

An image is a sum of maps, one a scale: codes, enlarged to full size, through a convolution `phi`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.errors import ArcError
from arcompile.models import ldm

IGNORE = ("quantize.ema_vocab_hit_SV",)  # statistics of training
HINT = "give the tokenizer, such as vae_ch160v4096z32.pth"
_PHI = r"quantize\.quant_resi\.qresi_ls\.(\d+)\.weight"


class Phi(nn.Conv2d):
    """Half a map, and half its 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * super().forward(x)


def _grid(x: Tensor, n: int) -> Tensor:
    """[b,n*n,c] -> [b,c,n,n]"""
    return x.transpose(1, 2).unflatten(2, (n, n))


def cells(x: Tensor) -> Tensor:
    """[b,c,n,n] -> [b,n*n,c]"""
    return x.flatten(2).transpose(1, 2)


class MultiScaleVQ(nn.Module):
    """Codebook rows are used as they are. `phis` convolutions are shared by nearby scales."""

    def __init__(self, codes: int, phis: int, encoder: ldm.Plan | None, decoder: ldm.Plan,
                 patch_nums: Sequence[int]):
        super().__init__()
        self.codes, self.width, self.patch_nums = codes, decoder.ends[0], tuple(patch_nums)
        self.factor = decoder.factor
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(codes, self.width)
        self.quantize.quant_resi = nn.Module()
        self.quantize.quant_resi.qresi_ls = nn.ModuleList(Phi(self.width) for _ in range(phis))
        self.post_quant_conv = nn.Conv2d(self.width, self.width, 3, padding=1)
        self.decoder = ldm.Decoder(decoder)
        self.has_encoder = encoder is not None
        if encoder is not None:
            self.encoder = ldm.Encoder(encoder)
            self.quant_conv = nn.Conv2d(encoder.ends[1], self.width, 3, padding=1)

    def phi(self, scale: int) -> nn.Module:
        """Of the tick nearest to how far the schedule is."""
        layers = self.quantize.quant_resi.qresi_ls
        k = len(layers)
        edge = 1 / 3 / k if k == 4 else 1 / 2 / k
        ticks = np.linspace(edge, 1 - edge, k)
        at = scale / max(len(self.patch_nums) - 1, 1)
        return layers[int(np.argmin(np.abs(ticks - at)))]

    def map(self, token: Tensor, scale: int) -> Tensor:
        """token i64[b,n*n] -> the scale's share of the latent, f32[b,c,N,N]."""
        n, full = self.patch_nums[scale], self.patch_nums[-1]
        h = _grid(self.quantize.embedding(token), n)
        if scale < len(self.patch_nums) - 1:
            h = arc.resize(h, full, full, "bicubic")
        return self.phi(scale)(h)

    def decode(self, f_hat: Tensor) -> dict[str, Tensor]:
        """f_hat f32[b,c,N,N] -> pixels f32[b,3,H,W], about [-1,1]."""
        return {"pixels": self.decoder(self.post_quant_conv(f_hat))}

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels f32[b,3,H,W] in [-1,1] -> tokens of all scales i64[b,L]."""
        rest, found = self.quant_conv(self.encoder(pixels)), []
        codes = self.quantize.embedding.weight
        size = (codes * codes).sum(-1)
        for scale, n in enumerate(self.patch_nums):
            last = scale == len(self.patch_nums) - 1
            z = cells(rest if last else arc.resize(rest, n, n, "area"))
            found.append((2 * (z @ codes.t()) - size).argmax(-1))  # the nearest by distance
            rest = rest - self.map(found[-1], scale)
        return {"tokens": torch.cat(found, 1)}


def read(t: Mapping[str, tuple[int, ...]], patch_nums: Sequence[int]) -> MultiScaleVQ:
    """The tokenizer whose tensors have these shapes. Raises ArcError."""
    phis = len({m[1] for k in t if (m := re.fullmatch(_PHI, k))})
    if not phis or "quantize.embedding.weight" not in t:
        raise ArcError("the decoder file has no multi-scale codebook "
                       "(quantize.quant_resi.qresi_ls)", hint=HINT)
    decoder = ldm.read_plan(t, "decoder")
    encoder = ldm.read_plan(t, "encoder") if "encoder.conv_in.weight" in t else None
    return MultiScaleVQ(t["quantize.embedding.weight"][0], phis, encoder, decoder, patch_nums)


def published(patch_nums: Sequence[int], ch: int = 160, z: int = 32, codes: int = 4096,
              mult: Sequence[int] = (1, 1, 2, 2, 4)) -> MultiScaleVQ:
    encoder = ldm.encoder_plan((3, z), ch, mult, 2, "fused", "fused")
    decoder = ldm.decoder_plan((z, 3), ch, mult, 3, "fused", "fused")
    return MultiScaleVQ(codes, 4, encoder, decoder, patch_nums)
