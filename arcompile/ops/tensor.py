"""Elementwise, shape, reduction and indexing ops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import IRError
from arcompile.ir import Type, op

NUMPY = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "bf16": np.float32,
         "i64": np.int64, "i32": np.int32, "i8": np.int8, "u8": np.uint8, "bool": np.bool_}
Array = np.ndarray[Any, Any]


def axis_of(t: Type, axis: int) -> int:
    if not -t.rank <= axis < t.rank:
        raise IRError(f"axis {axis} is outside {t}")
    return axis % t.rank


# --- type rules ----------------------------------------------------------------------------------


def same(x: Type, **_: Any) -> Type:
    return x


def floating(x: Type, **_: Any) -> Type:
    if x.dtype not in ("f32", "f16", "bf16", "f64"):
        raise IRError(f"expected a floating type, got {x}")
    return x


def broadcast(*types: Type) -> tuple[Dim, ...]:
    rank = max(t.rank for t in types)
    out: list[Dim] = []
    for i in range(rank):
        sizes = {t.shape[i - rank + t.rank] for t in types if i - rank + t.rank >= 0} - {1}
        if len(sizes) > 1:
            raise IRError(f"shapes do not broadcast: {', '.join(map(str, types))}")
        out.append(sizes.pop() if sizes else 1)
    return tuple(out)


def elementwise(x: Type, y: Type, **_: Any) -> Type:
    if x.dtype != y.dtype:
        raise IRError(f"dtypes differ: {x} and {y}")
    return Type(x.dtype, broadcast(x, y))


def comparison(x: Type, y: Type, **_: Any) -> Type:
    return Type("bool", elementwise(x, y).shape)


def logical(*xs: Type, **_: Any) -> Type:
    if any(x.dtype != "bool" for x in xs):
        raise IRError(f"expected bool operands, got {', '.join(map(str, xs))}")
    return Type("bool", broadcast(*xs))


# --- elementwise ---------------------------------------------------------------------------------


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-np.clip(x, -80, None)))


_UNARY: dict[str, Callable[[Array], Array]] = {
    "neg": np.negative, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos, "floor": np.floor, "erf": _erf, "silu": _silu,
    "reciprocal": lambda x: (1 / x).astype(x.dtype), "relu": lambda x: np.maximum(x, 0),
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype),
    "sigmoid": lambda x: (1 / (1 + np.exp(-np.clip(x, -80, None)))).astype(x.dtype),
}
for _name, _fn in _UNARY.items():
    op(_name, floating)(_fn)

op("abs", same)(np.abs)
op("not", logical)(np.logical_not)
op("and", logical, commutes=True)(np.logical_and)
op("or", logical, commutes=True)(np.logical_or)


@op("gelu", floating)
def gelu(x: Array, *, approximate: bool = True) -> Array:
    """Gaussian error linear unit; `approximate` is the tanh form."""
    if approximate:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return (0.5 * x * (1 + np.tanh(inner))).astype(x.dtype)
    return (0.5 * x * (1 + _erf(x / math.sqrt(2)))).astype(x.dtype)


def _divide(x: Array, y: Array) -> Array:
    return x // y if x.dtype.kind in "iu" else x / y


_BINARY: dict[str, tuple[Callable[[Array, Array], Array], bool]] = {
    "add": (np.add, True), "sub": (np.subtract, False), "mul": (np.multiply, True),
    "div": (_divide, False), "pow": (np.power, False), "mod": (np.mod, False),
    "maximum": (np.maximum, True), "minimum": (np.minimum, True),
}
for _name, (_bin, _commutes) in _BINARY.items():
    op(_name, elementwise, commutes=_commutes)(_bin)

_COMPARE = {"equal": np.equal, "less": np.less, "greater": np.greater,
            "less_equal": np.less_equal, "greater_equal": np.greater_equal}
for _name, _cmp in _COMPARE.items():
    op(_name, comparison, commutes=_name == "equal")(_cmp)


def _where(c: Type, x: Type, y: Type) -> Type:
    if c.dtype != "bool" or x.dtype != y.dtype:
        raise IRError(f"where takes bool and two of one dtype, got {c}, {x}, {y}")
    return Type(x.dtype, broadcast(c, x, y))


@op("where", _where)
def where(c: Array, x: Array, y: Array) -> Array:
    return np.where(c, x, y)


def _cast(x: Type, *, dtype: str) -> Type:
    if dtype not in NUMPY:
        raise IRError(f"unknown dtype {dtype!r}")
    return Type(dtype, x.shape)


@op("cast", _cast)
def cast(x: Array, *, dtype: str) -> Array:
    made: Array = x.astype(NUMPY[dtype])
    return rounded(made) if dtype == "bf16" else made


def rounded(x: Array) -> Array:
    """f32 whose values are those of bf16, the nearest, ties to even: numpy has no such type."""
    bits = x.astype(np.float32, copy=False).view(np.uint32)
    low = np.where(np.isnan(x), 0, 0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)
    return ((bits + low) & np.uint32(0xFFFF0000)).view(np.float32)


@op("clip", same)
def clip(x: Array, *, lo: float | None = None, hi: float | None = None) -> Array:
    return np.clip(x, lo, hi).astype(x.dtype)


# --- constants -----------------------------------------------------------------------------------


def _const_shape(value: Any) -> tuple[int, ...]:
    return np.shape(value)


@op("const", lambda *, dtype, value: Type(dtype, _const_shape(value)))
def const(*, dtype: str, value: Any) -> Array:
    """A literal: a number or a short (nested) list. Long ones are weights."""
    return np.array(value, NUMPY[dtype])


@op("arange", lambda *, dtype, shape: Type(dtype, tuple(shape)))
def arange(*, dtype: str, shape: tuple[int, ...]) -> Array:
    """0, 1, ... shape[0]-1."""
    return np.arange(shape[0], dtype=NUMPY[dtype])


@op("full", lambda *, dtype, shape, value: Type(dtype, tuple(shape)))
def full(*, dtype: str, shape: tuple[int, ...], value: float) -> Array:
    return np.full(shape, value, NUMPY[dtype])


# --- shape ---------------------------------------------------------------------------------------


def _reshape(x: Type, *, shape: tuple[Dim, ...]) -> Type:
    if dims.product(x.shape) != dims.product(shape):
        raise IRError(f"cannot reshape {x} to [{','.join(map(str, shape))}]")
    return Type(x.dtype, tuple(shape))


@op("reshape", _reshape)
def reshape(x: Array, *, shape: tuple[int, ...]) -> Array:
    return x.reshape(shape)


def _transpose(x: Type, *, perm: tuple[int, ...]) -> Type:
    if sorted(perm) != list(range(x.rank)):
        raise IRError(f"perm {perm} does not permute {x}")
    return Type(x.dtype, tuple(x.shape[i] for i in perm))


@op("transpose", _transpose)
def transpose(x: Array, *, perm: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(x.transpose(perm))


def _expand(x: Type, *, shape: tuple[Dim, ...]) -> Type:
    want = Type(x.dtype, tuple(shape))
    if x.rank > want.rank or broadcast(x, want) != want.shape:
        raise IRError(f"cannot expand {x} to [{','.join(map(str, shape))}]")
    return want


@op("expand", _expand)
def expand(x: Array, *, shape: tuple[int, ...]) -> Array:
    return np.ascontiguousarray(np.broadcast_to(x, shape))


def _concat(*xs: Type, axis: int) -> Type:
    axis = axis_of(xs[0], axis)
    total: Dim = 0
    for x in xs:
        rest = [d for i, d in enumerate(x.shape) if i != axis]
        if x.dtype != xs[0].dtype or rest != [d for i, d in enumerate(xs[0].shape) if i != axis]:
            raise IRError(f"cannot concat {', '.join(map(str, xs))} on axis {axis}")
        total = dims.add(total, x.shape[axis])
    return Type(xs[0].dtype, (*xs[0].shape[:axis], total, *xs[0].shape[axis + 1 :]))


@op("concat", _concat)
def concat(*xs: Array, axis: int) -> Array:
    return np.concatenate(xs, axis)


def _slice(x: Type, *, axis: int, start: int, stop: int | None = None, step: int = 1) -> Type:
    axis = axis_of(x, axis)
    d = x.shape[axis]
    if isinstance(d, int):
        n: Dim = len(range(*slice(start, stop, step).indices(d)))
    elif step != 1:
        raise IRError(f"cannot step over the symbolic axis {axis} of {x}")
    elif start < 0 and stop is not None and stop >= 0:
        raise IRError(f"cannot slice [{start}:{stop}] of the symbolic axis {axis} of {x}")
    elif stop is None:  # an open slice of a symbolic axis: [-k:] has k, [k:] has d-k
        n = -start if start < 0 else dims.add(d, start, -1)
    else:
        n = stop - start if (stop < 0) == (start < 0) else dims.add(dims.add(d, stop), start, -1)
    return Type(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :]))


@op("slice", _slice)
def slice_(x: Array, *, axis: int, start: int, stop: int | None = None, step: int = 1) -> Array:
    """x[start:stop:step] on one axis."""
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return np.ascontiguousarray(x[tuple(index)])


def _split(x: Type, *, axis: int, sizes: tuple[int, ...]) -> list[Type]:
    axis = axis_of(x, axis)
    if x.shape[axis] != sum(sizes):
        raise IRError(f"sizes {sizes} do not add up to axis {axis} of {x}")
    return [Type(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes]


@op("split", _split)
def split(x: Array, *, axis: int, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


def _pad(x: Type, *, pads: tuple[tuple[int, int], ...], value: float = 0) -> Type:
    if len(pads) != x.rank:
        raise IRError(f"{len(pads)} pads for {x}")
    return Type(x.dtype, tuple(dims.add(d, a + b) for d, (a, b) in zip(x.shape, pads, strict=True)))


@op("pad", _pad)
def pad(x: Array, *, pads: tuple[tuple[int, int], ...], value: float = 0) -> Array:
    return np.pad(x, pads, constant_values=value)


def _tail(x: Type, like: Type, *, axis: int) -> Type:
    axis = axis_of(x, axis)
    have, want = x.shape[axis], like.shape[axis_of(like, axis)]
    if isinstance(have, int) and isinstance(want, int) and want > have:
        raise IRError(f"{x} has no last {want} entries on axis {axis}")
    return Type(x.dtype, (*x.shape[:axis], want, *x.shape[axis + 1 :]))


@op("tail", _tail)
def tail(x: Array, like: Array, *, axis: int) -> Array:
    """The last n entries of x on `axis`, n being the size of `like` there."""
    n, some = x.shape[axis], like.shape[axis]
    if some > n:
        raise IRError(f"{n} entries have no last {some}")
    return np.take(x, range(n - some, n), axis)


# --- indexing ------------------------------------------------------------------------------------


def _gather(x: Type, index: Type, *, axis: int) -> Type:
    axis = axis_of(x, axis)
    if index.dtype not in ("i64", "i32"):
        raise IRError(f"an index is i64 or i32, not {index}")
    return Type(x.dtype, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@op("gather", _gather)
def gather(x: Array, index: Array, *, axis: int) -> Array:
    """Rows of x by number: an embedding lookup when axis=0."""
    return np.take(x, index, axis)


def _take(x: Type, index: Type, *, axis: int) -> Type:
    axis = axis_of(x, axis)
    others = [t.shape[:axis] + t.shape[axis + 1 :] for t in (x, index)]
    if index.rank != x.rank or others[0] != others[1]:
        raise IRError(f"{index} does not index {x} along axis {axis}")
    return Type(x.dtype, index.shape)


@op("take_along", _take)
def take_along(x: Array, index: Array, *, axis: int) -> Array:
    """out[.., i, ..] = x[.., index[.., i, ..], ..]; the index has x's other sizes."""
    return np.take_along_axis(x, index, axis)


