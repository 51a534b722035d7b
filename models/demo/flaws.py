"""What the judge must see through: mild wear that leaves a drawing valid, and flaws that do not.

Training only. Pictures are f32 [b, 3, 64, 64] in -1..1; every function is seeded by `rng`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def _rand(rng: Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng)


def _field(rng: Generator, n: int, channels: int, cells: int) -> Tensor:
    """Smooth noise of unit variance at the knots; [n, channels, 64, 64]."""
    knots = torch.randn((n, channels, cells, cells), generator=rng)
    return F.interpolate(knots, (64, 64), mode="bicubic", align_corners=True)


def warp(x: Tensor, pixels: float, rng: Generator, cells: int = 6) -> Tensor:
    """Push every pixel along a smooth random field."""
    move = _field(rng, len(x), 2, cells) * pixels / 32
    line = (torch.arange(64) + 0.5) / 32 - 1
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    place = torch.stack([columns, rows], -1) + move.permute(0, 2, 3, 1)
    return F.grid_sample(x, place, padding_mode="border", align_corners=False)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur."""
    reach = max(1, round(3 * sigma))
    tap = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma * sigma))
    tap = (tap / tap.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), tap, groups=3)
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), tap.mT, groups=3)


def wear(x: Tensor, rng: Generator) -> Tensor:
    """Mild wear: slight warp, blur, tint, grain; the drawing stays what it is."""
    x = warp(x, 0.5 * _rand(rng, 1).item(), rng)
    x = blur(x, 0.3 + 0.6 * _rand(rng, 1).item()) if _rand(rng, 1) < 0.6 else x
    x = x * (1 + 0.06 * (_rand(rng, len(x), 1, 1, 1) - 0.5))
    x = x + 0.06 * (_rand(rng, len(x), 3, 1, 1) - 0.5)
    grain = 0.06 * _rand(rng, len(x), 1, 1, 1) * torch.randn(x.shape, generator=rng)
    return (x + grain).clamp(-1, 1)


def _smear(x: Tensor, rng: Generator) -> Tensor:
    return blur(x, 4.5 + 3 * _rand(rng, 1).item())


def _melt(x: Tensor, rng: Generator) -> Tensor:
    return warp(x, 4.5 + 2 * _rand(rng, 1).item(), rng)


def _tiles(x: Tensor, rng: Generator) -> Tensor:
    """The 8x8 tiles of each picture in random order."""
    order = torch.stack([torch.randperm(64, generator=rng) for _ in x])
    tiles = F.unfold(x, 8, stride=8)
    return F.fold(tiles.gather(2, order[:, None].expand_as(tiles)), (64, 64), 8, stride=8)


def _noise(x: Tensor, rng: Generator) -> Tensor:
    return torch.randn(x.shape, generator=rng).mul(_rand(rng, len(x), 1, 1, 1)).clamp(-1, 1)


def _clouds(x: Tensor, rng: Generator) -> Tensor:
    return (_field(rng, len(x), 3, 5) * 0.6).clamp(-1, 1)


def _blank(x: Tensor, rng: Generator) -> Tensor:
    slope = _field(rng, len(x), 3, 2) * 0.05
    return (slope + 2 * _rand(rng, len(x), 3, 1, 1) - 1).clamp(-1, 1)


def _corners(x: Tensor) -> Tensor:
    """The backgrounds alone: a bilinear patch between the four corner pixels."""
    return F.interpolate(x[..., ::63, ::63], (64, 64), mode="bilinear", align_corners=True)


def _inks(x: Tensor) -> Tensor:
    """A strongly coloured pixel of each picture; [b, 3, 1, 1]."""
    vivid = (x.amax(1) - x.amin(1)).flatten(1).argmax(1)
    return x.flatten(2).gather(2, vivid[:, None, None].expand(-1, 3, 1))[..., None]


def _blobs(x: Tensor, rng: Generator) -> Tensor:
    """An odd blob of the right ink on the right background."""
    line = torch.arange(64) - 31.5
    rows, columns = torch.meshgrid(line, line, indexing="ij")
    hill = 1.2 - (rows.square() + columns.square()) / 300
    cover = torch.sigmoid(6 * (hill + 1.3 * _field(rng, len(x), 1, 5)))
    return _corners(x) * (1 - cover) + _inks(x) * cover


def _torn(x: Tensor, rng: Generator) -> Tensor:
    """About half of each shape is gone, along a random line through the ink."""
    ink = (x - _corners(x)).square().sum(1, keepdim=True)
    ink = ink / ink.sum((2, 3), keepdim=True)
    line = torch.arange(64) - 31.5
    turn = 6.2832 * _rand(rng, len(x), 1, 1, 1)
    side = line[:, None] * turn.cos() + line * turn.sin()
    cut = (side > (side * ink).sum((2, 3), keepdim=True)).float()
    return x * (1 - cut) + _corners(x) * cut


def _rolled(x: Tensor, rng: Generator) -> Tensor:
    """The lower half slides sideways by a quarter picture or more."""
    by = 14 + int(36 * _rand(rng, 1).item())
    centre = (x - _corners(x)).square().sum((1, 3)).cumsum(1)
    row = (centre < centre[:, -1:] / 2).sum(1).view(-1, 1, 1, 1)
    below = (torch.arange(64).view(1, 1, -1, 1) > row).float()
    return x * (1 - below) + x.roll(by, 3) * below


def _pairs(x: Tensor, rng: Generator) -> Tensor:
    """Two drawings, half seen through each other."""
    return (x + x.roll(7, 0)) / 2  # neighbours in a batch differ in class


_FLAWS = (_smear, _melt, _melt, _tiles, _noise, _clouds, _blank, _blobs, _blobs, _torn, _rolled,
          _pairs)


def flawed(x: Tensor, rng: Generator) -> Tensor:
    """Pictures that are not clean drawings, in equal shares of every flaw."""
    parts = torch.tensor_split(x, len(_FLAWS))
    return torch.cat([f(part, rng) for f, part in zip(_FLAWS, parts, strict=True)])
