"""flash_decode: one new token a row: rotary, append in place, and attention over the cache.

The op `decode_attention` for a single query slot. Caches [r,g,S,e] are written where they lie; q, k
and v may be parts of longer rows.
`kv` int8 or int4 keeps them as integers with a scale a slot and head, f32[r,g,S]; int4 packs two
neighbours of a head in a byte, the even one low. https://arxiv.org/abs/2311.01282 splits the keys.

v1  one program a head
v2  the keys split over programs, and a second launch that joins what they found
v3  CUDA: 16 bytes a lane and key, several keys on their way, so that few heads keep memory busy
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl

LEVELS = {"int8": 127, "int4": 7}
FEW = 128  # heads that leave most of a large GPU to each
LONG = 320  # slots that one block of such takes


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    r, h, e, slots = c.r, c.h, c.e, c.slots
    g, kv = c.sizes.get("g", h), c.sizes.get("kv", "")

    def some(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    angle = rng.uniform(-3, 3, (slots, e // 2))
    made: dict[str, Any] = {
        "q": some(r, 1, h * e), "k": some(r, 1, g * e), "v": some(r, 1, g * e),
        "kc": some(r, g, slots, e), "vc": some(r, g, slots, e),
        "past": rng.integers(0, slots, r).astype(np.int32),
        "cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32),
        "heads": h, "kv_heads": g, "scale": e**-0.5,
        "interleaved": c.sizes.get("interleaved", True)}
    if kv:
        made["kc"], made["ks"] = quantised(made["kc"], kv)
        made["vc"], made["vs"] = quantised(made["vc"], kv)
        made["kv"] = kv
    return made


def quantised(x: Array, kv: str) -> tuple[Array, Array]:
    """[..,e] as integers, and the scale of each row."""
    most = np.float32(LEVELS[kv])
    scale = np.maximum(np.abs(x).max(-1), np.float32(1e-20)) / most
    q = np.floor(x / scale[..., None] + np.float32(0.5)).astype(np.int8)
    if kv == "int8":
        return q, scale
    q = (q + 8).astype(np.uint8)
    return q[..., ::2] | (q[..., 1::2] << 4), scale


def dequantised(q: Array, scale: Array, kv: str) -> Array:
    if kv == "int4":
        q = np.stack((q & 15, q >> 4), -1).reshape(*q.shape[:-1], -1).astype(np.int8) - 8
    return q.astype(np.float32) * scale[..., None]


def reference(q: Array, k: Array, v: Array, kc: Array, vc: Array, past: Array, cos: Array,
              sin: Array, *, kv: str = "", ks: Array | None = None, vs: Array | None = None,
              **how: Any) -> tuple[Array, ...]:
    how = {**how, "mask": "causal"}
    if not kv:
        return tuple(OPS["decode_attention"].eval(q, k, v, kc, vc, past, cos, sin, **how))
    assert ks is not None
    assert vs is not None
    _, full, _ = OPS["decode_attention"].eval(
        q, k, v, dequantised(kc, ks, kv), dequantised(vc, vs, kv), past, cos, sin, **how)
    r, g = kc.shape[:2]
    made = []
    for cache, scale, new in ((kc, ks, full[np.arange(r), :, past]), (vc, vs, v.reshape(r, g, -1))):
        cache, scale = cache.copy(), scale.copy()
        cache[np.arange(r), :, past], scale[np.arange(r), :, past] = quantised(new, kv)
        made += [cache, scale]
    turned = OPS["rope"].eval(q, cos, sin, past, heads=how["heads"],
                              interleaved=how["interleaved"])[0]
    out = OPS["attention"].eval(turned, dequantised(made[0], made[1], kv),
                                dequantised(made[2], made[3], kv), past, heads=how["heads"],
                                kv_heads=how["kv_heads"], scale=how["scale"], mask="causal",
                                extra=("past",))[0]
    return out, made[0], made[2], made[1], made[3]


def random(rng: np.random.Generator) -> Case:
    g = int(rng.integers(1, 3))
    more = {"kv": str(rng.choice(["int8", "int4"]))} if rng.random() < 0.4 else {}
    return case("f32" if more else str(rng.choice(["f32", "f16"])), r=int(rng.integers(1, 4)),
                h=g * int(rng.integers(1, 3)), g=g, e=int(rng.choice([8, 16, 24])),
                slots=int(rng.integers(1, 300)), interleaved=bool(rng.random() < 0.5), **more)


def cost(c: Case) -> tuple[float, float]:
    width = {"": 4 if c.dtype == "f32" else 2, "int8": 1, "int4": 0.5}[c.sizes.get("kv", "")]
    kept = c.r * c.sizes.get("g", c.h) * c.slots / 2  # `past` is half the slots on average
    return 4.0 * c.r * c.h * c.slots / 2 * c.e, 2 * kept * c.e * width


def rivals(c: Case) -> dict[str, Any]:
    """torch's attention over the whole cache, without rotary, append and integers."""
    return {} if c.sizes.get("kv") else {"sdpa": _sdpa}


