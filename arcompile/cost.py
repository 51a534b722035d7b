"""What a program costs: flops, bytes moved and cache traffic per step, from the IR alone.

Weights are read once per graph run; a cache is read up to its last filled slot, never whole. What
depends on weights only is computed when the engine is built and is free here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

from arcompile import dims
from arcompile.dims import Dim
from arcompile.ir import DTYPES, Graph, Node, Value
from arcompile.program import Program
from arcompile.walk import Run, Shape, Sizes, guided_rows, walk
from arcompile.weights import used


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating-point operations, and bytes moved: weights, activations, cache."""

    flops: int = 0
    weights: int = 0
    activations: int = 0
    cache: int = 0

    @property
    def bytes(self) -> int:
        return self.weights + self.activations + self.cache

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.weights + other.weights,
                    self.activations + other.activations, self.cache + other.cache)

    def __mul__(self, n: int) -> Cost:
        return Cost(self.flops * n, self.weights * n, self.activations * n, self.cache * n)


# --- one node ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _At:
    """A node with its sizes filled in. `context`: cache slots the last query sees, None: all."""

    node: Node
    sizes: Sizes
    context: int | None

    def shape(self, v: Value) -> Shape:
        return tuple(dims.value(d, self.sizes) for d in v.type.shape)

    def count(self, v: Value) -> int:
        return prod(self.shape(v))

    def nbytes(self, v: Value) -> int:
        return self.count(v) * DTYPES[v.type.dtype]

    def visible(self, cache: Value) -> int:
        slots = self.shape(cache)[2]
        return slots if self.context is None else min(slots, self.context)


# Flops per element of the first result, where it is not one.
PER_ELEMENT = {
    "rope": 3, "layer_norm": 8, "group_norm": 8, "group_norm_silu": 12, "rms_norm": 4,
    "residual_norm": 5, "l2_norm": 3,
    "softmax": 5, "silu": 4, "sigmoid": 4, "swiglu": 5, "gelu": 8, "draw": 3, "filter_logits": 8,
    "quantize_rows": 4, "fake_quantize": 4,
    **dict.fromkeys(("reshape", "transpose", "expand", "concat", "slice", "split", "pad", "tail",
                     "gather", "take_along", "put_along", "cache_append", "const", "arange", "full",
                     "cast", "upsample"), 0),
}
PER_INPUT = ("sum", "mean", "max", "min", "argmax", "topk")  # one flop for each element read


def _matmul(at: _At) -> int:
    return 2 * at.count(at.node.outs[0]) * at.shape(at.node.args[0])[-1]


def _conv2d(at: _At) -> int:
    return 2 * at.count(at.node.outs[0]) * prod(at.shape(at.node.args[1])[1:])


def _conv_last(at: _At) -> int:
    """Packed weights: [sets, panels, k, k, words, width, per]."""
    _, _, kh, kw, words, _, per = at.shape(at.node.args[1])
    return 2 * at.count(at.node.outs[0]) * kh * kw * words * per


def _norm_conv_last(at: _At) -> int:
    return 12 * at.count(at.node.args[0]) + _conv_last(at)


def _resize(at: _At) -> int:
    taps = {"bicubic": 4, "bilinear": 2}.get(at.node.attrs["mode"], 1)
    return 4 * taps * at.count(at.node.outs[0])


