"""Convolutional image encoders and decoders of the taming-transformers lineage.

GroupNorm of 32 groups (eps 1e-6), SiLU, 3x3 convolutions; downsampling pads right and bottom and
strides by 2, upsampling is nearest x2 and a convolution; attention is single-head over all cells.
https://arxiv.org/abs/2012.09841
"""

from __future__ import annotations

from torch import Tensor, nn

from arcompile import nn as arc


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalised convolutions and a shortcut, 1x1 when the channels change."""

    def __init__(self, cin: int, cout: int):
        super().__init__()
        self.norm1, self.norm2 = norm(cin), norm(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        h = self.conv2(nn.functional.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


def _cells(x: Tensor) -> Tensor:
    """[n,c,h,w] -> [n,h*w,c]"""
    return x.flatten(2).transpose(1, 2)


class AttnBlock(nn.Module):
    """Single-head attention over all cells, with a residual; q, k, v are 1x1 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in "qkvo")

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + attend(x, self.q(h), self.k(h), self.v(h), self.proj_out)


class FusedAttnBlock(nn.Module):
    """AttnBlock with one convolution `qkv` for the three."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + attend(x, *self.qkv(self.norm(x)).chunk(3, 1), self.proj_out)


def attend(x: Tensor, q: Tensor, k: Tensor, v: Tensor, out: nn.Module) -> Tensor:
    c = x.shape[1]
    y = arc.attention(_cells(q), _cells(k), _cells(v), 1, 1, c**-0.5, "full")
    return out(y.transpose(1, 2).view(x.shape))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