def _sdpa(q: Any, kc: Any, vc: Any, *, heads: int, kv_heads: int, scale: float, **_: Any) -> Any:
    import torch

    return torch.nn.functional.scaled_dot_product_attention(
        q.reshape(q.shape[0], 1, heads, -1).transpose(1, 2), kc, vc, scale=scale,
        enable_gqa=heads != kv_heads)


declare(
    "flash_decode", about="rotary, append in place and attention of one new token a row",
    inputs=inputs, reference=reference, random=random, cost=cost, exact=("cos", "sin", "ks", "vs"),
    rivals=rivals,
    shapes=(case(r=2, h=2, e=16, slots=150), case("f16", r=2, h=4, g=2, e=24, slots=70,
                                                  interleaved=False),
            case(r=1, h=2, e=16, slots=40, kv="int8"), case(r=1, h=2, e=16, slots=40, kv="int4")),
    large=(case("bf16", r=2, h=20, e=64, slots=577), case("bf16", r=16, h=20, e=64, slots=577),
           case("bf16", r=2, h=20, e=64, slots=1025, kv="int8"),
           case("bf16", r=2, h=32, g=8, e=128, slots=4096)),
)


@jit
def turned(x, cos, sin, at, half, e, INTERLEAVED: tl.constexpr):
    """Entries `at` of the vector at x, rotated by the tables' row at cos and sin."""
    if INTERLEAVED:
        pair = at // 2
        first = at % 2 == 0
        other = tl.where(first, at + 1, at - 1)
    else:
        pair = at % half
        first = at < half
        other = tl.where(first, at + half, at - half)
    some = at < e
    a = tl.load(x + at, mask=some, other=0.0).to(tl.float32)
    b = tl.load(x + other, mask=some, other=0.0).to(tl.float32)
    c = tl.load(cos + pair, mask=some, other=0.0).to(tl.float32)
    s = tl.load(sin + pair, mask=some, other=0.0).to(tl.float32)
    return a * c + tl.where(first, -b, b) * s


@jit
def _scale(x, LEVELS: tl.constexpr):
    return tl.div_rn(tl.maximum(tl.max(tl.abs(x), 0), 1e-20), LEVELS)


@jit
def _integers(x, scale):
    return tl.floor(tl.div_rn(x, tl.zeros_like(x) + scale) + 0.5)


