"""LlamaGen's VQ decoder as its authors run it (tokenizer/tokenizer_image/vq_model.py)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def tensors(held: Any, only: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """A checkpoint's weights under these prefixes, as torch tensors in memory."""
    return {k: torch.from_numpy(held.load(k)) for k in held if k.startswith(only)}


def normalize(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups=32, num_channels=width, eps=1e-6, affine=True)


class ResnetBlock(nn.Module):
    def __init__(self, a: int, b: int):
        super().__init__()
        self.norm1, self.conv1 = normalize(a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = normalize(b), nn.Conv2d(b, b, 3, padding=1)
        if a != b:
            self.nin_shortcut = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        h = self.conv1(h * torch.sigmoid(h))
        h = self.norm2(h)
        h = self.conv2(h * torch.sigmoid(h))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h  # type: ignore[no-any-return]


class AttnBlock(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.norm = normalize(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = self.q(normed), self.k(normed), self.v(normed)
        b, c, h, w = q.shape
        weights = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w))
        weights = F.softmax(weights * (int(c) ** (-0.5)), dim=2)
        out = torch.bmm(v.reshape(b, c, h * w), weights.permute(0, 2, 1)).reshape(b, c, h, w)
        return x + self.proj_out(out)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


class Level(nn.Module):
    """Res blocks, attention after each at the lowest resolution, then twice the size."""

    def __init__(self, t: dict[str, Tensor], at: str):
        super().__init__()
        n = len({m[1] for k in t if (m := re.match(rf"{re.escape(at)}\.res\.(\d+)\.", k))})
        shapes = [t[f"{at}.res.{i}.conv1.weight"].shape for i in range(n)]
        self.res = nn.ModuleList(ResnetBlock(s[1], s[0]) for s in shapes)
        attends = f"{at}.attn.0.norm.weight" in t
        self.attn = nn.ModuleList(AttnBlock(s[0]) for s in shapes if attends)
        if f"{at}.upsample.conv.weight" in t:
            self.upsample = Upsample(shapes[-1][0])

    def forward(self, h: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            h = block(h)
            if len(self.attn):
                h = self.attn[i](h)
        return self.upsample(h) if hasattr(self, "upsample") else h


class Decoder(nn.Module):
    def __init__(self, t: dict[str, Tensor]):
        super().__init__()
        wide, z = t["decoder.conv_in.weight"].shape[:2]
        levels = len({m[1] for k in t if (m := re.match(r"decoder\.conv_blocks\.(\d+)\.", k))})
        self.conv_in = nn.Conv2d(z, wide, 3, padding=1)
        self.mid = nn.ModuleList([ResnetBlock(wide, wide), AttnBlock(wide),
                                  ResnetBlock(wide, wide)])
        self.conv_blocks = nn.ModuleList(Level(t, f"decoder.conv_blocks.{i}")
                                         for i in range(levels))
        last, narrow = t["decoder.conv_out.weight"].shape[:2]
        self.norm_out, self.conv_out = normalize(narrow), nn.Conv2d(narrow, last, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in (*self.mid, *self.conv_blocks):
            h = block(h)
        h = self.norm_out(h)
        return self.conv_out(h * torch.sigmoid(h))  # type: ignore[no-any-return]


class VQ(nn.Module):
    """Only what draws: codebook, post_quant_conv and decoder."""

    def __init__(self, held: Any):
        super().__init__()
        t = tensors(held, ("decoder.", "post_quant_conv.", "quantize.embedding."))
        with torch.device("meta"):
            self.quantize: Any = nn.Module()
            self.quantize.embedding = nn.Embedding(*t["quantize.embedding.weight"].shape)
            width, z = t["post_quant_conv.weight"].shape[1], t["post_quant_conv.weight"].shape[0]
            self.post_quant_conv = nn.Conv2d(width, z, 1)
            self.decoder = Decoder(t)
        self.load_state_dict(t, assign=True)
        self.eval()

    def decode_code(self, codes: Tensor, grid: int) -> Tensor:
        """codes i64 [B, N] -> pixels; codebook rows have length 1."""
        book = F.normalize(self.quantize.embedding.weight, p=2, dim=-1)
        z = book[codes.flatten()].reshape(len(codes), grid, grid, -1).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(z.contiguous()))  # type: ignore[no-any-return]
