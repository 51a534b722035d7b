"""ZipAR: rows of an image drawn at once, each some columns behind the one above.

https://arxiv.org/abs/2412.04062. A token is drawn as soon as the row above is `window` columns
ahead, so an image of h rows of w tokens takes w + (h - 1) * window forwards. What it would have
seen further right is not there yet: fewer forwards for another law. Undrawn cells are masked, and
rotation goes by the raster place, whenever a token is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from arcompile.dims import Dim
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value, merge
from arcompile.pipeline import Pass, register
from arcompile.program import Call, Program, Step
from arcompile.raster import check, square

SPARE = 1  # a slot that is never used, to hide where there is nothing to hide


@register("zipar")
class ZipAR(Pass):
    """Draw rows in parallel, `window` columns apart. As wide as a row, it is plain decoding.

    width: tokens in a row; 0 for a square image.
    """

    keeps = "quality"
    window: int = 8
    width: int = 0

    @classmethod
    def worth(cls, p: Program) -> Iterable[Pass]:
        return (cls(window=n) for n in windows(p))

    def __call__(self, p: Program) -> Program:
        width = row_of(p, self.name, self.window, self.width)
        return p if self.window == width else _zipped(p, p.positions // width, width, self.window)


def windows(p: Program) -> list[int]:
    """Those worth trying: three quarters, half and a quarter of a row."""
    width = math.isqrt(p.positions)
    return sorted({width * n // 4 for n in (1, 2, 3)} - {0})


def row_of(p: Program, name: str, window: int, width: int, least: int = 1) -> int:
    """Tokens in a row, `least` or more. Raises ArcError where rows cannot be `window` apart."""
    check(p, name)
    width = width or square(p, name)
    if not 1 <= window <= width or width < least or p.positions % width:
        raise ArcError(f"rows of {width} of {p.positions} tokens cannot be {window} apart",
                       hint=f"give window=1 to {width} (plain decoding)")
    return width


# --- the order -----------------------------------------------------------------------------------


@dataclass
class Turn:
    """One forward: what is read (`at`: raster slots), which of the tokens drawn before it is
    (`pick`), what is drawn, and the slots of stand-ins that are hidden from now on."""

    at: list[int] = field(default_factory=list)
    pick: list[int] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)
    hide: list[int] = field(default_factory=list)


def wave(h: int, w: int, window: int) -> list[Turn]:
    """The forwards of an image, but for the first, which reads the prompt and draws (0, 0).

    Position i is read at slot i, and drawn from slot i - 1. A row that begins before the one above
    has ended reads the last token above in the place of the token it follows; when the row above
    ends, that is read once more for good.
    """
    done, turns = [1] + [0] * (h - 1), [Turn(drawn=[0])]
    slots, stand_in = 0, dict[int, int]()  # slots filled after the prompt; row -> its stand-in's
    while sum(done) < h * w:
        last, now, turn = turns[-1].drawn, list(done), Turn()
        for i in range(h):
            ended = done[i] == w and (i + 1) * w - 1 in last and i + 1 < h and i + 1 in stand_in
            if ended:  # its true last token, read again for the rows below
                turn.at.append((i + 1) * w - 1)
                turn.pick.append(last.index((i + 1) * w - 1))
                turn.hide.append(stand_in[i + 1])
        slots += len(turn.at)
        for i in range(h):
            if done[i] == w or (i and done[i - 1] < min(done[i] + window, w)):
                continue
            read = i * w + done[i] - 1 if done[i] else (i - 1) * w + done[i - 1] - 1
            turn.pick.append(last.index(read))
            turn.at.append(i * w + done[i] - 1)
            turn.drawn.append(i * w + done[i])
            if not done[i] and done[i - 1] < w:
                stand_in[i] = slots
            slots, now[i] = slots + 1, done[i] + 1
        done = now
        turns.append(turn)
    return turns


def _steps(p: Program, turns: list[Turn], prompt: int, spare: int) -> list[Step]:
    first, names = p.steps[0], [c.graph for c in p.steps[0].calls]
    own = tuple(Call(n) for n in names if n != "feed")
    steps = []
    for turn, after in zip(turns, [*turns[1:], None], strict=True):
        at = [prompt + i for i in turn.at] or list(range(prompt))
        hide = [prompt + i for i in turn.hide] or [spare]
        given = (("at", tuple(at)), ("hide", tuple(hide)))
        given += (("pick", tuple(after.pick)),) if after else ()
        here = tuple(turn.drawn)
        steps.append(Step(here, here, own + ((Call("feed"),) if after else ()), first.guide,
                          len(at), given))
    return steps


# --- the graphs ----------------------------------------------------------------------------------


def _zipped(p: Program, h: int, w: int, window: int) -> Program:
    prompt = p.steps[0].append
    step = p.graph(p.steps[0].calls[0].graph)
    if not isinstance(prompt, int) or step.param("keep"):
        raise ArcError("pass zipar takes prompts of one fixed length",
                       hint="it is for class-conditional models so far")
    turns = wave(h, w, window)
    old = {t.shape[2] for k, t in p.state if t.rank == 4 and step.param(k)}
    slots = prompt + sum(len(t.at) for t in turns) + SPARE
    waved = _scattered(step, old, slots)
    first = Builder("feed")
    token, pick = first.param("token", "i64[b,k]"), first.param("pick", "i64[c]")
    chosen = first.graph(token=first.gather(token, pick, axis=1))
    feed = merge(chosen, p.graph("feed"))
    feed = replace(feed, results=tuple((k, v) for k, v in feed.results if k != "token"))
    swap = {step.name: waved, "feed": feed}
    state = (*((k, _grown(t, old, slots)) for k, t in p.state), ("slots", Type("i64", (slots,))))
    return replace(
        p, graphs=tuple(swap.get(g.name, g) for g in p.graphs), state=state,
        steps=tuple(_steps(p, turns, prompt, slots - 1)))


def _grown(t: Type, old: set[Dim], slots: int) -> Type:
    """A cache of more slots."""
    if t.rank == 4 and t.shape[2] in old:
        return Type(t.dtype, (*t.shape[:2], slots, t.shape[3]))
    return t


def _scattered(g: Graph, old: set[Dim], slots: int) -> Graph:
    """The step on raster slots `at`, whose caches hold what was read in the order it was."""
    b = Builder(g.name, taken=[v.name for v in g.weights])
    new = {p: b.param(p.name, _grown(p.type, old, slots)) for p in g.params}
    new.update({w: b.weight(w.name, w.type) for w in g.weights})
    past = next(v for v in new.values() if v.name == "past")
    at, hide = b.param("at", "i64[s]"), b.param("hide", "i64[h]")
    rows = b.expand(b.reshape(at, shape=(1, "s")), shape=("r", "s"))
    held, bias = _seen(b, past, at, hide, slots)
    for n in g.nodes:
        args = tuple(new[a] for a in n.args)
        b.origin = n.origin
        new.update(zip(n.outs, _node(b, n, args, rows, bias, past), strict=True))
    results = {k: new[v] for k, v in g.results}
    return b.graph(**results, slots=held)


def _seen(b: Builder, past: Value, at: Value, hide: Value, slots: int) -> tuple[Value, Value]:
    """(the raster slot in each cache slot, from 1 on, 0 where there is none; what a query may see
    as a bias [1,1,s,slots]: everything up to its own place)."""
    held, one = b.param("slots", f"i64[{slots}]"), b.const(dtype="i64", value=1)
    start = b.cast(b.slice(past, axis=0, start=0, stop=1), dtype="i64")
    here = b.add(start, b.arange(dtype="i64", shape=("s",)))
    own = b.add(at, one)
    held = b.put_along(held, here, own, axis=0)
    zero = b.const(dtype="i64", value=0)
    held = b.put_along(held, hide, b.mul(hide, zero), axis=0)
    reached = b.less_equal(b.reshape(held, shape=(1, slots)), b.reshape(own, shape=("s", 1)))
    seen = b.emit("and", b.less(zero, b.reshape(held, shape=(1, slots))), reached)[0]
    full, none = b.const(dtype="f32", value=0.0), b.const(dtype="f32", value=-1e30)
    return held, b.reshape(b.where(seen, full, none), shape=(1, 1, "s", slots))


def _node(b: Builder, n: Node, x: tuple[Value, ...], rows: Value, bias: Value,
          past: Value) -> tuple[Value, ...]:
    """The node, rotating by raster slots and attending to what may be seen."""
    a = dict(n.attrs)
    if n.op == "rope" and x[3] is past:
        return b.emit("rope", *x[:3], rows, **a)
    if n.op == "attention" and "past" in a.get("extra", ()):
        extra = {"mask": "full", "extra": ("past", "bias")}
        return b.emit("attention", *x[:3], past, bias, **{**a, **extra})
    if n.op != "decode_attention":
        return b.emit(n.op, *x, **a)
    q, k, v, kc, vc, _, cos, sin = x
    spin = {"interleaved": a["interleaved"]}
    q = b.rope(q, cos, sin, rows, heads=a["heads"], **spin)
    kc = b.cache_append(kc, b.rope(k, cos, sin, rows, heads=a["kv_heads"], **spin), past)
    vc = b.cache_append(vc, v, past)
    out = b.attention(q, kc, vc, past, bias, heads=a["heads"], kv_heads=a["kv_heads"],
                      scale=a["scale"], mask="full", extra=("past", "bias"))
    return out, kc, vc