@jit
def _keep(cache, scales, slot, x, even, odd, at, e, upto, KV: tl.constexpr):
    """Write a new vector x into a slot of a cache; what can be read back from there, as f32.
    even, odd: its halves, which int4 packs. `upto` of its entries
    are written: all, or none by the heads that share it with another."""
    if KV == "":
        kept = x.to(cache.dtype.element_ty)
        tl.store(cache + slot * e + at, kept, mask=at < upto)
        return kept.to(tl.float32)
    elif KV == "int8":
        scale = _scale(x, 127.0)
        q = _integers(x, scale)
        tl.store(cache + slot * e + at, q.to(tl.int8), mask=at < upto)
        tl.store(scales + slot, scale, mask=upto > 0)
        return q * scale
    else:
        scale = _scale(x, 7.0)
        low = (_integers(even, scale) + 8).to(tl.int32)
        high = (_integers(odd, scale) + 8).to(tl.int32)
        byte = tl.arange(0, even.shape[0])
        tl.store(cache + slot * (e // 2) + byte, (low | (high << 4)).to(tl.uint8),
                 mask=byte < upto // 2)
        tl.store(scales + slot, scale, mask=upto > 0)
        return _integers(x, scale) * scale


@jit
def _read(cache, scales, slot, at, some, e, KV: tl.constexpr):
    """[N,E] slots of a cache as f32."""
    if KV == "":
        return tl.load(cache + slot[:, None] * e + at[None, :], mask=some, other=0.0).to(
            tl.float32)
    scale = tl.load(scales + slot, mask=tl.max(some.to(tl.int32), 1) > 0, other=0.0)
    if KV == "int8":
        q = tl.load(cache + slot[:, None] * e + at[None, :], mask=some, other=0).to(tl.float32)
    else:
        byte = tl.load(cache + slot[:, None] * (e // 2) + (at // 2)[None, :], mask=some, other=0)
        q = ((byte.to(tl.int32) >> (4 * (at % 2))[None, :]) & 15).to(tl.float32) - 8.0
    return q * scale[:, None]


@jit
def _new(x, cos, sin, at, e, TURN: tl.constexpr, INTERLEAVED: tl.constexpr):
    if TURN:
        return turned(x, cos, sin, at, e // 2, e, INTERLEAVED)
    return tl.load(x + at, mask=at < e, other=0.0).to(tl.float32)


@jit
def _decode(q, k, v, kc, vc, ks, vs, past, cos, sin, out, part, slots, heads, g, e, scale, chunk,
            splits, N: tl.constexpr, E: tl.constexpr, KV: tl.constexpr,
            INTERLEAVED: tl.constexpr, SPLIT: tl.constexpr):
    row = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    split = tl.program_id(1)
    own = head // (heads // g)
    at = tl.arange(0, E)
    byte = tl.arange(0, E // 2)
    filled = tl.load(past + row)
    cos += filled * (e // 2)
    sin += filled * (e // 2)
    cell = (row * g + own).to(tl.int64)
    bytes = e // 2 if KV == "int4" else e
    kc += cell * slots * bytes
    vc += cell * slots * bytes
    ks += cell * slots
    vs += cell * slots
    query = turned(q + tl.program_id(0) * e, cos, sin, at, e // 2, e, INTERLEAVED) * scale
    most = float("-inf")
    total = 0.0
    acc = tl.zeros((E,), tl.float32)
    if split == 0:  # this one brings the new token
        upto = tl.where(head % (heads // g) == 0, e, 0)
        kp = k + cell * e
        vp = v + cell * e
        key = _keep(kc, ks, filled, _new(kp, cos, sin, at, e, True, INTERLEAVED),
                    _new(kp, cos, sin, 2 * byte, e, True, INTERLEAVED),
                    _new(kp, cos, sin, 2 * byte + 1, e, True, INTERLEAVED), at, e, upto, KV)
        acc = _keep(vc, vs, filled, _new(vp, cos, sin, at, e, False, INTERLEAVED),
                    _new(vp, cos, sin, 2 * byte, e, False, INTERLEAVED),
                    _new(vp, cos, sin, 2 * byte + 1, e, False, INTERLEAVED), at, e, upto, KV)
        most = tl.sum(query * key, 0)
        total = 1.0
    for first in range(split * chunk, tl.minimum(filled, (split + 1) * chunk), N):
        slot = first + tl.arange(0, N)
        real = slot < tl.minimum(filled, (split + 1) * chunk)
        some = real[:, None] & (at < e)[None, :]
        score = tl.sum(_read(kc, ks, slot, at, some, e, KV) * query[None, :], 1)
        score = tl.where(real, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 0))
        p = tl.exp(score - new)
        fade = tl.exp(most - new)
        acc = acc * fade + tl.sum(p[:, None] * _read(vc, vs, slot, at, some, e, KV), 0)
        total = total * fade + tl.sum(p, 0)
        most = new
    if SPLIT:
        part += (tl.program_id(0) * splits + split) * (e + 2)
        tl.store(part + at, acc, mask=at < e)
        tl.store(part + e, most)
        tl.store(part + e + 1, total)
    else:
        tl.store(out + tl.program_id(0) * e + at, (acc / total).to(out.dtype.element_ty),
                 mask=at < e)


@jit
def _join(part, out, e, splits, E: tl.constexpr, P: tl.constexpr):
    head = tl.program_id(0)
    at = tl.arange(0, E)
    which = tl.arange(0, P)
    part += head * splits * (e + 2) + which * (e + 2)
    real = which < splits
    most = tl.load(part + e, mask=real, other=float("-inf"))
    share = tl.exp(most - tl.max(most, 0))
    total = tl.sum(share * tl.load(part + e + 1, mask=real, other=0.0), 0)
    some = real[:, None] & (at < e)[None, :]
    acc = tl.load(part[:, None] + at[None, :], mask=some, other=0.0)
    acc = tl.sum(acc * share[:, None], 0) / total
    tl.store(out + head * e + at, acc.to(out.dtype.element_ty), mask=at < e)


def _run(splits: int, q: Any, k: Any, v: Any, kc: Any, vc: Any, past: Any, cos: Any, sin: Any,
         heads: int, kv_heads: int, scale: float, interleaved: bool, kv: str = "", ks: Any = None,
         vs: Any = None, block: int = 64, warps: int = 4, **_: Any) -> tuple[Any, ...]:
    import torch

    q, k, v = (x.contiguous() for x in (q, k, v))
    r, slots, e = q.shape[0], kc.shape[2], q.shape[2] // heads
    out = empty(*q.shape, like=q)
    chunk = cdiv(cdiv(slots, splits), block) * block
    splits = cdiv(slots, chunk)
    part = empty(r * heads, splits, e + 2, like=q, dtype=torch.float32) if splits > 1 else out
    launch(_decode, (r * heads, splits), q, k, v, kc, vc, kc if ks is None else ks,
           vc if vs is None else vs, past, cos, sin, out, part, slots, heads, kv_heads, e, scale,
           chunk, splits, fusion=not kv, warps=warps, N=block, E=pow2(e, 16), KV=kv,
           INTERLEAVED=bool(interleaved), SPLIT=splits > 1)
    if splits > 1:
        launch(_join, (r * heads,), part, out, e, splits, warps=1, E=pow2(e, 16), P=pow2(splits))
    return (out, kc, vc, ks, vs) if kv else (out, kc, vc)


def _fits(c: Case) -> str:
    if c.sizes.get("mask", "causal") != "causal" or c.sizes.get("keep"):
        return "it takes causal masks without kept slots"
    return "" if c.e <= 256 and c.e % 2 == 0 else f"heads of {c.e}, it takes even ones up to 256"


@kernel("flash_decode", takes=_fits, tune=({"block": 32, "warps": 2}, {"block": 64}))
def v1(q: Any, k: Any, v: Any, kc: Any, vc: Any, past: Any, cos: Any, sin: Any,
       **more: Any) -> tuple[Any, ...]:
    """one program a head"""
    return _run(1, q, k, v, kc, vc, past, cos, sin, **more)


@kernel("flash_decode", takes=_fits, tune=[
    {"splits": n, "block": b, "warps": w} for n in (4, 8, 16) for b, w in ((32, 2), (64, 4))])
def v2(q: Any, k: Any, v: Any, kc: Any, vc: Any, past: Any, cos: Any, sin: Any, splits: int = 8,
       **more: Any) -> tuple[Any, ...]:
    """the keys split over programs, and a second launch that joins what they found"""
    return _run(splits, q, k, v, kc, vc, past, cos, sin, **more)


def _parts(heads: int, slots: int) -> int:
    """Of the keys, as was quickest on an H100 (bench/results/h100-80gb-hbm3.jsonl)."""
    if heads > FEW:
        return 4
    return 1 if slots <= LONG else 16


def _wide(c: Case) -> str:
    if reason := _fits(c):
        return reason
    return "" if c.e % 8 == 0 else f"heads of {c.e}, its lanes hold 8 numbers each"


@kernel("flash_decode", needs=("nvcc",), takes=_wide, tune=[
    {"splits": n, "warps": w} for n, w in (
        (1, 16), (2, 16), (4, 16), (1, 4), (4, 4), (8, 4), (16, 4))])
def v3(q: Any, k: Any, v: Any, kc: Any, vc: Any, past: Any, cos: Any, sin: Any, heads: int,
       kv_heads: int, scale: float, interleaved: bool, kv: str = "", ks: Any = None, vs: Any = None,
       splits: int = 0, warps: int = 0, **_: Any) -> tuple[Any, ...]:
    """CUDA: 16 bytes a lane and key, several on their way, so that few heads keep memory busy"""
    import torch

    r, slots, e = q.shape[0], kc.shape[2], q.shape[2] // heads
    chunk = cdiv(cdiv(slots, splits or _parts(r * heads, slots)), 32) * 32
    splits = cdiv(slots, chunk)
    out = empty(*q.shape, like=q)
    part = empty(r * heads, splits, e + 2, like=q, dtype=torch.float32) if splits > 1 else None
    if k.stride(0) != v.stride(0) or any(x.stride(2) != 1 for x in (q, k, v)):
        q, k, v = (x.contiguous() for x in (q, k, v))
    cuda.call("flash_decode", ("", "int8", "int4").index(kv), q, k, v, q.stride(0), k.stride(0), kc,
              vc, ks, vs, past, cuda.DTYPES[str(cos.dtype)], cos, sin, len(cos), int(interleaved),
              out, part, r, heads, kv_heads, e, slots, splits, chunk, warps, float(scale), like=q)
    return (out, kc, vc, ks, vs) if kv else (out, kc, vc)


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("flash_decode")
