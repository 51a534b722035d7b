"""Programs in raster order: what methods of decoding may change, and why they may not."""

from __future__ import annotations

import math
from dataclasses import replace

from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Value, dce
from arcompile.program import Program, Step
from arcompile.program_text import FOLD

STEEP = 100.0  # of lines that stand for logits, where what is fed begins with 1


def check(p: Program, name: str) -> None:
    """Raise ArcError unless each step draws the next position by `step, sample, feed`."""
    if p.accept != "all":
        raise ArcError(f"pass {name} needs a plain program, and {p.name} is drafted already",
                       hint="give one method of decoding")
    if p.cache != "full":
        raise ArcError(f"pass {name} needs whole caches, and {p.cache} drops slots of {p.name}",
                       hint="give a method of decoding, or a policy of keeping slots")
    for i, s in enumerate(p.steps):
        if why := _unfit(p, i, s):
            raise ArcError(f"pass {name} needs a raster program, but step {i} of {p.name} {why}",
                           hint="`arcompile list models` tells the order of each family")


def square(p: Program, name: str) -> int:
    """Tokens in a row of a square image. Raises ArcError."""
    side = math.isqrt(p.positions)
    if side**2 != p.positions:
        raise ArcError(f"pass {name} needs rows, and {p.positions} positions make no square")
    return side


def _unfit(p: Program, i: int, s: Step) -> str:
    """Why a step is not one of `step, sample, feed` on the next position; "" if it is."""
    names = [c.graph for c in s.calls]
    step = p.graph(names[0]) if names else None
    logits = step.result("logits") if step else None
    chain = [names[0], *([] if step and step.result("token") else ["sample"]), "feed"]
    for wrong, why in (
        (s.query != (i,) or s.commit != (i,), f"commits {len(s.commit)} positions of its own"),
        (logits is None, "makes no logits"),
        (i and names[0] != p.steps[0].calls[0].graph, f"runs {names[0]}"),
        (names not in (chain, chain[:-1]), f"calls {' '.join(names)}"),
        (any(c.loop or c.each for c in s.calls), "calls in a loop"),
        (s.set or s.guide != p.steps[0].guide, "has constants or guidance of its own"),
        (i and s.append != 1, f"appends {s.append} slots"),
        (i and any(v.name == "past" for v in p.graph("feed").params), "feeds by the slot"),
        (logits is not None and logits.type.shape[1] != "c", "makes logits of one slot only"),
    ):
        if wrong:
            return why
    return ""


def bare(step: Graph) -> Graph:
    """A step up to its logits, whatever it drew from them."""
    own = tuple((k, v) for k, v in step.results if k != "token")
    g = dce(replace(step, results=own))
    read = {a for n in g.nodes for a in n.args} | {v for _, v in own}
    return replace(g, params=tuple(v for v in g.params if v in read))


def hollow(p: Program) -> Program:
    """The program with a network that is nothing: its logits are lines over the codebook, steep as
    the first number of what is fed. All else is run as it was; it carries nothing.

    What is left of its time is what decoding takes beside the network. Raises ArcError.
    """
    check(p, "hollow")
    g = p.graph(p.steps[0].calls[0].graph)
    x, logits, carried = g.param("x"), g.result("logits"), {k for k, _ in p.state}
    if x is None or logits is None:
        raise ArcError(f"graph {g.name} of {p.name} makes no logits of x")
    b, v = Builder(g.name, taken=[v.name for v in g.values()]), int(logits.type.shape[-1])
    for n in [n for n in g.nodes if n.op == "tail"][-1:]:
        x = b.tail(x, n.args[1], **n.attrs)
    steep = b.cast(b.slice(x, axis=2, start=0, stop=1), dtype=logits.type.dtype)
    codes = b.cast(b.arange(dtype="i64", shape=(v,)), dtype=logits.type.dtype)
    lines = b.mul(steep, b.mul(codes, b.const(dtype=logits.type.dtype, value=STEEP / v)))
    rest = (replace(n, args=tuple(lines if a is logits else a for a in n.args)) for n in g.nodes)
    kept = tuple((k, lines if r is logits else r) for k, r in g.results if k not in carried)
    new = dce(replace(g, nodes=(*b.nodes, *rest), results=kept))
    read = {a for n in new.nodes for a in n.args} | {r for _, r in new.results}
    new = replace(new, params=tuple(v for v in new.params if v in read))
    return replace(p, graphs=tuple(new if h is g else h for h in p.graphs), state=())


def embedding(p: Program, name: str) -> Value:
    """The weight [V,e] that `feed` looks tokens up in. Raises ArcError."""
    check(p, name)
    g = p.graph("feed")
    for n in g.nodes:
        if n.op == "gather" and n.args[0].is_weight and n.args[1] is g.param("token"):
            return n.args[0]
    raise ArcError(f"pass {name} needs the tokens' embedding, and {g.name} looks up none")


def neighbours(p: Program, name: str, near: int) -> tuple[Program, Value]:
    """The program with a weight i64[V,near] that lists the nearest other codes of each code.

    By the vectors that its decoder looks codes up in; computed when the engine is built. Raises
    ArcError where there is no decoder.
    """
    check(p, name)
    g, codes = codebook(p, name)
    if near >= int(codes.type.shape[0]):
        raise ArcError(f"{near} neighbours in a codebook of {codes.type.shape[0]}")
    old = p.fold or Graph(FOLD, (), (), ())
    b = Builder(FOLD, taken=[v.name for v in old.values()])
    b.nodes += old.nodes
    b.weights.update({w.name: w for w in old.weights})
    made = {f"@{k}": v for k, v in old.results}
    swap = {w: made.get(w.name) or b.weight(w.name, w.type) for w in g.weights}
    for n in g.nodes:
        if all(a in swap for a in n.args) and codes not in swap:
            swap.update(zip(n.outs, b.emit(n.op, *(swap[a] for a in n.args), **n.attrs),
                            strict=True))
    table = b.nearest(swap[codes], k=near)
    results = (*old.results, (f"codes.nearest{near}", table))
    fold = Graph(FOLD, (), tuple(b.nodes), results, tuple(b.weights.values()))
    return replace(p, fold=fold), Value(f"@codes.nearest{near}", table.type)


def codebook(p: Program, name: str) -> tuple[Graph, Value]:
    """Where the finish looks `tokens` up: (its graph, the vectors [V,d] made of weights alone)."""
    for call in p.finish:
        g = p.graph(call.graph)
        same = {g.param("tokens")}  # and whatever only reshapes them
        fixed = set(g.weights)
        for n in g.nodes:
            if n.args and fixed >= set(n.args):
                fixed.update(n.outs)
            if n.op == "reshape" and n.args[0] in same:
                same.update(n.outs)
            if n.op == "gather" and n.args[0] in fixed and n.args[1] in same:
                return g, n.args[0]
    raise ArcError(f"pass {name} needs the codebook of an image decoder",
                   hint="build with --decoder")
