"""KL autoencoders in the layout of latent diffusion: KL-16, the decoder of MAR and xAR.

Continuous latents, 16 pixels a side each. https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from arcompile.errors import ArcError
from arcompile.models.taming import AttnBlock, ResBlock, Upsample, norm

Shapes = Mapping[str, tuple[int, ...]]
SCALE = 0.2325  # a transformer's latents are the autoencoder's times this
IGNORE = ("encoder.*", "quant_conv.*", "loss.*")
HINT = "give the autoencoder, such as kl16.ckpt"


def _count(t: Shapes, prefix: str) -> int:
    """How many n there are in `prefix.n.`, which must be 0, 1, ..."""
    found = {int(m[1]) for k in t if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", k))}
    if found != set(range(len(found))):
        raise ArcError(f"the decoder file has gaps in {prefix}.*", hint=HINT)
    return len(found)


class Level(nn.Module):
    """Res blocks, each followed by attention where the file has one, then an enlargement."""

    def __init__(self, t: Shapes, at: str):
        super().__init__()
        made, attends = _count(t, f"{at}.block"), _count(t, f"{at}.attn")
        shapes = [t.get(f"{at}.block.{i}.conv1.weight", ()) for i in range(made)]
        if not shapes or any(len(s) != 4 for s in shapes) or attends not in (0, made):
            raise ArcError(f"the decoder file has no usable {at}.block", hint=HINT)
        self.block = nn.ModuleList(ResBlock(s[1], s[0]) for s in shapes)
        self.attn = nn.ModuleList(AttnBlock(s[0]) for s in shapes[:attends])
        if f"{at}.upsample.conv.weight" in t:
            self.upsample = Upsample(shapes[-1][0])

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return self.upsample(x) if hasattr(self, "upsample") else x


class Middle(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResBlock(c, c), AttnBlock(c), ResBlock(c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Decoder(nn.Module):
    """Level 0 is the highest resolution."""

    def __init__(self, t: Shapes):
        super().__init__()
        wide, z = t["decoder.conv_in.weight"][:2]
        self.conv_in = nn.Conv2d(z, wide, 3, padding=1)
        self.mid = Middle(wide)
        self.up = nn.ModuleList(
            Level(t, f"decoder.up.{i}") for i in range(_count(t, "decoder.up"))
        )
        last = t["decoder.conv_out.weight"][1]
        self.norm_out = norm(last)
        self.conv_out = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))


class KL(nn.Module):
    """The decoding half."""

    def __init__(self, t: Shapes, grid: int):
        super().__init__()
        for name in ("post_quant_conv", "decoder.conv_in", "decoder.conv_out"):
            if len(t.get(f"{name}.weight", ())) != 4:
                raise ArcError(f"the decoder file has no {name}.weight", hint=HINT)
        self.grid, self.channels = grid, t["post_quant_conv.weight"][1]
        self.post_quant_conv = nn.Conv2d(self.channels, t["post_quant_conv.weight"][0], 1)
        self.decoder = Decoder(t)
        self.factor = 2 ** sum(hasattr(level, "upsample") for level in self.decoder.up)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """latents f32[b,N,C], raster order, scaled -> pixels f32[b,3,H,W], about [-1,1]."""
        z = latents.transpose(1, 2).unflatten(2, (self.grid, self.grid)) / SCALE
        return {"pixels": self.decoder(self.post_quant_conv(z))}


def published(mult: tuple[int, ...] = (1, 1, 2, 2, 4), ch: int = 128,
              z: int = 16) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Shapes of the decoding half of KL-16, or of a smaller one."""
    t: dict[str, tuple[int, ...]] = {}

    def put(name: str, *shape: int) -> None:
        t[f"{name}.weight"], t[f"{name}.bias"] = shape, shape[:1]

    def res(name: str, a: int, b: int) -> None:
        put(f"{name}.norm1", a), put(f"{name}.norm2", b)
        put(f"{name}.conv1", b, a, 3, 3), put(f"{name}.conv2", b, b, 3, 3)
        if a != b:
            put(f"{name}.nin_shortcut", b, a, 1, 1)

    c = ch * mult[-1]
    put("post_quant_conv", z, z, 1, 1), put("decoder.conv_in", c, z, 3, 3)
    res("decoder.mid.block_1", c, c), res("decoder.mid.block_2", c, c)
    put("decoder.mid.attn_1.norm", c)
    for part in ("q", "k", "v", "proj_out"):
        put(f"decoder.mid.attn_1.{part}", c, c, 1, 1)
    for i in reversed(range(len(mult))):
        for j in range(3):
            res(f"decoder.up.{i}.block.{j}", c, ch * mult[i])
            c = ch * mult[i]
        if i:
            put(f"decoder.up.{i}.upsample.conv", c, c, 3, 3)
    put("decoder.norm_out", c), put("decoder.conv_out", 3, c, 3, 3)
    return t
