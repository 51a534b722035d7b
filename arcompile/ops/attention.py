"""Attention over cached keys and values, declared whole: masks are attributes, never subgraphs.

Sizes: r rows (sequences), s query slots, t key slots, S cache slots, h heads, g key/value heads,
e head size. Queries are [r,s,h*e]; a cache is [r,g,S,e]; `past` i32[r] counts the slots already
filled, so query i of row r sits at slot past[r]+i.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile import dims
from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.tensor import Array

MASKS = ("causal", "full", "prefix")


def _rope(x: Type, cos: Type, sin: Type, at: Type, *, heads: int, interleaved: bool) -> Type:
    e = dims.divide(x.shape[-1], heads)
    half = None if e is None else dims.divide(e, 2)
    if x.rank != 3 or half is None or cos != sin or cos.rank != 2 or cos.shape[1] != half:
        raise IRError(f"cannot rotate {x} in {heads} heads by {cos} and {sin}")
    return x


def positions(at: Array, s: int) -> Array:
    """Slots [r,s] from `past` i32[r], or as given when `at` already is [r,s]."""
    return at if at.ndim == 2 else at[:, None] + np.arange(s)


@op("rope", _rope)
def rope(x: Array, cos: Array, sin: Array, at: Array, *, heads: int, interleaved: bool) -> Array:
    """Rotary position embedding by table rows. https://arxiv.org/abs/2104.09864

    x [r,s,heads*e]; cos, sin [P,e/2]; at: `past` i32[r] or explicit rows i64[r,s]. Pairs are
    (2i, 2i+1) when interleaved, else (i, i+e/2).
    """
    r, s, _ = x.shape
    y = x.reshape(r, s, heads, -1)
    rows = positions(at, s)
    c, n = cos[rows][:, :, None], sin[rows][:, :, None]
    a, b = (y[..., ::2], y[..., 1::2]) if interleaved else np.split(y, 2, -1)
    pair = (a * c - b * n, a * n + b * c)
    out = np.stack(pair, -1) if interleaved else np.concatenate(pair, -1)
    return out.reshape(x.shape).astype(x.dtype)


def _cache_append(cache: Type, new: Type, past: Type) -> Type:
    if cache.rank != 4 or new.rank != 3 or past.rank != 1 or cache.dtype != new.dtype:
        raise IRError(f"cannot append {new} to {cache} at {past}")
    if dims.mul(cache.shape[1], cache.shape[3]) != new.shape[2]:
        raise IRError(f"{new} does not fit the heads of {cache}")
    return cache


@op("cache_append", _cache_append)
def cache_append(cache: Array, new: Array, past: Array) -> Array:
    """Write new [r,s,g*e] into cache [r,g,S,e] at slots past[r]...; a target may do it in place."""
    r, g, size, e = cache.shape
    rows = new.reshape(r, -1, g, e).transpose(0, 2, 1, 3)
    if (past + rows.shape[2] > size).any():
        raise IRError(f"{rows.shape[2]} slots at {past.max()} overflow a cache of {size}")
    out = cache.copy()
    for i in range(r):
        out[i, :, past[i] : past[i] + rows.shape[2]] = rows[i]
    return out


def _attention(q: Type, k: Type, v: Type, *more: Type, heads: int, kv_heads: int, scale: float,
               mask: str = "full", extra: tuple[str, ...] = ()) -> Type:
    if mask not in MASKS:
        raise IRError(f"unknown mask {mask!r}", hint=f"known: {', '.join(MASKS)}")
    e = dims.divide(q.shape[-1], heads)
    if q.rank != 3 or e is None or heads % kv_heads or len(more) != len(extra):
        raise IRError(f"cannot attend with {q} in {heads} heads ({kv_heads} of keys)")
    for x in (k, v):
        width = x.shape[3] if x.rank == 4 else dims.divide(x.shape[-1], kv_heads)
        if width is None or (x is k and width != e):
            raise IRError(f"keys {k} and values {v} do not fit {q} in {heads} heads")
    ev = v.shape[3] if v.rank == 4 else dims.divide(v.shape[-1], kv_heads)
    return Type(q.dtype, (*q.shape[:2], dims.mul(heads, ev or 0)))


def _heads(x: Array, n: int) -> Array:
    """[r,t,n*e] or a cache [r,n,t,e] -> [r,n,t,e]."""
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], n, -1).transpose(0, 2, 1, 3)


def visible(q_len: int, k_len: int, past: Array | None, mask: str, keep: Array | None) -> Array:
    """bool [r or 1, q_len, k_len]: which key slot each query sees."""
    slot = np.arange(k_len)
    at = (np.array([k_len - q_len]) if past is None else past)[:, None] + np.arange(q_len)
    last = at if mask == "causal" else np.broadcast_to(at[:, -1:], at.shape)
    if mask == "prefix":
        last = np.where(at[:, :1] > 0, last, at)
    seen = slot <= last[:, :, None]
    if keep is None:
        return seen
    if past is None:  # keys of something else: no slot is a query's own
        return seen & keep[:, None, :]
    return seen & (keep[:, None, :] | (slot == at[:, :, None]))


@op("attention", _attention)
def attention(q: Array, k: Array, v: Array, *more: Array, heads: int, kv_heads: int,
              scale: float, mask: str = "full", extra: tuple[str, ...] = ()) -> Array:
    """softmax(q k' * scale) v per head. https://arxiv.org/abs/1706.03762

    q [r,s,h*e]; k, v [r,t,g*e] or caches [r,g,S,e]. `extra` names the further operands, in order:
    past i32[r] (slots filled before this call; without it the last query sits at the last key),
    keep bool[r,t] (slots that may be seen; with past a query always sees its own), bias f32
    broadcastable to [r,h,s,t], added to the scores. mask: causal sees slots up to its own, full
    sees every slot up to that of the last query, prefix is causal in the first call (past = 0)
    and full in later ones: a prompt, then groups of tokens.
    """
    opt = dict(zip(extra, more, strict=True))
    r, s, _ = q.shape
    qh, kh, vh = _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)
    kh, vh = (x.repeat(heads // kv_heads, 1) for x in (kh, vh))
    scores = (qh @ kh.transpose(0, 1, 3, 2)) * q.dtype.type(scale)
    if "bias" in opt:
        scores = scores + opt["bias"]
    seen = visible(s, kh.shape[2], opt.get("past"), mask, opt.get("keep"))
    scores = np.where(seen[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return (p @ vh).transpose(0, 2, 1, 3).reshape(r, s, -1).astype(q.dtype)


def _decode(q: Type, k: Type, v: Type, kc: Type, vc: Type, past: Type, cos: Type, sin: Type,
            *keep: Type, heads: int, kv_heads: int, scale: float, mask: str,
            interleaved: bool) -> list[Type]:
    _rope(q, cos, sin, past, heads=heads, interleaved=interleaved)
    _rope(k, cos, sin, past, heads=kv_heads, interleaved=interleaved)
    _cache_append(kc, k, past)
    _cache_append(vc, v, past)
    out = _attention(q, kc, vc, past, heads=heads, kv_heads=kv_heads, scale=scale, mask=mask,
                     extra=("past",))
    return [out, kc, vc]


@op("decode_attention", _decode)
def decode_attention(q: Array, k: Array, v: Array, kc: Array, vc: Array, past: Array, cos: Array,
                     sin: Array, *keep: Array, heads: int, kv_heads: int, scale: float, mask: str,
                     interleaved: bool) -> tuple[Array, Array, Array]:
    """rope on q and k, both appended to their caches, and attention, in one op.

    Returns (out [r,s,h*e], key cache, value cache).
    """
    spin: dict[str, Any] = {"interleaved": interleaved}
    kc = cache_append(kc, rope(k, cos, sin, past, heads=kv_heads, **spin), past)
    vc = cache_append(vc, v, past)
    out = attention(rope(q, cos, sin, past, heads=heads, **spin), kc, vc, past, *keep, heads=heads,
                    kv_heads=kv_heads, scale=scale, mask=mask,
                    extra=("past", "keep")[: 1 + len(keep)])
    return out, kc, vc
