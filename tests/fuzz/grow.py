"""Random well-typed graphs that are meaningful: every node is run by its numpy meaning as it is
added, and taken back when it leaves the ordinary numbers or hangs on the last bit of one.

A graph's inputs follow from its text (see `inputs`), so that a graph alone is a whole test.
"""

from __future__ import annotations

import zlib
from random import Random

import numpy as np

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.ir import OPS, Builder, Node, Type, Value, concrete, evaluate
from arcompile.ops.tensor import NUMPY

LARGEST = 1e3  # of a value a graph may hold
CELLS = 1 << 14  # of a tensor
SYMBOLS = ("b", "r", "s", "c", "t")
SHARE = ("noise", "share")  # names of numbers in [0, 1)


class Reject(Exception):
    """This node cannot stand here; try another."""


def sizes_of(text: str) -> dict[str, int]:
    """What the symbols stand for: small, different for different graphs, never all equal."""
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    found = dict(zip(SYMBOLS, map(int, rng.integers(1, 4, len(SYMBOLS))), strict=True))
    return {**found, "t": found["t"] + 3}


def array(name: str, t: Type, sizes: dict[str, int]) -> np.ndarray:
    """A value for an input or weight, by its name: `below5_2` holds integers in [0, 5), `noise`
    and `share` multiples of 2^-23 in [0, 1), `above_1` numbers of at least a half, others are
    normal."""
    shape = tuple(dims.value(d, sizes) for d in t.shape)
    rng = np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))
    word = name.lstrip("@").split("_")[0]
    if t.dtype == "bool":
        found = rng.integers(0, 2, shape).astype(bool)
        found[..., :1] = True
        return found
    if word.startswith("below"):
        return rng.integers(0, int(word[5:]), shape).astype(NUMPY[t.dtype])
    if word.startswith("most"):
        return np.full(shape, int(word[4:])).astype(NUMPY[t.dtype])
    if word in SHARE:
        return (rng.integers(0, 1 << 23, shape) / (1 << 23)).astype(NUMPY[t.dtype])
    if t.dtype[0] in "iu":
        return rng.integers(-4 if t.dtype[0] == "i" else 0, 5, shape).astype(NUMPY[t.dtype])
    found = rng.standard_normal(shape)
    return (np.abs(found) + 0.5 if word == "above" else found).astype(NUMPY[t.dtype])


def inputs(g, sizes=None):
    sizes = sizes or sizes_of(g.name)
    return {p.name: array(p.name, p.type, sizes) for p in g.params}


def weights(vs):
    return {w.name: array(w.name, w.type, {}) for w in vs}


