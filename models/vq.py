"""LlamaGen's VQ image tokenizer (VQ-8, VQ-16): also of NAR, PAR, Janus and FlexVAR.

https://arxiv.org/abs/2406.06525
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.errors import ArcError
from arcompile.models.taming import AttnBlock, Downsample, ResBlock, Upsample, norm

Shapes = Mapping[str, tuple[int, ...]]
IGNORE = ("quantize.codebook_used",)  # statistics of training


class Level(nn.Module):
    """Res blocks, each followed by attention at the lowest resolution, then a resampling."""

    def __init__(self, widths: list[tuple[int, int]], attend: bool, resample: nn.Module | None,
                 name: str):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(a, b) for a, b in widths)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in widths if attend)
        self.resample = name
        if resample is not None:
            setattr(self, name, resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.res):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return getattr(self, self.resample)(x) if hasattr(self, self.resample) else x


def _mid(c: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(c, c), AttnBlock(c), ResBlock(c, c)])


def _levels(t: Shapes, part: str, resample: str) -> list[dict]:
    """What the tensors say of each level: (in, out) widths, attention, resampling."""
    found = []
    count = len({m[1] for k in t if (m := re.match(rf"{part}\.conv_blocks\.(\d+)\.", k))})
    for i in range(count):
        at = f"{part}.conv_blocks.{i}"
        n = len({m[1] for k in t if (m := re.match(rf"{re.escape(at)}\.res\.(\d+)\.", k))})
        shapes = [t.get(f"{at}.res.{j}.conv1.weight", (0, 0)) for j in range(n)]
        found.append({"widths": [(s[1], s[0]) for s in shapes],
                      "attend": f"{at}.attn.0.norm.weight" in t,
                      "resample": f"{at}.{resample}.conv.weight" in t})
    if not found or not all(lv["widths"] for lv in found):
        raise ArcError(f"the decoder file has no {part}.conv_blocks",
                       hint="give the VQ tokenizer, such as vq_ds16_c2i.pt")
    return found


class Encoder(nn.Module):
    def __init__(self, t: Shapes):
        super().__init__()
        levels = _levels(t, "encoder", "downsample")
        wide = levels[-1]["widths"][-1][1]
        self.conv_in = nn.Conv2d(3, levels[0]["widths"][0][0], 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(lv["widths"], lv["attend"],
                  Downsample(lv["widths"][-1][1]) if lv["resample"] else None, "downsample")
            for lv in levels)
        self.mid = _mid(wide)
        self.norm_out = norm(wide)
        self.conv_out = nn.Conv2d(wide, t["encoder.conv_out.weight"][0], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Level 0 is the lowest resolution."""

    def __init__(self, t: Shapes):
        super().__init__()
        levels = _levels(t, "decoder", "upsample")
        wide, last = levels[0]["widths"][0][0], levels[-1]["widths"][-1][1]
        self.conv_in = nn.Conv2d(t["decoder.conv_in.weight"][1], wide, 3, padding=1)
        self.mid = _mid(wide)
        self.conv_blocks = nn.ModuleList(
            Level(lv["widths"], lv["attend"],
                  Upsample(lv["widths"][-1][1]) if lv["resample"] else None, "upsample")
            for lv in levels)
        self.norm_out = norm(last)
        self.conv_out = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class _Shapes(dict[str, tuple[int, ...]]):
    """Shapes of a tokenizer as they are listed, part by part."""

    def put(self, name: str, *shape: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = shape, shape[:1]

    def res(self, name: str, a: int, b: int) -> None:
        self.put(f"{name}.norm1", a)
        self.put(f"{name}.norm2", b)
        self.put(f"{name}.conv1", b, a, 3, 3)
        self.put(f"{name}.conv2", b, b, 3, 3)
        if a != b:
            self.put(f"{name}.nin_shortcut", b, a, 1, 1)

    def attn(self, name: str, c: int) -> None:
        self.put(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            self.put(f"{name}.{part}", c, c, 1, 1)

    def level(self, name: str, cin: int, cout: int, blocks: int, attend: bool) -> None:
        for j in range(blocks):
            self.res(f"{name}.res.{j}", cout if j else cin, cout)
            if attend:
                self.attn(f"{name}.attn.{j}", cout)

    def half(self, part: str, widths: list[int], blocks: int, low: int, resample: str) -> None:
        """Levels from widths[0] on, attention at level `low`, and the middle."""
        for i, (a, b) in enumerate(pairwise(widths)):
            at = f"{part}.conv_blocks.{i}"
            self.level(at, a, b, blocks, i == low)
            if i < len(widths) - 2:
                self.put(f"{at}.{resample}.conv", b, b, 3, 3)
        wide = max(widths[0], widths[-1])
        self.res(f"{part}.mid.0", wide, wide)
        self.attn(f"{part}.mid.1", wide)
        self.res(f"{part}.mid.2", wide, wide)
        self.put(f"{part}.norm_out", widths[-1])


def published(mult: tuple[int, ...], ch: int = 128, z: int = 256, codes: int = 16384,
              width: int = 8) -> dict[str, tuple[int, ...]]:
    """Shapes of a tokenizer: VQ-16 has mult (1,1,2,2,4), VQ-8 (1,2,2,4)."""
    t, widths = _Shapes(), [ch * m for m in mult]
    wide = widths[-1]
    t.put("encoder.conv_in", ch, 3, 3, 3)
    t.half("encoder", [ch, *widths], 2, len(mult) - 1, "downsample")
    t.put("encoder.conv_out", z, wide, 3, 3)
    t.put("decoder.conv_in", wide, z, 3, 3)
    t.half("decoder", [wide, *widths[::-1]], 3, 0, "upsample")
    t.put("decoder.conv_out", 3, ch, 3, 3)
    t["quantize.embedding.weight"] = (codes, width)
    t.put("quant_conv", width, z, 1, 1)
    t.put("post_quant_conv", z, width, 1, 1)
    return t


class VQ(nn.Module):
    """Codebook rows are L2-normalised, at look-up and when encoding."""

    def __init__(self, t: Shapes, grid: int):
        super().__init__()
        for name in ("quantize.embedding.weight", "post_quant_conv.weight",
                     "decoder.conv_in.weight"):
            if name not in t:
                raise ArcError(f"the decoder file lacks {name}",
                               hint="give the VQ tokenizer, such as vq_ds16_c2i.pt")
        self.codes, self.width = t["quantize.embedding.weight"]
        self.grid = grid
        self.quantize = nn.Module()
        self.quantize.embedding = nn.Embedding(self.codes, self.width)
        self.post_quant_conv = nn.Conv2d(self.width, t["decoder.conv_in.weight"][1], 1)
        self.decoder = Decoder(t)
        self.has_encoder = "encoder.conv_out.weight" in t
        if self.has_encoder:
            self.encoder = Encoder(t)
            self.quant_conv = nn.Conv2d(t["encoder.conv_out.weight"][0], self.width, 1)
        self.factor = 2 ** sum(hasattr(b, "upsample") for b in self.decoder.conv_blocks)

    def codebook(self) -> Tensor:
        return arc.l2_norm(self.quantize.embedding.weight, -1)

    def decode(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens i64[b,N] -> pixels f32[b,3,H,W], about [-1,1]."""
        z = nn.functional.embedding(tokens, self.codebook())
        z = z.transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return {"pixels": self.decoder(self.post_quant_conv(z))}

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels f32[b,3,H,W] in [-1,1] -> tokens i64[b,N]: the nearest code of each cell."""
        return {"tokens": self.nearest(self.encoder(pixels))}

    def nearest(self, features: Tensor) -> Tensor:
        """The encoder's features f32[b,z,h,w] -> the nearest codes i64[b,h*w]."""
        z = self.quant_conv(features).flatten(2).transpose(1, 2)
        z, codes = arc.l2_norm(z, -1), self.codebook()
        far = (codes * codes).sum(-1) - 2 * (z @ codes.t())  # |z| is 1 for all
        return (-far).argmax(-1)
