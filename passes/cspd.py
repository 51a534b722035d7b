"""Continuous speculative decoding: a cheap model drafts cells of a diffusion head, this one tests.

CSpD, https://arxiv.org/abs/2411.11925. A round drafts the cells of `window` steps; one step of the
model then denoises all of them from what was known before the round. Both denoise from the same
noise, which belongs to a cell and a turn here, so their paths run side by side and what is left of
the ratio of their laws is

    p / q ~ prod_t |S_t^q|^(1/2) / |S_t^p|^(1/2)  p(x0 | x1^p) / q(x0 | x1^q)

with the diagonal Gaussians of every turn. A draft is kept with probability min(1, p / q); where it
is not, a cell is drawn from the model's last turn and thinned by 1 - q / p, a few times at most.
All of it is in logarithms. With one turn, and the same cells known to both, that is exact, but for
the few tries; with more it is not, whatever the paper says: the ratio leaves out where the paths
went, cells of a round do not know each other, and MAR's last turn adds no noise at all, so that
its Gaussian stands for a point. What it costs has to be measured.
"""

from __future__ import annotations

from dataclasses import replace

from arcompile import partner
from arcompile.drafting import joined, renamed
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Value, merge
from arcompile.pipeline import Pass, parse_pipeline, register, run
from arcompile.program import Call, Draw, Program, Step
from arcompile.weights import Weights

MARK = "small"
LEAST = 0.01  # temperature that a Gaussian is widened to, so that it has a density
MOST = 60.0  # of logarithms
FACTS = ("x", "mean", "log", "sum")  # of a cell: what was drawn, the last turn, all turns


@register("cspd")
class CSpD(Pass):
    """Draft the cells of `window` steps by a small model, then test them by one step of this one.

    by: the passes that make the small model of this one; engine: the folder of an engine of
    another checkpoint of the same latents, grid and steps, to draft instead. alone: share of the
    steps, the first, that this model takes alone. ease: how many times as wide the last turn
    counts when a draft is tested; more are kept, and more of the small model is in the picture.
    retries: of a cell whose draft is not kept. A window of 1 is plain decoding.
    """

    keeps = "quality"
    tries = ({"window": 2}, {"window": 4})
    window: int = 4
    by: str = "int8"
    engine: str = ""
    alone: float = 0.05
    ease: float = 60.0
    retries: int = 4

    def __call__(self, p: Program) -> Program:
        if self.window == 1:
            return p
        self._fits(p)
        small = self._other() if self.engine else run(p, parse_pipeline(self.by))
        _check(small, self.name)
        _alike(p, small, self.name)
        return drafted(p, small, self)

    def _fits(self, p: Program) -> None:
        """Raise ArcError where the program has no rounds of so many steps."""
        if self.window < 1 or not 0 <= self.alone <= 1 or self.ease < 1 or self.retries < 1:
            given = f"{self.window}, {self.ease}, {self.retries} and {self.alone}"
            raise ArcError("pass cspd takes a window, ease and retries of 1 or more and a share "
                           f"alone, not {given}")
        _check(p, self.name)
        if self.window > len(p.steps):
            raise ArcError(f"a window of {self.window} steps in an image of {len(p.steps)}",
                           hint=f"give 1 (plain decoding) to {len(p.steps)}")

    def _other(self) -> Program:
        p = partner.program(self.engine)
        return replace(p, graphs=tuple(renamed(g, g.name, {}, _own) for g in p.graphs))

    def prepared(self, p: Program, source: Weights) -> Pass:
        """Choices by weights' values are made now; two models must mean the same by a latent."""
        if self.window == 1:
            return self
        self._fits(p)
        if self.engine:
            _same_pixels(p, source, partner.weights(self.engine), self.name)
            return self
        done: list[Pass] = []
        run(p, parse_pipeline(self.by), source, done)
        return replace(self, by=", ".join(map(str, done)))

    def brings(self) -> Weights:
        if not self.engine or self.window == 1:
            return Weights({})
        return partner.brought(self.engine, _own)

    def reads(self) -> tuple[str, ...]:
        return (partner.digest(self.engine),) if self.engine else ()