def _put(x: Type, index: Type, new: Type, *, axis: int) -> Type:
    _take(x, index, axis=axis)
    if index.shape != new.shape or x.dtype != new.dtype:
        raise IRError(f"put_along needs index and values of one shape, got {index} and {new}")
    return x


@op("put_along", _put)
def put_along(x: Array, index: Array, new: Array, *, axis: int) -> Array:
    """A copy of x with out[.., index[.., i, ..], ..] = new[.., i, ..]."""
    out = x.copy()
    np.put_along_axis(out, index.astype(np.int64), new, axis)
    return out


# --- reductions ----------------------------------------------------------------------------------


def _reduced(x: Type, *, axes: tuple[int, ...], keepdims: bool = False, **_: Any) -> Type:
    gone = {axis_of(x, a) for a in axes}
    kept = (1 if i in gone else d for i, d in enumerate(x.shape) if keepdims or i not in gone)
    return Type(x.dtype, tuple(kept))


def _reduction(fn: Any) -> Callable[..., Array]:
    def reduce(x: Array, *, axes: tuple[int, ...], keepdims: bool = False) -> Array:
        return fn(x, axis=tuple(axes), keepdims=keepdims).astype(x.dtype)

    return reduce


for _name, _red in {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min}.items():
    op(_name, _reduced)(_reduction(_red))


def _argmax(x: Type, *, axis: int) -> Type:
    return Type("i64", _reduced(x, axes=(axis,)).shape)


@op("argmax", _argmax)
def argmax(x: Array, *, axis: int) -> Array:
    """Index of the largest; the first of equals."""
    return np.argmax(x, axis).astype(np.int64)


def _topk(x: Type, *, k: int, axis: int = -1) -> list[Type]:
    axis = axis_of(x, axis)
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return [Type(x.dtype, shape), Type("i64", shape)]


@op("topk", _topk)
def topk(x: Array, *, k: int, axis: int = -1) -> tuple[Array, Array]:
    """The k largest, largest first, and their indices; among equals the first index first."""
    order = np.argsort(-x, axis, kind="stable")
    index = np.take(order, range(k), axis)
    return np.take_along_axis(x, index, axis), index.astype(np.int64)


@op("cumsum", lambda x, *, axis, exclusive=False: x)
def cumsum(x: Array, *, axis: int, exclusive: bool = False) -> Array:
    out = np.cumsum(x, axis, dtype=x.dtype)
    return out - x if exclusive else out


@op("softmax", floating)
def softmax(x: Array, *, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)
