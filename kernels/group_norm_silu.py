"""group_norm_silu: GroupNorm and SiLU of image decoders, without a trip to memory in between.

The ops `group_norm` and `group_norm_silu`. Mean and variance are joined from chunks as in Chan,
Golub and LeVeque 1983: a sum of squares alone loses the variance of channels far from zero.

v1  one program an image and group
v2  many programs a group: one launch for the moments of chunks, one that joins and applies them
v3  CUDA: the same, for ONNX Runtime too
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    x = rng.standard_normal((c.n, c.c, c.hw), np.float32) + 10 * rng.standard_normal(
        (1, c.c, 1), np.float32)
    return {"x": x, "w": rng.standard_normal(c.c, np.float32),
            "b": rng.standard_normal(c.c, np.float32), "groups": c.groups, "eps": 1e-6,
            "silu": c.sizes.get("silu", True)}


def reference(x: Array, w: Array, b: Array, *, groups: int, eps: float, silu: bool) -> Array:
    op = "group_norm_silu" if silu else "group_norm"
    return OPS[op].eval(x, w, b, groups=groups, eps=eps)[0]


def peer(x: Any, w: Any, b: Any, groups: int, eps: float, silu: bool) -> Any:
    """Two of torch's kernels."""
    import torch

    y = torch.nn.functional.group_norm(x, groups, w, b, eps)
    return torch.nn.functional.silu(y) if silu else y


def random(rng: np.random.Generator) -> Case:
    groups = int(rng.integers(1, 5))
    return case(str(rng.choice(["f32", "f16"])), n=int(rng.integers(1, 3)),
                c=groups * int(rng.integers(1, 4)), groups=groups, hw=int(rng.integers(2, 400)),
                silu=bool(rng.random() < 0.7))


def cost(c: Case) -> tuple[float, float]:
    numbers = float(c.n * c.c * c.hw)
    return 10 * numbers, 2 * numbers * (4 if c.dtype == "f32" else 2)


declare(
    "group_norm_silu", about="GroupNorm, and SiLU behind it, of image decoders",
    inputs=inputs, reference=reference, random=random, cost=cost, peer=peer,
    shapes=(case(n=1, c=6, groups=3, hw=100), case("f16", n=2, c=4, groups=2, hw=300, silu=False)),
    large=(case("bf16", n=1, c=512, groups=32, hw=1024), case("bf16", n=1, c=128, groups=32,
                                                              hw=65536),
           case("bf16", n=4, c=256, groups=32, hw=65536)),
)


@jit
def _joined(count, mean, m2, n, other, others):
    """Moments of two sets as those of both: (count, mean, sum of squared distances)."""
    total = count + n
    share = tl.where(total > 0, n / tl.maximum(total, 1.0), 0.0)
    delta = other - mean
    return total, mean + delta * share, m2 + others + delta * delta * count * share


@jit
def _chunk(x, at, real):
    """(count, mean, squares) of what lies at `at`."""
    v = tl.load(x + at, mask=real, other=0.0).to(tl.float32)
    n = tl.sum(real.to(tl.float32), 0)
    mean = tl.sum(v, 0) / tl.maximum(n, 1.0)
    off = tl.where(real, v - mean, 0.0)
    return n, mean, tl.sum(off * off, 0)


@jit
def _moments(x, first, last, N: tl.constexpr):
    count = 0.0
    mean = 0.0
    m2 = 0.0
    for i in range(first, last, N):
        at = i + tl.arange(0, N)
        n, one, squares = _chunk(x, at, at < last)
        count, mean, m2 = _joined(count, mean, m2, n, one, squares)
    return count, mean, m2


@jit
def _apply(x, w, b, out, first, last, hw, mean, scale, N: tl.constexpr, SILU: tl.constexpr):
    for i in range(first, last, N):
        at = i + tl.arange(0, N)
        real = at < last
        v = (tl.load(x + at, mask=real, other=0.0).to(tl.float32) - mean) * scale
        channel = at // hw
        v = v * tl.load(w + channel, mask=real, other=0.0).to(tl.float32)
        v += tl.load(b + channel, mask=real, other=0.0).to(tl.float32)
        if SILU:
            v = v / (1 + tl.exp(-v))
        tl.store(out + at, v.to(out.dtype.element_ty), mask=real)


