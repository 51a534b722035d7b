"""Matrix products, convolutions, norms and resampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.tensor import Array, axis_of, broadcast, floating


def _matmul(x: Type, w: Type) -> Type:
    if x.rank < 2 or w.rank < 2 or x.shape[-1] != w.shape[-2] or x.dtype != w.dtype:
        raise IRError(f"cannot multiply {x} by {w}")
    batch = broadcast(Type(x.dtype, x.shape[:-2]), Type(x.dtype, w.shape[:-2]))
    return Type(x.dtype, (*batch, x.shape[-2], w.shape[-1]))


@op("matmul", _matmul)
def matmul(x: Array, w: Array) -> Array:
    return x @ w


def _conv2d(x: Type, w: Type, *bias: Type, stride: int = 1, pads: tuple[int, ...] = (0, 0, 0, 0),
            groups: int = 1) -> Type:
    if x.rank != 4 or w.rank != 4 or x.shape[1] != dims.mul(w.shape[1], groups):
        raise IRError(f"cannot convolve {x} by {w} in {groups} groups")
    if any(b.shape != (w.shape[0],) for b in bias):
        raise IRError(f"bias {bias[0]} does not fit {w}")
    top, left, bottom, right = pads
    h = _conv_size(x.shape[2], w.shape[2], top + bottom, stride)
    return Type(x.dtype, (x.shape[0], w.shape[0], h,
                          _conv_size(x.shape[3], w.shape[3], left + right, stride)))


def _conv_size(n: Dim, k: Dim, pad: int, stride: int) -> Dim:
    if isinstance(n, int) and isinstance(k, int):
        if n + pad < k:
            raise IRError(f"a kernel of {k} does not fit into {n} and {pad} of padding")
        return (n + pad - k) // stride + 1
    if stride == 1:
        return dims.add(dims.add(n, pad + 1), k, -1)
    raise IRError(f"cannot stride over the symbolic size {n}")


@op("conv2d", _conv2d)
def conv2d(x: Array, w: Array, *bias: Array, stride: int = 1,
           pads: tuple[int, ...] = (0, 0, 0, 0), groups: int = 1) -> Array:
    """x [n,c,h,w], w [o,c/groups,kh,kw]; pads are top, left, bottom, right."""
    top, left, bottom, right = pads
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    n, _, h, wd = x.shape
    o, c, kh, kw = w.shape
    oh, ow = (h - kh) // stride + 1, (wd - kw) // stride + 1
    out = np.zeros((n, o, oh, ow), x.dtype)
    per = o // groups
    for g in range(groups):
        xs, ws = x[:, g * c : (g + 1) * c], w[g * per : (g + 1) * per]
        part = out[:, g * per : (g + 1) * per].reshape(n, per, oh * ow)  # a view
        for i in range(kh):
            for j in range(kw):
                win = xs[:, :, i : i + (oh - 1) * stride + 1 : stride,
                         j : j + (ow - 1) * stride + 1 : stride]
                part += ws[:, :, i, j] @ win.reshape(n, c, oh * ow)
        out[:, g * per : (g + 1) * per] = part.reshape(n, per, oh, ow)
    return out + bias[0][:, None, None] if bias else out


def _norm(x: Type, *affine: Type, **attrs: Any) -> Type:
    if any(a.shape != (x.shape[-1],) for a in affine):
        raise IRError(f"scale or shift {', '.join(map(str, affine))} does not fit {x}")
    return floating(x)


@op("layer_norm", _norm)
def layer_norm(x: Array, *affine: Array, eps: float) -> Array:
    """Over the last axis; affine is weight, then bias, either may be absent."""
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return _affine(y, affine).astype(x.dtype)


@op("rms_norm", _norm)
def rms_norm(x: Array, *affine: Array, eps: float) -> Array:
    """x / rms(x) * weight over the last axis. https://arxiv.org/abs/1910.07467"""
    y = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + eps)
    return _affine(y, affine).astype(x.dtype)


def _affine(y: Array, affine: tuple[Array, ...]) -> Array:
    for a, apply in zip(affine, (np.multiply, np.add), strict=False):
        y = apply(y, a)
    return y


def _residual_norm(x: Type, y: Type, *affine: Type, **attrs: Any) -> list[Type]:
    if x != y:
        raise IRError(f"residual {y} does not fit {x}")
    return [_norm(x, *affine), x]


