"""Caches that hold less than everything: one set of ops for every policy of keeping keys.

Sizes as in `attention`: r rows, s query slots, h heads, g key/value heads, e head size; a cache
[r,g,C,e] has room for C slots, and `held` i64[] says how many are filled, the same in every row. A
cache appends (`kv_attend` reads what it will hold, `kv_update` and `cache_append` write it), drops
(`kv_drop`, `kv_update`), merges, and rolls back by a smaller `held`. How many slots are kept is a
number that a step knows; which ones, each head of each row tells by a score.
"""

from __future__ import annotations

import numpy as np

from arcompile import dims
from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.attention import _attention, _heads
from arcompile.ops.tensor import Array

SCORES = ("attention", "recency")
FIRST, RECENT = 4.0, 2.0  # added to scores, which are at most 1: what is kept before all others


# --- meaning, in parts ---------------------------------------------------------------------------


def joined(cache: Array, new: Array, held: int) -> Array:
    """What a cache holds, and new [r,s,g*e] behind it: [r,g,held+s,e]."""
    return np.concatenate((cache[:, :, :held], _heads(new, cache.shape[1])), 2)


def observers(s: int, n: int) -> Array:
    """n of s query slots, evenly apart; when there are fewer, some of them twice."""
    return (2 * np.arange(n) + 1) * s // (2 * n)


