"""MaskGIT-VQGAN, the image tokenizer of RAR and TiTok. https://arxiv.org/abs/2202.04200

As taming's, without attention; averages of 2 x 2 instead of strided convolutions, plain codebook
rows, pixels in [0,1]. Where the channels change, the shortcut is a convolution of a block's output.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from arcompile.errors import ArcError
from arcompile.models.taming import norm

Shapes = Mapping[str, tuple[int, ...]]
HINT = "give the tokenizer, maskgit-vqgan-imagenet-f16-256.bin"


class ResBlock(nn.Module):
    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.norm1, self.norm2 = norm(cin), norm(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cout, cout, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class Level(nn.Module):
    """Res blocks; a decoder's level but the finest then doubles the resolution."""

    def __init__(self, t: Shapes, at: str):
        super().__init__()
        self.block = blocks(t, f"{at}.block")
        if f"{at}.upsample_conv.weight" in t:
            wide = t[f"{at}.upsample_conv.weight"][0]
            self.upsample_conv = nn.Conv2d(wide, wide, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if not hasattr(self, "upsample_conv"):
            return x
        return self.upsample_conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))


def blocks(t: Shapes, at: str) -> nn.ModuleList:
    """The res blocks under a name, as wide as their first convolutions say."""
    names = [f"{at}.{i}.conv1.weight" for i in range(_count(t, at))]
    if lost := [n for n in names if n not in t]:
        raise ArcError(f"the decoder file has no {lost[0]}", hint=HINT)
    return nn.ModuleList(ResBlock(t[n][1], t[n][0]) for n in names)


def _count(t: Shapes, at: str) -> int:
    return len({m[1] for k in t if (m := re.match(rf"{re.escape(at)}\.(\d+)\.", k))})


def levels(t: Shapes, at: str) -> nn.ModuleList:
    found = nn.ModuleList(Level(t, f"{at}.{i}") for i in range(_count(t, at)))
    if not len(found):
        raise ArcError(f"the decoder file has no {at}", hint=HINT)
    return found


class Encoder(nn.Module):
    """Level 0 is the highest resolution; all levels but the last halve it."""

    def __init__(self, t: Shapes):
        super().__init__()
        first, last = t["encoder.conv_in.weight"][0], t["encoder.conv_out.weight"]
        self.conv_in = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.down, self.mid = levels(t, "encoder.down"), blocks(t, "encoder.mid")
        self.norm_out = norm(last[1])
        self.conv_out = nn.Conv2d(last[1], last[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = level(x)
            if i < len(self.down) - 1:
                x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5))
        for block in self.mid:
            x = block(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Level 0 is the highest resolution, so it comes last."""

    def __init__(self, t: Shapes):
        super().__init__()
        wide, z = t["decoder.conv_in.weight"][:2]
        last = t["decoder.norm_out.weight"][0]
        self.conv_in = nn.Conv2d(z, wide, 3, padding=1)
        self.mid, self.up = blocks(t, "decoder.mid"), levels(t, "decoder.up")
        self.norm_out = norm(last)
        self.conv_out = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *reversed(self.up)):
            x = block(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class VQ(nn.Module):
    """Our pixels are in [-1,1], as every family's: the network's, times 2, less 1."""

    def __init__(self, t: Shapes, grid: int):
        super().__init__()
        for name in ("quantize.embedding.weight", "decoder.conv_in.weight",
                     "decoder.norm_out.weight"):
            if name not in t:
                raise ArcError(f"the decoder file lacks {name}", hint=HINT)
        self.codes, self.width = t["quantize.embedding.weight"]
        self.grid = grid
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(self.codes, self.width)
        self.decoder = Decoder(t)
        self.has_encoder = {"encoder.conv_in.weight", "encoder.conv_out.weight"} <= t.keys()
        if self.has_encoder:
            self.encoder = Encoder(t)
        self.factor = 2 ** sum(hasattr(level, "upsample_conv") for level in self.decoder.up)

    def decode(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens i64[b,N] -> pixels f32[b,3,H,W], about [-1,1]."""
        z = self.quantize.embedding(tokens).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return {"pixels": self.decoder(z) * 2 - 1}

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels f32[b,3,H,W] in [-1,1] -> tokens i64[b,N]: the nearest code of each cell."""
        z = self.encoder((pixels + 1) * 0.5).flatten(2).transpose(1, 2)
        codes = self.quantize.embedding.weight
        far = (codes * codes).sum(-1) - 2 * (z @ codes.t())  # |z|^2 is the same for all
        return {"tokens": (-far).argmax(-1)}


def published(mult: tuple[int, ...], ch: int = 128, z: int = 256,
              codes: int = 1024) -> dict[str, tuple[int, ...]]:
    """Shapes of a tokenizer with two res blocks a level; the published has mult (1,1,2,2,4)."""
    widths = [ch * m for m in mult]
    t: dict[str, tuple[int, ...]] = {"encoder.conv_in.weight": (ch, 3, 3, 3)}
    t |= _convolution("encoder.conv_out", z, widths[-1], 1)
    t |= _convolution("decoder.conv_in", widths[-1], z, 3)
    t |= _convolution("decoder.conv_out", 3, ch, 3)
    for part, c in (("encoder", widths[-1]), ("decoder", ch)):
        t |= {f"{part}.norm_out.weight": (c,), f"{part}.norm_out.bias": (c,)}
        t |= _blocks(f"{part}.mid", widths[-1], widths[-1])
    for i, c in enumerate(widths):
        t |= _blocks(f"encoder.down.{i}.block", widths[max(i - 1, 0)], c)
        t |= _blocks(f"decoder.up.{i}.block", widths[min(i + 1, len(widths) - 1)], c)
        t |= _convolution(f"decoder.up.{i}.upsample_conv", c, c, 3) if i else {}
    return {**t, "quantize.embedding.weight": (codes, z)}


def _convolution(name: str, out: int, into: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}


def _blocks(at: str, cin: int, cout: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        made = nn.ModuleList([ResBlock(cin, cout), ResBlock(cout, cout)])
    return {f"{at}.{k}": tuple(v.shape) for k, v in made.state_dict().items()}
