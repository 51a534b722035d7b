"""What each torch op means in our ops: one small function each, by its full name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.ir import Builder, Value

Emit = Callable[..., Any]
ATEN: dict[str, Emit] = {}
RANK = {"bool": 0, "u8": 1, "i8": 1, "i32": 2, "i64": 3, "f16": 4, "bf16": 4, "f32": 5, "f64": 6}


def aten(*names: str) -> Callable[[Emit], Emit]:
    def declare(fn: Emit) -> Emit:
        ATEN.update({n if "." in n and n[:4] == "arc." else f"aten.{n}": fn for n in names})
        return fn

    return declare


# --- helpers -------------------------------------------------------------------------------------


def scalar(b: Builder, x: Any, like: Value) -> Value:
    """A Python number as a constant, of the dtype torch would promote it to."""
    if isinstance(x, Value):
        return x
    dtype = like.type.dtype
    if isinstance(x, float) and dtype[0] in "iub":
        dtype = "f32"
    elif dtype == "bool" and not isinstance(x, bool):
        dtype = "i64"
    value = x if dtype == "bool" else float(x) if dtype[0] in "fb" else int(x)
    return b.const(dtype=dtype, value=value)


def to(b: Builder, x: Value, dtype: str) -> Value:
    return x if x.type.dtype == dtype else b.cast(x, dtype=dtype)


def pair(b: Builder, x: Any, y: Any) -> tuple[Value, Value]:
    """Two operands brought to one dtype, as torch promotes."""
    x, y = (scalar(b, x, y), y) if isinstance(y, Value) else (x, scalar(b, y, x))
    a, c = x.type.dtype, y.type.dtype
    best = a if (RANK[a], x.type.rank > 0) >= (RANK[c], y.type.rank > 0) else c
    if not x.type.rank and RANK[a] // 4 == RANK[c] // 4 and y.type.rank:
        best = c  # a zero-dim tensor does not widen its category
    return to(b, x, best), to(b, y, best)


def axis(x: Value, a: int) -> int:
    return a % max(x.type.rank, 1)


def reshape(b: Builder, x: Value, shape: Any) -> Value:
    shape = tuple(shape)
    return x if shape == x.type.shape else b.reshape(x, shape=shape)


# --- elementwise ---------------------------------------------------------------------------------

for _n in ("exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "silu", "relu", "abs", "sin", "cos",
           "floor", "erf", "neg", "reciprocal"):
    ATEN[f"aten.{_n}.default"] = lambda b, x, op=_n: b.emit(op, x)[0]

for _n, _op in {"eq": "equal", "lt": "less", "gt": "greater", "le": "less_equal",
                "ge": "greater_equal"}.items():
    for _v in ("Tensor", "Scalar"):
        ATEN[f"aten.{_n}.{_v}"] = lambda b, x, y, op=_op: b.emit(op, *pair(b, x, y))[0]

for _n, _op in {"maximum.default": "maximum", "minimum.default": "minimum", "mul.Tensor": "mul",
                "mul.Scalar": "mul", "remainder.Scalar": "mod",
                "remainder.Tensor": "mod"}.items():
    ATEN[f"aten.{_n}"] = lambda b, x, y, op=_op: b.emit(op, *pair(b, x, y))[0]

for _n, _op in {"add": "add", "sub": "sub"}.items():

    def _addsub(b: Builder, x: Any, y: Any, alpha: float = 1, op: str = _op) -> Value:
        if alpha != 1:
            y = b.mul(*pair(b, y, alpha)) if isinstance(y, Value) else y * alpha
        return b.emit(op, *pair(b, x, y))[0]

    aten(f"{_n}.Tensor", f"{_n}.Scalar")(_addsub)


ATEN["aten.rsub.Scalar"] = lambda b, x, y, alpha=1: ATEN["aten.sub.Tensor"](b, y, x, alpha)


@aten("ne.Tensor", "ne.Scalar")
def ne(b: Builder, x: Value, y: Any) -> Value:
    return getattr(b, "not")(b.equal(*pair(b, x, y)))


@aten("div.Tensor", "div.Scalar", "div.Tensor_mode")
def div(b: Builder, x: Value, y: Any, rounding_mode: str | None = None) -> Value:
    x, y = pair(b, x, y)
    if rounding_mode == "trunc":
        raise ArcError("division towards zero has no meaning here", hint="use rounding_mode=floor")
    if rounding_mode == "floor" and x.type.dtype[0] == "i":
        return b.div(x, y)
    if rounding_mode is None and x.type.dtype[0] in "iu":
        x, y = b.cast(x, dtype="f32"), b.cast(y, dtype="f32")
    out = b.div(x, y)
    return b.floor(out) if rounding_mode == "floor" else out


@aten("floor_divide.default")
def floor_divide(b: Builder, x: Value, y: Any) -> Value:
    return div(b, x, y, "floor")


@aten("pow.Tensor_Scalar", "pow.Tensor_Tensor")
def power(b: Builder, x: Value, y: Any) -> Value:
    return b.mul(x, x) if y == 2 else b.pow(*pair(b, x, y))


@aten("square.default")
def square(b: Builder, x: Value) -> Value:
    return b.mul(x, x)


@aten("gelu.default")
def gelu(b: Builder, x: Value, approximate: str = "none") -> Value:
    return b.gelu(x, approximate=approximate == "tanh")


@aten("clamp.default")
def clamp(b: Builder, x: Value, min: Any = None, max: Any = None) -> Value:
    return b.clip(x, lo=min, hi=max)


@aten("clamp_min.default")
def clamp_min(b: Builder, x: Value, min: Any) -> Value:
    return b.clip(x, lo=min)


@aten("where.self")
def where(b: Builder, c: Value, x: Any, y: Any) -> Value:
    return b.where(c, *pair(b, x, y))


@aten("where.ScalarSelf", "where.ScalarOther")
def where_scalar(b: Builder, c: Value, x: Any, y: Any) -> Value:
    return b.where(c, *pair(b, x, y))


@aten("where.Scalar")
def where_numbers(b: Builder, c: Value, x: Any, y: Any) -> Value:
    dtype = "f32" if isinstance(x, float) or isinstance(y, float) else "i64"
    x, y = (b.const(dtype=dtype, value=v) for v in (x, y))
    return b.where(c, x, y)


@aten("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(b: Builder, x: Value, mask: Value, value: Any) -> Value:
    return b.where(mask, scalar(b, value, x), x)


@aten("logical_not.default", "bitwise_not.default")
def logical_not(b: Builder, x: Value) -> Value:
    return getattr(b, "not")(to(b, x, "bool"))


@aten("logical_and.default", "bitwise_and.Tensor", "__and__.Tensor")
def logical_and(b: Builder, x: Value, y: Value) -> Value:
    return getattr(b, "and")(x, y)


@aten("logical_or.default", "bitwise_or.Tensor", "__or__.Tensor")
def logical_or(b: Builder, x: Value, y: Value) -> Value:
    return getattr(b, "or")(x, y)


@aten("to.dtype", "_to_copy.default", "to.dtype_layout", "to.device")
def convert(b: Builder, x: Value, *args: Any, dtype: str | None = None, **_: Any) -> Value:
    for a in args:
        dtype = a if isinstance(a, str) and a in RANK else dtype
    return to(b, x, dtype) if dtype else x


@aten("clone.default", "contiguous.default", "detach.default", "alias.default", "dropout.default",
      "lift_fresh_copy.default", "detach_.default", "native_dropout.default")
def identity(b: Builder, x: Value, *_: Any, **__: Any) -> Value:
    return x


# --- constants -----------------------------------------------------------------------------------


def _filled(b: Builder, shape: Any, value: Any, dtype: str) -> Value:
    return b.full(dtype=dtype, shape=tuple(shape), value=value)


@aten("full.default")
def full(b: Builder, shape: Any, value: Any, dtype: str = "f32", **_: Any) -> Value:
    return _filled(b, shape, value, dtype)


@aten("zeros.default")
def zeros(b: Builder, shape: Any, dtype: str = "f32", **_: Any) -> Value:
    return _filled(b, shape, 0, dtype)


@aten("ones.default")
def ones(b: Builder, shape: Any, dtype: str = "f32", **_: Any) -> Value:
    return _filled(b, shape, 1, dtype)


@aten("zeros_like.default")
def zeros_like(b: Builder, x: Value, **kw: Any) -> Value:
    return _filled(b, x.type.shape, 0, kw.get("dtype") or x.type.dtype)


@aten("ones_like.default")
def ones_like(b: Builder, x: Value, **kw: Any) -> Value:
    return _filled(b, x.type.shape, 1, kw.get("dtype") or x.type.dtype)


@aten("full_like.default")
def full_like(b: Builder, x: Value, value: Any, **kw: Any) -> Value:
    return _filled(b, x.type.shape, value, kw.get("dtype") or x.type.dtype)


@aten("arange.default", "arange.start")
def arange(b: Builder, *args: Any, dtype: str | None = None, **_: Any) -> Value:
    start, end = (0, args[0]) if len(args) == 1 else args[:2]
    out = b.arange(dtype=dtype or "i64", shape=(dims.add(end, start, -1),))
    return out if start == 0 else b.add(out, scalar(b, start, out))


# --- shape ---------------------------------------------------------------------------------------


@aten("view.default", "reshape.default", "_unsafe_view.default")
def view(b: Builder, x: Value, shape: Any) -> Value:
    if -1 in shape:
        known = dims.product(d for d in shape if d != -1)
        rest = dims.divide(dims.product(x.type.shape), known)
        shape = [rest if d == -1 else d for d in shape]
    return reshape(b, x, shape)


@aten("unsqueeze.default")
def unsqueeze(b: Builder, x: Value, dim: int) -> Value:
    at = dim % (x.type.rank + 1)
    return reshape(b, x, (*x.type.shape[:at], 1, *x.type.shape[at:]))


@aten("squeeze.dim", "squeeze.dims")
def squeeze(b: Builder, x: Value, dim: Any) -> Value:
    gone = {axis(x, d) for d in (dim if isinstance(dim, list) else [dim])}
    return reshape(b, x, [d for i, d in enumerate(x.type.shape) if i not in gone or d != 1])


@aten("flatten.using_ints")
def flatten(b: Builder, x: Value, start: int = 0, end: int = -1) -> Value:
    lo, hi = axis(x, start), axis(x, end)
    middle = dims.product(x.type.shape[lo : hi + 1])
    return reshape(b, x, (*x.type.shape[:lo], middle, *x.type.shape[hi + 1 :]))


@aten("unflatten.int")
def unflatten(b: Builder, x: Value, dim: int, sizes: Any) -> Value:
    at = axis(x, dim)
    return view(b, x, [*x.type.shape[:at], *sizes, *x.type.shape[at + 1 :]])


@aten("transpose.int")
def transpose(b: Builder, x: Value, i: int, j: int) -> Value:
    perm = list(range(x.type.rank))
    i, j = axis(x, i), axis(x, j)
    perm[i], perm[j] = perm[j], perm[i]
    return b.transpose(x, perm=tuple(perm))


@aten("permute.default")
def permute(b: Builder, x: Value, perm: Any) -> Value:
    return b.transpose(x, perm=tuple(axis(x, p) for p in perm))


@aten("t.default", "numpy_T.default")
def t(b: Builder, x: Value) -> Value:
    return b.transpose(x, perm=(1, 0)) if x.type.rank == 2 else x


@aten("expand.default")
def expand(b: Builder, x: Value, shape: Any, implicit: bool = False) -> Value:
    lead = len(shape) - x.type.rank
    full_shape = tuple(x.type.shape[i - lead] if d == -1 else d for i, d in enumerate(shape))
    return x if full_shape == x.type.shape else b.expand(x, shape=full_shape)


@aten("repeat.default")
def repeat(b: Builder, x: Value, times: Any) -> Value:
    x = reshape(b, x, (*[1] * (len(times) - x.type.rank), *x.type.shape))
    for i, n in enumerate(times):
        if n != 1:
            s = x.type.shape
            wide = b.expand(reshape(b, x, (*s[:i], 1, *s[i:])), shape=(*s[:i], n, *s[i:]))
            x = reshape(b, wide, (*s[:i], dims.mul(s[i], n), *s[i + 1 :]))
    return x


@aten("cat.default")
def cat(b: Builder, xs: Any, dim: int = 0) -> Value:
    return b.concat(*xs, axis=axis(xs[0], dim))


@aten("stack.default")
def stack(b: Builder, xs: Any, dim: int = 0) -> Value:
    at = dim % (xs[0].type.rank + 1)
    return b.concat(*(unsqueeze(b, x, at) for x in xs), axis=at)


@aten("slice.Tensor")
def slice_(b: Builder, x: Value, dim: int = 0, start: Any = None, end: Any = None,
           step: int = 1) -> Value:
    at, n = axis(x, dim), x.type.shape[axis(x, dim)]
    start = start or 0
    if end == n or (isinstance(end, int) and end >= (n if isinstance(n, int) else 1 << 31)):
        end = None
    if not isinstance(start, int) or not isinstance(end, int | None):
        raise ArcError(f"a slice from {start} to {end} is symbolic", hint="use arc::tail")
    return x if (start, end, step) == (0, None, 1) else b.slice(
        x, axis=at, start=start, stop=end, step=step)


@aten("select.int")
def select(b: Builder, x: Value, dim: int, index: int) -> Value:
    at = axis(x, dim)
    one = b.slice(x, axis=at, start=index, stop=None if index == -1 else index + 1)
    return reshape(b, one, (*x.type.shape[:at], *x.type.shape[at + 1 :]))


@aten("split.Tensor")
def split(b: Builder, x: Value, size: int, dim: int = 0) -> list[Value]:
    n = x.type.shape[axis(x, dim)]
    sizes = [min(size, n - i) for i in range(0, n, size)]  # type: ignore[operator,arg-type]
    return split_sizes(b, x, sizes, dim)


@aten("split_with_sizes.default")
def split_sizes(b: Builder, x: Value, sizes: Any, dim: int = 0) -> list[Value]:
    return [x] if len(sizes) == 1 else list(b.emit("split", x, axis=axis(x, dim),
                                                   sizes=tuple(sizes)))


@aten("chunk.default")
def chunk(b: Builder, x: Value, count: int, dim: int = 0) -> list[Value]:
    n = x.type.shape[axis(x, dim)]
    return split(b, x, -(-n // count), dim)  # type: ignore[operator]


@aten("unbind.int")
def unbind(b: Builder, x: Value, dim: int = 0) -> list[Value]:
    n = x.type.shape[axis(x, dim)]
    return [select(b, x, dim, i) for i in range(n)]  # type: ignore[arg-type]


@aten("constant_pad_nd.default", "pad.default")
def pad(b: Builder, x: Value, pads: Any, *rest: Any, mode: str = "constant",
        value: float = 0.0) -> Value:
    """rest: the value, or the mode and then the value."""
    numbers = [r for r in rest if isinstance(r, int | float)]
    modes = {mode, *(r for r in rest if isinstance(r, str))} - {"constant"}
    if modes or min(pads) < 0:
        raise ArcError(f"padding {pads} by {', '.join(modes) or 'constants'} has no meaning here",
                       hint="pad by constants, crop by slices")
    each = [(pads[2 * i], pads[2 * i + 1]) for i in range(len(pads) // 2)]
    full_pads = [(0, 0)] * (x.type.rank - len(each)) + each[::-1]
    return b.pad(x, pads=tuple(full_pads), value=float(numbers[0]) if numbers else value or 0.0)
