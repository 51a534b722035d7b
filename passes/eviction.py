"""Caches that a policy shrinks: what it may be asked of, and the steps and graphs it makes.

A policy is data: groups of heads (or of layers), how many slots each keeps after each step, by
which score, and what it never drops. Models of few long steps (scales) drop inside the step: what
a step appends is never stored whole. Models of single steps (raster) append in place, and a graph
of its own drops some slots whenever a cache is full. How many slots are filled is a constant of
each step, so a runtime learns nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value
from arcompile.passes.fold import Fold
from arcompile.passes.heads import Order, Turned, blocks, inverse, readers
from arcompile.program import Call, Program, Step

FULL = "full"  # Program.cache of a program that keeps every slot


@dataclass(frozen=True)
class Layer:
    """An attention over two caches, and the nodes that append to them."""

    node: Node
    key: Node
    value: Node

    @property
    def states(self) -> tuple[str, str]:
        return self.key.args[0].name, self.value.args[0].name

    @property
    def heads(self) -> int:
        return int(self.node.attrs["heads"])

    @property
    def kv_heads(self) -> int:
        return int(self.node.attrs["kv_heads"])


@dataclass(frozen=True)
class Caches:
    """What of a program a policy works on: `appends[i]` slots come in step i, `slots` in all."""

    program: Program
    graph: Graph
    layers: tuple[Layer, ...]
    appends: tuple[int, ...]
    slots: int

    @property
    def raster(self) -> bool:
        """Does a step after the first append one slot?"""
        return set(self.appends[1:]) == {1}

    @property
    def history(self) -> int:
        """The most slots that a later step can still read."""
        return sum(self.appends[:-1])


@dataclass(frozen=True)
class Group:
    """Heads that are treated alike: of each layer those it has, and the slots each keeps.

    budget: after each step. first, recent, score, observe, pool, merge: see the op kv_update; `how`
    holds what differs from its defaults.
    """

    heads: tuple[tuple[int, ...], ...]
    budget: tuple[int, ...]
    how: dict[str, Any] = field(default_factory=dict)


# --- what may be shrunk --------------------------------------------------------------------------


def caches(p: Program, name: str, ratio: float) -> Caches:
    """The caches of a program, or ArcError saying why they cannot be shrunk by `ratio`."""
    if not 0 <= ratio < 1:
        raise ArcError(f"pass {name}: ratio must be from 0 to less than 1, got {ratio!r}",
                       hint="it is the share of a cache that goes: 0 keeps all of it")
    whole(p, name)
    p = p.on_graphs(apart)
    found = [(g, own) for g in p.graphs if (own := layers(g))]
    if len(found) != 1:
        raise ArcError(f"pass {name} needs one graph with caches, and {p.name} has {len(found)}",
                       hint="it is for models that draw over a cache in one forward")
    g, own = found[0]
    states = dict(p.state)
    slots = {t.shape[2] for layer in own for k in layer.states if (t := states.get(k))}
    appends = [s.append for s in p.steps]
    if len(slots) != 1 or not all(isinstance(n, int) for n in (*slots, *appends)):
        raise ArcError(f"pass {name} needs caches of a known size, and those of {p.name} depend "
                       "on the prompt", hint="it is for models whose prompt has a fixed length")
    for s in p.steps:
        if [c for c in s.calls if c.graph == g.name] != [Call(g.name)]:
            raise ArcError(f"pass {name} needs graph {g.name} once in every step of {p.name}",
                           hint="a step that runs it in a loop writes its slots again and again")
    return Caches(p, g, own, tuple(int(n) for n in appends), int(slots.pop()))


def caches_of_scales(p: Program, name: str, ratio: float) -> Caches:
    """The same of a program that draws scales; at ratio 0, where nothing is done, of any."""
    c = caches(p, name, ratio)
    if ratio and c.raster:
        raise ArcError(f"pass {name} needs scales, and {p.name} draws token by token",
                       hint="kv-rows is for raster models")
    return c


def whole(p: Program, name: str) -> None:
    """Raise ArcError unless the program keeps every slot, and never takes one back."""
    if p.cache != FULL:
        raise ArcError(f"pass {name} needs whole caches, and {p.cache} changed those of {p.name}",
                       hint="give one policy of keeping slots, and formats (kv-int8) after it")
    if p.accept == "prefix":
        raise ArcError(f"pass {name} drops slots that a rejected draft of {p.name} would take back",
                       hint="give a method of drafting, or a policy of keeping slots")


def apart(g: Graph) -> Graph:
    """decode_attention as what it consists of."""
    if all(n.op != "decode_attention" for n in g.nodes):
        return g
    b = Builder(g.name, taken=[v.name for v in g.values()])
    swap: dict[Value, Value] = {}
    nodes: list[Node] = []
    for n in g.nodes:
        args = tuple(swap.get(v, v) for v in n.args)
        if n.op != "decode_attention":
            nodes.append(n if args == n.args else replace(n, args=args))
            continue
        b.origin, a = n.origin, n.attrs
        q, k, v, kc, vc, past, cos, sin, *keep = args
        spin = {"interleaved": a["interleaved"]}
        kc = b.cache_append(kc, b.rope(k, cos, sin, past, heads=a["kv_heads"], **spin), past)
        vc = b.cache_append(vc, v, past)
        extra = ("past", "keep")[: 1 + len(keep)]
        out = b.attention(b.rope(q, cos, sin, past, heads=a["heads"], **spin), kc, vc, past, *keep,
                          heads=a["heads"], kv_heads=a["kv_heads"], scale=a["scale"],
                          mask=a["mask"], extra=extra)
        swap.update(zip(n.outs, (out, kc, vc), strict=True))
        nodes += b.take()
    results = [(k, swap.get(v, v)) for k, v in g.results]
    return g.with_nodes(nodes, results)


def layers(g: Graph) -> tuple[Layer, ...]:
    """Attentions over two states that are appended to right before it, and read by nobody else."""
    found, results = [], dict(g.results)
    for n in g.nodes:
        if n.op != "attention" or "past" not in n.attrs.get("extra", ()):
            continue
        made = [g.producer.get(a) for a in n.args[1:3]]
        if any(m is None or m.op != "cache_append" for m in made):
            continue
        layer = Layer(n, *made)  # type: ignore[arg-type]
        own = all(results.get(m.args[0].name) is m.outs[0] and g.users[m.args[0]] == [m]
                  and g.users[m.outs[0]] == [n] for m in (layer.key, layer.value))
        if own:
            found.append(layer)
    return tuple(found)


# --- inside the step -----------------------------------------------------------------------------


def by_step(c: Caches, name: str, groups: Sequence[Group], share: bool = False,
            add: bool = False) -> Program:
    """Each step keeps what its groups say. share: a guided image's twin goes by the image's scores.
    add: scores add up over the steps."""
    for layer in c.layers:
        a = layer.node.attrs
        if set(a["extra"]) != {"past"} or (a["mask"] != "full" and c.appends[0] != 1
                                           and a["mask"] == "prefix"):
            raise ArcError(f"pass {name} cannot tell what the steps of {c.program.name} hide",
                           hint="it is for models whose every query sees all slots before it")
    filled = [held(c.appends, g.budget) for g in groups]
    sizes = [max(1, *h) for h in filled]
    p, states = c.program, {k for layer in c.layers for k in layer.states}
    made = _Step(c, groups, sizes, share, add)
    new = made.graph()
    state = (*((k, t) for k, t in p.state if k not in states), *made.states.items())
    steps = []
    for i, s in enumerate(p.steps):
        told = [x for k, h in enumerate(filled)
                for x in ((f"held{k}", h[i]), (f"keep{k}", h[i + 1]))]
        steps.append(replace(s, set=(*s.set, *told)))
    graphs = tuple(new if g is c.graph else g for g in p.graphs)
    return Fold()(replace(p, graphs=graphs, state=state, steps=tuple(steps), cache=name))


def held(appends: Sequence[int], budget: Sequence[int]) -> list[int]:
    """Slots filled before each step and, last, after all: then nobody reads them."""
    found = [0]
    for n, most in zip(appends, budget, strict=True):
        found.append(min(found[-1] + n, most))
    found[-1] = 0
    return found


class _Step:
    """The graph of a step whose attentions keep what groups say."""

    def __init__(self, c: Caches, groups: Sequence[Group], sizes: Sequence[int], share: bool,
                 add: bool):
        self.c, self.groups, self.sizes, self.add = c, groups, sizes, add
        self.b = b = Builder(c.graph.name, taken=[v.name for v in c.graph.values()])
        b.weights.update({w.name: w for w in c.graph.weights})
        b.params += [v for v in c.graph.params
                     if v.name not in {k for x in c.layers for k in x.states}]
        self.held = [(b.param(f"held{k}", "i64[]"), b.param(f"keep{k}", "i64[]"))
                     for k in range(len(groups))]
        known = {v.name: v for v in b.params}
        self.image = (known.get("image") or b.param("image", "i64[r]")) if share else None
        self.turned = Turned(b, c.graph)
        self.states: dict[str, Type] = {}
        self.results: dict[str, Value] = {}

    def graph(self) -> Graph:
        g, nodes, swap = self.c.graph, list[Node](), dict[Value, Value]()
        fed: dict[Node, tuple[Value, ...]] = {}
        mine = {x.node: (i, x) for i, x in enumerate(self.c.layers)}
        gone = {m for x in self.c.layers for m in (x.key, x.value)}
        for n in g.nodes:
            if n in mine:
                out, more = self._layer(*mine[n])
                swap[n.outs[0]] = out
                fed |= more
            elif n not in gone:
                args = tuple(swap.get(a, a) for a in fed.get(n, n.args))
                nodes += self.b.take()
                nodes.append(n if args == n.args else replace(n, args=args))
            nodes += self.b.take()
        old = {k for x in self.c.layers for k in x.states}
        results = [(k, swap.get(v, v)) for k, v in g.results if k not in old]
        results += self.results.items()
        read = {a for n in nodes for a in n.args} | {v for _, v in results}
        params = tuple(v for v in self.b.params if v in read)
        return Graph(g.name, params, tuple(nodes), tuple(results),
                     tuple(w for w in self.b.weights.values() if w in read))

    def _layer(self, i: int, layer: Layer) -> tuple[Value, dict[Node, tuple[Value, ...]]]:
        """(what stands for the attention's result, new operands of those that read it)."""
        b, n = self.b, layer.node
        parts = [(k, g.heads[i]) for k, g in enumerate(self.groups) if g.heads[i]]
        order: Order = tuple(h for _, heads in parts for h in heads)
        q, k, v = (self.turned(x, order) for x in (n.args[0], layer.key.args[1],
                                                   layer.value.args[1]))
        b.origin = n.origin
        split = [self._apart(x, [len(heads) for _, heads in parts]) for x in (q, k, v)]
        outs = [self._group(layer, k, len(heads), *(x[j] for x in split))
                for j, (k, heads) in enumerate(parts)]
        out: Value = outs[0] if len(outs) == 1 else b.concat(*outs, axis=2)
        if order == tuple(range(len(order))):
            return out, {}
        fed = readers(b, self.c.graph, n.outs[0], order)
        return (out, fed) if fed else (blocks(b, out, 2, inverse(order)), {})

    def _state(self, name: str, t: Type) -> Value:
        self.states[name] = t
        return self.b.param(name, t)

    def _apart(self, x: Value, counts: list[int]) -> tuple[Value, ...]:
        if len(counts) == 1:
            return (x,)
        width = x.type.shape[2]
        assert isinstance(width, int)
        e = width // sum(counts)
        return self.b.emit("split", x, axis=2, sizes=tuple(n * e for n in counts))

    def _group(self, layer: Layer, k: int, count: int, q: Value, key: Value,
               value: Value) -> Value:
        b, group, a = self.b, self.groups[k], layer.node.attrs
        many = sum(1 for g in self.groups if g.heads[self.c.layers.index(layer)]) > 1
        names = [f"{s}.{k}" if many else s for s in layer.states]
        old = [dict(self.c.program.state)[s] for s in layer.states]
        kc, vc = (self._state(x, Type(t.dtype, ("r", count, self.sizes[k], t.shape[3])))
                  for x, t in zip(names, old, strict=True))
        held, keep = self.held[k]
        how = {"heads": count * (layer.heads // layer.kv_heads), "kv_heads": count,
               "scale": a["scale"]}
        mask = "causal" if a["mask"] == "causal" else "full"
        more = {"image": self.image} if self.image else {}
        if self.add:
            names.append(f"seen.{names[0]}")
            more["seen"] = self._state(names[-1], Type("f32", ("r", count, self.sizes[k])))
        told = {"extra": tuple(more)} if more else {}
        new = b.emit("kv_update", q, key, value, kc, vc, held, keep, *more.values(), **how,
                     **group.how, **told)
        self.results.update(zip(names, new, strict=True))
        out: Value = b.kv_attend(q, key, value, kc, vc, held, mask=mask, **how)
        return out


# --- between the steps ---------------------------------------------------------------------------


def by_row(c: Caches, name: str, groups: Sequence[Group], row: int, watch: bool,
           how: dict[str, Any]) -> Program:
    """Caches append in place; when those of a group are full, `row` slots go. A group is whole
    layers here, and its budget the size of its caches. watch: by what queries saw."""
    p, states, graph = c.program, dict(c.program.state), c.graph
    sizes = [g.budget[0] for g in groups]
    of = {x: k for k, g in enumerate(groups) for x, heads in zip(c.layers, g.heads, strict=True)
          if heads}
    small = {s: replace_slots(states[s], sizes[k]) for x, k in of.items() for s in x.states}
    seen = {f"seen.{x.states[0]}": Type("f32", small[x.states[0]].shape[:3])
            for x in c.layers} if watch else {}
    new = _row_graph(c, of, small, watch)
    drops = tuple(_drop_graph(c, k, of, small, watch, {**how, "keep": n - row, "row": how.get(
        "row", 1)}) for k, n in enumerate(sizes))
    held, steps = [0] * len(groups), []
    for i, s in enumerate(p.steps):
        told = tuple((f"held{k}", n) for k, n in enumerate(held))
        held = [n + c.appends[i] for n in held]
        full = [k for k, n in enumerate(held) if n == sizes[k] and i + 1 < len(p.steps)]
        held = [n - row if k in full else n for k, n in enumerate(held)]
        calls = (*s.calls, *(Call(f"drop{k}") for k in full))
        steps.append(replace(s, calls=calls, set=(*s.set, *told)))
    graphs = (*(new if g is graph else g for g in p.graphs), *drops)
    called = {call.graph for s in steps for call in s.calls} | {x.graph for x in p.finish} | {
        x.graph for x in p.prompt}
    state = (*((k, small.get(k, t)) for k, t in p.state), *seen.items())
    return replace(p, graphs=tuple(g for g in graphs if g.name in called or g not in drops),
                   state=state, steps=tuple(steps), cache=name)


def replace_slots(t: Type, slots: int) -> Type:
    return Type(t.dtype, (*t.shape[:2], slots, t.shape[3]))


def _row_graph(c: Caches, of: dict[Layer, int], small: dict[str, Type], watch: bool) -> Graph:
    """The step whose caches have their own count of filled slots."""
    g = c.graph
    b = Builder(g.name, taken=[v.name for v in g.values()])
    b.weights.update({w.name: w for w in g.weights})
    swap: dict[Value, Value] = {}
    for v in g.params:
        swap[v] = b.param(v.name, small.get(v.name, v.type))
    held = {k: b.param(f"held{k}", "i64[]") for k in sorted(set(of.values()))}
    rows = {k: b.expand(b.reshape(b.cast(x, dtype="i32"), shape=(1,)), shape=("r",))
            for k, x in held.items()}
    swap.update({w: w for w in g.weights})
    appends = {m: rows[k] for x, k in of.items() for m in (x.key, x.value)}
    mine = {x.node: (x, k) for x, k in of.items()}
    seen: dict[str, Value] = {}
    for n in g.nodes:
        args = tuple(swap[a] for a in n.args)
        b.origin = n.origin
        if n in appends:
            args = (*args[:2], appends[n])
        elif n in mine:
            layer, k = mine[n]
            args = _fewer(b, n, args, rows[k], small[layer.states[0]].shape[2])
            if watch:
                name = f"seen.{layer.states[0]}"
                last = b.param(name, Type("f32", small[layer.states[0]].shape[:3]))
                seen[name] = b.kv_watch(last, args[0], args[1], held[k], heads=layer.heads,
                                        scale=n.attrs["scale"])
        swap.update(zip(n.outs, b.emit(n.op, *args, **n.attrs), strict=True))
    results = {**{k: swap[v] for k, v in g.results}, **seen}
    made = b.graph(**results)
    read = {a for n in made.nodes for a in n.args} | set(results.values())
    return replace(made, params=tuple(v for v in made.params if v in read))


def _fewer(b: Builder, n: Node, args: tuple[Value, ...], past: Value,
           slots: Any) -> tuple[Value, ...]:
    """An attention's operands: its own count of slots, and `keep` of those there are."""
    told = dict(zip(n.attrs["extra"], args[3:], strict=True))
    told["past"] = past
    if "keep" in told:
        told["keep"] = b.slice(told["keep"], axis=1, start=0, stop=slots, step=1)
    return (*args[:3], *told.values())


def _drop_graph(c: Caches, k: int, of: dict[Layer, int], small: dict[str, Type], watch: bool,
                how: dict[str, Any]) -> Graph:
    b, results = Builder(f"drop{k}"), dict[str, Value]()
    for layer in (x for x in c.layers if of[x] == k):
        names = [*layer.states, *([f"seen.{layer.states[0]}"] if watch else [])]
        types = [*(small[s] for s in layer.states), Type("f32", small[layer.states[0]].shape[:3])]
        args = [b.param(s, t) for s, t in zip(names, types, strict=False)]
        results.update(zip(names, b.emit("kv_drop", *args, **how), strict=True))
    return b.graph(**results)


__all__ = ["Caches", "Group", "Step", "apart", "by_row", "by_step", "caches", "held", "layers",
           "whole"]
