"""logits_chain: guidance, temperature, top-k, top-p and the draw, one read of the logits.

The same tokens as ops.sampling says: ties, the two levels of the draw and the order of roundings
are its own (products and sums are not fused, quotients are exact). No sort: the k-th value and the
edge of top-p are found by bisection over the order of float bits.

v1  one program an image and position; its logits stay in registers
v2  CUDA: the k-th value and top-p's edge between two values that are halved, the last few ranked
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import evaluate
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl
from arcompile.kernels.pick import BLOCK, MOST, first_of_largest, pick_token
from arcompile.sampling import sample_graph

NOTHING = tl.constexpr(-2139095041)  # the key of -inf
EXACT = ("scale", "temperature", "top_p", "noise")


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    """Images of all kinds: guided and not, filtered and not, one at temperature 0."""
    b, v = c.b, c.v
    guided = rng.random(b) < 0.7
    guided[0] = True
    null = np.arange(b)
    null[guided] = b + np.arange(guided.sum())
    top_k = rng.choice([0, 1, 5, v // 3, v], b)
    top_p = rng.choice([1.0, 0.9, 0.3], b).astype(np.float32)
    temperature = np.where(rng.random(b) < 0.2, 0, rng.uniform(0.5, 1.5, b)).astype(np.float32)
    need = np.where(top_k > 0, top_k, np.where(top_p < 1, v, 1))
    return {"logits": 3 * rng.standard_normal((b + guided.sum(), c.c, v), np.float32),
            "row": np.arange(b), "null_row": null,
            "scale": np.where(guided, rng.uniform(1, 8, b), 1).astype(np.float32),
            "temperature": temperature, "top_k": top_k.astype(np.int64), "top_p": top_p,
            "most": np.array([max(1, need.max())]),
            "noise": (rng.integers(0, 1 << 23, (b, c.c, 2)) / (1 << 23)).astype(np.float32)}


def reference(**arguments: Array) -> Array:
    graph = sample_graph(arguments["logits"].shape[-1])
    return evaluate(graph, arguments)["token"]


def random(rng: np.random.Generator) -> Case:
    return case(str(rng.choice(["f32", "f16"])), b=int(rng.integers(1, 6)),
                c=int(rng.integers(1, 4)), v=int(rng.integers(2, 1500)))


def cost(c: Case) -> tuple[float, float]:
    rows = 2 * c.b * c.c  # guided
    return 40.0 * rows * c.v, rows * c.v * (4 if c.dtype == "f32" else 2)


def rivals(c: Case) -> dict[str, Any]:
    """A plain read of the logits."""
    return {"read": lambda logits, **_: logits.amax(-1)}


declare(
    "logits_chain", about="guidance, temperature, top-k, top-p and the draw, in one pass",
    inputs=inputs, reference=reference, random=random, cost=cost, exact=EXACT,
    rivals=rivals,
    shapes=(case(b=4, c=1, v=1000), case("f16", b=3, c=2, v=256), case(b=2, c=1, v=16)),
    large=(case("f32", b=1, c=1, v=16384), case("f32", b=8, c=1, v=16384),
           case("f32", b=1, c=256, v=4096)),
)


@jit
def _ordered(x):
    """Floats as integers of the same order; its own inverse on the bits."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def _sum(x):
    return tl.sum(tl.sum(x, 1), 0)


@jit
def _kth(key, k, low, high):
    """The largest t with k or more keys at or above it."""
    for _ in range(32):
        mid = (low | high) - ((low ^ high) >> 1)  # halfway, rounded up, without overflow
        enough = _sum((key >= mid).to(tl.int32)) >= k
        low = tl.where(enough, mid, low)
        high = tl.where(enough, high, mid - 1)
    return low


@jit
def _edge(key, best, most, low, high):
    """The smallest t with a mass of at most `most` above it."""
    for _ in range(32):
        mid = (low & high) + ((low ^ high) >> 1)
        light = _sum(tl.where(key > mid, _mass(key, best), 0.0)) <= most
        high = tl.where(light, mid, high)
        low = tl.where(light, low, mid + 1)
    return high


