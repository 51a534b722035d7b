"""Drafts from a second, cheaper model: its graphs beside those of the one that verifies them.

A round draws `window` drafts one by one from the small model, each with its law, and tests them all
with one forward of the large one (https://arxiv.org/abs/2211.17192). What the small model is does
not matter to the law of images, which is the large one's; how alike the two are decides how many
drafts hold. Both keep caches of their own, filled to the same position, so that a rejected draft is
forgotten by both alike: by writing over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value, dce, merge
from arcompile.program import Call, Draw, Program, Step
from arcompile.program_text import FOLD
from arcompile.raster import bare, check
from arcompile.speculation import Method, law_graph, open_graph, verify_graph, window_of

NOISE = "draft_noise"
ROUNDED = ("kv-int4", "kv-int8")  # formats of caches, without a policy of keeping


def draft(p: Program, name: str, window: int, small: Program, method: Method,
          mark: str = "small") -> Program:
    """`p` with its tokens drafted by `small` and verified. Raises ArcError where it cannot be.

    mark: what names of the small model's graphs and caches begin with.
    """
    window_of(p, name, window)
    alike(p, small, name)
    step = p.graph(p.steps[0].calls[0].graph)
    v = vocabulary(p)
    own = _Small(small, mark)
    again = (Call(own.at("next")), Call(own.at("feed")), Call(own.at("step")))
    graphs = (open_graph(v), begin_graph(own.at, v, p.positions),
              next_graph(own.at, p.positions, window), *own.graphs(v, bool(small.state)),
              read_graph(own.at, v, window),
              merge(merge(bare(step), law_graph(v)), verify_graph(v, method), "window"))
    first, rest = p.steps[0], tuple(range(1, p.positions))
    gone = {c.graph for c in first.calls} - {"feed"}
    fill = [Call(own.at("open"))] if small.state else []  # the prompt, where it carries anything
    steps = (
        replace(first, calls=(Call("open"), Call("window"), *fill), window=1),
        Step(rest, rest, (Call(own.at("begin")), *again * window, Call(own.at("read")),
                          Call("feed"), Call("window")), first.guide, len(rest), window=window))
    return replace(
        p, graphs=(*(g for g in p.graphs if g.name not in gone), *graphs), steps=steps,
        prompt=(*p.prompt, *(Call(own.at(c.graph), c.loop, c.each) for c in small.prompt)),
        state=(*p.state, *own.state), fold=joined(p.fold, small.fold, name), accept="prefix",
        draws=(*p.draws, Draw("chance", "uniform"), Draw(NOISE, "uniform", 2)))


def vocabulary(p: Program) -> int:
    step = p.graph(p.steps[0].calls[0].graph)
    return int(step.result("logits").type.shape[-1])  # type: ignore[union-attr]


def alike(p: Program, small: Program, name: str) -> None:
    """Raise ArcError unless both draw the same tokens for the same requests.

    Caches that are rounded slot by slot are taken back as whole ones are: by writing over them.
    """
    check(p, name)
    check(replace(small, cache=p.cache) if small.cache in ROUNDED else small, name)
    for what, a, b in (
        ("grids of as many tokens", p.positions, small.positions),
        ("codebooks of one size", vocabulary(p), vocabulary(small)),
        ("the same inputs", [f"{k} {t}" for k, t in p.inputs],
         [f"{k} {t}" for k, t in small.inputs]),
        ("prompts of one length", p.steps[0].append, small.steps[0].append),
    ):
        if a != b:
            raise ArcError(f"pass {name} needs two models with {what}, not {_few(a)} and {_few(b)}",
                           hint="the drafter must be trained on the same image tokens")


def _few(x: object) -> str:
    return ", ".join(x) if isinstance(x, list) else str(x)


# --- the small model's graphs --------------------------------------------------------------------


@dataclass(frozen=True)
class _Small:
    """A raster program under other names: what it makes and carries gets the mark."""

    p: Program
    mark: str

    def at(self, name: str) -> str:
        return f"{self.mark}_{name}"

    @property
    def state(self) -> tuple[tuple[str, Type], ...]:
        return tuple((self.at(k), t) for k, t in self.p.state)

    def graphs(self, v: int, carries: bool) -> tuple[Graph, ...]:
        """Prompt, feed, the step on the prompt if it carries anything, and the step that draws a
        draft."""
        prompt = [self.p.graph(c.graph) for c in self.p.prompt]
        step = bare(self.p.graph(self.p.steps[0].calls[0].graph))
        own = {k for g in prompt for k, _ in g.results} | {k for k, _ in self.p.state}
        own |= {"x", "logits"}
        names = {k: self.at(k) for k in own}
        fill = dce(replace(step, results=tuple(
            (k, v) for k, v in step.results if k != "logits")))
        read = {a for n in fill.nodes for a in n.args}
        fill = replace(fill, params=tuple(v for v in fill.params if v in read))
        more = {k: self.at(k) for k in ("past", "noise", "scales", "draft", "q", "fixed", "held")}
        drawn = merge(merge(step, law_graph(v)), drawn_graph(v))
        drawn = replace(drawn, results=tuple(
            (k, x) for k, x in drawn.results if k not in ("logits", "p")))
        return (
            *(renamed(g, self.at(g.name), names) for g in prompt),
            renamed(self.p.graph("feed"), self.at("feed"), {**names, "token": self.at("token")}),
            *([renamed(fill, self.at("open"), names)] if carries else []),
            renamed(drawn, self.at("step"), {**names, **more}))


def renamed(g: Graph, name: str, names: Mapping[str, str],
            weight: Callable[[str], str] = lambda w: w) -> Graph:
    """The graph under another name, with other names of its inputs, results and weights."""
    swap = {v: Value(names.get(v.name, v.name), v.type) for v in g.params}
    swap |= {w: Value(weight(w.name), w.type) for w in g.weights}
    taken = {v.name for v in swap.values()}
    b = Builder(name, taken=taken | {v.name for v in g.values()})
    nodes = []
    for n in g.nodes:
        swap.update({v: Value(b._fresh(), v.type) for v in n.outs if v.name in taken})
        nodes.append(replace(n, args=tuple(swap.get(a, a) for a in n.args),
                             outs=tuple(swap.get(o, o) for o in n.outs)))
    return Graph(name, tuple(swap[v] for v in g.params), tuple(nodes),
                 tuple((names.get(k, k), swap.get(v, v)) for k, v in g.results),
                 tuple(swap[w] for w in g.weights))


At = Callable[[str], str]


def begin_graph(at: At, vocabulary: int, positions: int) -> Graph:
    """The drafts so far: the token before the window, which needs no law."""
    b = Builder(at("begin"))
    tokens, first = b.param("tokens", f"i64[b,{positions}]"), b.param("first", "i64[b]")
    where = b.reshape(b.sub(first, b.const(dtype="i64", value=1)), shape=("b", 1))
    none = b.expand(b.const(dtype="f32", value=0.0), shape=("b", 1, vocabulary))
    return b.graph(**{at("draft"): b.take_along(tokens, where, axis=1), at("q"): none})


def next_graph(at: At, positions: int, window: int) -> Graph:
    """What the small model reads, and is told, to draw the next draft: slot k - 1 of the window.

    `held` is the token of a slot that is committed already, `fixed`.
    """
    b = Builder(at("next"))
    sofar = b.param(at("draft"), "i64[b,k]")
    tokens, first = b.param("tokens", f"i64[b,{positions}]"), b.param("first", "i64[b]")
    done, past = b.param("done", "i64[b]"), b.param("past", "i32[r]")
    scales = b.param("scales", f"f32[b,{window}]")
    noise = b.param(NOISE, f"f32[b,{window},2]")
    ones = b.full(dtype="i64", shape=("k",), value=1)
    slot = b.sub(b.sum(ones, axes=(0,), keepdims=True), b.const(dtype="i64", value=1))  # i64[1]
    where = b.reshape(b.add(first, slot), shape=("b", 1))
    return b.graph(**{
        at("token"): b.gather(sofar, slot, axis=1),
        at("past"): b.add(past, b.cast(slot, dtype="i32")),
        at("scales"): b.gather(scales, slot, axis=1), at("noise"): b.gather(noise, slot, axis=1),
        at("held"): b.take_along(tokens, where, axis=1),
        at("fixed"): b.reshape(b.less(slot, done), shape=("b", 1))})


def drawn_graph(vocabulary: int) -> Graph:
    """p f32[b,c,V] -> the drafts so far, and their laws, with one more."""
    b = Builder("drawn")
    p = b.param("p", f"f32[b,c,{vocabulary}]")
    sofar, q = b.param("draft", "i64[b,k]"), b.param("q", f"f32[b,k,{vocabulary}]")
    token, fixed = b.draw_from(p, b.param("noise", "f32[b,c,2]")), b.param("fixed", "bool[b,c]")
    token = b.where(fixed, b.param("held", "i64[b,c]"), token)
    sure = b.reshape(fixed, shape=("b", "c", 1))  # a committed token may have no mass in p
    p = b.where(sure, b.const(dtype="f32", value=1.0), p)
    return b.graph(draft=b.concat(sofar, token, axis=1), q=b.concat(q, p, axis=1))


def read_graph(at: At, vocabulary: int, window: int) -> Graph:
    """All drafts of the round -> what the large model reads, and what it tests."""
    b = Builder(at("read"))
    made = b.param(at("draft"), f"i64[b,{window + 1}]")
    q = b.param(at("q"), f"f32[b,{window + 1},{vocabulary}]")
    return b.graph(token=b.slice(made, axis=1, start=0, stop=window),
                   draft=b.slice(made, axis=1, start=1, stop=window + 1),
                   q=b.slice(q, axis=1, start=1, stop=window + 1))


# --- folded weights of both ----------------------------------------------------------------------


def joined(one: Graph | None, two: Graph | None, name: str) -> Graph | None:
    """Both graphs of folded weights in one; equal expressions are computed once.

    Raises ArcError when one name would mean two things.
    """
    if one is None or two is None or one is two:
        return one or two
    b = Builder(FOLD, taken=[v.name for v in one.values()])
    b.nodes += one.nodes
    b.weights.update({w.name: w for w in one.weights})
    known = {_key(n, n.args): n.outs for n in one.nodes}
    swap = {w: b.weight(w.name, w.type) for w in two.weights}
    for n in two.nodes:
        args = tuple(swap[a] for a in n.args)
        if (key := _key(n, args)) not in known:
            b.origin = n.origin
            known[key] = b.emit(n.op, *args, **n.attrs)
        swap.update(zip(n.outs, known[key], strict=True))
    results = dict(one.results)
    for k, v in two.results:
        if results.setdefault(k, swap[v]) is not swap[v]:
            raise ArcError(f"pass {name}: both models have a weight named {k}",
                           hint="it is a weight computed at build time; report this")
    return Graph(FOLD, (), tuple(b.nodes), tuple(results.items()), tuple(b.weights.values()))


def _key(n: Node, args: tuple[Value, ...]) -> object:
    return n.op, args, repr(sorted(n.attrs.items()))


