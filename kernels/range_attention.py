"""range_attention: each query row sees the key slots [start, end) and nothing else.

Ranges say causal, block-causal by scale, block-diagonal, diagonal and windowed masks, and they let
a program skip the keys that none of its rows sees. Keys and values lie in caches [r,g,S,e], or in
pages [n,g,page,e] that `pages` i32[r,P] lists for each row; `lengths` i32[r,g] cuts the caches of
head groups off earlier (HACK keeps caches of two lengths, https://arxiv.org/abs/2504.09261).
Softmax by blocks as in https://arxiv.org/abs/2205.14135.

v1  one program a block of queries and a head, over the keys between its first start and last end
v2  blocks that every row sees whole are not masked
v3  CUDA: tiles copied while others are multiplied; warps leave out what none of their rows sees
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl

MASKS = ("causal", "full", "scales", "blocks", "window", "random")
SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 24, 32, 48, 64)


def ranges(mask: str, s: int, t: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """[start, end) of s queries at the end of t slots."""
    at = np.arange(t - s, t)
    if mask == "causal":
        start, end = 0 * at, at + 1
    elif mask == "full":
        start, end = 0 * at, 0 * at + t
    elif mask == "window":
        start, end = np.maximum(at - 5, 0), at + 1
    elif mask == "random":
        start = rng.integers(0, t, s)
        end = start + 1 + rng.integers(0, t - start)
    else:  # scales see those before them, blocks themselves alone
        bounds = np.unique([0, *np.cumsum([n * n for n in SIDES]).clip(max=t), t])
        own = np.searchsorted(bounds, at, side="right")
        end = bounds[own]
        start = 0 * at if mask == "scales" else bounds[own - 1]
    return start.astype(np.int32), end.astype(np.int32)


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    r, s, t, h, e = c.r, c.s, c.t, c.h, c.e
    g = c.sizes.get("g", h)
    page = c.sizes.get("page", 0)

    def some(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    pairs = [ranges(c.mask, s, t, rng) for _ in range(r)]
    made: dict[str, Any] = {
        "q": some(r, s, h * e), "start": np.stack([a for a, _ in pairs]),
        "end": np.stack([b for _, b in pairs]), "heads": h, "kv_heads": g, "scale": e**-0.5}
    if page:
        count = cdiv(t, page)
        made["pages"] = rng.permutation(r * count).astype(np.int32).reshape(r, count)
        made["k"], made["v"] = some(r * count, g, page, e), some(r * count, g, page, e)
    else:
        made["k"], made["v"] = some(r, g, t, e), some(r, g, t, e)
    if "short" in c.sizes:  # the first half of the heads keeps this many slots
        short = np.where(np.arange(g) < g // 2, c.short, t)
        made["lengths"] = np.tile(short, (r, 1)).astype(np.int32)
        made["start"] = np.minimum(made["start"], np.int32(c.short - 1))
    return made


def reference(q: Array, k: Array, v: Array, start: Array, end: Array, *, heads: int, kv_heads: int,
              scale: float, pages: Array | None = None, lengths: Array | None = None) -> Array:
    r, s, _ = q.shape
    if pages is not None:
        k, v = (x[pages].transpose(0, 2, 1, 3, 4).reshape(r, kv_heads, -1, x.shape[-1])
                for x in (k, v))
    slot = np.arange(k.shape[2])
    last = np.broadcast_to(end[:, None], (r, kv_heads, s))
    if lengths is not None:
        last = np.minimum(last, lengths[:, :, None])
    seen = (slot >= start[:, None, :, None]) & (slot < last[..., None])
    bias = np.where(seen, np.float32(0), np.float32(-np.inf)).repeat(heads // kv_heads, 1)
    return OPS["attention"].eval(q, k, v, bias, heads=heads, kv_heads=kv_heads, scale=scale,
                                 extra=("bias",))[0]


def peer(q: Any, k: Any, v: Any, start: Any, end: Any, *, heads: int, kv_heads: int, scale: float,
         pages: Any = None, lengths: Any = None) -> Any:
    """scaled_dot_product_attention under a mask of what the ranges let through."""
    import torch

    r, s, wide = q.shape
    e = wide // heads
    if pages is not None:
        k, v = (x[pages.long()].transpose(1, 2).reshape(r, kv_heads, -1, e) for x in (k, v))
    slot = torch.arange(k.shape[2], device=q.device)
    last = end[:, None].expand(r, kv_heads, s)
    if lengths is not None:
        last = torch.minimum(last, lengths[:, :, None])
    seen = (slot >= start[:, None, :, None]) & (slot < last[..., None])
    out = torch.nn.functional.scaled_dot_product_attention(
        q.reshape(r, s, heads, e).transpose(1, 2), k, v, scale=scale, enable_gqa=heads != kv_heads,
        attn_mask=seen.repeat_interleave(heads // kv_heads, 1))
    return out.transpose(1, 2).reshape(r, s, wide)


def rivals(c: Case) -> dict[str, Any]:
    """FlashAttention, which knows no ranges: causal where the ranges are, else dense."""
    causal = c.mask == "causal" and c.s == c.t
    return {} if c.sizes.get("page") else {"flash": partial(_flash, causal=causal)}


def _flash(q: Any, k: Any, v: Any, *, heads: int, kv_heads: int, scale: float, causal: bool,
           **_: Any) -> Any:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    r, s, _wide = q.shape
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(
            q.reshape(r, s, heads, -1).transpose(1, 2), k, v, is_causal=causal, scale=scale,
            enable_gqa=heads != kv_heads)


def random(rng: np.random.Generator) -> Case:
    g, group = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    s = int(rng.integers(1, 70))
    t = s + int(rng.integers(0, 60))
    more = {"page": 16} if rng.random() < 0.3 else {}
    if not more and g > 1 and rng.random() < 0.5:
        more = {"short": int(rng.integers(1, t + 1))}
    return case(str(rng.choice(["f32", "f16"])), r=int(rng.integers(1, 3)), s=s, t=t, h=g * group,
                g=g, e=int(rng.choice([16, 24, 32])), mask=str(rng.choice(MASKS)), **more)


def cost(c: Case) -> tuple[float, float]:
    start, end = ranges(c.mask, c.s, c.t, np.random.default_rng(0))
    pairs = float((end - start).sum()) * c.r * c.h
    width = 4 if c.dtype == "f32" else 2
    return 4 * pairs * c.e, width * c.e * c.r * (2 * c.h * c.s + 2 * c.sizes.get("g", c.h) * c.t)


declare(
    "range_attention", about="attention of each query row over its own range of key slots",
    inputs=inputs, reference=reference, random=random, cost=cost, peer=peer, rivals=rivals,
    shapes=(case(r=1, s=36, t=91, h=2, e=16, mask="scales"),
            case("f16", r=1, s=33, t=40, h=2, g=1, e=24, mask="causal", page=16),
            case("f16", r=1, s=20, t=50, h=2, e=16, mask="blocks", short=45)),
    large=(case("bf16", r=2, s=4096, t=4096, h=16, e=64, mask="causal"),
           case("bf16", r=2, s=256, t=680, h=16, e=64, mask="full"),
           case("bf16", r=2, s=4096, t=9451, h=16, e=64, mask="blocks"),
           case("bf16", r=2, s=1024, t=4096, h=16, e=128, mask="scales", page=32)),
)


@jit
def _tiles(acc, most, total, q, k, v, pages, lo, hi, first, last, head, g, slots, scale, e,
           M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, PAGED: tl.constexpr,
           MASKED: tl.constexpr):
    """Attend to the keys first, first + 1, ... last - 1, by N."""
    width = tl.arange(0, E)
    for at in range(first, last, N):
        slot = at + tl.arange(0, N)
        if PAGED:
            base = (tl.load(pages + at // N).to(tl.int64) * g + head) * N * e
        else:
            base = (head.to(tl.int64) * slots + at) * e
        where = tl.arange(0, N)[:, None] * e + width[None, :]
        if MASKED:
            some = (slot < last)[:, None] & (width < e)[None, :]
            keys = tl.load(k + base + where, mask=some, other=0.0)
        else:
            keys = tl.load(k + base + where, mask=(width < e)[None, :], other=0.0)
        score = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        if MASKED:
            seen = (slot[None, :] >= lo[:, None]) & (slot[None, :] < hi[:, None])
            score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(score - safe[:, None])
        fade = tl.exp2(most - safe)
        total = total * fade + tl.sum(p, 1)
        if MASKED:
            values = tl.load(v + base + where, mask=some, other=0.0)
        else:
            values = tl.load(v + base + where, mask=(width < e)[None, :], other=0.0)
        acc = acc * fade[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        most = new
    return acc, most, total


@jit
def _attend(q, k, v, start, end, lengths, pages, out, s, slots, heads, g, count, scale, e,
            M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, PAGED: tl.constexpr,
            LENGTHS: tl.constexpr, SPLIT: tl.constexpr):
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    own = head // (heads // g)
    m = tl.program_id(0) * M + tl.arange(0, M)
    width = tl.arange(0, E)
    real = m < s
    lo = tl.load(start + row * s + m, mask=real, other=1 << 30)
    hi = tl.load(end + row * s + m, mask=real, other=0)
    if LENGTHS:
        hi = tl.minimum(hi, tl.load(lengths + row * g + own))
    some = real[:, None] & (width < e)[None, :]
    base = ((row * s + tl.program_id(0) * M).to(tl.int64) * heads + head) * e
    here = tl.arange(0, M)[:, None] * (heads * e) + width[None, :]
    queries = tl.load(q + base + here, mask=some, other=0.0)
    acc = tl.zeros((M, E), tl.float32)
    most = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    first = tl.min(lo, 0) // N * N
    last = tl.max(hi, 0)
    if PAGED:
        which = own
        pages += row * count
    else:
        which = row * g + own
    if SPLIT:
        whole = (tl.max(tl.where(real, lo, 0), 0) + N - 1) // N * N
        stop = tl.min(tl.where(real, hi, 1 << 30), 0) // N * N
        whole = tl.minimum(whole, tl.maximum(last, first))
        stop = tl.maximum(stop, whole)
        acc, most, total = _tiles(acc, most, total, queries, k, v, pages, lo, hi, first,
                                  tl.minimum(whole, last), which, g, slots, scale, e,
                                  M, N, E, PAGED, True)
        acc, most, total = _tiles(acc, most, total, queries, k, v, pages, lo, hi, whole, stop,
                                  which, g, slots, scale, e, M, N, E, PAGED, False)
        first = stop
    acc, most, total = _tiles(acc, most, total, queries, k, v, pages, lo, hi, first, last, which,
                              g, slots, scale, e, M, N, E, PAGED, True)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + base + here, acc.to(out.dtype.element_ty), mask=some)


def _run(split: bool, q: Any, k: Any, v: Any, start: Any, end: Any, heads: int, kv_heads: int,
         scale: float, pages: Any = None, lengths: Any = None, blocks: tuple[int, int] = (64, 64),
         warps: int = 0, stages: int = 2) -> Any:
    r, s, wide = q.shape
    e, page = wide // heads, k.shape[2]
    out = empty(r, s, wide, like=q)
    if q.element_size() == 4:
        blocks = (32, 32)
    m, n = min(blocks[0], pow2(s, 16)), page if pages is not None else blocks[1]
    warps = warps or (8 if m * e >= 4096 else 4)
    slots, count = (page, 0) if pages is None else (page * pages.shape[1], pages.shape[1])
    launch(_attend, (cdiv(s, m), r * heads), q, k, v, start, end,
           start if lengths is None else lengths, start if pages is None else pages, out, s, slots,
           heads, kv_heads, count, scale * 1.4426950408889634, e, warps=warps, stages=stages, M=m,
           N=n, E=pow2(e, 16), PAGED=pages is not None, LENGTHS=lengths is not None, SPLIT=split)
    return out


def _fits(c: Case) -> str:
    page = c.sizes.get("page", 16)
    if page not in (16, 32, 64, 128):
        return f"pages of {page} slots, it takes 16, 32, 64 or 128"
    return "" if c.e <= 256 else f"heads of {c.e}, it takes up to 256"


@kernel("range_attention", takes=_fits)
def v1(q: Any, k: Any, v: Any, start: Any, end: Any, **more: Any) -> Any:
    """one program a block of queries and a head, over the keys between first start and last end"""
    return _run(False, q, k, v, start, end, **more)


TUNE = ({}, {"blocks": (64, 32)}, {"blocks": (128, 64), "warps": 8}, {"stages": 3})


@kernel("range_attention", takes=_fits, tune=TUNE)
def v2(q: Any, k: Any, v: Any, start: Any, end: Any, **more: Any) -> Any:
    """blocks that every row sees whole are not masked"""
    return _run(True, q, k, v, start, end, **more)


def _wide(c: Case) -> str:
    most = 256 if c.dtype == "f32" else 128
    if c.e > most or c.e % 8:
        return f"heads of {c.e}, it takes multiples of 8 up to {most} in {c.dtype}"
    return ""


@kernel("range_attention", needs=("nvcc",), takes=_wide)
def v3(q: Any, k: Any, v: Any, start: Any, end: Any, heads: int, kv_heads: int, scale: float,
       pages: Any = None, lengths: Any = None) -> Any:
    """CUDA: tiles copied while others are multiplied; warps leave out what their rows do not see"""
    r, s, wide = q.shape
    out = empty(r, s, wide, like=q)
    count = 0 if pages is None else pages.shape[1]
    cuda.call("range_attention", q, k, v, start, end, None, 0, lengths, pages, count, out, r, s,
              heads, kv_heads, wide // heads, k.shape[2], float(scale), like=q)
    return out


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("range_attention")
