"""From logits to tokens, with the noise an input: the same tokens on every target.

Sizes: b images, c positions each, V tokens in the vocabulary.
"""

from __future__ import annotations

import numpy as np

from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.tensor import Array, floating

BLOCK = 128  # a draw picks a block of this many tokens, then a token inside it


def _filter(x: Type, temperature: Type, top_k: Type, top_p: Type, most: Type) -> Type:
    if x.rank != 3 or top_k.dtype != "i64" or most.shape != (1,):
        raise IRError(f"cannot filter {x} by {top_k}, {top_p} and at most {most}")
    return floating(x)


@op("filter_logits", _filter)
def filter_logits(x: Array, temperature: Array, top_k: Array, top_p: Array, most: Array) -> Array:
    """Temperature, then top-k, then top-p, per image; what is filtered out becomes -inf.

    x [b,c,V]; temperature, top_p f32[b]; top_k i64[b] (0 keeps all); most i64[1]: no image needs
    more than this many sorted logits (the largest top_k, V where top_p < 1 comes without a
    top_k, at least 1). top-k keeps every token that ties with the k-th. top-p drops a token when
    the probability of those before it already exceeds top_p. https://arxiv.org/abs/1904.09751
    """
    n, column = int(most[0]), (slice(None), None, None)
    x = x / np.maximum(temperature, 1e-5)[column].astype(x.dtype)
    best = -np.sort(-x, -1)[..., :n]
    kth = np.take_along_axis(best, np.clip(top_k - 1, 0, n - 1)[column].repeat(x.shape[1], 1), -1)
    floor = np.where(top_k[column] > 0, kth, -np.inf)
    p = np.where(best >= floor, np.exp(best - best[..., :1]), 0)
    p = p / p.sum(-1, keepdims=True)
    inside = (np.cumsum(p, -1) - p <= top_p[column]) & (best >= floor)
    edge = np.where(inside, best, np.inf).min(-1, keepdims=True)
    floor = np.where(top_p[column] < 1, np.maximum(floor, edge), floor)
    return np.where(x >= floor, x, -np.inf).astype(x.dtype)


def _draw(x: Type, noise: Type, temperature: Type) -> Type:
    if x.rank != 3 or noise.shape != (*x.shape[:2], 2) or temperature.shape != x.shape[:1]:
        raise IRError(f"cannot draw from {x} with noise {noise} and temperature {temperature}")
    return Type("i64", x.shape[:2])


@op("draw", _draw)
def draw(x: Array, noise: Array, temperature: Array) -> Array:
    """Tokens [b,c] from logits [b,c,V] by inverse CDF in two levels; argmax at temperature 0.

    noise f32[b,c,2] holds two uniforms in [0,1), multiples of 2^-23: the first picks a block of
    128 consecutive tokens by its mass (there is one block when there are fewer), the second a token
    in it: the first whose running sum exceeds the uniform's share. Two levels keep every running
    sum short, so that rounding moves a boundary by 1e-7 of its block at most and targets agree.
    Ties of argmax go to the lower token.
    """
    b, c, v = x.shape
    p, size = np.exp(x - x.max(-1, keepdims=True)), min(BLOCK, v)
    p = np.pad(p, ((0, 0), (0, 0), (0, -v % size))).reshape(b, c, -1, size)
    block = _pick(p.sum(-1), noise[..., :1])
    inner = _pick(np.take_along_axis(p, block[..., None, None], 2)[:, :, 0], noise[..., 1:])
    token = block * size + inner
    return np.where(temperature[:, None] > 0, token, x.argmax(-1)).astype(np.int64)


def _pick(p: Array, u: Array) -> Array:
    """The first index whose running sum exceeds u of the total."""
    total = np.cumsum(p, -1, dtype=p.dtype)
    return (total > u * total[..., -1:]).argmax(-1)