@op("residual_norm", _residual_norm)
def residual_norm(x: Array, y: Array, *affine: Array, eps: float) -> tuple[Array, Array]:
    """(rms_norm(x + y), x + y)."""
    return rms_norm(x + y, *affine, eps=eps), x + y


def _group_norm(x: Type, w: Type, b: Type, *, groups: int, eps: float) -> Type:
    c = x.shape[1]
    if w.shape != (c,) or b.shape != (c,) or not isinstance(c, int) or c % groups:
        raise IRError(f"cannot normalise {x} in {groups} groups with {w} and {b}")
    return floating(x)


@op("group_norm", _group_norm)
def group_norm(x: Array, w: Array, b: Array, *, groups: int, eps: float) -> Array:
    """x [n,c,...] normalised per image and group of channels. https://arxiv.org/abs/1803.08494"""
    n, c, *rest = x.shape
    y = x.reshape(n, groups, -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + eps)
    shape = (1, c, *(1 for _ in rest))
    return (y.reshape(x.shape) * w.reshape(shape) + b.reshape(shape)).astype(x.dtype)


@op("group_norm_silu", _group_norm)
def group_norm_silu(x: Array, w: Array, b: Array, *, groups: int, eps: float) -> Array:
    """silu(group_norm(x, w, b))."""
    y = group_norm(x, w, b, groups=groups, eps=eps)
    return y / (1 + np.exp(-y))


@op("l2_norm", lambda x, *, axis, eps: floating(x))
def l2_norm(x: Array, *, axis: int, eps: float) -> Array:
    """x / max(|x|, eps) along one axis."""
    size = np.sqrt(np.sum(np.square(x), axis, keepdims=True))
    return (x / np.maximum(size, eps)).astype(x.dtype)


@op("swiglu", lambda gate, x: floating(x) if gate == x else _differ(gate, x))
def swiglu(gate: Array, x: Array) -> Array:
    """silu(gate) * x. https://arxiv.org/abs/2002.05202"""
    return (gate / (1 + np.exp(-np.clip(gate, -80, None))) * x).astype(x.dtype)


def _differ(a: Type, b: Type) -> Type:
    raise IRError(f"operands differ: {a} and {b}")


def _upsample(x: Type, *, factor: int) -> Type:
    if x.rank != 4:
        raise IRError(f"upsample takes [n,c,h,w], got {x}")
    return Type(x.dtype, (*x.shape[:2], *(dims.mul(d, factor) for d in x.shape[2:])))


@op("upsample", _upsample)
def upsample(x: Array, *, factor: int) -> Array:
    """Nearest-neighbour enlargement of [n,c,h,w] by a whole factor."""
    return x.repeat(factor, 2).repeat(factor, 3)


def _resize(x: Type, *, size: tuple[int, int], mode: str) -> Type:
    if x.rank != 4 or mode not in ("bicubic", "bilinear", "area"):
        raise IRError(f"cannot resize {x} by {mode!r}")
    return Type(x.dtype, (*x.shape[:2], *size))


@op("resize", _resize)
def resize(x: Array, *, size: tuple[int, int], mode: str) -> Array:
    """[n,c,h,w] to [n,c,*size], as torch.nn.functional.interpolate with align_corners=False.

    `area` averages the cells each output covers; `bicubic` uses a=-0.75, no antialiasing.
    """
    for axis, n in ((2, size[0]), (3, size[1])):
        m = resize_matrix(x.shape[axis], n, mode).astype(x.dtype)
        x = np.moveaxis(np.moveaxis(x, axis, -1) @ m.T, -1, axis)
    return np.ascontiguousarray(x)


def resize_matrix(n: int, m: int, mode: str) -> Array:
    """[m,n]: how each of m outputs mixes n inputs along one axis."""
    out = np.zeros((m, n))
    for i in range(m):
        if mode == "area":
            lo, hi = (i * n) // m, -((-(i + 1) * n) // m)
            out[i, lo:hi] = 1 / (hi - lo)
            continue
        at = (i + 0.5) * n / m - 0.5
        if mode == "bilinear":
            at = max(at, 0.0)
        base = int(np.floor(at))
        taps = (range(-1, 3), _cubic) if mode == "bicubic" else (range(2), _tent)
        for j in taps[0]:
            out[i, min(max(base + j, 0), n - 1)] += taps[1](at - base - j)
    return out


def _tent(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _cubic(x: float, a: float = -0.75) -> float:
    """Keys' cubic convolution kernel."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


__all__ = ["axis_of", "resize_matrix"]
