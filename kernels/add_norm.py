"""add_norm: a residual sum, its norm, and what modulates it, in one pass over the row.

    total = x + y * gate                    (y, gate: optional; gate per row of conditions)
    out = norm(total) * weight + bias       (RMSNorm or LayerNorm; weight, bias: optional)
    out = out * (scale + one) + shift       (AdaLN; optional, per row of conditions)

Rows are [n,d]; conditions are [n/rows,d]: `rows` neighbours share one. Sums are f32 throughout.
https://arxiv.org/abs/1910.07467 https://arxiv.org/abs/2212.09748

v1  one program a row, which stays in registers: each byte moves once
v2  short rows several to a program, so that no lane idles
v3  CUDA: a block a row, kept in shared memory, for rows that registers do not hold
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels import cuda
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl

MOST = 16384  # of a row; more does not stay in registers


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    n, d, rows = c.n, c.d, c.sizes.get("rows", 1)

    def some(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    made: dict[str, Any] = {"x": some(n, d), "kind": c.sizes.get("kind", "rms"), "eps": 1e-5,
                            "rows": rows}
    for name in c.sizes.get("has", "y weight").split():
        shape = {"y": (n, d), "weight": (d,), "bias": (d,)}.get(name, (n // rows, d))
        made[name] = some(*shape)
    return made


def reference(x: Array, *, kind: str, eps: float, rows: int = 1, y: Array | None = None,
              gate: Array | None = None, weight: Array | None = None, bias: Array | None = None,
              scale: Array | None = None, shift: Array | None = None,
              one: float = 1.0) -> tuple[Array, Array]:
    def spread(v: Array) -> Array:
        return v.repeat(rows, 0)

    if y is not None:
        x = x + (y if gate is None else y * spread(gate))
    affine = () if weight is None else (weight,) if bias is None else (weight, bias)
    out = OPS[f"{kind}_norm"].eval(x, *affine, eps=eps)[0]
    if scale is not None:
        out = out * (spread(scale) + np.float32(one))
    if shift is not None:
        out = out + spread(shift)
    return out, x


def peer(x: Any, *, kind: str, eps: float, rows: int = 1, y: Any = None, gate: Any = None,
         weight: Any = None, bias: Any = None, scale: Any = None, shift: Any = None,
         one: float = 1.0) -> tuple[Any, Any]:
    """A few of torch's kernels."""
    import torch

    def spread(v: Any) -> Any:
        return v.repeat_interleave(rows, 0)

    if y is not None:
        x = x + (y if gate is None else y * spread(gate))
    f, wide = torch.nn.functional, x.shape[-1:]
    if kind == "rms":
        out = f.rms_norm(x, wide, weight, eps)
        out = out if bias is None else out + bias
    else:
        out = f.layer_norm(x, wide, weight, bias, eps)
    out = out if scale is None else out * (spread(scale) + one)
    return (out if shift is None else out + spread(shift)), x


def random(rng: np.random.Generator) -> Case:
    rows = int(rng.integers(1, 4))
    has = ("y weight", "y gate scale shift", "weight bias", "scale shift", "y weight bias")
    return case(str(rng.choice(["f32", "f16"])), n=rows * int(rng.integers(1, 6)),
                d=int(rng.integers(1, 300)), rows=rows, kind=str(rng.choice(["rms", "layer"])),
                has=str(rng.choice(has)))


def cost(c: Case) -> tuple[float, float]:
    wide = {"y": 2}  # y is read, and the sum written
    moved = 2 + sum(wide.get(k, 0) for k in c.sizes.get("has", "y weight").split())
    return 8.0 * c.n * c.d, moved * c.n * c.d * (4 if c.dtype == "f32" else 2)


declare(
    "add_norm", about="residual sum, RMSNorm or LayerNorm, and AdaLN modulation in one pass",
    inputs=inputs, reference=reference, random=random, cost=cost, peer=peer,
    shapes=(case(n=4, d=96), case("f16", n=6, d=200, rows=3, kind="layer",
                                  has="y gate scale shift")),
    large=(case("bf16", n=2, d=1280), case("bf16", n=2 * 680, d=1024, rows=680, kind="layer",
                                           has="y gate scale shift"),
           case("bf16", n=2 * 4096, d=1920, kind="layer", rows=4096, has="y gate scale shift")),
)