def watched(q: Array, keys: Array, heads: int, scale: float, filled: int) -> Array:
    """Mean attention of all queries [r,s,h*e] to each of the keys [r,g,t,e], f32 [r,g,t]."""
    r, g, t, _ = keys.shape
    scores = _heads(q, heads) @ keys.repeat(heads // g, 1).transpose(0, 1, 3, 2) * np.float32(scale)
    scores = np.where(np.arange(t) < filled, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p.mean(2).reshape(r, g, heads // g, t).mean(2).astype(np.float32)


def pooled(score: Array, width: int) -> Array:
    """Each score's mean with its neighbours, `width` (odd) of them where there are as many."""
    if width <= 1:
        return score
    t, out = score.shape[-1], np.empty_like(score)
    for i in range(t):
        out[..., i] = score[..., max(0, i - width // 2) : i + width // 2 + 1].mean(-1)
    return out


def order(score: Array, first: int, recent: int) -> Array:
    """Slots [r,g,t], the best to keep before the others; of equals, the lower slot."""
    slot = np.arange(score.shape[-1])
    worth = score + FIRST * (slot < first) + RECENT * (slot >= len(slot) - recent)
    return np.argsort(-worth, -1, kind="stable")


def gathered(cache: Array, slots: Array) -> Array:
    """Slots [r,g,n] of a cache [r,g,t,e]."""
    return np.take_along_axis(cache, slots[..., None], 2)


def merged(keys: Array, values: Array, kept: Array, gone: Array) -> tuple[Array, Array]:
    """Those kept, each the mean of itself and of the dropped ones whose key is most like its own.

    https://arxiv.org/abs/2406.18139
    """
    unit = keys / np.maximum(np.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    alike = gathered(unit, gone) @ gathered(unit, kept).transpose(0, 1, 3, 2)
    goes = alike.argmax(-1)[..., None, :] == np.arange(kept.shape[-1])[:, None]  # [r,g,kept,gone]
    count = 1 + goes.sum(-1, keepdims=True).astype(np.float32)
    k, v = ((gathered(x, kept) + goes @ gathered(x, gone)) / count for x in (keys, values))
    return k.astype(keys.dtype), v.astype(values.dtype)


def written(cache: Array, slots: Array) -> Array:
    """The cache with its first slots replaced; the others are as they were."""
    out = cache.copy()
    out[:, :, : slots.shape[2]] = slots
    return out


# --- ops -----------------------------------------------------------------------------------------


def _fits(q: Type, k: Type, v: Type, kc: Type, vc: Type, heads: int, kv_heads: int,
          scale: float) -> Type:
    for new, cache in ((k, kc), (v, vc)):
        if cache.rank != 4 or new.rank != 3 or dims.mul(cache.shape[1], cache.shape[3]) != (
                new.shape[2]):
            raise IRError(f"{new} does not fit the heads of {cache}")
    return _attention(q, kc, vc, heads=heads, kv_heads=kv_heads, scale=scale)


def _kv_attend(q: Type, k: Type, v: Type, kc: Type, vc: Type, held: Type, *, heads: int,
               kv_heads: int, scale: float, mask: str = "full") -> Type:
    if held != Type("i64", ()) or mask not in ("full", "causal"):
        raise IRError(f"cannot attend to {held} slots with mask {mask!r}")
    return _fits(q, k, v, kc, vc, heads, kv_heads, scale)


@op("kv_attend", _kv_attend)
def kv_attend(q: Array, k: Array, v: Array, kc: Array, vc: Array, held: Array, *, heads: int,
              kv_heads: int, scale: float, mask: str = "full") -> Array:
    """Attention of new slots [r,s,..] to all that the caches hold, and to one another.

    A cache need not have room for the new ones. mask is about those alone.
    """
    from arcompile.ops.attention import attention

    keys, values = (joined(c, x, int(held)) for c, x in ((kc, k), (vc, v)))
    past = np.full(len(q), int(held), np.int32)
    return attention(q, keys, values, past, heads=heads, kv_heads=kv_heads, scale=scale, mask=mask,
                     extra=("past",))


def _kv_update(q: Type, k: Type, v: Type, kc: Type, vc: Type, held: Type, keep: Type, *more: Type,
               heads: int, kv_heads: int, scale: float, score: str = "attention",
               observe: int = 32, first: int = 0, recent: int = 0, pool: int = 1, merge: int = 0,
               extra: tuple[str, ...] = ()) -> list[Type]:
    _fits(q, k, v, kc, vc, heads, kv_heads, scale)
    told = dict(zip(extra, more, strict=True))
    if score not in SCORES or observe < 1 or pool % 2 == 0 or {held, keep} != {Type("i64", ())}:
        raise IRError(f"cannot keep {keep} slots by {score!r} of {observe} queries, pool {pool}")
    seen = [told["seen"]] if "seen" in told else []
    if seen and seen[0] != Type("f32", kc.shape[:3]):
        raise IRError(f"what was seen is {seen[0]}, and the cache {kc}")
    return [kc, vc, *seen]


@op("kv_update", _kv_update)
def kv_update(q: Array, k: Array, v: Array, kc: Array, vc: Array, held: Array, keep: Array,
              *more: Array, heads: int, kv_heads: int, scale: float, score: str = "attention",
              observe: int = 32, first: int = 0, recent: int = 0, pool: int = 1, merge: int = 0,
              extra: tuple[str, ...] = ()) -> tuple[Array, ...]:
    """Append new slots to caches, and drop all but `keep` i64[] of them; returns the caches.

    A slot is worth the mean attention that `observe` of the queries pay it, evenly chosen and
    averaged over `pool` neighbours, or how late it came (`recency`). Before all others come the
    `first` slots, then the `recent` last ones (-1: all new ones). Slots stay in order. merge: from
    so many slots on, those dropped are averaged into the kept ones whose keys are most alike (0:
    never). `extra` names further operands: image i64[r], the row whose scores a row goes by; seen
    f32[r,g,C], what each slot was worth before, added up and handed on.
    """
    told = dict(zip(extra, more, strict=True))
    n, s = int(held), q.shape[1]
    keys, values = (joined(c, x, n) for c, x in ((kc, k), (vc, v)))
    t, kept = n + s, min(int(keep), n + s)
    worth = np.broadcast_to(np.arange(t, dtype=np.float32) / t, keys.shape[:3])
    if score == "attention":
        worth = watched(q[:, observers(s, observe)], keys, heads, scale, t)
    if "seen" in told:
        old = np.pad(told["seen"][:, :, :n], ((0, 0), (0, 0), (0, s)))
        worth = worth + old
    total = worth
    if "image" in told:
        worth = worth[told["image"]]
    if "seen" in told:  # sums have no bound
        worth = worth / np.maximum(worth.max(-1, keepdims=True), 1e-12)
    best = order(pooled(worth, pool), first, s if recent < 0 else recent)
    slots = np.sort(best[..., :kept], -1)
    if merge and t >= merge and 0 < kept < t:
        pair = merged(keys, values, slots, best[..., kept:])
    else:
        pair = (gathered(keys, slots), gathered(values, slots))
    out = tuple(written(c, x) for c, x in zip((kc, vc), pair, strict=True))
    if "seen" not in told:
        return out
    seen = np.zeros_like(told["seen"])
    seen[:, :, :kept] = np.take_along_axis(total, slots, -1)
    return (*out, seen)


def _kv_watch(seen: Type, q: Type, keys: Type, held: Type, *, heads: int, scale: float) -> Type:
    if keys.rank != 4 or seen != Type("f32", keys.shape[:3]) or held != Type("i64", ()):
        raise IRError(f"cannot add what {q} sees of {keys} to {seen}")
    return seen


@op("kv_watch", _kv_watch)
def kv_watch(seen: Array, q: Array, keys: Array, held: Array, *, heads: int, scale: float) -> Array:
    """seen f32[r,g,C], and the mean attention of the queries to each slot of a cache.

    The cache holds `held` slots and behind them those of the queries.
    """
    return seen + watched(q, keys, heads, scale, int(held) + q.shape[1])


def _kv_drop(kc: Type, vc: Type, *seen: Type, keep: int, first: int = 0, recent: int = 0,
             row: int = 1, pool: int = 1, forget: bool = False) -> list[Type]:
    size = kc.shape[2]
    if kc.rank != 4 or kc.shape[:3] != vc.shape[:3] or not isinstance(size, int):
        raise IRError(f"cannot drop slots of {kc} and {vc}")
    if not 0 < keep < size or pool % 2 == 0 or (size - first) % row or (keep - first) % row:
        raise IRError(f"cannot keep {keep} of {size} slots in rows of {row} behind {first}")
    if any(x != Type("f32", kc.shape[:3]) for x in seen):
        raise IRError(f"what was seen is {seen[0]}, and the cache {kc}")
    return [kc, vc, *seen]


@op("kv_drop", _kv_drop)
def kv_drop(kc: Array, vc: Array, *seen: Array, keep: int, first: int = 0, recent: int = 0,
            row: int = 1, pool: int = 1, forget: bool = False) -> tuple[Array, ...]:
    """Of caches that are full, keep so many slots, in order.

    Those that were seen most, in whole rows of so many slots behind the `first` ones, or the last
    ones where nothing was seen; `first` and `recent` as in kv_update. What was seen of them is
    handed on, or forgotten.
    """
    size = kc.shape[2]
    if seen:
        worth = seen[0] / np.maximum(seen[0].max(-1, keepdims=True), 1e-12)
        behind = worth[..., first:].reshape(*worth.shape[:2], -1, row)
        mean = np.broadcast_to(behind.mean(-1, keepdims=True), behind.shape)
        worth = np.concatenate((worth[..., :first], mean.reshape(*worth.shape[:2], -1)), -1)
    else:
        worth = np.broadcast_to(np.arange(size, dtype=np.float32) / size, kc.shape[:3])
    slots = np.sort(order(pooled(worth, pool), first, recent)[..., :keep], -1)
    out = [written(c, gathered(c, slots)) for c in (kc, vc)]
    if seen:
        left = np.zeros_like(seen[0])
        if not forget:
            left[..., :keep] = np.take_along_axis(seen[0], slots, -1)
        out.append(left)
    return tuple(out)
