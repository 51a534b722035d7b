"""Products of few rows with what stands before and after them, as one call: kernel few_linear.

A decode step is such products and little else, and each waits for its weights alone; a norm, a gate
or a sum as a launch of its own would cost as much as a product.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from arcompile.ir import Graph, Node, Value
from arcompile.targets import torch_kernels
from arcompile.targets.torch_kernels import Fused
from arcompile.targets.torch_ops import TORCH

HALVES = ("f16", "bf16")


@dataclass(frozen=True)
class Product:
    """What is read, by the kernel's names, and the nodes that it stands for."""

    reads: dict[str, Value]
    eps: float
    inside: set[Node]


def pattern(g: Graph, n: Node) -> tuple[Fused, set[Node]] | None:
    """The product that ends with n, whole: one that goes on in a gate or a sum ends there."""
    if n.op == "add":
        return _summed(g, n)
    if n.op not in ("matmul", "swiglu") or (found := _product(g, n)) is None or _goes_on(g, n):
        return None
    return _call(n, found)


def columns(graphs: Iterable[Graph]) -> set[str]:
    """Weights that are multiplied from the right and nothing else: they are kept column by column,
    so that an output's weights lie side by side."""
    kept: dict[str, bool] = {}
    for g in graphs:
        for w in g.weights:
            fine = w.type.dtype in HALVES and w.type.rank == 2 and all(
                n.op == "matmul" and n.args[1] is w for n in g.users.get(w, ()))
            kept[w.name] = kept.get(w.name, True) and fine
    return {name for name, fine in kept.items() if fine}


def _call(n: Node, p: Product) -> tuple[Fused, set[Node]]:
    names = tuple(p.reads)[2:]
    run = partial(few_linear, names=names, eps=p.eps)
    return Fused(run, tuple(p.reads.values()), n.outs, {}, "few_linear"), p.inside - {n}


def _summed(g: Graph, n: Node) -> tuple[Fused, set[Node]] | None:
    for made, y in (n.args, n.args[::-1]):
        last = g.producer.get(made)
        if last is None or last.op not in ("matmul", "swiglu") or not _only(g, made, {n}) or (
                y.type != made.type or y is made):
            continue
        if (found := _product(g, last)) is not None:
            return _call(n, Product({**found.reads, "y": y}, found.eps, found.inside))
    return None


def _goes_on(g: Graph, n: Node) -> bool:
    users = set(g.users.get(n.outs[0], ()))
    if len(users) != 1:
        return False
    (after,) = users
    if after.op == "swiglu":
        return _product(g, after) is not None
    return after.op == "add" and (found := _summed(g, after)) is not None and n in found[1]


def _product(g: Graph, n: Node) -> Product | None:
    parts = [n] if n.op == "matmul" else [p for a in n.args if (p := g.producer.get(a))]
    if not parts or not all(_linear(g, p) for p in parts) or (
            n.op == "swiglu" and (len(parts) != 2 or not all(_only(g, a, {n}) for a in n.args)
                                  or parts[0].args[0] is not parts[1].args[0])):
        return None
    x, inside = parts[0].args[0], {n, *parts}
    reads = dict(zip(("w", "up"), (p.args[1] for p in parts), strict=False))
    norm = g.producer.get(x)
    if norm is not None and norm.op == "rms_norm" and len(norm.args) == 2 and (
            {a.type.dtype for a in norm.args} == {x.type.dtype}) and _only(g, x, inside):
        weight = {"weight": norm.args[1]}
        return Product({"x": norm.args[0], **reads, **weight}, norm.attrs["eps"], {*inside, norm})
    return Product({"x": x, **reads}, 0.0, inside)


def _linear(g: Graph, n: Node) -> bool:
    if n.op != "matmul":
        return False
    x, w = n.args
    return w in g.weights and w.type.rank == 2 and w.type.dtype in HALVES and (
        x.type.dtype == w.type.dtype and x.type.rank >= 2)


def _only(g: Graph, v: Value, users: set[Node]) -> bool:
    """Does nobody else read it?"""
    return set(g.users.get(v, ())) <= users and all(v is not r for _, r in g.results)


def few_linear(t: Any, x: Any, w: Any, *more: Any, names: tuple[str, ...], eps: float) -> Any:
    given = dict(zip(names, more, strict=True))
    (k, n), rows = w.shape, x.numel() // x.shape[-1]
    by_columns = all(m.stride(0) == 1 for m in (w, given.get("up", w)))
    run = torch_kernels.best("few_linear", x, rows=rows, k=k, n=n, has=" ".join(names))
    if run is None or not by_columns:
        return _by_torch(t, x, w, eps=eps, **given)
    if "up" in given:
        given["up"] = given["up"].t()
    if "y" in given:
        given["y"] = given["y"].reshape(rows, n).contiguous()
    out = run(x.reshape(rows, k).contiguous(), w.t(), eps=eps, **given)
    return out.reshape(*x.shape[:-1], n)


def _by_torch(t: Any, x: Any, w: Any, eps: float, up: Any = None, weight: Any = None,
              y: Any = None) -> Any:
    if weight is not None:
        x = torch_kernels.KERNEL["rms_norm"](t, x, weight, eps=eps)
    out = t.matmul(x, w)
    if up is not None:
        out = TORCH["swiglu"](t, out, t.matmul(x, up))
    return out if y is None else out + y