def _attention(at: _At, k: int = 1, v: int = 2) -> int:
    """Two products and a softmax over the pairs (query, visible key)."""
    q, keys, values = (at.node.args[i] for i in (0, k, v))
    heads, group = at.node.attrs["heads"], at.node.attrs["kv_heads"]
    rows, s, width = at.shape(q)
    seen = at.visible(keys) if keys.type.rank == 4 else at.shape(keys)[1]
    pairs = s * seen
    if at.node.attrs.get("mask") == "causal":
        pairs -= s * (s - 1) // 2
    out = at.shape(values)[3] if values.type.rank == 4 else at.shape(values)[2] // group
    return rows * heads * pairs * (2 * width // heads + 2 * out + 5)


def _decode_attention(at: _At) -> int:
    spun = at.count(at.node.args[0]) + at.count(at.node.args[1])
    return 3 * spun + _attention(at, 3, 4)


def _kv_attend(at: _At) -> int:
    q, kc = at.node.args[0], at.node.args[3]
    rows, s, width = at.shape(q)
    heads, pairs = at.node.attrs["heads"], s * (_held(at) + s)
    if at.node.attrs.get("mask") == "causal":
        pairs -= s * (s - 1) // 2
    return rows * heads * pairs * (2 * width // heads + 2 * at.shape(kc)[3] + 5)


def _held(at: _At) -> int:
    """Slots that a cache holds before a step appends its own, as far as the cost model knows:
    all there were, or all there is room for."""
    room, s = at.shape(at.node.args[3])[2], at.shape(at.node.args[0])[1]
    return room if at.context is None else min(room, at.context - s)


def _kv_bytes(at: _At, times: int) -> int:
    """Both caches, so often."""
    return times * sum(at.shape(v)[0] * at.shape(v)[1] * at.shape(v)[3] * _held(at) * DTYPES[
        v.type.dtype] for v in at.node.args[3:5])


FLOPS: dict[str, Callable[[_At], int]] = {
    "kv_attend": _kv_attend, "kv_update": lambda at: 0, "kv_drop": lambda at: 0,
    "kv_watch": lambda at: 2 * at.count(at.node.args[2]),
    "conv2d": _conv2d, "conv2d_int8": _conv2d, "resize": _resize, "attention": _attention,
    "decode_attention": _decode_attention, "conv_last": _conv_last,
    "norm_conv_last": _norm_conv_last, "linear_int8": _matmul,
    **dict.fromkeys(("matmul", "matmul_int8", "matmul_blocks", "matmul_columns"), _matmul),
}


def _flops(at: _At) -> int:
    op = at.node.op
    if op in FLOPS:
        return FLOPS[op](at)
    if op in PER_INPUT:
        return at.count(at.node.args[0])
    return PER_ELEMENT.get(op, 1) * at.count(at.node.outs[0])


FREE = ("reshape", "const")
ROWS = {"gather": (0,), "take_along": (0,), "rope": (1, 2), "tail": (0,), "slice": (0,),
        "decode_attention": (6, 7)}  # operands of which only some rows are read


def _bytes(at: _At, constant: Mapping[Value, int]) -> tuple[int, int, int]:
    """(weights, activations, cache) bytes a node moves."""
    n = at.node
    if n.op in FREE:
        return 0, 0, 0
    caches = {v for v in (*n.args, *n.outs) if n.op in CACHED and v.type.rank == 4}
    partial = {n.args[i] for i in ROWS.get(n.op, ()) if i < len(n.args)}
    weights = activations = 0
    for a in dict.fromkeys(n.args):
        if a in caches:
            continue
        if a in partial:
            activations += _rows(at, a)
        elif a in constant:
            weights += constant[a]
        else:
            activations += at.nbytes(a)
    activations += sum(at.nbytes(v) for v in n.outs if v not in caches)
    return weights, activations, CACHED[n.op](at) if caches else 0


def _rows(at: _At, table: Value) -> int:
    """What is read of a table: as much as is put out, or a row for each query of a rotation."""
    n = at.node
    if n.op not in ("rope", "decode_attention"):
        return at.count(n.outs[0]) * DTYPES[table.type.dtype]
    rows, s, _ = at.shape(n.args[0])
    return rows * s * at.shape(table)[1] * DTYPES[table.type.dtype]


def _appended(at: _At, cache: int, new: int) -> int:
    return at.count(at.node.args[new]) * DTYPES[at.node.args[cache].type.dtype]


def _read(at: _At, *operands: int) -> int:
    """Bytes of the visible slots of those operands that are caches [r,g,S,e]."""
    total = 0
    for v in (at.node.args[i] for i in operands):
        if v.type.rank == 4:
            r, g, _, e = at.shape(v)
            total += r * g * at.visible(v) * e * DTYPES[v.type.dtype]
    return total


CACHED: dict[str, Callable[[_At], int]] = {
    "cache_append": lambda at: _appended(at, 0, 1),
    "attention": lambda at: _read(at, 1, 2),
    "decode_attention": lambda at: _read(at, 3, 4) + _appended(at, 3, 1) + _appended(at, 4, 2),
    "kv_attend": lambda at: _kv_bytes(at, 3),  # read, and written and read behind one another
    "kv_update": lambda at: _kv_bytes(at, 1),
    "kv_watch": lambda at: _read(at, 2),
    "kv_drop": lambda at: 2 * _read(at, 0, 1),
}


def node_cost(node: Node, sizes: Sizes, context: int | None = None,
              constant: Mapping[Value, int] | None = None) -> Cost:
    """What one run of `node` costs. constant: see `constants`; by default the weights it reads."""
    at = _At(node, sizes, context)
    if constant is None:
        constant = {a: a.type.nbytes() for a in node.args if a.is_weight}
    return Cost(_flops(at), *_bytes(at, constant))


# --- graphs --------------------------------------------------------------------------------------


@lru_cache(64)
def constants(g: Graph) -> dict[Value, int]:
    """Values that are the same in every run, and the bytes they keep in memory.

    They are the weights and what is made of weights alone; literals keep nothing.
    """
    found = {w: w.type.nbytes() for w in g.weights}
    for n in g.nodes:
        fixed = all(isinstance(d, int) for v in n.outs for d in v.type.shape)
        if fixed and all(a in found for a in n.args):
            heavy = any(found[a] for a in n.args)
            found.update({v: v.type.nbytes() if heavy else 0 for v in n.outs})
    return found


def graph_cost(g: Graph, sizes: Sizes, context: int | None = None) -> Cost:
    """What one run of `g` costs; `context` is the number of cache slots its last query sees."""
    constant, total = constants(g), Cost()
    for n in g.nodes:
        if n.outs[0] not in constant:
            total += node_cost(n, sizes, context, constant)
    return total


# --- programs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepCost:
    """One step (`prompt` and `finish` are steps too): what runs, on what, and what it costs."""

    name: str
    calls: tuple[str, ...]
    query: int
    commit: int
    context: int
    cost: Cost


@dataclass(frozen=True)
class ProgramCost:
    """The steps in order, and the sizes that stay in memory: weights (once) and state, in bytes."""

    steps: list[StepCost] = field(default_factory=list)
    weights: int = 0
    state: int = 0

    @property
    def total(self) -> Cost:
        return sum((s.cost for s in self.steps), Cost())


def program_cost(p: Program, batch: int = 1, guided: bool = True,
                 committed: float = 1.0) -> ProgramCost:
    """Every step's cost for `batch` images, twice the rows when guided. committed: see `walk`."""
    each = Graphs()
    steps = [StepCost(t.name, tuple(map(str, t.calls)), t.query, t.commit, t.context,
                      sum((each.cost(run) for run in t.runs), Cost()))
             for t in walk(p, batch, guided, committed)]
    weights = sum(v.type.nbytes() for v in used(p.graphs).values())
    sizes = p.sizes(batch, guided_rows(p, batch, guided))
    return ProgramCost(steps, weights, sum(t.nbytes(sizes) for _, t in p.state))


class Graphs:
    """What runs cost; each graph is looked at once for its sizes."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Any, ...], Cost] = {}

    def cost(self, run: Run) -> Cost:
        """A graph's cost grows by the same amount with every slot, until a cache is full."""
        g, sizes = run.graph, run.sizes
        full = {dims.value(d, sizes) for d in _slots(g)}
        context = min(run.context, max(full, default=0))
        key = (g, *sorted(sizes.items()))
        if context > min(full, default=0):
            return self._once((*key, context), g, sizes, context) * run.times
        zero = self._once((*key, 0), g, sizes, 0)
        return (zero + (self._once((*key, 1), g, sizes, 1) + zero * -1) * context) * run.times

    def _once(self, key: tuple[Any, ...], g: Graph, sizes: Sizes, context: int) -> Cost:
        if key not in self.seen:
            self.seen[key] = graph_cost(g, sizes, context)
        return self.seen[key]


@lru_cache(64)
def _slots(g: Graph) -> frozenset[Dim]:
    """The sizes of the caches that `g` attends over."""
    return frozenset(a.type.shape[2] for n in g.nodes if n.op in CACHED for a in n.args
                     if a.type.rank == 4)


# --- for people ----------------------------------------------------------------------------------

COLUMNS = ("steps", "calls", "query", "context", "flops", "weights", "activations", "cache")


def table(cost: ProgramCost) -> list[tuple[str, ...]]:
    """Rows of text under COLUMNS: neighbours that run the same are one row, with their sums."""
    rows: list[tuple[str, ...]] = []
    for run in _runs(cost.steps):
        first, last, total = run[0], run[-1], sum((s.cost for s in run), Cost())
        name = first.name if len(run) == 1 else f"{first.name}-{last.name}"
        span = str(last.context) if len(run) == 1 else f"{first.context}-{last.context}"
        rows.append((name, " ".join(first.calls), str(first.query), span, *_figures(total)))
    return [*rows, ("all", "", "", "", *_figures(cost.total))]


def _runs(steps: list[StepCost]) -> list[list[StepCost]]:
    runs: list[list[StepCost]] = []
    for s in steps:
        like = runs and (runs[-1][-1].calls, runs[-1][-1].query) == (s.calls, s.query)
        runs[-1].append(s) if like else runs.append([s])
    return runs


def _figures(c: Cost) -> tuple[str, ...]:
    return (figure(c.flops), *(figure(n, "B") for n in (c.weights, c.activations, c.cache)))


def figure(n: float, of: str = "") -> str:
    """Three digits and a unit: `1.23 G`, `390 MB`."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(n) < 999.5 or unit == "P":
            break
        n /= 1000
    return f"{n:.3g} {unit}{of}".rstrip()
