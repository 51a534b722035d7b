"""How to add a node of each op to a graph that grows: one recipe an op, the whole table."""

from __future__ import annotations

from collections.abc import Callable

from fuzz.grow import Grow, Reject

from arcompile import dims
from arcompile.ir import Type, Value

RECIPES: dict[str, Callable[[Grow, str], None]] = {}
FLOATS = ("f32",)
NUMBERS = ("f32", "f32", "i64", "i32")


def recipe(*ops: str):
    def declare(fn):
        RECIPES.update(dict.fromkeys(ops, fn))
        return fn

    return declare


@recipe("neg", "tanh", "sin", "cos", "erf", "silu", "relu", "sigmoid", "floor", "exp", "gelu",
        "softmax", "l2_norm")
def unary(g: Grow, op: str) -> None:
    x = g.pick(*FLOATS)
    more = {"gelu": {"approximate": g.random.random() < 0.5}, "softmax": {"axis": g.axis(x)},
            "l2_norm": {"axis": g.axis(x), "eps": 1e-6}} if x.type.rank else {}
    g.emit(op, x, **more.get(op, {}))


@recipe("abs", "not", "cast", "clip")
def simple(g: Grow, op: str) -> None:
    x = g.pick("bool") if op == "not" else g.pick(*NUMBERS, *(("bool",) if op == "cast" else ()))
    if op == "cast":
        g.emit(op, x, dtype=g.random.choice(("f32", "i64", "i32", "bool", "f32")))
    elif op == "clip":
        lo, hi = g.random.choice(((-1, 1), (0, None), (None, 2), (-2, 0)))
        g.emit(op, x, **({} if lo is None else {"lo": lo}), **({} if hi is None else {"hi": hi}))
    else:
        g.emit(op, x)


def positive(g: Grow, x: Value) -> Value:
    return g.emit("add", g.emit("abs", x)[0], g.const(0.5))[0]


@recipe("log", "sqrt", "rsqrt", "reciprocal")
def of_positive(g: Grow, op: str) -> None:
    g.emit(op, positive(g, g.pick(*FLOATS)))


def partner(g: Grow, x: Value, stem: str = "x") -> Value:
    """Something of x's dtype that broadcasts with it."""
    same = [v for v in g.env if v.type == x.type]
    if same and g.random.random() < 0.5:
        return g.random.choice(same)
    cut = g.random.randint(0, x.type.rank)
    shape = [d if g.random.random() < 0.6 else 1 for d in x.type.shape[cut:]]
    if g.random.random() < 0.2 and stem == "x":
        return g.const(g.random.choice((1, 2, -1, 3)), x.type.dtype)
    return g.leaf(Type(x.type.dtype, tuple(shape)), stem)


@recipe("add", "sub", "mul", "maximum", "minimum", "equal", "less", "greater", "less_equal",
        "greater_equal")