def _own(weight: str) -> str:
    return f"@{MARK}.{weight.lstrip('@')}"


# --- what fits -----------------------------------------------------------------------------------


def _check(p: Program, name: str) -> None:
    """Raise ArcError unless every step makes features, denoises its cells and puts them down."""
    if p.accept != "all":
        raise ArcError(f"pass {name} needs a plain program, and {p.name} is drafted already",
                       hint="give one method of decoding")
    for i, s in enumerate(p.steps):
        names = [c.graph for c in s.calls]
        if names != ["step", "head", "place"] or not s.calls[1].loop or len(p.prompt) != 1:
            raise ArcError(f"pass {name} needs a program that denoises its cells step by step, but "
                           f"step {i} of {p.name} calls {' '.join(map(str, s.calls))}",
                           hint="it is for MAR; `arcompile list models` tells each family's order")
    tables = sorted({s.calls[1].loop for s in p.steps})
    if len(tables) > 1:
        raise ArcError(f"pass {name} needs one number of denoising steps, and {p.name} has "
                       f"{', '.join(tables)}", hint="build without diffusion_least")
    for g, made in (("prompt", {"seen"}), ("step", {"x", "cells"}), ("head", {"x"}),
                    ("place", {"latents", "seen"})):
        graph = p.graph(p.prompt[0].graph if g == "prompt" else g)
        if not made <= dict(graph.results).keys():
            raise ArcError(f"pass {name} needs a graph {g} of {p.name} that makes "
                           f"{' and '.join(sorted(made))}")
    last_turn(p.graph("head"), name)


def _alike(p: Program, small: Program, name: str) -> None:
    """Raise ArcError unless both draw the same cells in the same turns."""
    def known(q: Program) -> object:
        seen = q.graph(q.prompt[0].graph).result("seen")
        return seen and seen.type.shape[1]

    for what, a, b in (
        ("grids of as many cells", p.positions, small.positions),
        ("the same steps", [s.commit for s in p.steps], [s.commit for s in small.steps]),
        ("the same denoising steps", _turns(p), _turns(small)),
        ("the same guidance of steps", [s.guide for s in p.steps], [s.guide for s in small.steps]),
        ("latents of one size", p.state, small.state),
        ("the same inputs", p.inputs, small.inputs),
        ("as many slots before the image", known(p), known(small)),
    ):
        if a != b:
            raise ArcError(f"pass {name} needs two models with {what}",
                           hint="build the second one with the same options")


def _turns(p: Program) -> object:
    return p.tables[p.steps[0].calls[1].loop]


def _same_pixels(p: Program, source: Weights, other: Weights, name: str) -> None:
    """Raise ArcError where both decode latents to pixels by different weights."""
    for call in p.finish:
        for w in p.graph(call.graph).weights:
            if w.name not in other.load or w.name not in source.load or w.type.rank != 1:
                continue
            a, b = source[w.name], other[w.name]
            if a.shape != b.shape or abs(a - b).max() > 1e-5:
                raise ArcError(f"pass {name} needs two models of one autoencoder, and "
                               f"{w.name.lstrip('@')} differs",
                               hint="give a model that was trained on the same latents")


def last_turn(head: Graph, name: str) -> tuple[Value, Value]:
    """(mean, log of the deviation) of a head whose result is mean + ... exp(log) noise ...

    Raises ArcError where the head is no such thing.
    """
    made = {v: n for n in head.nodes for v in n.outs}
    end = made.get(head.result("x"))  # type: ignore[arg-type]
    for term, mean in (end.args[::-1], end.args) if end and end.op == "add" else ():
        factors = _factors(term, made)
        spread = [made[v].args[0] for v in factors if v in made and made[v].op == "exp"]
        if head.param("noise") in factors and len(spread) == 1:
            return mean, spread[0]
    raise ArcError(f"pass {name} needs a head that ends by adding noise to a mean, and "
                   f"{head.name} does not", hint="it is for heads that sample by DDPM")


