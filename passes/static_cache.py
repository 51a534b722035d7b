"""Caches whose length is known when an engine is built, for runtimes that plan their memory.

The name is that of transformers: https://huggingface.co/docs/transformers/kv_cache
"""

from __future__ import annotations

from dataclasses import replace

from arcompile import debug, dims
from arcompile.dims import Dim
from arcompile.ir import Builder, Graph, Node, Type, Value
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss

TABLE = {"rope": 1, "decode_attention": 6}  # which operand is the table of angles


@register("static-cache")
class StaticCache(Pass):
    """A cache as long as the request needs gets as many slots as there are rotary angles.

    No sequence is longer than those. Slots behind the last query are never seen, so what a mask
    over slots says of them does not matter: it is filled up with True where it is made.
    """

    def __call__(self, p: Program) -> Program:
        lengths = {t.shape[2] for _, t in p.state if t.rank == 4}
        told = [d for d in lengths if isinstance(d, str)]
        if not told:
            return p
        try:
            if len(told) > 1:
                raise Miss(f"caches have lengths of {', '.join(sorted(told))}")
            return _made(p, told[0], _slots(p))
        except Miss as miss:
            debug.log(4, f"miss static-cache at {p.name}: {miss}")
            return p


def _slots(p: Program) -> int:
    """Rows of the shortest table of angles."""
    rows = [n.args[TABLE[n.op]].type.shape[0] for g in p.graphs for n in g.nodes if n.op in TABLE]
    counts = [d for d in rows if isinstance(d, int)]
    if not counts:
        raise Miss("no rotary embedding says how long a sequence can be")
    return min(counts)


def _made(p: Program, length: Dim, slots: int) -> Program:
    caches = {k for k, t in p.state if t.rank == 4 and t.shape[2] == length}
    sizes = {g.name: {str(v.type.shape[2]): slots for v in g.params if v.name in caches}
             for g in p.graphs}
    for g in p.graphs:
        _check(g, caches, sizes[g.name])
    wanted = {v.name for g in p.graphs for v in g.params if v.name not in caches
              and set(v.type.shape) & sizes[g.name].keys()}
    if given := wanted & {k for k, _ in (*p.inputs, *p.state)}:
        raise Miss(f"{', '.join(sorted(given))} comes from outside in the length of the caches")
    state = tuple((k, _type(t, {str(length): slots}) if k in caches else t) for k, t in p.state)
    return replace(p, state=state, graphs=tuple(
        _filled(_sized(g, sizes[g.name]), wanted, length, slots) for g in p.graphs))


def _check(g: Graph, caches: set[str], sizes: dict[str, int]) -> None:
    if any(not s.isidentifier() for s in sizes):
        raise Miss(f"graph {g.name} has caches of {', '.join(sizes)} slots")
    for n in g.nodes:
        if n.op == "attention" and "past" not in n.attrs.get("extra", ()) and (
                n.args[1].type.rank == 4 and n.args[1].type.shape[2] in sizes):
            raise Miss(f"attention of {n.outs[0]} sees every slot")


def _type(t: Type, sizes: dict[str, int]) -> Type:
    return Type(t.dtype, tuple(sizes.get(str(d), d) for d in t.shape))


def _sized(g: Graph, sizes: dict[str, int]) -> Graph:
    """The graph with numbers for symbols."""
    if not sizes:
        return g
    if mixed := [v for v in g.values() for d in v.type.shape
                 if dims.symbols(d) & sizes.keys() and d not in sizes]:
        raise Miss(f"{mixed[0]} of graph {g.name} is {mixed[0].type}")
    now = {v: replace(v, type=_type(v.type, sizes)) for v in g.values()}
    nodes = tuple(replace(n, args=tuple(now[a] for a in n.args), outs=tuple(now[v] for v in n.outs),
                          attrs=_attrs(n, sizes)) for n in g.nodes)
    return replace(g, params=tuple(now[v] for v in g.params), nodes=nodes,
                   weights=tuple(now[w] for w in g.weights),
                   results=tuple((k, now[v]) for k, v in g.results))


def _attrs(n: Node, sizes: dict[str, int]) -> dict[str, object]:
    attrs = dict(n.attrs)
    if "shape" in attrs:
        attrs["shape"] = tuple(sizes.get(str(d), d) for d in attrs["shape"])
    return attrs


def _filled(g: Graph, wanted: set[str], length: Dim, slots: int) -> Graph:
    """The graph with what it makes in the length of the caches filled up to their slots."""
    b = Builder(g.name, taken=[v.name for v in g.values()])
    b.origin = "(top) > static-cache"
    results = [(k, _longer(b, v, length, slots) if k in wanted else v) for k, v in g.results]
    if not (more := b.take()):
        return g
    return g.with_nodes((*g.nodes, *more), results)


def _longer(b: Builder, v: Value, length: Dim, slots: int) -> Value:
    if v.type.dtype != "bool" or v.type.rank != 2 or v.type.shape[1] != length:
        raise Miss(f"{v} is {v.type}, not a mask over {length} slots")
    more = b.full(dtype="bool", shape=(v.type.shape[0], dims.add(slots, length, -1)), value=1)
    made: Value = b.concat(v, more, axis=1)
    return made
