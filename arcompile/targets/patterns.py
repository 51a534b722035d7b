"""Patterns of nodes that one kernel is, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from arcompile.ir import Graph, Node, Value


@dataclass(frozen=True)
class Found:
    """What the kernel reads, the attributes it needs, and the nodes that it stands for, less the
    last."""

    args: tuple[Value, ...]
    attrs: Mapping[str, Any]
    inside: set[Node]


def inner(g: Graph, *parts: Node | None) -> set[Node] | None:
    """The parts, when nobody else reads what they make; else None."""
    if any(p is None for p in parts):
        return None
    made = {p for p in parts if p is not None}
    results = {v for _, v in g.results}
    return made if not any(v in results for p in made for v in p.outs) else None


def chain(g: Graph, n: Node) -> Found | None:
    """Guidance, filters and the draw, as sampling.sample_graph says them. Operands: logits, row,
    null_row, scale, temperature, top_k, top_p, most, noise."""
    made = g.producer.get
    if n.op != "draw" or (keep := made(n.args[0])) is None or keep.op != "filter_logits":
        return None
    total = made(keep.args[0])
    parts = dict(_guidance(g, total)) if total is not None and total.op == "add" else {}
    if len(parts) != 7 or keep.args[1] is not n.args[2]:
        return None
    own, null = parts["own"], parts["null"]
    if own.args[0] is not null.args[0] or not _one(g, parts["extra"]):
        return None
    inside = inner(g, keep, total, *(p for k, p in parts.items() if k != "extra"), parts["extra"])
    if inside is None or any(set(g.users[v]) - inside - {n} for p in inside for v in p.outs):
        return None
    logits, row, null_row = own.args[0], own.args[1], null.args[1]
    args = (logits, row, null_row, parts["extra"].args[0], *keep.args[1:], n.args[1])
    return Found(args, {}, inside)


def _guidance(g: Graph, total: Node) -> Iterator[tuple[str, Node]]:
    """The nodes of cond + (scale - 1)(cond - null), by part."""
    made = g.producer.get
    for cond, more in (total.args, total.args[::-1]):
        product, own = made(more), made(cond)
        if product is None or own is None or product.op != "mul" or own.op != "gather":
            continue
        for factor, difference in (product.args, product.args[::-1]):
            shaped, apart = made(factor), made(difference)
            if shaped is None or apart is None or shaped.op != "reshape" or apart.op != "sub":
                continue
            extra, null = made(shaped.args[0]), made(apart.args[1])
            if apart.args[0] is cond and extra is not None and null is not None and (
                    extra.op, null.op) == ("sub", "gather"):
                yield from {"own": own, "null": null, "extra": extra, "shaped": shaped,
                            "apart": apart, "product": product, "total": total}.items()
                return


def _one(g: Graph, extra: Node) -> bool:
    """Is 1 what is taken off the scale?"""
    one = g.producer.get(extra.args[1])
    return one is not None and one.op == "const" and one.attrs["value"] == 1.0


def modulated(g: Graph, n: Node) -> Found | None:
    """layer_norm(x) * scale + shift with one scale and shift a row. Operands: x, scale, shift."""
    if n.op != "add":
        return None
    for scaled, shift in (n.args, n.args[::-1]):
        product = g.producer.get(scaled)
        if product is None or product.op != "mul":
            continue
        for normed, scale in (product.args, product.args[::-1]):
            norm = g.producer.get(normed)
            if norm is None or norm.op != "layer_norm" or len(norm.args) > 1:
                continue
            rows = [v.type.rank == 3 and v.type.shape[1] == 1 for v in (scale, shift)]
            inside = inner(g, norm, product)
            if not all(rows) or inside is None or n.outs[0].type.shape != normed.type.shape:
                continue
            if any(len(g.users[p.outs[0]]) > 1 for p in inside):
                continue
            args = (norm.args[0], scale, shift)
            return Found(args, dict(norm.attrs), inside)
    return None
