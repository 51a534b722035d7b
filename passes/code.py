"""Collaborative decoding: a large model draws the coarse scales, a small one the fine ones.

CoDe, https://arxiv.org/abs/2411.17787 (CVPR 2025). Most of the work of next-scale prediction is in
its last scales, and they ask least of a model. The small model takes over from what is drawn, the
carried latent: it reads the inputs of all scales so far in one forward, each scale seeing itself
and the coarser ones, and goes on as it always does. The large model's caches are gone by then.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

from arcompile import partner
from arcompile.drafting import renamed
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value
from arcompile.pipeline import Pass, register
from arcompile.program import Call, Program, Step
from arcompile.weights import Array, Store, Weights

MARK = "large"


@register("code")
class CoDe(Pass):
    """Let `engine` draw the first `scales` scales, and this model the others.

    engine: the folder of an engine of a larger model over the same image tokens. 0 scales is this
    model alone, all of them that one. It changes the law of images: measure what it does to yours.
    """

    keeps = "quality"
    engine: str = ""
    scales: int = 8

    def __call__(self, p: Program) -> Program:
        if not self.scales:
            return p
        large = self._large()
        _check(p, large, self.scales, self.name)
        return _joined(p, large, self.scales)

    def _large(self) -> Program:
        if not self.engine:
            raise ArcError("pass code takes a second model, and none is given",
                           hint="build the larger one, then give code{engine='DIR'}")
        return partner.program(self.engine)

    def prepared(self, p: Program, source: Weights) -> Pass:
        if self.scales:
            large = self._large()
            _check(p, large, self.scales, self.name)
            a = _codes(p, Store(source, p.fold))
            b = _codes(large, Store(partner.weights(self.engine)))
            if a.shape != b.shape or abs(a - b).max() > 1e-5:
                raise ArcError(f"pass {self.name} needs two models of one image tokenizer, and "
                               "their codebooks differ",
                               hint="give a model that was trained on the same tokens")
        return self

    def brings(self) -> Weights:
        if not self.scales or not self.engine:
            return Weights({})
        return partner.brought(self.engine, _own)

    def reads(self) -> tuple[str, ...]:
        return (partner.digest(self.engine),) if self.engine else ()


def _own(weight: str) -> str:
    return f"@{MARK}.{weight.lstrip('@')}"


# --- what fits -----------------------------------------------------------------------------------


def _check(p: Program, large: Program, scales: int, name: str) -> None:
    """Raise ArcError unless both draw the same scales of the same tokens, one step each."""
    for q in (p, large):
        for i, s in enumerate(q.steps):
            names = [c.graph for c in s.calls]
            fits = names in (["step", f"feed{i}"], ["step", "sample", f"feed{i}"])
            if q.accept != "all" or not fits or "f_hat" not in dict(q.state):
                raise ArcError(f"pass {name} needs a program of scales, but step {i} of {q.name} "
                               f"calls {' '.join(names)}",
                               hint="`arcompile list models` tells the order of each family")
    a, b = ([len(s.commit) for s in q.steps] for q in (p, large))
    if a != b:
        raise ArcError(f"pass {name} needs two models of one grid, not scales of "
                       f"{' '.join(map(str, a))} and {' '.join(map(str, b))} tokens")
    if not 1 <= scales <= len(a):
        raise ArcError(f"pass {name} cannot split {len(a)} scales after {scales}",
                       hint=f"give 0 (this model alone) to {len(a)} (the other alone)")
    mine, theirs = (_width(q) for q in (p, large))
    if mine != theirs:
        raise ArcError(f"pass {name} needs two models of one codebook, not {mine} and {theirs}")
    if [len(s.calls) for s in p.steps] != [len(s.calls) for s in large.steps]:
        raise ArcError(f"pass {name} needs two engines of one target")
    if p.inputs != large.inputs:
        raise ArcError(f"pass {name} needs two models that take the same inputs")


def _width(p: Program) -> int:
    return int(p.graph("step").result("logits").type.shape[-1])  # type: ignore[union-attr]


def _codes(p: Program, store: Store) -> Array:
    """The vectors [V,d] that a scale's tokens are looked up in."""
    g = p.graph("feed0")
    for n in g.nodes:
        if n.op == "gather" and n.args[0].is_weight and n.args[1] is g.param("token"):
            return store[n.args[0].name]
    raise ArcError(f"graph {g.name} of {p.name} looks up no tokens")


# --- the program ---------------------------------------------------------------------------------


