"""Attention, rotary embedding and caches in torch: see ops/attention.py for their meaning.

Caches are written where they lie; the graph's plan copies one first where its old value is read
later.
"""

from __future__ import annotations

from typing import Any

from arcompile.targets.torch_ops import means


@means("rope")
def rope(t: Any, x: Any, cos: Any, sin: Any, at: Any, heads: int, interleaved: bool) -> Any:
    r, s, _ = x.shape
    y = x.reshape(r, s, heads, -1)
    rows = at if at.ndim == 2 else at[:, None] + t.arange(s, device=x.device)
    c, n = (table[rows.long()][:, :, None].to(x.dtype) for table in (cos, sin))
    a, b = (y[..., ::2], y[..., 1::2]) if interleaved else y.chunk(2, -1)
    pair = (a * c - b * n, a * n + b * c)
    out = t.stack(pair, -1) if interleaved else t.cat(pair, -1)
    return out.reshape(x.shape)


@means("cache_append")
def cache_append(t: Any, cache: Any, new: Any, past: Any) -> Any:
    """In place."""
    r, g, _, e = cache.shape
    rows = new.reshape(r, -1, g, e).transpose(1, 2)
    s = rows.shape[2]
    at = past.long()[:, None] + t.arange(s, device=cache.device)
    where = at[:, None, :, None].expand(r, g, s, e)
    return cache.scatter_(2, where, rows.to(cache.dtype))


def _heads(x: Any, n: int) -> Any:
    return x if x.ndim == 4 else x.reshape(*x.shape[:2], n, -1).transpose(1, 2)


def visible(t: Any, s: int, slots: int, past: Any, mask: str, keep: Any, device: Any) -> Any:
    """bool [r or 1, s, slots], as ops.attention.visible."""
    slot = t.arange(slots, device=device)
    start = t.full((1,), slots - s, device=device) if past is None else past
    at = start[:, None] + t.arange(s, device=device)
    last = at if mask == "causal" else at[:, -1:].expand_as(at)
    if mask == "prefix":
        last = t.where(at[:, :1] > 0, last, at)
    seen = slot <= last[:, :, None]
    if keep is None:
        return seen
    if past is None:
        return seen & keep[:, None, :]
    return seen & (keep[:, None, :] | (slot == at[:, :, None]))


@means("attention")
def attention(t: Any, q: Any, k: Any, v: Any, *more: Any, heads: int, kv_heads: int, scale: float,
              mask: str = "full", extra: tuple[str, ...] = ()) -> Any:
    opt = dict(zip(extra, more, strict=True))
    r, s, _ = q.shape
    qh, kh, vh = _heads(q, heads), _heads(k, kv_heads), _heads(v, kv_heads)
    slots = kh.shape[2]
    bias = opt.get("bias")
    if mask != "full" or "keep" in opt or "past" in opt:
        seen = visible(t, s, slots, opt.get("past"), mask, opt.get("keep"), q.device)[:, None]
        held = t.zeros((), dtype=q.dtype, device=q.device) if bias is None else bias
        bias = t.where(seen, held, float("-inf"))
    if bias is not None:
        bias = bias.to(q.dtype).expand(r, heads, s, slots)
    out = t.nn.functional.scaled_dot_product_attention(
        qh, kh, vh, attn_mask=bias, scale=scale, enable_gqa=heads != kv_heads)
    return out.transpose(1, 2).reshape(r, s, -1)


@means("decode_attention")
def decode_attention(t: Any, q: Any, k: Any, v: Any, kc: Any, vc: Any, past: Any, cos: Any,
                     sin: Any, *keep: Any, heads: int, kv_heads: int, scale: float, mask: str,
                     interleaved: bool) -> Any:
    kc = cache_append(t, kc, rope(t, k, cos, sin, past, kv_heads, interleaved), past)
    vc = cache_append(t, vc, v, past)
    out = attention(t, rope(t, q, cos, sin, past, heads, interleaved), kc, vc, past, *keep,
                    heads=heads, kv_heads=kv_heads, scale=scale, mask=mask,
                    extra=("past", "keep")[: 1 + len(keep)])
    return out, kc, vc
