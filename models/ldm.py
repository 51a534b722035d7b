"""Convolutional encoders and decoders with latent-diffusion's key names: VAR, Infinity, KL-16.

The blocks are those of `taming`; level 0 is the highest resolution in both halves.
https://arxiv.org/abs/2112.10752
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from arcompile.errors import ArcError
from arcompile.models.taming import (
    AttnBlock,
    Downsample,
    FusedAttnBlock,
    ResBlock,
    Upsample,
    norm,
)

Shapes = Mapping[str, tuple[int, ...]]
ATTENTION = {"fused": FusedAttnBlock, "split": AttnBlock}


@dataclass(frozen=True)
class LevelPlan:
    """(in, out) widths of the res blocks, the kind of attention after each, and resampling."""

    widths: tuple[tuple[int, int], ...]
    attention: str = ""  # "", "fused" or "split"
    resample: bool = True


@dataclass(frozen=True)
class Plan:
    """An encoder or decoder: its levels, highest resolution first, the middle, and its ends."""

    levels: tuple[LevelPlan, ...]
    middle: str  # the kind of attention between the two res blocks of the middle
    ends: tuple[int, int]  # channels in and out

    @property
    def factor(self) -> int:
        return int(2 ** sum(lv.resample for lv in self.levels))


def encoder_plan(ends: tuple[int, int], ch: int, mult: Sequence[int], blocks: int,
                 low: str = "", middle: str = "") -> Plan:
    """`low` is the attention of the lowest resolution."""
    levels, c = [], ch
    for i, m in enumerate(mult):
        last = i == len(mult) - 1
        widths = [(c, ch * m), *[(ch * m, ch * m)] * (blocks - 1)]
        levels.append(LevelPlan(tuple(widths), low if last else "", not last))
        c = ch * m
    return Plan(tuple(levels), middle, ends)


def decoder_plan(ends: tuple[int, int], ch: int, mult: Sequence[int], blocks: int,
                 low: str = "", middle: str = "") -> Plan:
    levels: list[LevelPlan] = []
    c = ch * mult[-1]
    for i, m in reversed(list(enumerate(mult))):
        widths = [(c, ch * m), *[(ch * m, ch * m)] * (blocks - 1)]
        levels.insert(0, LevelPlan(tuple(widths), low if i == len(mult) - 1 else "", i > 0))
        c = ch * m
    return Plan(tuple(levels), middle, ends)


def read_plan(t: Shapes, part: str) -> Plan:
    """What the tensors under `encoder.` or `decoder.` say. Raises ArcError."""
    side, resample = ("down", "downsample") if part == "encoder" else ("up", "upsample")
    needed = [f"{part}.{n}.weight" for n in ("conv_in", "conv_out", "mid.block_1.conv1")]
    count = _count(t, f"{part}.{side}.")
    if lacking := [n for n in needed if n not in t] or ([f"{part}.{side}.0"] if not count else []):
        raise ArcError(f"the decoder file has no {lacking[0]}",
                       hint="is it the image decoder of this family?")
    levels = tuple(_level(t, f"{part}.{side}.{i}", resample) for i in range(count))
    ends = (t[needed[0]][1], t[needed[1]][0])
    return Plan(levels, _attention(t, f"{part}.mid.attn_1"), ends)


def _count(t: Shapes, prefix: str) -> int:
    return len({m[1] for k in t if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", k))})


def _attention(t: Shapes, at: str) -> str:
    return "fused" if f"{at}.qkv.weight" in t else "split" if f"{at}.q.weight" in t else ""


def _level(t: Shapes, at: str, resample: str) -> LevelPlan:
    shapes = [t.get(f"{at}.block.{j}.conv1.weight", ()) for j in range(_count(t, f"{at}.block."))]
    if not shapes or any(len(s) != 4 for s in shapes):
        raise ArcError(f"the decoder file has no convolutions in {at}",
                       hint="is it the image decoder of this family?")
    return LevelPlan(tuple((s[1], s[0]) for s in shapes), _attention(t, f"{at}.attn.0"),
                     f"{at}.{resample}.conv.weight" in t)


class Level(nn.Module):
    """Res blocks, each followed by attention where there is any, then a resampling."""

    def __init__(self, plan: LevelPlan, resample: str):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(a, b) for a, b in plan.widths)
        wide, self.resample = plan.widths[-1][1], resample
        self.attn = nn.ModuleList(
            ATTENTION[plan.attention](b) for _, b in plan.widths if plan.attention)
        if plan.resample:
            setattr(self, resample, (Downsample if resample == "downsample" else Upsample)(wide))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        return getattr(self, self.resample)(x) if hasattr(self, self.resample) else x


class Middle(nn.Module):
    def __init__(self, c: int, attention: str):
        super().__init__()
        self.block_1, self.block_2 = ResBlock(c, c), ResBlock(c, c)
        if attention:
            self.attn_1 = ATTENTION[attention](c)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(self.attn_1(x) if hasattr(self, "attn_1") else x)


class Encoder(nn.Module):
    def __init__(self, plan: Plan):
        super().__init__()
        wide = plan.levels[-1].widths[-1][1]
        self.conv_in = nn.Conv2d(plan.ends[0], plan.levels[0].widths[0][0], 3, padding=1)
        self.down = nn.ModuleList(Level(lv, "downsample") for lv in plan.levels)
        self.mid = Middle(wide, plan.middle)
        self.norm_out = norm(wide)
        self.conv_out = nn.Conv2d(wide, plan.ends[1], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(nn.functional.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, plan: Plan):
        super().__init__()
        wide, last = plan.levels[-1].widths[0][0], plan.levels[0].widths[-1][1]
        self.conv_in = nn.Conv2d(plan.ends[0], wide, 3, padding=1)
        self.mid = Middle(wide, plan.middle)
        self.up = nn.ModuleList(Level(lv, "upsample") for lv in plan.levels)
        self.norm_out = norm(last)
        self.conv_out = nn.Conv2d(last, plan.ends[1], 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(nn.functional.silu(self.norm_out(x)))
