"""Counter-based noise: the same numbers in any language, in any order, in any batch.

Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011). The key is
the 64-bit seed; the counter is (image, position, draw, block). Everything is float64 until the
last rounding, so that a runtime in another language gets the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.program import Draw

Array = np.ndarray[Any, Any]
_M0, _M1, _W0, _W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox(counter: Array, key: Array) -> Array:
    """counter uint64 [..., 4], key uint64 [..., 2], both below 2^32 -> words uint64 [..., 4]."""
    c = [counter[..., i] for i in range(4)]
    k0, k1 = key[..., 0], key[..., 1]
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(_M0), c[2] * np.uint64(_M1)
        c = [(p1 >> _32) ^ c[1] ^ k0, p1 & _LOW, (p0 >> _32) ^ c[3] ^ k1, p0 & _LOW]
        k0, k1 = (k0 + np.uint64(_W0)) & _LOW, (k1 + np.uint64(_W1)) & _LOW
    return np.stack(c, -1)


def words(seeds: Array, images: Array, positions: Array, draw: int | Array,
          count: int) -> Array:
    """64-bit words uint64 [b, c, count] for b (seed, image) pairs at c positions each.

    positions: [c] for all pairs, or [b, c]; draw: one number for all pairs, or one for each.
    Word j of a position is half j % 2 of the block j // 2: words 0 and 1 of Philox's output make
    the first half, low word first.
    """
    b, c, blocks = len(seeds), positions.shape[-1], -(-count // 2)
    counter = np.zeros((b, c, blocks, 4), np.uint64)
    counter[..., 0] = np.asarray(images, np.uint64)[:, None, None]
    counter[..., 1] = np.asarray(positions, np.uint64)[..., :, None]
    counter[..., 2] = np.reshape(draw, (-1, 1, 1))
    counter[..., 3] = np.arange(blocks, dtype=np.uint64)
    seeds = np.asarray(seeds, np.uint64)
    key = np.stack((seeds & _LOW, seeds >> _32), -1)[:, None, None]
    w = philox(counter, key)
    halves = w[..., ::2] | (w[..., 1::2] << _32)
    return halves.reshape(b, c, 2 * blocks)[..., :count]


def uniform(w: Array) -> Array:
    """f32 in [0, 1), multiples of 2^-23: exact in f32, and u * total < total after rounding."""
    return ((w >> np.uint64(41)).astype(np.float64) * 2.0**-23).astype(np.float32)


def normal(w: Array) -> Array:
    """f32 standard normals from an even number of words, by Box and Muller in float64."""
    u = ((w >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2.0 * np.log(u[..., ::2])), 2.0 * np.pi * u[..., 1::2]
    pairs = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1)
    return pairs.reshape(w.shape).astype(np.float32)


def gumbel(w: Array) -> Array:
    """f32 standard Gumbel variates, -log(-log(u)) in float64: their tail reaches 36."""
    u = ((w >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return (-np.log(-np.log(u))).astype(np.float32)


def draw(d: Draw, index: int, seeds: Array, images: Array, positions: Array,
         turn: int | Array = 0) -> Array:
    """The noise a Program's draw number `index` asks for.

    positions: [c], or [b,c]; turn: the row of a loop's table, for all images or for each.
    uniform, normal and gumbel: f32 [b,c,width]; order: i64 [b,c], a permutation of c positions.
    """
    if np.min(turn) < 0 or np.max(turn) >= 1 << 20:
        raise ArcError(f"a loop of {np.max(turn)} rows is too long for its noise")
    which = (index << 20) | np.asarray(turn)
    if d.kind == "order":
        keys = words(seeds, images, positions, which, 1)[..., 0]
        return np.argsort(keys, axis=-1, kind="stable").astype(np.int64)
    even = d.width + d.width % 2 if d.kind == "normal" else d.width
    w = words(seeds, images, positions, which, even)
    return normal(w)[..., : d.width] if d.kind == "normal" else (
        uniform(w) if d.kind == "uniform" else gumbel(w))