def _joined(p: Program, large: Program, scales: int) -> Program:
    """See the module. Inputs of the small model's scales are kept as `seen1`, `seen2`, ..."""
    kept = {k for c in large.prompt for k, _ in large.graph(c.graph).results}
    carried = {k for k, _ in large.state} - {"f_hat"}
    names = {k: f"{MARK}_{k}" for k in kept | carried | {"x"}}
    last = scales == len(p.steps)

    def at(name: str) -> str:
        return f"{MARK}_{name}"

    graphs = [renamed(large.graph(c.graph), at(c.graph), names, _own) for c in large.prompt]
    read = sum(len(s.commit) for s in p.steps[:scales])
    step = renamed(large.graph("step"), at("step"), names, _own)
    graphs.append(_shorter(step, p.positions, read))
    for i in range(scales - 1):
        feed = large.graph(f"feed{i}")
        feed = replace(feed, results=tuple((k, v) for k, v in feed.results if k != "f_hat"))
        graphs.append(renamed(feed, at(feed.name), names, _own))
    graphs += [_seen(g, scales) for g in p.graphs if not last or g.name != "step"]
    if not last:
        graphs += [_gathered(p, scales), _prefill(p.graph("step"))]
    steps = []
    for i, s in enumerate(p.steps):
        if i < scales:
            ahead = [Call(at(f"feed{i}"))] if i + 1 < scales else []
            s = replace(s, calls=(Call(at("step")), *s.calls[1:-1], *ahead, s.calls[-1]))
        elif i == scales:
            s = _takes_over(p, s)
        steps.append(s)
    own = () if last else tuple((k, t) for k, t in p.state if k != "f_hat")
    shared = tuple((k, t) for k, t in p.state if k == "f_hat")
    others = tuple((names[k], _cut(t, p.positions, read)) for k, t in large.state if k != "f_hat")
    return replace(p, graphs=tuple(graphs), steps=tuple(steps), state=(*own, *others, *shared),
                   prompt=(*p.prompt, *(Call(at(c.graph)) for c in large.prompt)))


def _cut(t: Type, old: int, new: int) -> Type:
    """A cache of fewer slots."""
    fits = t.rank == 4 and t.shape[2] == old
    return Type(t.dtype, (*t.shape[:2], new, t.shape[3])) if fits else t


def _shorter(g: Graph, old: int, new: int) -> Graph:
    """The step whose caches hold the scales it draws, and no more."""
    b = Builder(g.name, taken=[v.name for v in g.weights])
    swap = {v: b.param(v.name, _cut(v.type, old, new)) for v in g.params}
    swap.update({w: b.weight(w.name, w.type) for w in g.weights})
    for n in g.nodes:
        b.origin = n.origin
        swap.update(zip(n.outs, b.emit(n.op, *(swap[a] for a in n.args), **n.attrs), strict=True))
    return b.graph(**{k: swap[v] for k, v in g.results})


def _seen(g: Graph, scales: int) -> Graph:
    """The feed of a scale that the large model draws: its input is for later."""
    for i in range(scales):
        if g.name == f"feed{i}":
            return replace(g, results=tuple(
                (f"seen{i + 1}" if k == "x" else k, v) for k, v in g.results))
    return g


def _takes_over(p: Program, s: Step) -> Step:
    levels = [i for i, each in enumerate(p.steps) for _ in each.commit]
    return replace(s, calls=(Call("gathered"), Call("prefill"), *s.calls[1:]),
                   set=(*s.set, ("levels", tuple(levels))))


def _gathered(p: Program, scales: int) -> Graph:
    """The inputs of all scales so far, [r,n,dim]."""
    b = Builder("gathered")
    x = p.graph("step").param("x")
    assert x is not None
    sizes = [len(s.commit) for s in p.steps]
    parts = [b.param("x" if not i else f"seen{i}", replace(x.type, shape=(
        x.type.shape[0], sizes[i], x.type.shape[2]))) for i in range(scales + 1)]
    assert [*accumulate(sizes)][scales] == sum(int(v.type.shape[1]) for v in parts)
    return b.graph(x=b.concat(*parts, axis=1))


def _prefill(step: Graph) -> Graph:
    """The step on all scales so far, into empty caches; no scale sees a finer one."""
    b = Builder("prefill", taken=[v.name for v in step.weights])
    new = {v: b.param(v.name, v.type) for v in step.params}
    new.update({w: b.weight(w.name, w.type) for w in step.weights})
    past = next(v for v in new.values() if v.name == "past")
    empty = b.mul(past, b.const(dtype="i32", value=0))
    bias: dict[object, Value] = {}
    for n in step.nodes:
        b.origin = n.origin
        args = tuple(empty if new[a] is past else new[a] for a in n.args)
        outs = _node(b, n, args, bias)
        new.update(zip(n.outs, outs, strict=True))
    return b.graph(**{k: new[v] for k, v in step.results})


def _node(b: Builder, n: Node, x: tuple[Value, ...], bias: dict[object, Value]
          ) -> tuple[Value, ...]:
    a = dict(n.attrs)
    if n.op == "decode_attention":
        raise ArcError("pass code does not know attention that rotates by itself",
                       hint="it is for VAR so far")
    if n.op != "attention" or "past" not in a.get("extra", ()):
        return b.emit(n.op, *x, **a)
    slots = x[1].type.shape[2]
    if slots not in bias:
        bias[slots] = _levels(b, slots)
    return b.emit("attention", *x[:3], x[3], bias[slots],
                  **{**a, "mask": "full", "extra": ("past", "bias")})


def _levels(b: Builder, slots: object) -> Value:
    """f32[1,1,s,slots]: 0 where a slot's scale is not finer than the query's."""
    levels = b.param("levels", f"i64[{slots}]")
    mine = b.gather(levels, b.arange(dtype="i64", shape=("s",)), axis=0)
    seen = b.less_equal(b.reshape(levels, shape=(1, slots)), b.reshape(mine, shape=("s", 1)))
    full, none = b.const(dtype="f32", value=0.0), b.const(dtype="f32", value=-1e30)
    return b.reshape(b.where(seen, full, none), shape=(1, 1, "s", slots))
