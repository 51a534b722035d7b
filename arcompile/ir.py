"""One forward pass as data: an immutable SSA graph of tensor ops."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import IRError, did_you_mean

DTYPES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8, "i64": 8, "i32": 4, "i8": 1, "u8": 1, "bool": 1}


@dataclass(frozen=True, slots=True)
class Type:
    """A dtype and a shape; named dims are symbolic: `f16[b,1,768]`."""

    dtype: str
    shape: tuple[Dim, ...]

    @staticmethod
    def parse(text: str) -> Type:
        m = re.fullmatch(r"(\w+)\[([^\[\]]*)\]", text.strip())
        if not m or m[1] not in DTYPES:
            raise IRError(f"not a type: {text!r}", hint="write a type like f16[b,1,768]")
        sizes = m[2].split(",") if m[2].strip() else []
        return Type(m[1], tuple(dims.parse_dim(d.strip()) for d in sizes))

    @property
    def rank(self) -> int:
        return len(self.shape)

    def size(self, sizes: Mapping[str, int] | None = None) -> int:
        """Number of elements."""
        return math.prod(dims.value(d, sizes or {}) for d in self.shape)

    def nbytes(self, sizes: Mapping[str, int] | None = None) -> int:
        return self.size(sizes) * DTYPES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """One tensor. Names that start with `@` are weights, shared by all graphs of a program."""

    name: str
    type: Type

    @property
    def is_weight(self) -> bool:
        return self.name.startswith("@")

    def __str__(self) -> str:
        return self.name if self.is_weight else f"%{self.name}"


@dataclass(frozen=True, eq=False)
class Node:
    op: str
    args: tuple[Value, ...]
    outs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    # `module@file:line > pass > pass`: where it was written and what it came through, for people
    # who look for it; never compared.
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Graph:
    """`params` are inputs by name, `weights` shared constants, `results` named outputs.

    A result that bears the name of a parameter is that parameter's next state; a target may
    update it in place.
    """

    name: str
    params: tuple[Value, ...]
    nodes: tuple[Node, ...]
    results: tuple[tuple[str, Value], ...]
    weights: tuple[Value, ...] = ()

    @cached_property
    def producer(self) -> dict[Value, Node]:
        return {v: n for n in self.nodes for v in n.outs}

    @cached_property
    def users(self) -> dict[Value, list[Node]]:
        found: dict[Value, list[Node]] = {}
        for n in self.nodes:
            for a in n.args:
                found.setdefault(a, []).append(n)
        return found

    def values(self) -> Iterator[Value]:
        yield from self.params
        yield from self.weights
        for n in self.nodes:
            yield from n.outs

    def param(self, name: str) -> Value | None:
        return next((p for p in self.params if p.name == name), None)

    def result(self, name: str) -> Value | None:
        return dict(self.results).get(name)

    def with_nodes(
        self,
        nodes: Iterable[Node],
        results: Iterable[tuple[str, Value]] | None = None,
        weights: Iterable[Value] | None = None,
    ) -> Graph:
        return replace(
            self,
            nodes=tuple(nodes),
            results=self.results if results is None else tuple(results),
            weights=self.weights if weights is None else tuple(weights),
        )

    def __str__(self) -> str:
        from arcompile.text import show_graph

        return show_graph(self)


# --- ops: the only table that knows what an op means ---------------------------------------------

Infer = Callable[..., "Type | list[Type]"]


@dataclass(frozen=True)
class Op:
    """`infer(*types, **attrs)` is the type rule, `eval(*arrays, **attrs)` the numpy meaning."""

    infer: Infer
    eval: Callable[..., list[Any]]
    commutes: bool = False
    doc: str = ""
    attrs: Mapping[str, bool] = field(default_factory=dict)  # name -> must it be given?

    def types(self, args: Sequence[Value], attrs: Mapping[str, Any]) -> list[Type]:
        for k in attrs:
            if k not in self.attrs:
                raise IRError(f"unknown attribute {k!r}", hint=did_you_mean(k, self.attrs))
        if lacking := [k for k, needed in self.attrs.items() if needed and k not in attrs]:
            raise IRError(f"lacks {', '.join(lacking)}")
        found = self.infer(*(a.type for a in args), **attrs)
        return found if isinstance(found, list) else [found]


OPS: dict[str, Op] = {}


def op(name: str, infer: Infer, *, commutes: bool = False) -> Callable[[Any], Any]:
    """Declare op `name`; the decorated function is its reference semantics.

    The function's keyword-only parameters are the op's attributes. Operands of 16-bit floats are
    widened, and the results rounded once: what the accumulators of every target do.
    """

    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **attrs: Any) -> list[Any]:
            half = "dtype" not in attrs and any(str(a.dtype) == "float16" for a in args)
            out = fn(*(map(_wide, args) if half else args), **attrs)
            found = list(out) if isinstance(out, tuple) else [out]
            return [_narrow(x) for x in found] if half else found

        given = inspect.signature(fn).parameters.values() if inspect.isfunction(fn) else ()
        attrs = {p.name: p.default is p.empty for p in given if p.kind is p.KEYWORD_ONLY}
        OPS[name] = Op(infer, run, commutes, (fn.__doc__ or "").strip(), attrs)
        return fn

    return declare


def _wide(x: Any) -> Any:
    return x.astype("float32") if str(x.dtype) == "float16" else x


def _narrow(x: Any) -> Any:
    return x.astype("float16") if str(x.dtype) == "float32" else x


class Builder:
    """Emit nodes by calling ops: `b.silu(x)`; types are inferred."""

    def __init__(self, name: str, taken: Iterable[str] = ()):
        self.name = name
        self.params: list[Value] = []
        self.weights: dict[str, Value] = {}
        self.nodes: list[Node] = []
        self.origin = ""
        self._taken, self._count = set(taken), 0

    def param(self, name: str, type: str | Type) -> Value:
        v = Value(name, Type.parse(type) if isinstance(type, str) else type)
        self.params.append(v)
        self._taken.add(name)
        return v

    def weight(self, name: str, type: str | Type) -> Value:
        """The weight `@name`; asking twice gives the same value."""
        name = name if name.startswith("@") else f"@{name}"
        t = Type.parse(type) if isinstance(type, str) else type
        return self.weights.setdefault(name, Value(name, t))

    def emit(self, op: str, *args: Value, **attrs: Any) -> tuple[Value, ...]:
        if op not in OPS:
            raise IRError(f"unknown op {op!r}", hint=did_you_mean(op, OPS))
        outs = tuple(Value(self._fresh(), t) for t in OPS[op].types(args, attrs))
        self.nodes.append(Node(op, args, outs, attrs, self.origin))
        return outs

    def __getattr__(self, op: str) -> Callable[..., Any]:
        def call(*args: Value, **attrs: Any) -> Any:
            outs = self.emit(op, *args, **attrs)
            return outs[0] if len(outs) == 1 else outs

        return call

    def graph(self, **results: Value) -> Graph:
        return Graph(
            self.name, tuple(self.params), tuple(self.nodes), tuple(results.items()),
            tuple(self.weights.values()),
        )

    def take(self) -> list[Node]:
        taken, self.nodes = self.nodes, []
        return taken

    def _fresh(self) -> str:
        while (name := str(self._count)) in self._taken:
            self._count += 1
        self._taken.add(name)
        return name


def verify(g: Graph) -> None:
    """Raise IRError unless every value is defined once, before use, with the type its op infers."""
    names: set[str] = set()
    for v in (*g.params, *g.weights):
        if v.name in names:
            raise IRError(f"{v} is declared twice", graph=g)
        names.add(v.name)
    seen: set[Value] = {*g.params, *g.weights}
    for n in g.nodes:
        _verify_node(g, n, seen, names)
    for name, r in g.results:
        if r not in seen:
            raise IRError(f"result {name}={r} is never defined", graph=g)
        was = g.param(name)
        if was is not None and was.type.dtype != r.type.dtype:
            raise IRError(f"state {name} is {was.type} but its next value {r} is {r.type}", graph=g)
    if len(dict(g.results)) != len(g.results):
        raise IRError("two results share a name", graph=g)


def _verify_node(g: Graph, n: Node, seen: set[Value], names: set[str]) -> None:
    if n.op not in OPS:
        raise IRError(f"unknown op {n.op!r}", at=n, graph=g, hint=did_you_mean(n.op, OPS))
    for a in n.args:
        if a not in seen:
            raise IRError(f"{a} is used before it is defined", at=n, graph=g)
    try:
        inferred = OPS[n.op].types(n.args, n.attrs)
    except IRError as e:
        raise IRError(e.what, at=n, graph=g, hint=e.hint) from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as e:
        raise IRError(f"{n.op} does not take these operands: {e}", at=n, graph=g) from None
    if len(inferred) != len(n.outs):
        raise IRError(f"{n.op} has {len(inferred)} results, not {len(n.outs)}", at=n, graph=g)
    for out, want in zip(n.outs, inferred, strict=True):
        if out.type != want:
            raise IRError(f"{out} is {out.type} but {n.op} infers {want}", at=n, graph=g)
        if out.name in names:
            raise IRError(f"{out} is defined twice", at=n, graph=g)
        names.add(out.name)
        seen.add(out)


# --- meaning ------------------------------------------------------------------------------------


def bind(types: Iterable[tuple[str, Type]], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Read the symbols' sizes off actual shapes; raise IRError where they disagree."""
    sizes: dict[str, int] = {}
    for name, t in types:
        got = tuple(shapes[name])
        if len(got) != t.rank:
            raise IRError(f"{name} has shape {list(got)} but is declared {t}")
        for d, n in zip(t.shape, got, strict=True):
            if isinstance(d, str) and d.isidentifier():
                if sizes.setdefault(d, n) != n:
                    raise IRError(f"{name} is {t} with {d}={n}, but elsewhere {d}={sizes[d]}")
            elif isinstance(d, int) and d != n:
                raise IRError(f"{name} has shape {list(got)} but is declared {t}")
    return sizes


