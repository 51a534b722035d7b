"""Raster caches in few bits as KIVI has them: keys by channel, values by slot, the newest whole.

https://arxiv.org/abs/2402.02750. Outliers of keys stay in their channels, so a channel of `window`
neighbouring slots shares a step. Such a group is rounded once, when it is complete; until then its
slots are stored as they are, in a window of their own.
"""

from __future__ import annotations

from dataclasses import replace

from arcompile.ir import Builder, Graph, Type, Value
from arcompile.passes.eviction import Caches
from arcompile.program import Call, Program, Step

PARTS = ("codes", "step", "low", "new")


def windowed(c: Caches, name: str, bits: int, group: int, window: int) -> Program:
    """The caches of a raster program, of which the first step must fit into the window."""
    p, made = c.program, _Windowed(c, bits, group, window)
    steps: list[Step] = []
    rounded = rest = 0
    for i, s in enumerate(p.steps):
        told = (("rounded", rounded), ("rest", rest), ("block", rounded // window))
        rest += c.appends[i]
        full = rest == window and i + 1 < len(p.steps)
        calls = (*s.calls, Call("round")) if full else s.calls
        steps.append(replace(s, calls=calls, set=(*s.set, *told)))
        rounded, rest = (rounded + window, 0) if full else (rounded, rest)
    graphs = [made.step() if g is c.graph else g for g in p.graphs]
    names = {k for x in c.layers for k in x.states}
    state = (*((k, t) for k, t in p.state if k not in names), *made.state().items())
    return replace(p, graphs=(*graphs, made.round()), state=state, steps=tuple(steps), cache=name)


class _Windowed:
    def __init__(self, c: Caches, bits: int, group: int, window: int):
        self.c, self.bits, self.group, self.window = c, bits, group, window
        self.slots = window * ((sum(c.appends) - 1) // window)

    def types(self, k: str, key: bool) -> list[Type]:
        """Of a cache's PARTS."""
        t = dict(self.c.program.state)[k]
        r, g, _, e = t.shape
        assert isinstance(e, int)
        blocks, groups = (self.slots // self.window, e) if key else (
            self.slots, e // (self.group or e))
        many = Type("f32", (r, g, blocks, groups))
        return [Type("u8", (r, g, self.slots, e * self.bits // 8)), many, many,
                Type("f32", (r, g, self.window, e))]

    def caches(self) -> list[tuple[str, bool]]:
        return [(k, k == x.states[0]) for x in self.c.layers for k in x.states]

    def state(self) -> dict[str, Type]:
        return {f"{k}.{part}": t for k, key in self.caches()
                for part, t in zip(PARTS, self.types(k, key), strict=True)}

    def params(self, b: Builder, k: str, key: bool) -> list[Value]:
        return [b.param(f"{k}.{part}", t)
                for part, t in zip(PARTS, self.types(k, key), strict=True)]

    def step(self) -> Graph:
        g, names = self.c.graph, {k for x in self.c.layers for k in x.states}
        b = Builder(g.name, taken=[v.name for v in g.values()])
        b.weights.update({w.name: w for w in g.weights})
        swap: dict[Value, Value] = {v: b.param(v.name, v.type)
                                    for v in g.params if v.name not in names}
        swap.update({w: w for w in g.weights})
        rounded, rest = (_rows(b, b.param(k, "i64[]")) for k in ("rounded", "rest"))
        appends = {m: (k, key) for x in self.c.layers
                   for m, k, key in ((x.key, x.states[0], True), (x.value, x.states[1], False))}
        new: dict[str, Value] = {}
        for n in g.nodes:
            b.origin = n.origin
            if n in appends:
                k, key = appends[n]
                codes, step, low, last = self.params(b, k, key)
                new[f"{k}.new"] = last = b.cache_append(last, swap[n.args[1]], rest)
                old = b.kv_dequantise(codes, step, low, bits=self.bits)
                room = b.concat(old, last, axis=2)
                swap[n.outs[0]] = b.cache_append(room, _flat(b, last), rounded)
                continue
            args = tuple(swap[a] for a in n.args)
            swap.update(zip(n.outs, b.emit(n.op, *args, **n.attrs), strict=True))
        results = {k: swap[v] for k, v in g.results if k not in names}
        return b.graph(**results, **new)

    def round(self) -> Graph:
        """The window goes behind what is rounded already."""
        b, results = Builder("round"), dict[str, Value]()
        at, block = (_rows(b, b.param(k, "i64[]")) for k in ("rounded", "block"))
        for k, key in self.caches():
            *old, last = self.params(b, k, key)
            width = last.type.shape[3]
            how = {"slots": self.window} if key else {}
            made = b.emit("kv_quantise", last, bits=self.bits, group=self.group or width, **how)
            for part, cache, x in zip(PARTS, old, made, strict=False):
                where = at if part == "codes" or not key else block
                results[f"{k}.{part}"] = b.cache_append(cache, _flat(b, x), where)
        return b.graph(**results)


def _rows(b: Builder, x: Value) -> Value:
    """i64[] -> i32[r]"""
    found: Value = b.expand(b.reshape(b.cast(x, dtype="i32"), shape=(1,)), shape=("r",))
    return found


def _flat(b: Builder, x: Value) -> Value:
    """[r,g,n,e] -> [r,n,g*e], as new slots come."""
    r, g, n, e = x.type.shape
    assert isinstance(g, int)
    assert isinstance(e, int)
    found: Value = b.reshape(b.transpose(x, perm=(0, 2, 1, 3)), shape=(r, n, g * e))
    return found


