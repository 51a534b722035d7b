"""Products of few rows, and what follows them in the same kernel: gates, residual sums and norms.

A node that is lowered together with the product it reads leaves that product's own nodes unread;
the emitter drops those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np

from arcompile.ir import Graph, Node, Value
from arcompile.ops.quant import LEVELS, TINY, ZERO
from arcompile.targets.onnx_emit import Emitter, Nodes, lowers
from arcompile.targets.onnx_ops import is_f32, ones

Rows = Callable[[Nodes, str], tuple[str, ...]]
Times = Callable[..., str]


@dataclass(frozen=True)
class Product:
    """x by weights, as our kernel `name` does it, and in standard ops: `rows` prepares x, and
    `times` multiplies that by the weights."""

    name: str
    x: Value
    weights: tuple[Value, ...]
    rows: Rows
    times: Times

    def body(self, e: Nodes, x: str, *weights: str) -> str:
        return self.times(e, *self.rows(e, x), *weights)

    def inputs(self, e: Emitter) -> list[str]:
        return [e.names[v] for v in (self.x, *self.weights)]


def _found(g: Graph, n: Node | None) -> Product | None:
    """The product by a weight that n is, where our kernels know it."""
    if n is None or n.op not in ("matmul", "matmul_int8"):
        return None
    x, w = n.args[0], n.args[1 if n.op == "matmul" else 2]
    if x.type.rank < 2 or w.type.rank != 2 or not w.is_weight or x.is_weight:
        return None
    if n.op == "matmul":
        return Product("Linear", x, (w,), _as_it_is, _matmul_turned) if is_f32(n) else None
    made = g.producer.get(x)
    if made is None or made.op != "quantize_rows" or n.args[1] is not made.outs[1]:
        return None
    return Product("Int8Linear", made.args[0], (w, n.args[3]), quantized, _times_turned)


def turned(graphs: Iterable[Graph]) -> frozenset[str]:
    """The weights that these graphs, of few rows, read by our products alone. Those are stored
    column by column: each thread then reads one stretch of memory from end to end."""
    held: dict[str, bool] = {}
    for g in graphs:
        for w in g.weights:
            products = [_found(g, n) for n in g.users.get(w, ())]
            ours = all(p is not None and p.weights[0] is w for p in products)
            held[w.name] = held.get(w.name, True) and ours and bool(products)
    return frozenset(k for k, ours in held.items() if ours)


def _product(e: Emitter, v: Value) -> Product | None:
    """The product that v is, where our kernel makes it."""
    p = _found(e.g, e.g.producer.get(v))
    return p if p and p.weights[0].name in e.turned else None


def _alone(e: Emitter, v: Value) -> Product | None:
    """The same, where nobody else reads it."""
    read = len(e.g.users.get(v, ())) + sum(r is v for _, r in e.g.results)
    return _product(e, v) if read == 1 else None


# --- the products ---------------------------------------------------------------------------------


def _as_it_is(e: Nodes, x: str) -> tuple[str]:
    return (x,)


def _matmul_turned(e: Nodes, x: str, w: str) -> str:
    return str(e.ms("FusedMatMul", x, w, transB=1))


def quantized(e: Nodes, x: str) -> tuple[str, str]:
    """The scale of each row is known only here, so it is divided away before QuantizeLinear."""
    most = e.op("ReduceMax", e.op("Abs", x), e.const([-1]), keepdims=1)
    scale = e.op("Div", e.op("Max", most, e.float(TINY)), e.float(LEVELS))
    return e.op("QuantizeLinear", e.op("Div", x, scale), e.float(1.0), _zero(e)), scale


def times_int8(e: Nodes, x: str, scale: str, w: str, columns: str) -> str:
    made = e.ms("MatMulIntegerToFloat", x, w, e.float(1.0), columns, _zero(e))
    return str(e.op("Mul", made, scale))


def _times_turned(e: Nodes, x: str, scale: str, w: str, columns: str) -> str:
    return times_int8(e, x, scale, e.op("Transpose", w, perm=[1, 0]), columns)


def _zero(e: Nodes) -> str:
    return e.const(ZERO, np.uint8)


@lowers("quantize_rows")
def quantize_rows(e: Emitter, n: Node, x: list[str]) -> list[str]:
    return list(quantized(e, x[0]))


@lowers("matmul")
def matmul(e: Emitter, n: Node, x: list[str]) -> str:
    p = _product(e, n.outs[0])
    return str(e.kernel(p.name, p.body, *p.inputs(e))) if p else str(e.op("MatMul", *x))


@lowers("matmul_int8")
def matmul_int8(e: Emitter, n: Node, x: list[str]) -> str:
    p = _product(e, n.outs[0])
    return str(e.kernel(p.name, p.body, *p.inputs(e))) if p else times_int8(e, *x)


# --- and what follows them -----------------------------------------------------------------------


@lowers("swiglu")
def swiglu(e: Emitter, n: Node, x: list[str]) -> str:
    gate, up = (_alone(e, v) for v in n.args)
    if gate and up and (gate.name, gate.x) == (up.name, up.x):
        inputs = (*gate.inputs(e), *up.inputs(e)[1:])
        return str(e.kernel(f"Gated{gate.name}", partial(_gated, p=gate), *inputs))
    return str(e.kernel("SwiGLU", _swiglu, *x) if is_f32(n) else _swiglu(e, *x))


def _swiglu(e: Nodes, gate: str, x: str) -> str:
    return str(e.op("Mul", e.ms("QuickGelu", gate, alpha=1.0), x))


def _gated(e: Nodes, x: str, *weights: str, p: Product) -> str:
    rows, each = p.rows(e, x), len(p.weights)
    gate, up = (p.times(e, *rows, *some) for some in (weights[:each], weights[each:]))
    return _swiglu(e, gate, up)


@lowers("residual_norm")
def residual_norm(e: Emitter, n: Node, x: list[str]) -> list[str]:
    x = x if len(x) > 2 else [*x, ones(e, n)]
    if n.args[0].type.rank not in (2, 3):  # the fused op takes no other
        total = e.op("Add", *x[:2])
        return [e.op("SimplifiedLayerNormalization", total, x[2], epsilon=n.attrs["eps"]), total]
    body, eps = partial(_residual_norm, epsilon=n.attrs["eps"]), e.float([n.attrs["eps"]])
    if not is_f32(n):
        return body(e, *x)
    for v, rest in ((n.args[1], x[0]), (n.args[0], x[1])):
        if p := _alone(e, v):
            whole = partial(_normed, p=p, epsilon=n.attrs["eps"])
            return list(e.kernel(f"{p.name}ResidualNorm", whole, *p.inputs(e), rest, x[2], eps))
    return list(e.kernel("ResidualNorm", body, *x, eps))


def _residual_norm(e: Nodes, x: str, y: str, weight: str, eps: str = "", *,
                   epsilon: float) -> list[str]:
    norm, total = e.fresh("norm"), e.fresh("sum")
    e.nodes.append(e.onnx.helper.make_node(
        "SkipSimplifiedLayerNormalization", [x, y, weight], [norm, "", "", total],
        domain="com.microsoft", name=f"{e.where}#{len(e.nodes)}", epsilon=epsilon))
    return [norm, total]


def _normed(e: Nodes, x: str, *more: str, p: Product, epsilon: float) -> list[str]:
    *weights, residual, weight, _ = more
    return _residual_norm(e, residual, p.body(e, x, *weights), weight, epsilon=epsilon)
