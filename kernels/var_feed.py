"""var_feed: what a scale adds to the picture so far: code vectors, enlarged, mixed, accumulated.

h = bicubic(codebook[token]); f_hat += h * (1 - share) + conv3x3(h) * share, in place.
https://arxiv.org/abs/2404.02905

v1  two launches: looking up and enlarging to channels-last, then the convolution and the sum
v2  one: each tap of the convolution enlarges what it needs
"""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile.ir import OPS
from arcompile.kernel import Case, case, declare, kernel
from arcompile.kernels.lang import Array, cdiv, empty, jit, launch, pow2, tl


def inputs(c: Case, rng: np.random.Generator) -> dict[str, Any]:
    def some(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    return {"token": rng.integers(0, c.v, (c.b, c.n * c.n)), "codebook": some(c.v, c.c),
            "weight": some(c.c, c.c, 3, 3) * np.float32((9 * c.c) ** -0.5), "bias": some(c.c),
            "f_hat": some(c.b, c.c, c.size, c.size), "side": c.n, "share": 0.5}


def reference(token: Array, codebook: Array, weight: Array, bias: Array, f_hat: Array, *,
              side: int, share: float) -> Array:
    b, c, size, _ = f_hat.shape
    h = codebook[token].transpose(0, 2, 1).reshape(b, c, side, side)
    if side != size:
        h = OPS["resize"].eval(h, size=(size, size), mode="bicubic")[0]
    mixed = OPS["conv2d"].eval(h, weight, bias, pads=(1, 1, 1, 1))[0]
    part = np.float32(share)
    return f_hat + (h * (1 - part) + mixed * part)


def random(rng: np.random.Generator) -> Case:
    size = int(rng.integers(2, 6))
    return case(str(rng.choice(["f32", "f16"])), b=int(rng.integers(1, 3)), c=int(rng.integers(
        1, 20)), v=int(rng.integers(2, 40)), n=int(rng.integers(1, size + 1)), size=size)


def cost(c: Case) -> tuple[float, float]:
    pixels = c.b * c.size**2
    return 2.0 * pixels * 9 * c.c**2, 8.0 * pixels * c.c + 9 * c.c**2 * 2


declare(
    "var_feed", about="code vectors looked up, enlarged, convolved and added to the picture so far",
    inputs=inputs, reference=reference, random=random, cost=cost, exact=("f_hat",),
    shapes=(case(b=2, c=8, v=32, n=2, size=5), case("f16", b=1, c=20, v=16, n=4, size=4)),
    large=tuple(case("bf16", b=b, c=32, v=4096, n=n, size=size)
                for b, n, size in ((1, 1, 16), (1, 13, 16), (8, 16, 16), (1, 48, 64))),
)


@jit
def _cubic(x):
    """Keys' kernel with a = -0.75."""
    x = tl.abs(x)
    near = (1.25 * x - 2.25) * x * x + 1
    far = ((-0.75 * x + 3.75) * x - 6.0) * x + 3.0
    return tl.where(x <= 1, near, tl.where(x < 2, far, 0.0))


@jit
def _enlarged(token, codebook, y, x, real, side, size, c, P: tl.constexpr, C: tl.constexpr):
    """[P,C]: bicubic values of the looked-up vectors at pixels (y, x)."""
    channel = tl.arange(0, C)
    acc = tl.zeros((P, C), tl.float32)
    ratio = (side + 0.0) / size  # a launch makes 1 a constant
    ty = (y.to(tl.float32) + 0.5) * ratio - 0.5
    tx = (x.to(tl.float32) + 0.5) * ratio - 0.5
    by = tl.floor(ty)
    bx = tl.floor(tx)
    for i in range(4):  # not unrolled: 16 gathers at once do not fit registers
        for j in range(4):
            wy = _cubic(ty - by - (i - 1))
            wx = _cubic(tx - bx - (j - 1))
            cy = tl.minimum(tl.maximum(by.to(tl.int32) + (i - 1), 0), side - 1)
            cx = tl.minimum(tl.maximum(bx.to(tl.int32) + (j - 1), 0), side - 1)
            code = tl.load(token + cy * side + cx, mask=real, other=0)
            row = tl.load(codebook + code[:, None] * c + channel[None, :],
                          mask=real[:, None] & (channel < c)[None, :], other=0.0)
            acc += (wy * wx)[:, None] * row.to(tl.float32)
    return acc


@jit
def _looked(token, codebook, y, x, real, side, size, c, P: tl.constexpr, C: tl.constexpr,
            ENLARGE: tl.constexpr):
    if ENLARGE:
        return _enlarged(token, codebook, y, x, real, side, size, c, P, C)
    channel = tl.arange(0, C)
    code = tl.load(token + y * side + x, mask=real, other=0)
    return tl.load(codebook + code[:, None] * c + channel[None, :],
                   mask=real[:, None] & (channel < c)[None, :], other=0.0).to(tl.float32)


@jit
def _lookup(token, codebook, h, side, size, c, P: tl.constexpr, C: tl.constexpr,
            ENLARGE: tl.constexpr):
    image = tl.program_id(1)
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    real = pixel < size * size
    value = _looked(token + image * side * side, codebook, pixel // size, pixel % size, real,
                    side, size, c, P, C, ENLARGE)
    channel = tl.arange(0, C)
    where = (image * size * size + pixel)[:, None] * c + channel[None, :]
    tl.store(h + where, value.to(h.dtype.element_ty),
             mask=real[:, None] & (channel < c)[None, :])


@jit
def _mix(token, codebook, h, weight, bias, f_hat, side, size, c, share, P: tl.constexpr,
         C: tl.constexpr, ENLARGE: tl.constexpr, LOOK: tl.constexpr):
    image = tl.program_id(1)
    pixel = tl.program_id(0) * P + tl.arange(0, P)
    channel = tl.arange(0, C)
    y = pixel // size
    x = pixel % size
    acc = tl.zeros((P, C), tl.float32)
    own = tl.zeros((P, C), tl.float32)
    token += image * side * side
    h += image * size * size * c
    wide = (channel < c)[:, None] & (channel < c)[None, :]
    for tap in range(9):
        ty = y + (tap // 3 - 1)
        tx = x + (tap % 3 - 1)
        real = (ty >= 0) & (ty < size) & (tx >= 0) & (tx < size)
        if LOOK:
            value = _looked(token, codebook, ty, tx, real, side, size, c, P, C, ENLARGE)
            value = tl.where(real[:, None], value, 0.0).to(codebook.dtype.element_ty)
        else:
            value = tl.load(h + (ty * size + tx)[:, None] * c + channel[None, :],
                            mask=real[:, None] & (channel < c)[None, :], other=0.0)
        own = tl.where(tap == 4, value.to(tl.float32), own)
        taps = tl.load(weight + channel[None, :] * (c * 9) + channel[:, None] * 9 + tap,
                       mask=wide, other=0.0)
        acc = tl.dot(value, taps, acc, input_precision="ieee")
    acc += tl.load(bias + channel, mask=channel < c, other=0.0).to(tl.float32)[None, :]
    some = (pixel < size * size)[:, None] & (channel < c)[None, :]
    f_hat += image * c * size * size
    where = channel[None, :] * (size * size) + pixel[:, None]
    was = tl.load(f_hat + where, mask=some, other=0.0)
    tl.store(f_hat + where, was + (own * (1 - share) + acc * share), mask=some)


def _run(look: bool, token: Any, codebook: Any, weight: Any, bias: Any, f_hat: Any, side: int,
         share: float, block: int = 32) -> Any:
    b, c, size, _ = f_hat.shape
    grid = (cdiv(size * size, block), b)
    how: dict[str, Any] = {"P": block, "C": pow2(c, 16), "ENLARGE": side != size}
    h = token if look else empty(b, size * size, c, like=codebook)
    if not look:
        launch(_lookup, grid, token, codebook, h, side, size, c, **how)
    launch(_mix, grid, token, codebook, h if not look else codebook, weight, bias, f_hat, side,
           size, c, share, LOOK=look, **how)
    return f_hat


def _fits(c: Case) -> str:
    return "" if c.c <= 64 else f"{c.c} channels, it takes up to 64"


@kernel("var_feed", takes=_fits)
def v1(token: Any, codebook: Any, weight: Any, bias: Any, f_hat: Any, **more: Any) -> Any:
    """two launches: looking up and enlarging, then the convolution and the sum"""
    return _run(False, token, codebook, weight, bias, f_hat, **more)


@kernel("var_feed", takes=_fits, tune=({"block": 16}, {"block": 32}))
def v2(token: Any, codebook: Any, weight: Any, bias: Any, f_hat: Any, **more: Any) -> Any:
    """one launch: each tap of the convolution enlarges what it needs"""
    return _run(True, token, codebook, weight, bias, f_hat, **more)


if __name__ == "__main__":
    from arcompile.kernels.timing import main

    main("var_feed")