@jit
def _floats(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def _mass(key, best):
    """Anew from the keys each time: they alone stay in registers."""
    return tl.exp(_floats(key) - best)


@jit
def _floor(key, best, high, top_k, top_p, most):
    """The smallest key that top-k and top-p keep; keys at -inf are not there."""
    low = tl.min(tl.min(tl.where(key > NOTHING, key, high), 1), 0)
    floor = low
    if top_k > 0:
        floor = _kth(key, tl.minimum(top_k, most), low, high)
    if top_p < 1.0:
        more = _sum((key > floor).to(tl.int32))
        ties = tl.minimum(_sum((key >= floor).to(tl.int32)), most) - more
        above = _sum(tl.where(key > floor, _mass(key, best), 0.0))
        total = above + tl.exp(_floats(floor) - best) * ties
        floor = _edge(key, best, top_p * total, floor, high)
    return floor


@jit
def _chain(logits, row, null_row, scale, temperature, top_k, top_p, most, noise, token, c, v,
           NB: tl.constexpr):
    cell = tl.program_id(0)
    b = cell // c
    slot = cell % c
    at = tl.arange(0, NB)[:, None] * 128 + tl.arange(0, 128)[None, :]
    some = at < v
    own = (tl.load(row + b) * c + slot) * v
    twin = (tl.load(null_row + b) * c + slot) * v
    x = tl.load(logits + own + at, mask=some, other=0.0).to(tl.float32)
    null = tl.load(logits + twin + at, mask=some, other=0.0).to(tl.float32)
    x = x + (tl.load(scale + b) - 1.0) * (x - null)
    heat = tl.load(temperature + b)
    x = tl.div_rn(x, tl.zeros_like(x) + tl.maximum(heat, 1e-5))
    x = tl.where(some, x, float("-inf"))
    key = _ordered(x)
    high = tl.max(tl.max(key, 1), 0)
    best = _floats(high)
    if heat > 0:
        floor = _floor(key, best, high, tl.load(top_k + b).to(tl.int32), tl.load(top_p + b),
                       tl.load(most).to(tl.int32))
        p = tl.where(key >= floor, _mass(key, best), 0.0)
        u0 = tl.load(noise + 2 * cell)
        u1 = tl.load(noise + 2 * cell + 1)
        tl.store(token + cell, pick_token(p, u0, u1, NB).to(tl.int64))
    else:
        tl.store(token + cell, first_of_largest(key, at, NB).to(tl.int64))


def _fits(c: Case) -> str:
    return "" if c.v <= MOST else f"{c.v} tokens do not stay in registers, {MOST} do"


@kernel("logits_chain", takes=_fits)
def v1(logits: Any, row: Any, noise: Any, **more: Any) -> Any:
    """one program an image and position; its logits stay in registers"""
    b, c = noise.shape[:2]
    v = logits.shape[-1]
    token = empty(b, c, like=row)
    names = ("null_row", "scale", "temperature", "top_k", "top_p", "most")
    blocks = pow2(cdiv(v, BLOCK))
    launch(_chain, (b * c,), logits, row, *(more[n] for n in names), noise, token, c, v,
           fusion=False, warps=max(1, min(32, blocks // 4)), NB=blocks)
    return token


def _shared(c: Case) -> str:
    return "" if c.v <= 50_000 else f"{c.v} tokens do not fit shared memory, 50000 do"


@kernel("logits_chain", needs=("nvcc",), takes=_shared)
def v2(logits: Any, row: Any, noise: Any, **more: Any) -> Any:
    """CUDA: the k-th value and top-p's edge between values that are halved, the last few ranked"""
    b, c = noise.shape[:2]
    token = empty(b, c, like=row)
    names = ("null_row", "scale", "temperature", "top_k", "top_p", "most")
    v = logits.shape[-1]
    cuda.call("logits_chain", logits, row, *(more[n] for n in names), noise, token, b * c, c, v,
              like=logits)
    return token


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("logits_chain")