def binary(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    pair = [x, partner(g, x)]
    g.random.shuffle(pair)
    g.emit(op, *pair)


@recipe("and", "or")
def logical(g: Grow, op: str) -> None:
    x = g.pick("bool")
    g.emit(op, x, g.leaf(Type("bool", x.type.shape[-1:])) if x.type.rank else x)


@recipe("div", "mod", "pow")
def dividing(g: Grow, op: str) -> None:
    x = g.pick(*(FLOATS if op == "pow" else NUMBERS))
    x = positive(g, x) if op == "pow" else x
    if op == "pow":
        g.emit(op, x, g.const(g.random.choice((0.5, 2.0, 1.0, -1.0))))
    elif x.type.dtype == "f32":
        g.emit(op, x, partner(g, x, "above"))
    else:
        g.emit(op, x, g.const(g.random.choice((2, 3, 5)), x.type.dtype))


@recipe("where")
def where(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS, "bool")
    y = x if x.type.dtype == "bool" else partner(g, x)
    c = g.pick("bool", fits=lambda v: v.type.rank <= 1 or v.type.shape == x.type.shape)
    g.emit(op, c, x, y)


@recipe("const", "arange", "full")
def made(g: Grow, op: str) -> None:
    dtype = g.random.choice(NUMBERS)
    if op == "const":
        g.const(g.random.choice((0, 1, [1, 2], [[1, 2, 3], [4, 5, 6]])), dtype)
        return
    d = g.random.choice((1, 2, 4, *(d for v in g.b.params for d in v.type.shape)))
    more = {"value": g.random.choice((0, 1, 3))} if op == "full" else {}
    g.emit(op, dtype=dtype, shape=(d, 2) if op == "full" else (d,), **more)


# --- shape ---------------------------------------------------------------------------------------


@recipe("reshape")
def reshape(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS, "bool")
    shape = list(x.type.shape)
    how = g.random.randrange(4)
    if how == 0 and len(shape) > 1:  # two axes become one
        i = g.random.randrange(len(shape) - 1)
        shape[i : i + 2] = [dims.mul(shape[i], shape[i + 1])]
    elif how == 1 and shape:  # one becomes two
        i = g.random.randrange(len(shape))
        if not isinstance(shape[i], int) or shape[i] % 2:
            raise Reject("odd")
        shape[i : i + 1] = [2, shape[i] // 2] if g.random.random() < 0.5 else [shape[i] // 2, 2]
    elif how == 2:
        shape.insert(g.random.randint(0, len(shape)), 1)
    else:
        shape = [d for d in shape if d != 1]
    g.emit(op, x, shape=tuple(shape))


@recipe("transpose")
def transpose(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    perm = list(range(x.type.rank))
    g.random.shuffle(perm)
    g.emit(op, x, perm=tuple(perm))


@recipe("expand")
def expand(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    here = [d for v in g.b.params for d in v.type.shape] or [2]
    shape = [g.random.choice((2, 3, g.random.choice(here))) if d == 1 else d for d in x.type.shape]
    lead = [g.random.choice((2, g.random.choice(here)))] if g.random.random() < 0.4 else []
    g.emit(op, x, shape=(*lead, *shape))


@recipe("concat")
def concat(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    axis = g.axis(x)
    def fits(v: Value) -> bool:
        a = axis % x.type.rank
        return v.type.dtype == x.type.dtype and v.type.rank == x.type.rank and all(
            i == a or d == e for i, (d, e) in enumerate(zip(v.type.shape, x.type.shape,
                                                            strict=True)))

    mates = [v for v in g.env if fits(v)]
    g.emit(op, *(g.random.choice(mates) for _ in range(g.random.randint(1, 3))), axis=axis)


@recipe("slice")
def slice_(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS, "bool")
    axis = g.axis(x)
    d = x.type.shape[axis]
    n = d if isinstance(d, int) else dims.value(d, g.sizes)
    start = g.random.randint(-n, n)
    stop = g.random.choice((None, g.random.randint(-n, n)))
    step = g.random.choice((1, 1, 2, -1)) if isinstance(d, int) else 1
    more = {**({} if stop is None else {"stop": stop}), **({} if step == 1 else {"step": step})}
    g.emit(op, x, axis=axis, start=start, **more)
    if 0 in g.env[g.b.nodes[-1].outs[0]].shape:
        drop(g)


def drop(g: Grow) -> None:
    """Take the last node back."""
    for v in g.b.nodes.pop().outs:
        for held in (g.env, g.wide):
            held.pop(v)
        g.exact.discard(v)
    raise Reject("empty")


@recipe("split")
def split(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    axis = g.axis(x, known=True)
    n = x.type.shape[axis]
    if n < 2:
        raise Reject("short")
    first = g.random.randint(1, n - 1)
    g.emit(op, x, axis=axis, sizes=(first, n - first))


@recipe("pad")
def pad(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    pads = tuple((g.random.randint(0, 2), g.random.randint(0, 1)) for _ in x.type.shape)
    g.emit(op, x, pads=pads, **g.random.choice(({}, {"value": 2})))


@recipe("tail")
def tail(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    axis = g.axis(x)
    at = axis % x.type.rank

    def fits(v: Value) -> bool:
        return v.type.rank > at and g.env[v].shape[at] <= g.env[x].shape[at]

    g.emit(op, x, g.pick(*NUMBERS, fits=fits), axis=at)


def index(g: Grow, shape, below: int) -> Value:
    return g.leaf(Type(g.random.choice(("i64", "i64", "i32")), tuple(shape)), f"below{below}",
                  weight=False)


@recipe("gather")
def gather(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    axis = g.axis(x)
    g.emit(op, x, index(g, g.some_shape(g.random.randint(0, 2)), g.env[x].shape[axis]), axis=axis)


@recipe("take_along", "put_along")
def along(g: Grow, op: str) -> None:
    x = g.pick(*NUMBERS)
    axis = g.axis(x)
    shape = list(x.type.shape)
    shape[axis] = 1 if op == "put_along" else g.random.choice((1, 2, 3))  # 1: none is put twice
    at = index(g, shape, g.env[x].shape[axis])
    more = (g.leaf(Type(x.type.dtype, tuple(shape))),) if op == "put_along" else ()
    g.emit(op, x, at, *more, axis=axis)


@recipe("sum", "mean", "max", "min")
def reduce(g: Grow, op: str) -> None:
    x = g.pick(*(FLOATS if op == "mean" else NUMBERS), fits=lambda v: v.type.rank > 0)
    axes = sorted(g.random.sample(range(x.type.rank), g.random.randint(1, max(1, x.type.rank))))
    axes = [a - g.random.choice((0, x.type.rank)) for a in axes]
    g.emit(op, x, axes=tuple(axes), keepdims=g.random.random() < 0.5)


@recipe("argmax", "topk", "cumsum")
def along_one(g: Grow, op: str) -> None:
    x = g.pick(*(NUMBERS if op != "topk" else ("f32", "i64")))
    axis = g.axis(x)
    more = {"topk": {"k": g.random.randint(1, g.env[x].shape[axis])},
            "cumsum": {"exclusive": g.random.random() < 0.3}}
    g.emit(op, x, axis=axis, **more.get(op, {}))


# --- nets ----------------------------------------------------------------------------------------


@recipe("matmul")
def matmul(g: Grow, op: str) -> None:
    x = g.pick("f32", fits=lambda v: v.type.rank >= 2)
    wide = g.random.choice((1, 4, 8, 16))
    lead = x.type.shape[:-2] if g.random.random() < 0.2 else ()
    g.emit(op, x, g.leaf(Type("f32", (*lead, x.type.shape[-1], wide))))


@recipe("layer_norm", "rms_norm")
def norm(g: Grow, op: str) -> None:
    x = g.pick("f32", fits=lambda v: v.type.rank and isinstance(v.type.shape[-1], int))
    count = g.random.randint(0, 2 if op == "layer_norm" else 1)
    t = Type("f32", x.type.shape[-1:])
    g.emit(op, x, *(g.leaf(t) for _ in range(count)), eps=g.random.choice((1e-5, 1e-6, 1e-3)))


@recipe("residual_norm", "swiglu")
def pairs(g: Grow, op: str) -> None:
    x = g.pick("f32", fits=lambda v: v.type.rank and isinstance(v.type.shape[-1], int))
    y = g.random.choice([v for v in g.env if v.type == x.type])
    if op == "swiglu":
        g.emit(op, x, y)
    else:
        g.emit(op, x, y, g.leaf(Type("f32", x.type.shape[-1:])), eps=1e-5)


def image(g: Grow, channels=(2, 4, 8)) -> Value:
    known = [v for v in g.env if v.type.dtype == "f32" and v.type.rank == 4
             and all(isinstance(d, int) for d in v.type.shape[1:]) and v.type.shape[1] in channels]
    if known and g.random.random() < 0.7:
        return g.random.choice(known)
    side = g.random.choice((2, 3, 4, 6))
    return g.leaf(Type("f32", (g.random.choice(("b", 1, 2)), g.random.choice(channels), side,
                               g.random.choice((side, 4)))), weight=False)


@recipe("group_norm", "group_norm_silu")
def group_norm(g: Grow, op: str) -> None:
    x = image(g)
    t = Type("f32", (x.type.shape[1],))
    g.emit(op, x, g.leaf(t), g.leaf(t), groups=g.random.choice((1, 2)), eps=1e-5)


@recipe("conv2d")
def conv2d(g: Grow, op: str) -> None:
    x = image(g)
    c, kernel = x.type.shape[1], g.random.choice((1, 2, 3))
    groups = g.random.choice((1, 1, 2, c))
    out = groups * g.random.choice((1, 2))
    w = g.leaf(Type("f32", (out, c // groups, kernel, kernel)), weight=True)
    bias = [g.leaf(Type("f32", (out,)))] if g.random.random() < 0.5 else []
    pads = g.random.choice(((0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 2, 0)))
    g.emit(op, x, w, *bias, stride=g.random.choice((1, 1, 2)), pads=pads, groups=groups)


@recipe("upsample", "resize")
def resample(g: Grow, op: str) -> None:
    x = image(g)
    if op == "upsample":
        g.emit(op, x, factor=g.random.choice((1, 2, 3)))
    else:
        g.emit(op, x, size=(g.random.randint(1, 7), g.random.randint(1, 7)),
               mode=g.random.choice(("bicubic", "bilinear", "area")))
