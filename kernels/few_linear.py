"""few_linear: a product of a few rows, the norm before it and the gate or sum after it.

    a = rms_norm(x) * weight                (weight: optional; x as it is without)
    out = a @ w.T, or silu(a @ w.T) * (a @ up.T)
    out = out + y                           (y: optional)

x is [rows,k] with at most 8 rows, as a decode step has; w and up are [n,k], a row of weights an
output; sums are f32. All a product of so few rows waits for is its weights, so the versions differ
in how many bytes of them are on their way. https://arxiv.org/abs/2002.05202 https://arxiv.org/abs/1910.07467

v1  a program some outputs, by tiles of the weights
v2  CUDA: a block's weights whole in registers, on sm_90 read while the kernel before still runs
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl

MOST = 8  # rows
WHOLE = 1280  # numbers of a row that 8 warps hold


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    has = c.sizes.get("has", "").split()

    def some(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    made: dict[str, Any] = {"x": some(c.rows, c.k), "w": some(c.n, c.k) * np.float32(c.k**-0.5),
                            "eps": 1e-5}
    if "up" in has:
        made["up"] = some(c.n, c.k) * np.float32(c.k**-0.5)
    if "weight" in has:
        made["weight"] = some(c.k)
    if "y" in has:
        made["y"] = some(c.rows, c.n)
    return made


def reference(x: Array, w: Array, *, eps: float, up: Array | None = None,
              weight: Array | None = None, y: Array | None = None) -> Array:
    if weight is not None:
        x = OPS["rms_norm"].eval(x, weight, eps=eps)[0]
    out = OPS["matmul"].eval(x, w.T)[0]
    if up is not None:
        out = OPS["swiglu"].eval(out, OPS["matmul"].eval(x, up.T)[0])[0]
    return out if y is None else out + y


def peer(x: Any, w: Any, *, eps: float, up: Any = None, weight: Any = None, y: Any = None) -> Any:
    """A few of torch's kernels."""
    import torch

    f = torch.nn.functional
    if weight is not None:
        x = f.rms_norm(x, x.shape[-1:], weight, eps)
    out = x @ w.T
    if up is not None:
        out = f.silu(out) * (x @ up.T)
    return out if y is None else out + y


def random(rng: np.random.Generator) -> Case:
    has = [n for n in ("up", "weight", "y") if rng.random() < 0.5]
    return case(str(rng.choice(["f32", "f16"])), rows=int(rng.integers(1, MOST + 1)),
                k=8 * int(rng.integers(1, 60)), n=int(rng.integers(1, 40)), has=" ".join(has))


def cost(c: Case) -> tuple[float, float]:
    width, both = (4 if c.dtype == "f32" else 2), 1 + ("up" in c.sizes.get("has", ""))
    return 2.0 * c.rows * c.k * c.n * both, width * (both * c.k * c.n + c.rows * (c.k + c.n))


declare(
    "few_linear", about="a product of a few rows, the norm before it and the gate or sum after it",
    inputs=inputs, reference=reference, random=random, cost=cost, peer=peer,
    # a norm and a product round once where the meaning of two ops in 16 bits rounds twice
    tolerance={"f16": 6e-3, "bf16": 4e-2},
    shapes=(case(rows=2, k=64, n=20), case("f16", rows=3, k=272, n=9, has="weight"),
            case("f16", rows=2, k=2600, n=5, has="y"),
            case("f16", rows=8, k=136, n=33, has="up weight y")),
    large=(case("bf16", rows=2, k=1280, n=3840, has="weight"),
           case("bf16", rows=2, k=1280, n=1280, has="y"),
           case("bf16", rows=2, k=1280, n=3456, has="up weight"),
           case("bf16", rows=2, k=3456, n=1280, has="y"),
           case("bf16", rows=2, k=1280, n=16384, has="weight"),
           case("bf16", rows=8, k=4096, n=4096)),
)


@jit
def _few(x, w, up, weight, y, out, rows, k, n, eps, R: tl.constexpr, N: tl.constexpr,
         K: tl.constexpr, NORM: tl.constexpr, PAIR: tl.constexpr, SUM: tl.constexpr):
    row = tl.arange(0, R)
    column = tl.program_id(0) * N + tl.arange(0, N)
    one = tl.zeros((R, N), tl.float32)
    two = tl.zeros((R, N), tl.float32)
    squares = tl.zeros((R,), tl.float32)
    for first in range(0, k, K):
        at = first + tl.arange(0, K)
        given = tl.load(x + row[:, None] * k + at[None, :],
                        mask=(row < rows)[:, None] & (at < k)[None, :], other=0.0).to(tl.float32)
        if NORM:
            squares += tl.sum(given * given, 1)
            given *= tl.load(weight + at, mask=at < k, other=0.0).to(tl.float32)[None, :]
        where = column[:, None].to(tl.int64) * k + at[None, :]
        some = (column < n)[:, None] & (at < k)[None, :]
        tile = tl.load(w + where, mask=some, other=0.0).to(tl.float32)
        one += tl.sum(given[:, None, :] * tile[None, :, :], 2)
        if PAIR:
            tile = tl.load(up + where, mask=some, other=0.0).to(tl.float32)
            two += tl.sum(given[:, None, :] * tile[None, :, :], 2)
    if NORM:
        unit = 1 / tl.sqrt(squares / k + eps)
        one *= unit[:, None]
        two *= unit[:, None]
    if PAIR:
        one = one / (1 + tl.exp(-one)) * two
    here = row[:, None] * n + column[None, :]
    some = (row < rows)[:, None] & (column < n)[None, :]
    if SUM:
        one += tl.load(y + here, mask=some, other=0.0).to(tl.float32)
    tl.store(out + here, one.to(out.dtype.element_ty), mask=some)


def _rows(c: Case) -> str:
    return "" if c.rows <= MOST else f"{c.rows} rows, it takes {MOST} at most"


@kernel("few_linear", takes=_rows, tune=({}, {"block": (8, 512)}, {"block": (4, 1024)}))
def v1(x: Any, w: Any, *, eps: float, up: Any = None, weight: Any = None, y: Any = None,
       block: tuple[int, int] = (8, 256)) -> Any:
    """a program some outputs, by tiles of the weights"""
    (rows, k), n = x.shape, len(w)
    out = empty(rows, n, like=x)
    have = {"NORM": weight is not None, "PAIR": up is not None, "SUM": y is not None}
    launch(_few, (cdiv(n, block[0]),), x, w, w if up is None else up,
           x if weight is None else weight, x if y is None else y, out, rows, k, n, eps,
           R=pow2(rows), N=block[0], K=min(block[1], pow2(k)), **have)
    return out


def _aligned(c: Case) -> str:
    return _rows(c) or ("" if c.k % 8 == 0 else
                        f"rows of {c.k} numbers, its lanes read 8 at once")


@kernel("few_linear", needs=("nvcc",), dtypes=("f16", "bf16"), takes=_aligned,
        tune=({"warps": 8}, {"warps": 16}))
def v2(x: Any, w: Any, *, eps: float, up: Any = None, weight: Any = None, y: Any = None,
       warps: int = 0) -> Any:
    """CUDA: a block's weights whole in registers, read while the kernel before still runs"""
    (rows, k), n = x.shape, len(w)
    out = empty(rows, n, like=x)
    cuda.call("few_linear", x, w, up, weight, y, out, rows, k, n,
              warps or (8 if k <= WHOLE else 16), float(eps), like=x)
    return out


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("few_linear")
