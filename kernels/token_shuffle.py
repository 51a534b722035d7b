"""token_shuffle: the products around a token-shuffled transformer, with their index work inside.

https://arxiv.org/abs/2504.17789. Of a grid of h x w tokens, windows of s x s become one token:
shuffle    [r,h*w,k] -> [r,h*w/s^2,s^2*m]: a product each, then neighbours side by side
unshuffle  [r,n,k] -> [r,n*s^2,m/s^2]: one product to s^2 tokens, each put where it belongs
mlp        [r,n,k] -> [r,n,m]: a product, GELU or none, and the residual: half of an MLP block

v1  one program a tile; results are stored where the window wants them
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    n = c.h * c.w // (c.s**2 if c.mode == "unshuffle" else 1)
    made: dict[str, Any] = {
        "x": rng.standard_normal((c.r, n, c.k), np.float32),
        "weight": rng.standard_normal((c.k, c.m), np.float32) * np.float32(c.k**-0.5),
        "bias": rng.standard_normal(c.m, np.float32), "mode": c.mode, "grid": (c.h, c.w),
        "window": c.s, "gelu": c.sizes.get("gelu", c.mode == "shuffle")}
    if c.sizes.get("residual"):
        made["residual"] = rng.standard_normal((c.r, n, c.m), np.float32)
    return made


def reference(x: Array, weight: Array, bias: Array, *, mode: str, grid: tuple[int, int],
              window: int, gelu: bool, residual: Array | None = None) -> Array:
    y = OPS["matmul"].eval(x, weight)[0] + bias
    y = OPS["gelu"].eval(y, approximate=True)[0] if gelu else y
    if residual is not None:
        y = y + residual
    (h, w), s, r = grid, window, len(x)
    if mode == "shuffle":
        y = y.reshape(r, h // s, s, w // s, s, -1).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(r, h * w // s**2, -1)
    if mode == "unshuffle":
        y = y.reshape(r, h // s, w // s, s, s, -1).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(r, h * w, -1)
    return y


def peer(x: Any, weight: Any, bias: Any, *, mode: str, grid: tuple[int, int], window: int,
         gelu: bool, residual: Any = None) -> Any:
    """torch's product, and copies where it goes."""
    import torch

    y = x @ weight + bias
    y = torch.nn.functional.gelu(y, approximate="tanh") if gelu else y
    y = y if residual is None else y + residual
    (h, w), s, r = grid, window, len(x)
    if mode == "mlp":
        return y
    if mode == "shuffle":
        y = y.reshape(r, h // s, s, w // s, s, -1).transpose(2, 3)
        return y.reshape(r, h * w // s**2, -1)
    return y.reshape(r, h // s, w // s, s, s, -1).transpose(2, 3).reshape(r, h * w, -1)


def random(rng: np.random.Generator) -> Case:
    mode, s = str(rng.choice(["shuffle", "unshuffle", "mlp"])), int(rng.integers(1, 4))
    more = {"residual": True} if mode == "mlp" else {}
    return case(str(rng.choice(["f32", "f16"])), r=int(rng.integers(1, 3)), mode=mode,
                h=s * int(rng.integers(1, 4)), w=s * int(rng.integers(1, 4)), s=s,
                k=int(rng.integers(4, 70)), m=s * s * int(rng.integers(1, 9)), **more)


def cost(c: Case) -> tuple[float, float]:
    n = c.r * c.h * c.w / (c.s**2 if c.mode == "unshuffle" else 1)
    width = 4 if c.dtype == "f32" else 2
    return 2.0 * n * c.k * c.m, width * (n * c.k + c.k * c.m + n * c.m)


declare(
    "token_shuffle", about="the products around token-shuffled transformers, windows and all",
    inputs=inputs, reference=reference, random=random, cost=cost, peer=peer,
    shapes=(case(r=1, mode="shuffle", h=4, w=6, s=2, k=40, m=10),
            case("f16", r=1, mode="unshuffle", h=4, w=4, s=2, k=24, m=48),
            case("f16", r=1, mode="mlp", h=3, w=3, s=1, k=32, m=20, residual=True, gelu=True)),
    large=(case("bf16", r=2, mode="shuffle", h=64, w=64, s=2, k=3072, m=768),
           case("bf16", r=2, mode="unshuffle", h=64, w=64, s=2, k=3072, m=12288),
           case("bf16", r=2, mode="mlp", h=32, w=32, s=1, k=3072, m=3072, gelu=True)),
)


@jit
def _place(row, column, w, s, m, MODE: tl.constexpr):
    """Where the result of a row and column of the product lies, within its image."""
    if MODE == "shuffle":
        y = row // w
        x = row % w
        window = (y // s) * (w // s) + x // s
        return (window * s * s + (y % s) * s + x % s) * m + column
    elif MODE == "unshuffle":
        width = m // (s * s)
        part = column // width
        across = w // s
        y = (row // across) * s + part // s
        x = (row % across) * s + part % s
        return (y * w + x) * width + column % width
    else:
        return row * m + column


@jit
def _linear(x, weight, bias, residual, out, n, k, m, w, s, MODE: tl.constexpr,
            GELU: tl.constexpr, RESIDUAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
            K: tl.constexpr):
    image = tl.program_id(2)
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    depth = tl.arange(0, K)
    x += image.to(tl.int64) * n * k
    acc = tl.zeros((M, N), tl.float32)
    for at in range(0, k, K):
        real = at + depth < k
        a = tl.load(x + row[:, None] * k + (at + depth)[None, :],
                    mask=(row < n)[:, None] & real[None, :], other=0.0)
        b = tl.load(weight + (at + depth)[:, None] * m + column[None, :],
                    mask=real[:, None] & (column < m)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    acc += tl.load(bias + column, mask=column < m, other=0.0).to(tl.float32)[None, :]
    if GELU:
        inner = 0.7978845608028654 * (acc + 0.044715 * acc * acc * acc)
        acc = acc / (1 + tl.exp(-2 * inner))
    some = (row < n)[:, None] & (column < m)[None, :]
    if RESIDUAL:
        residual += image.to(tl.int64) * n * m
        acc += tl.load(residual + row[:, None] * m + column[None, :], mask=some,
                       other=0.0).to(tl.float32)
    out += image.to(tl.int64) * n * m
    where = _place(row[:, None], column[None, :], w, s, m, MODE)
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=some)


def _fits(c: Case) -> str:
    if c.h % c.s or c.w % c.s:
        return f"windows of {c.s} do not tile {c.h} x {c.w} tokens"
    return "" if c.mode != "unshuffle" or c.m % c.s**2 == 0 else "columns do not split by window"


TUNE = ({}, {"blocks": (128, 64, 32)}, {"blocks": (64, 128, 32)},
        {"blocks": (128, 128, 32), "warps": 8})


@kernel("token_shuffle", takes=_fits, tune=TUNE)
def v1(x: Any, weight: Any, bias: Any, mode: str, grid: tuple[int, int], window: int, gelu: bool,
       residual: Any = None, blocks: tuple[int, int, int] = (64, 64, 32), warps: int = 4,
       stages: int = 3) -> Any:
    """one program a tile; results are stored where the window wants them"""
    r, n, k = x.shape
    m, parts = weight.shape[1], window * window
    shape = {"shuffle": (n // parts, parts * m), "unshuffle": (n * parts, m // parts),
             "mlp": (n, m)}[mode]
    out = empty(r, *shape, like=x)
    bm, bn, bk = (min(b, pow2(size, 16)) for b, size in zip(blocks, (n, m, k), strict=True))
    launch(_linear, (cdiv(n, bm), cdiv(m, bn), r), x, weight, bias,
           x if residual is None else residual, out, n, k, m, grid[1], window, warps=warps,
           stages=stages, MODE=mode, GELU=bool(gelu), RESIDUAL=residual is not None, M=bm, N=bn,
           K=bk)
    return out


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("token_shuffle")