def _factors(v: Value, made: dict[Value, Node]) -> list[Value]:
    n = made.get(v)
    return [f for a in n.args for f in _factors(a, made)] if n and n.op == "mul" else [v]


# --- the program ---------------------------------------------------------------------------------


def drafted(p: Program, small: Program, way: CSpD) -> Program:
    """See the module. `known` is what the model knows: what was `seen` before the round."""
    draw = p.graph(p.prompt[0].graph)
    width = int(dict(p.state)["latents"].shape[2])
    own = {k: f"{MARK}_{k}" for q in (small.graph(small.prompt[0].graph), small.graph("step"))
           for k, _ in q.results if k not in ("x", "cells", "seen")}
    first, step, head = (renamed(g, f"{MARK}_{g.name}", own) for g in (
        small.graph(small.prompt[0].graph), _zeroed(small.graph("step")),
        _told(small.graph("head"), way.name)))
    first = replace(first, results=tuple((k, v) for k, v in first.results if k != "seen"))
    graphs = (
        _also(draw, known="seen"), _zeroed(renamed(p.graph("step"), "step", {"seen": "known"})),
        _told(p.graph("head"), way.name), _also(p.graph("place"), known="seen"),
        first, step, head, merge(p.graph("place"), _noted(width, False), "begin"),
        merge(p.graph("place"), _noted(width, True), "more"),
        _verify(width, p.positions, way.ease, way.retries))
    known = {g.name for g in graphs}
    graphs = tuple(g for g in graphs if g.results)
    graphs += tuple(g for g in p.graphs if g.name not in known)
    chance = Draw("chance", "uniform", 1 + way.retries)
    again = Draw("again", "normal", width * way.retries)
    also = (Call(first.name),) if first.results else ()
    return replace(p, graphs=graphs, steps=_steps(p.steps, way), accept="confident",
                   prompt=(*p.prompt, *also), draws=(*p.draws, chance, again),
                   fold=joined(p.fold, small.fold, way.name))


def _steps(steps: tuple[Step, ...], way: CSpD) -> tuple[Step, ...]:
    alone = round(way.alone * len(steps))
    made = [*steps[:alone]]
    for at in range(alone, len(steps), way.window):
        part = steps[at : at + way.window]
        for i, s in enumerate(part):
            made.append(replace(s, calls=(
                Call(f"{MARK}_step"), replace(s.calls[1], graph=f"{MARK}_head"),
                Call("more" if i else "begin"))))
        cells = tuple(c for s in part for c in s.commit)
        made.append(replace(part[-1], query=cells, commit=cells, calls=(
            Call("step"), part[-1].calls[1], Call("verify")), set=(("fresh", cells),)))
    return tuple(made)


# --- the graphs ----------------------------------------------------------------------------------


def _also(g: Graph, **names: str) -> Graph:
    """The graph with a result under a second name too."""
    made = dict(g.results)
    return replace(g, results=(*g.results, *((new, made[old]) for new, old in names.items())))


def _zeroed(step: Graph) -> Graph:
    """The step, and the sum of its cells before the first turn."""
    b = Builder("zero")
    x = step.result("x")
    assert x is not None
    none = b.mul(b.param("x", x.type), b.const(dtype="f32", value=0.0))
    return merge(step, b.graph(sum=b.sum(none, axes=(2,), keepdims=False)), step.name)


def _told(head: Graph, name: str) -> Graph:
    """The head, which also tells its mean f32[b,c,C], the log of the deviation, and the sum of
    these f32[b,c] over all turns so far."""
    mean, log = last_turn(head, name)
    b, shape = Builder("told"), mean.type.shape
    now, total = b.param("log", mean.type), b.param("sum", f"f32[{shape[0]},{shape[1]}]")
    so_far = b.graph(sum=b.add(total, b.sum(now, axes=(2,), keepdims=False)))
    told = replace(head, results=(*head.results, ("mean", mean), ("log", log)))
    return merge(told, so_far, head.name)


