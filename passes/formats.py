"""Caches stored in few bits: every graph that reads one restores it, every one that writes rounds.

What is appended is rounded once, and its codes are never touched again; what a policy moves is
rounded anew, to the same codes.
"""

from __future__ import annotations

from dataclasses import replace

from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value
from arcompile.passes.eviction import FULL, apart
from arcompile.program import Program

READERS = ("cache_append", "kv_attend", "kv_update", "kv_watch", "kv_drop")
PARTS = ("codes", "step", "low")


def stored(p: Program, name: str, bits: int, group: int) -> Program:
    """Every cache in `bits`, by groups of so many channels of a head (0: all). Raises ArcError."""
    if p.accept == "prefix":
        raise ArcError(f"pass {name} rounds what a rejected draft of {p.name} would take back",
                       hint="give a method of drafting, or a format of caches")
    if name.split("-")[-1] in p.cache or "int" in p.cache:
        raise ArcError(f"pass {name} needs caches of f32, and {p.cache} rounded those of {p.name}",
                       hint="give one format")
    p = p.on_graphs(apart)
    found = _caches(p)
    if not found:
        raise ArcError(f"pass {name} needs caches of keys and values, and {p.name} has none",
                       hint="it is for models that attend to what they drew before")
    for k, t in found.items():
        width = t.shape[3]
        if not isinstance(width, int) or width % (group or width) or (group or width) % 2:
            raise ArcError(f"pass {name}: groups of {group} do not divide the {width} channels of "
                           f"cache {k}", hint="give a group that does; 0 takes all of a head")
    graphs = tuple(_Stored(g, found, bits, group).graph() for g in p.graphs)
    state = tuple(x for k, t in p.state for x in (
        _parts(k, t, bits, group) if k in found else [(k, t)]))
    label = name if p.cache == FULL else f"{p.cache}+{name}"
    return replace(p, graphs=graphs, state=state, cache=label)


def _caches(p: Program) -> dict[str, Type]:
    """States that only caches' ops read, by name."""
    found = {k: t for k, t in p.state if t.rank == 4 and t.dtype == "f32"}
    used = set()
    for g in p.graphs:
        for v in g.params:
            if v.name in found:
                if any(n.op not in READERS for n in g.users.get(v, ())):
                    found.pop(v.name)
                elif g.users.get(v):
                    used.add(v.name)
    return {k: t for k, t in found.items() if k in used}


def _parts(k: str, t: Type, bits: int, group: int) -> list[tuple[str, Type]]:
    width = t.shape[3]
    assert isinstance(width, int)
    many = Type("f32", (*t.shape[:3], width // (group or width)))
    kinds = (Type("u8", (*t.shape[:3], width * bits // 8)), many, many)
    return [(f"{k}.{part}", kind) for part, kind in zip(PARTS, kinds, strict=True)]


class _Stored:
    """One graph whose caches are codes."""

    def __init__(self, g: Graph, caches: dict[str, Type], bits: int, group: int):
        self.g, self.caches, self.bits, self.group = g, caches, bits, group
        self.b = b = Builder(g.name, taken=[v.name for v in g.values()])
        b.weights.update({w.name: w for w in g.weights})
        self.codes: dict[str, tuple[Value, ...]] = {}  # of a cache, as it comes in
        for v in g.params:
            if v.name not in caches:
                b.params.append(v)
                continue
            parts = _parts(v.name, v.type, bits, group)
            self.codes[v.name] = tuple(b.param(*x) for x in parts)
        self.swap: dict[Value, Value] = {}
        self.new: dict[Value, tuple[Value, ...]] = {}  # of a cache's next value, its codes

    def graph(self) -> Graph:
        if not self.codes:
            return self.g
        nodes: list[Node] = []
        for n in self.g.nodes:
            self.b.origin = n.origin
            if n.op == "cache_append" and n.args[0].name in self.codes:
                self._append(n)
            else:
                args = tuple(self._whole(a) for a in n.args)
                nodes += self.b.take()
                nodes.append(n if args == n.args else replace(n, args=args))
                self._rewritten(n)
            nodes += self.b.take()
        results = []
        for k, v in self.g.results:
            if k in self.codes:
                parts = zip(PARTS, self.new.get(v) or self.codes[k], strict=True)
                results += [(f"{k}.{part}", x) for part, x in parts]
            else:
                results.append((k, self.swap.get(v, v)))
        return Graph(self.g.name, tuple(self.b.params), tuple(nodes), tuple(results),
                     self.g.weights)

    def _whole(self, a: Value) -> Value:
        """The numbers of a cache, restored where they are first read."""
        if a.name in self.codes and a not in self.swap and self.g.param(a.name) is a:
            self.swap[a] = self.b.kv_dequantise(*self.codes[a.name], bits=self.bits)
        return self.swap.get(a, a)

    def _append(self, n: Node) -> None:
        b, (cache, new, at) = self.b, (n.args[0], self._whole(n.args[1]), self._whole(n.args[2]))
        width = cache.type.shape[3]
        assert isinstance(width, int)
        made = b.emit("kv_quantise", new, bits=self.bits, group=self.group or width)
        stored = tuple(b.cache_append(c, x, at)
                       for c, x in zip(self.codes[cache.name], made, strict=True))
        self.new[n.outs[0]] = stored
        self.swap[n.outs[0]] = b.kv_dequantise(*stored, bits=self.bits)

    def _rewritten(self, n: Node) -> None:
        """What is a cache's next value is rounded at once."""
        mine = {v for k, v in self.g.results if k in self.codes}
        for v in n.outs:
            if v in mine and v not in self.new:
                width = v.type.shape[3]
                assert isinstance(width, int)
                self.new[v] = self.b.emit("kv_quantise", v, bits=self.bits,
                                          group=self.group or width)
