"""Denoising inside the decode loop: time embeddings, the DDPM sampler, MAR's per-token network.

What depends on the time alone is a table with a row for each turn of the loop, the noisiest first;
an MLP over such a table is folded into a weight when the engine is built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

TRAINED = 1000  # time steps of training
WAVES = 256  # numbers of a sinusoidal time embedding


def sinusoid(times: Sequence[int], width: int = WAVES) -> np.ndarray:
    """f32 [n,width]: cosines, then sines, of the times at geometric frequencies."""
    half = width // 2
    scale = np.float32(-math.log(10000.0)) / np.float32(half)
    waves = np.exp(np.arange(half, dtype=np.float32) * scale)
    angle = np.asarray(times, np.float32)[:, None] * waves
    return np.concatenate((np.cos(angle), np.sin(angle)), 1)


class TimeEmbed(nn.Module):
    """`mlp` of the sinusoids of the `n` times that the loop visits."""

    def __init__(self, n: int, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("rows", torch.empty(n, WAVES))

    def forward(self, turn: Tensor) -> Tensor:
        """turn i64[] -> [1,width]"""
        return self.mlp(self.rows).index_select(0, turn.reshape(1))


# --- DDPM ----------------------------------------------------------------------------------------


def respaced(n: int, total: int = TRAINED) -> list[int]:
    """n of `total` time steps at equal strides, first and last among them, ascending.

    The stride is added up, as upstream does, so that halves round the same way.
    """
    stride, at, kept = (total - 1) / (n - 1), 0.0, []
    for _ in range(n):
        kept.append(round(at))
        at += stride
    return kept


def cosine_betas(total: int = TRAINED, most: float = 0.999) -> np.ndarray:
    """https://arxiv.org/abs/2102.09672"""
    left = [math.cos((i / total + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(total + 1)]
    return np.array([min(1 - b / a, most) for a, b in pairwise(left)])


ANNEALING = ("linear", "cosine", "two-stage")


def annealed(high: int, low: int, kind: str, count: int) -> list[int]:
    """Denoising steps of each of `count` iterations, from `high` to `low`: early tokens need more.

    DiSA, https://arxiv.org/abs/2505.20297. `two-stage` is `high` for the first half, then `low`.
    """
    def share(k: int) -> float:
        if kind == "cosine":
            return (math.cos(math.pi * k / max(count - 1, 1)) + 1) / 2
        return float(k < count / 2) if kind == "two-stage" else 1 - k / max(count - 1, 1)

    return [math.floor(share(k) * (high - low) + 1e-9) + low for k in range(count)]


# What one denoising step needs to know of its time.
COLUMNS = ("x0_x", "x0_eps", "mean_x0", "mean_x", "log_most", "log_least", "noisy")


def ddpm(n: int) -> np.ndarray:
    """f32 [n, len(COLUMNS)], the noisiest step first; computed in float64.

    x0 = x0_x x - x0_eps eps; the posterior's mean = mean_x0 x0 + mean_x x; its log variance lies
    between `log_least` (the true posterior) and `log_most` (beta). The last step adds no noise.
    https://arxiv.org/abs/2006.11239
    """
    whole = np.cumprod(1 - cosine_betas())[respaced(n)]  # alpha-bar of the kept steps
    before = np.append(1.0, whole[:-1])
    beta = 1 - whole / before
    variance = beta * (1 - before) / (1 - whole)
    made = (
        np.sqrt(1 / whole), np.sqrt(1 / whole - 1), beta * np.sqrt(before) / (1 - whole),
        (1 - before) * np.sqrt(1 - beta) / (1 - whole), np.log(beta),
        np.log(np.append(variance[1], variance[1:])), np.arange(n) > 0,
    )
    return np.stack(made, 1)[::-1].astype(np.float32)


def schedules(steps: Sequence[int]) -> np.ndarray:
    """The tables of several numbers of steps, one below the other."""
    return np.concatenate([ddpm(n) for n in steps])


def waves(steps: Sequence[int]) -> np.ndarray:
    """The sinusoids of the times that they visit, likewise."""
    return sinusoid([t for n in steps for t in respaced(n)[::-1]])


def loops(steps: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """The rows of each number of steps in those tables."""
    at, found = 0, {}
    for n in steps:
        found[n] = tuple(range(at, at + n))
        at += n
    return found


def denoise(row: Tensor, x: Tensor, eps: Tensor, share: Tensor, noise: Tensor,
            temperature: Tensor) -> Tensor:
    """One step of x [b,c,C] by a row [1,7] of `ddpm`; share in [-1,1] mixes the log variances."""
    a, b, c, d, most, least, noisy = row.split(1, 1)
    mean = c * (a * x - b * eps) + d * x
    f = (share + 1) / 2
    spread = torch.exp((f * most + (1 - f) * least) * 0.5)
    return mean + noisy * spread * noise * temperature[:, None, None]


# --- MAR's network for one token -----------------------------------------------------------------


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class AdaBlock(nn.Module):
    """x + gate * mlp(norm(x) * (1 + scale) + shift), the three told by the condition."""

    def __init__(self, width: int):
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = _modulation(width, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class Final(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class AdaMLP(nn.Module):
    """Noise and variance share of one noisy token. https://arxiv.org/abs/2406.11838"""

    def __init__(self, channels: int, cond: int, width: int, depth: int, steps: int):
        super().__init__()
        self.channels = channels
        self.time_embed = TimeEmbed(steps, width)
        self.cond_embed = nn.Linear(cond, width)
        self.input_proj = nn.Linear(channels, width)
        self.res_blocks = nn.ModuleList(AdaBlock(width) for _ in range(depth))
        self.final_layer = Final(width, 2 * channels)

    def forward(self, x: Tensor, cond: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """x [r,c,C], cond = cond_embed(z) [r,c,width] -> eps, share [r,c,C]."""
        y = cond + self.time_embed(turn)
        x = self.input_proj(x)
        for block in self.res_blocks:
            x = block(x, y)
        eps, share = self.final_layer(x, y).chunk(2, -1)
        return eps, share