@jit
def _rows(x, y, gate, weight, bias, scale, shift, out, total, n, d, rows, eps, one,
          KIND: tl.constexpr, Y: tl.constexpr, GATE: tl.constexpr, WEIGHT: tl.constexpr,
          BIAS: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, R: tl.constexpr,
          D: tl.constexpr):
    row = tl.program_id(0) * R + tl.arange(0, R)
    at = tl.arange(0, D)
    some = (row < n)[:, None] & (at < d)[None, :]
    here = row[:, None].to(tl.int64) * d + at[None, :]
    there = (row // rows)[:, None].to(tl.int64) * d + at[None, :]
    v = tl.load(x + here, mask=some, other=0.0).to(tl.float32)
    if Y:
        more = tl.load(y + here, mask=some, other=0.0).to(tl.float32)
        if GATE:
            more *= tl.load(gate + there, mask=some, other=0.0).to(tl.float32)
        v = (v + more).to(total.dtype.element_ty)
        tl.store(total + here, v, mask=some)
        v = v.to(tl.float32)
    if KIND == "layer":
        mean = tl.sum(v, 1) / d
        v = tl.where(some, v - mean[:, None], 0.0)
    v = v * (1 / tl.sqrt(tl.sum(v * v, 1) / d + eps))[:, None]
    if WEIGHT:
        v *= tl.load(weight + at, mask=at < d, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        v += tl.load(bias + at, mask=at < d, other=0.0).to(tl.float32)[None, :]
    if SCALE:
        v *= tl.load(scale + there, mask=some, other=0.0).to(tl.float32) + one
    if SHIFT:
        v += tl.load(shift + there, mask=some, other=0.0).to(tl.float32)
    tl.store(out + here, v.to(out.dtype.element_ty), mask=some)


def _run(block: int, x: Any, kind: str, eps: float, rows: int = 1, one: float = 1.0,
         **more: Any) -> tuple[Any, Any]:
    n, d = x.shape
    out = empty(n, d, like=x)
    total = empty(n, d, like=x) if "y" in more else x
    ops = [more.get(k, x) for k in ("y", "gate", "weight", "bias", "scale", "shift")]
    width = pow2(d, 16)
    launch(_rows, (cdiv(n, block),), x, *ops, out, total, n, d, rows, eps, one,
           warps=max(1, min(8, block * width // 512)), KIND=kind, R=block, D=width,
           **{k.upper(): k in more for k in ("y", "gate", "weight", "bias", "scale", "shift")})
    return out, total


def _fits(c: Case) -> str:
    return "" if c.d <= MOST else f"rows of {c.d} do not stay in registers, {MOST} do"


@kernel("add_norm", takes=_fits)
def v1(x: Any, **more: Any) -> tuple[Any, Any]:
    """one program a row, which stays in registers: each byte moves once"""
    return _run(1, x, **more)


@kernel("add_norm", takes=lambda c: "" if c.d <= 512 else "rows beyond 512 fill a program alone")
def v2(x: Any, **more: Any) -> tuple[Any, Any]:
    """short rows several to a program, so that no lane idles"""
    return _run(max(1, 1024 // pow2(x.shape[1], 16)), x, **more)


def _shared(c: Case) -> str:
    return "" if c.d <= 50_000 else f"rows of {c.d} do not fit shared memory, 50000 do"


@kernel("add_norm", needs=("nvcc",), takes=_shared)
def v3(x: Any, kind: str, eps: float, rows: int = 1, one: float = 1.0,
       **more: Any) -> tuple[Any, Any]:
    """CUDA: a block a row, kept in shared memory, for rows that registers do not hold"""
    n, d = x.shape
    out = empty(n, d, like=x)
    total = empty(n, d, like=x) if "y" in more else x
    ops = (more.get(k) for k in ("y", "gate", "weight", "bias", "scale", "shift"))
    cuda.call("add_norm", x, *ops, out, total, n, d, rows, float(eps), float(one),
              int(kind == "layer"), min(1024, max(32, pow2(d // 4))), like=x)
    return out, total


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("add_norm")