def _noted(width: int, more: bool) -> Graph:
    """Facts of a step's cells -> those of the round so far."""
    b = Builder("noted")
    found = {}
    for k in FACTS:
        t = "b,c" if k == "sum" else f"b,c,{width}"
        now = b.param(k, f"f32[{t}]")
        before = [b.param(f"draft_{k}", f"f32[{t.replace('c', 'd')}]")] if more else []
        found[f"draft_{k}"] = b.concat(*before, now, axis=1) if more else now
    return b.graph(**found)


def _verify(width: int, positions: int, ease: float, tries: int) -> Graph:
    """The facts of the round's cells by both models -> their latents; kept f32[b,c]: which drafts
    are."""
    b = Builder("verify")
    latents = b.param("latents", f"f32[b,{positions},{width}]")
    cells, seen = b.param("cells", "i64[b,c]"), b.param("seen", "i64[b,v]")
    temperature = b.param("temperature", "f32[b]")
    chance = b.param("chance", f"f32[b,c,{1 + tries}]")
    again = b.param("again", f"f32[b,c,{width * tries}]")
    mine, theirs = ({k: b.param(mark + k, "f32[b,c]" if k == "sum" else f"f32[b,c,{width}]")
                     for k in FACTS if k != "x"} for mark in ("", "draft_"))
    x = b.param("draft_x", f"f32[b,c,{width}]")
    heat = b.reshape(b.maximum(temperature, b.const(dtype="f32", value=LEAST)), shape=("b", 1, 1))
    before = b.sub(*(b.sub(m["sum"], b.sum(m["log"], axes=(2,), keepdims=False))
                     for m in (theirs, mine)))  # the turns before the last
    ratio = b.add(before, b.sub(*(_density(b, x, m, heat, ease) for m in (mine, theirs))))
    kept = b.less(_part(b, chance, 0), _at_most(b, ratio))
    spread, drawn = b.mul(b.exp(mine["log"]), heat), None
    for i in reversed(range(tries)):
        noise = b.slice(again, axis=2, start=i * width, stop=(i + 1) * width)
        y = b.add(mine["mean"], b.mul(spread, noise))
        gap = b.sub(*(_density(b, y, m, heat, 1.0) for m in (theirs, mine)))
        thin = b.sub(b.const(dtype="f32", value=1.0), _at_most(b, b.sub(gap, before)))
        good = b.reshape(b.less(_part(b, chance, 1 + i), thin), shape=("b", "c", 1))
        drawn = y if drawn is None else b.where(good, y, drawn)
    new = b.where(b.reshape(kept, shape=("b", "c", 1)), x, drawn)
    at = b.expand(b.reshape(cells, shape=("b", "c", 1)), shape=("b", "c", width))
    return b.graph(latents=b.put_along(latents, at, new, axis=1), known=seen,
                   kept=b.cast(kept, dtype="f32"))


def _density(b: Builder, x: Value, of: dict[str, Value], heat: Value, ease: float) -> Value:
    """log N(x; mean, (ease heat exp(log))^2), without what both models have in common: f32[b,c]"""
    spread = b.mul(b.mul(b.exp(of["log"]), heat), b.const(dtype="f32", value=ease))
    z = b.div(b.sub(x, of["mean"]), spread)
    half = b.mul(b.mul(z, z), b.const(dtype="f32", value=0.5))
    return b.neg(b.sum(b.add(of["log"], half), axes=(2,), keepdims=False))


def _at_most(b: Builder, log: Value) -> Value:
    """min(1, e^log)"""
    low, high = (b.const(dtype="f32", value=v) for v in (-MOST, 0.0))
    return b.exp(b.maximum(b.minimum(log, high), low))


def _part(b: Builder, x: Value, i: int) -> Value:
    return b.reshape(b.slice(x, axis=2, start=i, stop=i + 1), shape=("b", "c"))
