"""range_attention: each query row sees the key slots [start, end) and nothing else.

Ranges say causal, block-causal by scale, block-diagonal, diagonal and windowed masks, and they let
a program skip the keys that none of its rows sees. Keys and values lie in caches [r,g,S,e], or in
pages [n,g,page,e] that `pages` i32[r,P] lists for each row; `lengths` i32[r,g] cuts the caches of
head groups off earlier (HACK keeps caches of two lengths, https://arxiv.org/abs/2504.09261).
Softmax by blocks as in https://arxiv.org/abs/2205.14135.

v1  one program a block of queries and a head, over the keys between its first start and last end
v2  CUDA: tiles copied while others are multiplied; warps leave out what none of their rows sees
v3  tiles that every row sees whole in a loop without a mask, which Triton pipelines and, in 16 bits
    on Hopper, multiplies by warp groups (wgmma); those at both ends in another; most keys first
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl

MASKS = ("causal", "full", "scales", "blocks", "window", "random")
SIDES = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)  # HART's scales of 1024 px
LOG2E = 1.4426950408889634
NEVER = tl.constexpr(-1e30)  # the largest score of no key


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
def _seen(start, end, lengths, row, m, s, g, own, LENGTHS: tl.constexpr):
    """The range of each query m; beyond the last, one that is empty."""
    lo = tl.load(start + row * s + m, mask=m < s, other=1 << 30)
    hi = tl.load(end + row * s + m, mask=m < s, other=0)
    if LENGTHS:
        hi = tl.minimum(hi, tl.load(lengths + row * g + own))
    return lo, hi


@jit
def _simple(q, k, v, start, end, lengths, pages, out, s, slots, heads, g, count, scale, e,
            M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, PAGED: tl.constexpr,
            LENGTHS: tl.constexpr):
    row = tl.program_id(1) // heads
    head = tl.program_id(1) % heads
    own = head // (heads // g)
    m = tl.program_id(0) * M + tl.arange(0, M)
    width = tl.arange(0, E)
    real = m < s
    lo, hi = _seen(start, end, lengths, row, m, s, g, own, LENGTHS)
    some = real[:, None] & (width < e)[None, :]
    base = ((row * s + tl.program_id(0) * M).to(tl.int64) * heads + head) * e
    here = tl.arange(0, M)[:, None] * (heads * e) + width[None, :]
    queries = tl.load(q + base + here, mask=some, other=0.0)
    acc = tl.zeros((M, E), tl.float32)
    most = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    last = tl.max(hi, 0)
    for at in range(tl.min(lo, 0) // N * N, last, N):
        slot = at + tl.arange(0, N)
        if PAGED:
            tile = (tl.load(pages + row * count + at // N).to(tl.int64) * g + own) * N * e
        else:
            tile = ((row * g + own).to(tl.int64) * slots + at) * e
        where = tile + tl.arange(0, N)[:, None] * e + width[None, :]
        there = (slot < last)[:, None] & (width < e)[None, :]
        keys = tl.load(k + where, mask=there, other=0.0)
        score = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
        seen = (slot[None, :] >= lo[:, None]) & (slot[None, :] < hi[:, None])
        score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.exp2(score - safe[:, None])
        fade = tl.exp2(most - safe)
        total = total * fade + tl.sum(p, 1)
        values = tl.load(v + where, mask=there, other=0.0)
        acc = acc * fade[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        most = new
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + base + here, acc.to(out.dtype.element_ty), mask=some)


def _fits(c: Case) -> str:
    page = c.sizes.get("page", 16)
    if page not in (16, 32, 64, 128):
        return f"pages of {page} slots, it takes 16, 32, 64 or 128"
    return "" if c.e <= 256 else f"heads of {c.e}, it takes up to 256"


@kernel("range_attention", takes=_fits)
def v1(q: Any, k: Any, v: Any, start: Any, end: Any, heads: int, kv_heads: int, scale: float,
       pages: Any = None, lengths: Any = None) -> Any:
    """one program a block of queries and a head, over the keys between first start and last end"""
    r, s, wide = q.shape
    e, page = wide // heads, k.shape[2]
    out = empty(r, s, wide, like=q)
    m = min(32 if q.element_size() == 4 else 64, pow2(s, 16))
    n = m if pages is None else page
    count = 0 if pages is None else pages.shape[1]
    launch(_simple, (cdiv(s, m), r * heads), q, k, v, start, end,
           start if lengths is None else lengths, start if pages is None else pages, out, s,
           page, heads, kv_heads, count, scale * LOG2E, e, warps=8 if m * e >= 4096 else 4, M=m,
           N=n, E=pow2(e, 16), PAGED=pages is not None, LENGTHS=lengths is not None)
    return out


def _wide(c: Case) -> str:
    most = 256 if c.dtype == "f32" else 128
    if c.e > most or c.e % 8:
        return f"heads of {c.e}, it takes multiples of 8 up to {most} in {c.dtype}"
    return ""


@kernel("range_attention", needs=("nvcc",), takes=_wide)
def v2(q: Any, k: Any, v: Any, start: Any, end: Any, heads: int, kv_heads: int, scale: float,
       pages: Any = None, lengths: Any = None) -> Any:
    """CUDA: tiles copied while others are multiplied; warps leave out what their rows do not see"""
    r, s, wide = q.shape
    out = empty(r, s, wide, like=q)
    count = 0 if pages is None else pages.shape[1]
    cuda.call("range_attention", q, k, v, start, end, None, 0, lengths, pages, count, out, r, s,
              heads, kv_heads, wide // heads, k.shape[2], float(scale), like=q)
    return out


@jit
def _tile(acc, most, total, q, k, v, pages, lo, hi, at, end, own, g, scale, N: tl.constexpr,
          E: tl.constexpr, HEAD: tl.constexpr, PAGE: tl.constexpr, MASKED: tl.constexpr):
    """Attend to the keys at, at + 1, ... at + N - 1; MASKED: to those in a row's range. own: the
    head of the pages, or the first slot of its cache."""
    slot = at + tl.arange(0, N)
    width = tl.arange(0, E)
    if PAGE:
        page = tl.load(pages + slot // PAGE, mask=slot < end, other=0) if MASKED else tl.load(
            pages + slot // PAGE)
        row = (page.to(tl.int64) * g + own) * PAGE + slot % PAGE
        where = row[:, None] * HEAD + width[None, :]
    else:
        k += (own + at) * HEAD
        v += (own + at) * HEAD
        where = tl.arange(0, N)[:, None] * HEAD + width[None, :]
    if MASKED:
        some = (slot < end)[:, None] & (width < HEAD)[None, :]
        keys = tl.load(k + where, mask=some, other=0.0)
        values = tl.load(v + where, mask=some, other=0.0)
        score = tl.dot(q, tl.trans(keys), input_precision="ieee") * scale
        seen = (slot[None, :] >= lo[:, None]) & (slot[None, :] < hi[:, None])
        score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        p = tl.exp2(score - new[:, None])
    else:
        if E == HEAD:
            keys = tl.load(k + where)
            values = tl.load(v + where)
        else:
            keys = tl.load(k + where, mask=(width < HEAD)[None, :], other=0.0)
            values = tl.load(v + where, mask=(width < HEAD)[None, :], other=0.0)
        score = tl.dot(q, tl.trans(keys), input_precision="ieee")
        new = tl.maximum(most, tl.max(score, 1) * scale)
        p = tl.exp2(score * scale - new[:, None])
    fade = tl.exp2(most - new)
    acc = tl.dot(p.to(values.dtype), values, acc * fade[:, None], input_precision="ieee")
    return acc, new, total * fade + tl.sum(p, 1)


@jit
def _ends(q, k, v, start, end, lengths, pages, out, s, slots, heads, g, count, scale,
          M: tl.constexpr, N: tl.constexpr, E: tl.constexpr, HEAD: tl.constexpr,
          PAGE: tl.constexpr, LENGTHS: tl.constexpr):
    row = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    own = head // (heads // g)
    block = tl.num_programs(1) - 1 - tl.program_id(1)  # late queries see most: they begin
    m = block * M + tl.arange(0, M)
    width = tl.arange(0, E)
    real = m < s
    lo, hi = _seen(start, end, lengths, row, m, s, g, own, LENGTHS)
    base = ((row * s + block * M).to(tl.int64) * heads + head) * HEAD
    here = tl.arange(0, M)[:, None] * (heads * HEAD) + width[None, :]
    some = real[:, None] & (width < HEAD)[None, :]
    queries = tl.load(q + base + here, mask=some, other=0.0)
    # tiles [first, last) are seen, [whole, stop) by every row from end to end
    last = tl.max(hi, 0)
    first = tl.minimum(tl.min(lo, 0), last) // N
    whole = (tl.max(tl.where(real, lo, 0), 0) + N - 1) // N
    stop = tl.min(tl.where(real, hi, 1 << 30), 0) // N
    tiles = (last + N - 1) // N
    whole = tl.minimum(whole, tiles)
    stop = tl.maximum(stop, whole)
    if PAGE:
        pages += row * count
    else:
        own = (row * g + own).to(tl.int64) * slots
    acc = tl.zeros((M, E), tl.float32)
    most = tl.full((M,), NEVER, tl.float32)
    total = tl.zeros((M,), tl.float32)
    for i in range(whole, stop):
        acc, most, total = _tile(acc, most, total, queries, k, v, pages, lo, hi, i * N, last, own,
                                 g, scale, N, E, HEAD, PAGE, False)
    for i in range(first, tiles - (stop - whole)):
        at = tl.where(i < whole, i, i + stop - whole) * N
        acc, most, total = _tile(acc, most, total, queries, k, v, pages, lo, hi, at, last, own, g,
                                 scale, N, E, HEAD, PAGE, True)
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out + base + here, acc.to(out.dtype.element_ty), mask=some)


def _small(c: Case) -> str:
    page = c.sizes.get("page", 16)
    if page & (page - 1):
        return f"pages of {page} slots, it takes powers of two"
    return "" if c.e <= 256 else f"heads of {c.e}, it takes up to 256"


# A warp group multiplies 64 rows. Four of them on a processor, in two programs, multiply while
# others take exponentials, where a thread has no more than 128 registers (168: three of them).
GROUPS = tuple({"blocks": (m, n), "warps": w, "stages": x, "registers": most}
               for m, n, w, x, most in (
    (128, 64, 8, 2, 0), (128, 64, 8, 3, 0), (128, 64, 8, 4, 0), (128, 64, 4, 2, 0),
    (128, 64, 4, 3, 0), (128, 64, 4, 2, 168), (128, 128, 8, 2, 0), (128, 128, 8, 2, 128),
    (128, 32, 8, 4, 0), (64, 64, 4, 2, 128), (64, 64, 4, 3, 128), (64, 64, 4, 3, 0),
    (64, 64, 4, 4, 0), (64, 128, 4, 2, 0), (64, 128, 4, 2, 168), (64, 32, 4, 4, 0)))
FEW = 2 * 132  # programs, two for each processor of an H100: fewer are halved


@kernel("range_attention", takes=_small, tune=({}, *GROUPS))
def v3(q: Any, k: Any, v: Any, start: Any, end: Any, heads: int, kv_heads: int, scale: float,
       pages: Any = None, lengths: Any = None, blocks: Sequence[int] = (), warps: int = 0,
       stages: int = 3, registers: int = 0) -> Any:
    """tiles seen whole in a loop of their own, pipelined and without masks; most keys first"""
    r, s, wide = q.shape
    e = wide // heads
    out = empty(r, s, wide, like=q)
    if scale < 0:  # the largest score is looked for before it is scaled
        q, scale = -q, -scale
    if q.element_size() == 4:  # not on tensor cores
        blocks, warps = (32, 32), 4
    m, n = blocks or (128 if cdiv(s, 128) * r * heads >= FEW else 64, 64)
    m, warps = min(m, pow2(s, 16)), warps or m // 16
    page, count = (0, 0) if pages is None else (k.shape[2], pages.shape[1])
    launch(_ends, (r * heads, cdiv(s, m)), q, k, v, start, end,
           start if lengths is None else lengths, start if pages is None else pages, out, s,
           k.shape[2], heads, kv_heads, count, scale * LOG2E, warps=warps,
           stages=stages, registers=registers, M=m, N=n, E=pow2(e, 16), HEAD=e, PAGE=page,
           LENGTHS=lengths is not None)
    return out


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("range_attention")