def concrete(attrs: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Attributes with the symbolic sizes of `shape` replaced by numbers."""
    if "shape" not in attrs:
        return dict(attrs)
    return {**attrs, "shape": tuple(dims.value(d, sizes) for d in attrs["shape"])}


def evaluate(
    g: Graph, inputs: Mapping[str, Any], weights: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run `g` by its ops' numpy meaning: the oracle every pass and target is checked against.

    inputs: arrays by parameter name; weights: arrays by `@name`. Returns arrays by result name.
    """
    missing = [p.name for p in g.params if p.name not in inputs]
    if missing:
        raise IRError(f"{g.name} lacks inputs: {', '.join(missing)}")
    sizes = bind(((p.name, p.type) for p in g.params), {k: v.shape for k, v in inputs.items()})
    env: dict[Value, Any] = {p: inputs[p.name] for p in g.params}
    env.update({w: (weights or {})[w.name] for w in g.weights})
    last = {a: i for i, n in enumerate(g.nodes) for a in n.args}
    kept = {v for _, v in g.results}
    for i, n in enumerate(g.nodes):
        out = OPS[n.op].eval(*(env[a] for a in n.args), **concrete(n.attrs, sizes))
        env.update(zip(n.outs, out, strict=True))
        for a in set(n.args):
            if last[a] == i and a not in kept:  # free what nobody reads again
                del env[a]
    return {name: env[v] for name, v in g.results}


def dce(g: Graph) -> Graph:
    """Drop nodes and weights nobody reads. The same object when there are none."""
    live, kept = {v for _, v in g.results}, []
    for n in reversed(g.nodes):
        if live.intersection(n.outs):
            kept.append(n)
            live.update(n.args)
    weights = tuple(w for w in g.weights if w in live)
    if len(kept) == len(g.nodes) and len(weights) == len(g.weights):
        return g
    return g.with_nodes(reversed(kept), weights=weights)


def _renamed(n: Node, swap: dict[Value, Value], b: Builder, taken: set[str]) -> Node:
    """`n` with fresh names for those of its results that bear a taken one."""
    swap.update({v: Value(b._fresh(), v.type) for v in n.outs if v.name in taken})
    if not swap:
        return n
    args, outs = (tuple(swap.get(v, v) for v in vs) for vs in (n.args, n.outs))
    return Node(n.op, args, outs, n.attrs, n.origin)


def merge(first: Graph, then: Graph, name: str = "") -> Graph:
    """Run `then` after `first` in one graph; equal names are the same tensor."""
    b = Builder(name or first.name, taken=[v.name for v in first.values()])
    swap: dict[Value, Value] = {}
    params, weights = list(first.params), {w.name: w for w in first.weights}
    own = {p.name for p in then.params} - {p.name for p in first.params}
    nodes = [_renamed(n, swap, b, own) for n in first.nodes]
    made = {name: swap.get(v, v) for name, v in first.results}
    for p in then.params:
        here = made.get(p.name) or first.param(p.name)
        if here is None:
            params.append(here := Value(p.name, p.type))
        swap[p] = here
    for w in then.weights:
        swap[w] = weights.setdefault(w.name, w)
    b._taken.update(p.name for p in params)
    for n in then.nodes:
        args = tuple(swap[a] for a in n.args)
        outs = tuple(Value(b._fresh(), t) for t in OPS[n.op].types(args, n.attrs))
        swap.update(zip(n.outs, outs, strict=True))
        nodes.append(Node(n.op, args, outs, n.attrs, n.origin))
    results = {**made, **{k: swap[v] for k, v in then.results}}
    return Graph(b.name, tuple(params), tuple(nodes), tuple(results.items()),
                 tuple(weights.values()))


import arcompile.ops  # noqa: E402, F401  the table fills itself