@jit
def _whole(x, w, b, out, groups, per, hw, eps, N: tl.constexpr, SILU: tl.constexpr):
    group = tl.program_id(0) % groups
    size = per * hw
    x += tl.program_id(0).to(tl.int64) * size
    out += tl.program_id(0).to(tl.int64) * size
    count, mean, m2 = _moments(x, 0, size, N)
    scale = 1 / tl.sqrt(m2 / count + eps)
    _apply(x, w + group * per, b + group * per, out, 0, size, hw, mean, scale, N, SILU)


@jit
def _part(x, part, size, chunk, chunks, N: tl.constexpr):
    x += tl.program_id(0).to(tl.int64) * size
    first = tl.program_id(1) * chunk
    count, mean, m2 = _moments(x, first, tl.minimum(first + chunk, size), N)
    part += (tl.program_id(0) * chunks + tl.program_id(1)) * 3
    tl.store(part, count)
    tl.store(part + 1, mean)
    tl.store(part + 2, m2)


@jit
def _rest(x, w, b, out, part, groups, per, hw, chunk, chunks, eps, N: tl.constexpr,
          P: tl.constexpr, SILU: tl.constexpr):
    group = tl.program_id(0) % groups
    size = per * hw
    which = tl.arange(0, P)
    part += tl.program_id(0) * chunks * 3 + which * 3
    count = tl.load(part, mask=which < chunks, other=0.0)
    means = tl.load(part + 1, mask=which < chunks, other=0.0)
    m2 = tl.sum(tl.load(part + 2, mask=which < chunks, other=0.0), 0)
    mean = tl.sum(count * means, 0) / size
    m2 += tl.sum(count * (means - mean) * (means - mean), 0)
    x += tl.program_id(0).to(tl.int64) * size
    out += tl.program_id(0).to(tl.int64) * size
    first = tl.program_id(1) * chunk
    _apply(x, w + group * per, b + group * per, out, first, tl.minimum(first + chunk, size), hw,
           mean, 1 / tl.sqrt(m2 / size + eps), N, SILU)


@kernel("group_norm_silu")
def v1(x: Any, w: Any, b: Any, groups: int, eps: float, silu: bool, block: int = 1024) -> Any:
    """one program an image and group"""
    n, c, hw = x.shape
    out = empty(n, c, hw, like=x)
    block = min(block, pow2(c // groups * hw, 16))
    launch(_whole, (n * groups,), x, w, b, out, groups, c // groups, hw, eps, N=block,
           SILU=bool(silu))
    return out


@kernel("group_norm_silu", tune=({"block": 512}, {"block": 1024}, {"block": 2048}),
        takes=lambda c: "" if c.c // c.groups * c.hw > 64 else (
            "groups of 64 numbers or fewer are not worth splitting"))
def v2(x: Any, w: Any, b: Any, groups: int, eps: float, silu: bool, block: int = 1024,
       chunks: int = 0) -> Any:
    """many programs a group: moments of chunks, then joined and applied"""
    import torch

    n, c, hw = x.shape
    size = c // groups * hw
    block = min(block, pow2(size // 4, 16))
    chunks = chunks or max(2, min(64, size // (4 * block)))
    chunk = cdiv(cdiv(size, chunks), block) * block
    chunks = cdiv(size, chunk)
    out = empty(n, c, hw, like=x)
    part = empty(n * groups, chunks, 3, like=x, dtype=torch.float32)
    launch(_part, (n * groups, chunks), x, part, size, chunk, chunks, N=block)
    launch(_rest, (n * groups, chunks), x, w, b, out, part, groups, c // groups, hw, chunk, chunks,
           eps, N=block, P=pow2(chunks), SILU=bool(silu))
    return out


@kernel("group_norm_silu", needs=("nvcc",), tune=({"chunk": 4096}, {"chunk": 16384}))
def v3(x: Any, w: Any, b: Any, groups: int, eps: float, silu: bool, chunk: int = 8192) -> Any:
    """CUDA: the same, for ONNX Runtime too"""
    import torch

    n, c, hw = x.shape
    size = c // groups * hw
    out = empty(n, c, hw, like=x)
    part = empty(n * groups, cdiv(size, chunk), 2, like=x, dtype=torch.float32)
    cuda.call("group_norm_silu", x, w, b, out, part, n, groups, c // groups, hw, chunk, float(eps),
              int(silu), min(256, max(32, pow2(min(size, chunk) // 4))), like=x)
    return out


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("group_norm_silu")
