"""Rotation, cache update and attention of a decoder in one op. https://arxiv.org/abs/2104.09864"""

from __future__ import annotations

from arcompile import debug
from arcompile.ir import Graph, Node
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss


@register("rotary-attention")
class RotaryAttention(Pass):
    """attention over caches that rotated keys and values were just appended to: decode_attention.

    Its results are the output and both caches, so that a target updates them in place.
    """

    def __call__(self, p: Program) -> Program:
        return p.on_graphs(_graph)


def _graph(g: Graph) -> Graph:
    fused: dict[Node, Node] = {}  # the attention -> what replaces it
    gone: set[Node] = set()
    for n in g.nodes:
        if n.op != "attention" or (parts := _parts(g, n)) is None:
            continue
        try:
            _check(g, n, *parts)
        except Miss as miss:
            debug.log(4, f"miss rotary-attention at {n.outs[0]}: {miss}")
            continue
        fused[n] = _fuse(n, *parts)
        gone.update(parts)
    if not fused:
        return g
    return g.with_nodes(fused.get(n, n) for n in g.nodes if n not in gone)


def _parts(g: Graph, n: Node) -> tuple[Node, Node, Node, Node] | None:
    """The nodes that rotate the query, rotate the key, append the key, append the value."""

    def made(of: Node, index: int, op: str) -> Node | None:
        found = g.producer.get(of.args[index])
        return found if found is not None and found.op == op else None

    q, kc, vc = made(n, 0, "rope"), made(n, 1, "cache_append"), made(n, 2, "cache_append")
    k = made(kc, 1, "rope") if kc else None
    return (q, k, kc, vc) if q and k and kc and vc else None


def _check(g: Graph, n: Node, q: Node, k: Node, kc: Node, vc: Node) -> None:
    more = dict(zip(n.attrs.get("extra", ()), n.args[3:], strict=True))
    past = more.get("past")
    if past is None or "bias" in more:
        raise Miss("the attention adds a bias" if past else "the attention has no past")
    if q.args[1:3] != k.args[1:3]:
        raise Miss("query and key turn by different tables")
    if any(x.args[3].type.rank != 1 for x in (q, k)):
        raise Miss("the rotation takes explicit rows, not past")
    if any(a is not past for a in (q.args[3], k.args[3], kc.args[2], vc.args[2])):
        raise Miss("rotation, caches and attention start at different slots")
    if q.attrs["interleaved"] != k.attrs["interleaved"]:
        raise Miss("query and key pair their halves differently")
    if (q.attrs["heads"], k.attrs["heads"]) != (n.attrs["heads"], n.attrs["kv_heads"]):
        raise Miss("rotation and attention count heads differently")
    state = {v for _, v in g.results}
    for x, reader in ((q, n), (k, kc), (kc, n), (vc, n)):
        private = x in (kc, vc) or x.outs[0] not in state  # a cache may be a result, to be carried
        if not private or any(u is not reader for u in g.users[x.outs[0]]):
            raise Miss(f"{x.outs[0]} is read elsewhere")


def _fuse(n: Node, q: Node, k: Node, kc: Node, vc: Node) -> Node:
    more = dict(zip(n.attrs["extra"], n.args[3:], strict=True))
    keep = (more["keep"],) if "keep" in more else ()
    args = (q.args[0], k.args[0], vc.args[1], kc.args[0], vc.args[0], more["past"], *q.args[1:3])
    attrs = {key: n.attrs[key] for key in ("heads", "kv_heads", "scale")}
    attrs |= {"mask": n.attrs.get("mask", "full"), "interleaved": q.attrs["interleaved"]}
    outs = (n.outs[0], kc.outs[0], vc.outs[0])
    return Node("decode_attention", (*args, *keep), outs, attrs, f"{n.origin} > rotary-attention")