def agree(a, b, tolerance) -> bool:
    """Equal, or floats no further apart than what is tolerated; infinities and NaN alike."""
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return False
    if a.dtype.kind in "iub":
        return bool((a == b).all())
    with np.errstate(invalid="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        return bool(((x == y) | (np.abs(x - y) <= tolerance) | (np.isnan(x) & np.isnan(y))).all())


class Grow:
    """A graph under construction, its values known."""

    def __init__(self, random: Random, name: str):
        self.random, self.b, self.sizes = random, Builder(name), sizes_of(name)
        self.env: dict[Value, np.ndarray] = {}
        self.wide: dict[Value, np.ndarray] = {}  # the same in f64, and from inputs a bit off
        self.exact: set[Value] = set()  # every target has these to the bit
        self.count = 0

    # --- leaves ---

    def shape(self, t: Type) -> tuple[int, ...]:
        return tuple(dims.value(d, self.sizes) for d in t.shape)

    def named(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"

    def leaf(self, t: Type, stem: str = "x", weight: bool | None = None) -> Value:
        """A new input, or a weight where the shape is known."""
        known = all(isinstance(d, int) for d in t.shape)
        weight = known and self.random.random() < 0.5 if weight is None else weight
        name = self.named(stem)
        v = self.b.weight(name, t) if weight else self.b.param(name, t)
        value = array(v.name, t, self.sizes)
        if value.size > CELLS:
            raise Reject("large")
        self._learn(v, value, True)
        return v

    def const(self, value, dtype: str = "f32") -> Value:
        return self.emit("const", dtype=dtype, value=value)[0]

    def _learn(self, v: Value, value, exact: bool) -> None:
        self.env[v] = value
        self.wide[v] = value.astype(np.float64) if value.dtype == np.float32 else value
        if exact:
            self.exact.add(v)

    # --- choices ---

    def pick(self, *dtypes: str, rank: int | None = None, fits=lambda v: True) -> Value:
        """Some value of a dtype; later ones more often. A new leaf where there is none."""
        found = [v for v in self.env if v.type.dtype in dtypes and fits(v)
                 and (rank is None or v.type.rank == rank)]
        if found and self.random.random() < 0.9:
            at = max(self.random.randrange(len(found)), self.random.randrange(len(found)))
            return found[at]
        made = self.leaf(Type(self.random.choice(dtypes), self.some_shape(rank)))
        if not fits(made):
            raise Reject("no such value")
        return made

    def some_shape(self, rank: int | None = None):
        rank = self.random.randint(1, 4) if rank is None else rank
        lead = [self.random.choice(("b", "r", "s", 1, 2, 3, 4)) for _ in range(rank)]
        return tuple([*lead[:-1], self.random.choice((1, 2, 4, 8, 16, "s", "c"))][:rank])

    def axis(self, v: Value, known: bool = False) -> int:
        """One of its axes, counted from either end. Raises Reject where there is none."""
        found = [i for i, d in enumerate(v.type.shape) if isinstance(d, int) or not known]
        if not found:
            raise Reject("no such axis")
        return self.random.choice(found) - self.random.choice((0, v.type.rank))

    # --- nodes ---

    def emit(self, op: str, *args: Value, **attrs) -> tuple[Value, ...]:
        """Add a node. Raises Reject when it is ill-typed or its value is not ordinary."""
        try:
            outs = self.b.emit(op, *args, **attrs)
        except (ArcError, TypeError, ValueError, LookupError):
            raise Reject("type") from None
        try:
            self._evaluate(self.b.nodes[-1])
        except Reject:
            self.b.nodes.pop()
            raise
        return outs

    def _evaluate(self, n: Node) -> None:
        attrs = concrete(n.attrs, self.sizes)
        with np.errstate(all="ignore"):
            try:
                found = OPS[n.op].eval(*(self.env[a] for a in n.args), **attrs)
                wide = OPS[n.op].eval(*(self.wide[a] for a in n.args), **attrs)
            except (ArcError, ArithmeticError, LookupError, ValueError, TypeError):
                raise Reject("meaning") from None
        for v, x in zip(n.outs, found, strict=True):
            if x.shape != self.shape(v.type) or x.size > CELLS:
                raise Reject("size")
            if x.dtype != NUMPY[v.type.dtype]:
                raise AssertionError(f"{n.op} makes {x.dtype} of {v.type}")
            finite = x[np.isfinite(x)] if n.op == "filter_logits" else x
            if x.dtype.kind == "f" and not (np.abs(finite) <= LARGEST).all():
                raise Reject("range")
        exact = n.op in EXACT and all(a in self.exact for a in n.args)
        if not exact:
            self._stable(n, found, attrs)
        self.env.update(zip(n.outs, found, strict=True))
        self.wide.update(zip(n.outs, wide, strict=True))
        self.exact.update(n.outs if exact or _whole(n) else ())

    def _stable(self, n: Node, found, attrs) -> None:
        """What jumps must not be near a jump: it stays the same when operands move a little."""
        if n.op not in JUMPS:
            return
        for sign in (-1, 1, 0):
            args = [self._moved(a, sign) for a in n.args]
            with np.errstate(all="ignore"):
                again = OPS[n.op].eval(*args, **attrs)
            for v, x, y in zip(n.outs, found, again, strict=True):
                loose = 0.0 if v.type.dtype[0] in "iub" or n.op == "floor" else 0.02
                if not agree(x, y, loose * (1 + np.abs(np.nan_to_num(x, posinf=0, neginf=0)))):
                    raise Reject("near a jump")

    def _moved(self, a: Value, sign: int):
        x = self.env[a]
        if a in self.exact or x.dtype != np.float32:
            return x
        by = sign if sign else np.random.default_rng(x.size).choice((-1, 1), x.shape)
        scale = np.abs(x[np.isfinite(x)]).max(initial=0)
        with np.errstate(invalid="ignore"):
            return (x + by * (1e-4 * np.abs(x) + 1e-5 * scale)).astype(x.dtype)


def _whole(n: Node) -> bool:
    """Its results are decisions: integers, or true and false. `_stable` has seen to it."""
    return all(v.type.dtype[0] in "iub" for v in n.outs)


# Copies, integers and comparisons: no rounding, so that ties may be asked about.
EXACT = {"neg", "abs", "not", "and", "or", "maximum", "minimum", "equal", "less", "greater",
         "less_equal", "greater_equal", "where", "const", "arange", "full", "reshape", "transpose",
         "expand", "concat", "slice", "split", "pad", "tail", "gather", "take_along", "put_along",
         "argmax", "topk", "max", "min", "relu", "clip", "upsample", "cache_append", "slide",
         "agree", "floor", "cast"}
# Ops whose result jumps where an operand crosses something.
JUMPS = {"floor", "mod", "cast", "equal", "less", "greater", "less_equal", "greater_equal",
         "argmax", "topk", "draw", "filter_logits", "draw_from", "verify", "quantize_rows", "law",
         "quantize_channels", "quantize_blocks", "conv2d_int8", "nearest", "matmul_blocks",
         "quantize_fp8", "fake_quantize"}


def tolerance(g, given, held, found, rounding: float = 2e-5):
    """By result, how far from `found` is still right: a few of the roundings of f32 at its size,
    and many times what the same graph says in f64, and to inputs moved in the sixth digit."""
    def wide(x, by):
        if x.dtype != np.float32:
            return x
        turn = np.random.default_rng(x.size).choice((-1.0, 1.0), x.shape)
        return x.astype(np.float64) * (1 + by * turn)

    out = {k: rounding * (1 + np.abs(np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0)).max(
        initial=0)) for k, x in found.items()}
    for by in (0.0, 1e-6):
        try:
            with np.errstate(all="ignore"):
                other = evaluate(g, {k: _keep(k, x, wide, by) for k, x in given.items()},
                                 {k: _keep(k, x, wide, by) for k, x in held.items()})
        except (ArcError, ArithmeticError, LookupError, ValueError, TypeError):
            continue
        for k, x in found.items():
            if x.dtype.kind == "f" and other[k].shape == x.shape:
                with np.errstate(invalid="ignore"):
                    gap = other[k].astype(np.float64) - x
                gap = np.abs(np.nan_to_num(gap, posinf=0, neginf=0))
                out[k] = out[k] + 30 * gap.max(initial=0)
    return out


def _keep(name, x, wide, by):
    """Noise is a multiple of 2^-23 and stays one."""
    return x if name.lstrip("@").split("_")[0] in SHARE else wide(x, by)
