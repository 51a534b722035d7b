"""Patterns of nodes that one kernel is, whatever runs it."""

from __future__ import annotations

from collections.abc import Mapping
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
    guide = guided(g, keep.args[0])
    if guide is None or keep.args[1] is not n.args[2]:
        return None
    shaped = made(guide.args[3])
    extra = made(shaped.args[0]) if shaped is not None and shaped.op == "reshape" else None
    if extra is None or extra.op != "sub" or not _one(g, extra):
        return None
    inside = inner(g, keep, *guide.inside, made(keep.args[0]), shaped, extra)
    if inside is None or any(set(g.users[v]) - inside - {n} for p in inside for v in p.outs):
        return None
    return Found((*guide.args[:3], extra.args[0], *keep.args[1:], n.args[1]), {}, inside)


def guided(g: Graph, v: Value) -> Found | None:
    """cond + more (cond - null), two rows of the same logits. Operands: logits, row, null_row and
    more, which is the scale less 1."""
    made, total = g.producer.get, g.producer.get(v)
    if total is None or total.op != "add":
        return None
    for cond, added in (total.args, total.args[::-1]):
        product, own = made(added), made(cond)
        if product is None or own is None or product.op != "mul" or not _row(own):
            continue
        for more, difference in (product.args, product.args[::-1]):
            apart = made(difference)
            null = made(apart.args[1]) if apart is not None and apart.op == "sub" else None
            if apart is not None and null is not None and apart.args[0] is cond and _row(null) and (
                    null.args[0] is own.args[0]):
                return Found((*own.args, null.args[1], more), {}, {own, null, apart, product})
    return None


def _row(n: Node) -> bool:
    return n.op == "gather" and n.attrs["axis"] == 0


def _one(g: Graph, extra: Node) -> bool:
    """Is 1 what is taken off the scale?"""
    one = g.producer.get(extra.args[1])
    return one is not None and one.op == "const" and one.attrs["value"] == 1.0


def excess(g: Graph, v: Value, p: Value) -> Value | None:
    """q, where v is max(p - q, 0)."""
    relu = g.producer.get(v)
    apart = g.producer.get(relu.args[0]) if relu is not None and relu.op == "relu" else None
    found = apart is not None and apart.op == "sub" and apart.args[0] is p
    return apart.args[1] if found and apart is not None else None


def one_hot(g: Graph, v: Value) -> Value | None:
    """Tokens i64[b,c], where v [b,c,V] is 1.0 at them and 0 elsewhere, as speculation._guessed says
    it."""
    made = g.producer.get
    cast = made(v)
    same = made(cast.args[0]) if cast is not None and cast.op == "cast" else None
    if same is None or same.op != "equal" or v.type.dtype != "f32":
        return None
    at, every = (made(a) for a in same.args)
    if at is None or every is None or (at.op, every.op) != ("reshape", "arange"):
        return None
    token, width = at.args[0], v.type.shape[-1]
    whole = every.outs[0].type.shape == (width,) and at.outs[0].type.shape == (
        *token.type.shape, 1)
    return token if whole and token.type.rank == 2 else None


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
