"""Convolutional image decoders with latent diffusion's names, as their authors run them."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_vq import AttnBlock, ResnetBlock, Upsample, normalize


class FusedAttnBlock(nn.Module):
    """VAR's: one convolution makes queries, keys and values."""

    def __init__(self, c: int):
        super().__init__()
        self.norm = normalize(c)
        self.qkv, self.proj_out = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, -1, h, w).unbind(1)
        c = q.shape[1]
        weights = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w))
        weights = F.softmax(weights * c**-0.5, dim=2)
        out = torch.bmm(v.reshape(b, c, h * w), weights.permute(0, 2, 1)).view(b, c, h, w)
        return x + self.proj_out(out)  # type: ignore[no-any-return]


def attention(t: dict[str, Tensor], at: str, c: int) -> nn.Module | None:
    if f"{at}.qkv.weight" in t:
        return FusedAttnBlock(c)
    return AttnBlock(c) if f"{at}.q.weight" in t else None


class Level(nn.Module):
    def __init__(self, t: dict[str, Tensor], at: str):
        super().__init__()
        found = {m[1] for k in t if (m := re.match(rf"{re.escape(at)}\.block\.(\d+)\.", k))}
        shapes = [t[f"{at}.block.{i}.conv1.weight"].shape for i in range(len(found))]
        self.block = nn.ModuleList(ResnetBlock(s[1], s[0]) for s in shapes)
        made = (attention(t, f"{at}.attn.{i}", s[0]) for i, s in enumerate(shapes))
        self.attn = nn.ModuleList(m for m in made if m is not None)
        if f"{at}.upsample.conv.weight" in t:
            self.upsample = Upsample(shapes[-1][0])

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        return self.upsample(h) if hasattr(self, "upsample") else h


class Decoder(nn.Module):
    """Level 0 is the highest resolution."""

    def __init__(self, t: dict[str, Tensor]):
        super().__init__()
        wide, z = t["decoder.conv_in.weight"].shape[:2]
        levels = len({m[1] for k in t if (m := re.match(r"decoder\.up\.(\d+)\.", k))})
        self.conv_in = nn.Conv2d(z, wide, 3, padding=1)
        self.mid: Any = nn.Module()
        self.mid.block_1, self.mid.block_2 = ResnetBlock(wide, wide), ResnetBlock(wide, wide)
        self.mid.attn_1 = attention(t, "decoder.mid.attn_1", wide)
        self.up = nn.ModuleList(Level(t, f"decoder.up.{i}") for i in range(levels))
        last, narrow = t["decoder.conv_out.weight"].shape[:2]
        self.norm_out, self.conv_out = normalize(narrow), nn.Conv2d(narrow, last, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid.block_1(self.conv_in(z))
        h = self.mid.block_2(h if self.mid.attn_1 is None else self.mid.attn_1(h))
        for level in reversed(self.up):
            h = level(h)
        h = self.norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))  # type: ignore[no-any-return]
