"""ZipAR with windows that adapt: a row begins as soon as seeing more would not change its mind.

https://arxiv.org/abs/2412.04062. The first token of a row is drawn when `window` tokens of the row
above are there, and tested again with one more: it stays with probability min(1, p'(x) / p(x)) of
the law p' that sees more, else one of the residual law takes its place and waits for the next
test. So it is always drawn from the law of what was visible last, and a row follows the one above
by as many columns as it took. Rows end by themselves, each image at its own pace: a round draws one
token of every row that may go on, and an image takes w and the sum of its rows' lags of rounds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from arcompile.dims import Dim
from arcompile.drafting import vocabulary
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value, merge
from arcompile.passes.zipar import row_of, windows
from arcompile.pipeline import Pass, register
from arcompile.program import Call, Draw, Program, Step
from arcompile.raster import bare
from arcompile.speculation import filtered


@register("zipar-adaptive")
class ZipARAdaptive(Pass):
    """Draw rows in parallel, `window` columns apart or more, as each row's first token asks for.

    As wide as a row, it is plain decoding; one column less keeps the law of images. width: tokens
    in a row; 0 for a square image.
    """

    keeps = "quality"
    window: int = 4
    width: int = 0

    @classmethod
    def worth(cls, p: Program) -> Iterable[Pass]:
        return (cls(window=n) for n in windows(p))

    def __call__(self, p: Program) -> Program:
        width = row_of(p, self.name, self.window, self.width, 2)
        if self.window == width or p.positions == width:
            return p
        return zipped(p, p.positions // width, width, self.window, self.name)


def zipped(p: Program, h: int, w: int, window: int, name: str) -> Program:
    """The first token by the prompt alone, the others in rounds that a graph keeps account of."""
    first, n = p.steps[0], p.positions
    step = p.graph(first.calls[0].graph)
    if not isinstance(first.append, int) or step.param("keep"):
        raise ArcError(f"pass {name} takes prompts of one fixed length",
                       hint="it is for class-conditional models so far")
    if step.param("past") is None:
        raise ArcError(f"pass {name} needs a step that knows its slot, and that of {p.name} has "
                       "no caches")
    v, slots = vocabulary(p), n + first.append
    old = {t.shape[2] for k, t in p.state if t.rank == 4 and step.param(k)}
    own = {"held": Type("i64", ("b", slots)), "board": Type("i64", ("b", n + 1)),
           **{k: Type("i64", ("b", h)) for k in COUNTS}, "before": Type("f32", ("b", h, v))}
    own = {k if k == "held" else NEXT + k: t for k, t in own.items()}
    state = (*((k, _grown(t, old, slots)) for k, t in p.state), *own.items())
    placed = merge(_placed(bare(step), old, slots), drawn_graph(v))
    rest = tuple(range(1, n))
    steps = (replace(first, calls=(Call("open"), Call("begin")), window=1),
             Step(rest, rest, (Call("wave"), Call("feed"), Call("window")), first.guide,
                  n - 1, window=n - 1))
    gone = {c.graph for c in first.calls} - {"feed"}
    graphs = (*(g for g in p.graphs if g.name not in gone), open_graph(first.append),
              replace(placed, name="begin"), wave_graph(h, w, window, first.append, v),
              merge(placed, settle_graph(h, w, v), "window"))
    draws = (*(replace(d, when="place") for d in p.draws), Draw("chance", "uniform"),
             Draw("again", "uniform", 2))
    return replace(p, graphs=graphs, state=state, steps=steps, draws=draws, accept="prefix")


COUNTS = ("drawn", "waits", "guess", "had", "stood")
NEXT = "next_"  # what a round leaves for the one after: a graph reads what it carries only once, as
# its next value may take its place at any time, so these have a name for each half of a round


def _grown(t: Type, old: set[Dim], slots: int) -> Type:
    """A cache of more slots."""
    if t.rank == 4 and t.shape[2] in old:
        return Type(t.dtype, (*t.shape[:2], slots, t.shape[3]))
    return t


# --- the step, at any slots ----------------------------------------------------------------------


def _placed(g: Graph, old: set[Dim], slots: int) -> Graph:
    """The step on slots `at` i64[b,s] of its caches, which are those of raster order; the last
    slot is for queries that count for nothing."""
    b = Builder(g.name, taken=[v.name for v in g.weights])
    new = {p: b.param(p.name, _grown(p.type, old, slots)) for p in g.params}
    new.update({w: b.weight(w.name, w.type) for w in g.weights})
    past = next(v for v in new.values() if v.name == "past")
    at, held = b.param("at", "i64[b,s]"), b.param("held", f"i64[b,{slots}]")
    image = next((v for v in b.params if v.name == "image"), None) or b.param("image", "i64[r]")
    one = b.const(dtype="i64", value=1)
    held = b.put_along(held, at, b.full(dtype="i64", shape=("b", "s"), value=1), axis=1)
    every = b.reshape(b.arange(dtype="i64", shape=(slots,)), shape=(1, 1, slots))
    near = b.less_equal(every, b.reshape(at, shape=("b", "s", 1)))
    seen = b.emit("and", near, b.equal(b.reshape(held, shape=("b", 1, slots)), one))[0]
    full, none = b.const(dtype="f32", value=0.0), b.const(dtype="f32", value=-1e30)
    bias = b.reshape(b.where(seen, full, none), shape=("b", 1, "s", slots))
    rows = b.gather(at, image, axis=0)
    spread = _Spread(b, rows, b.gather(bias, image, axis=0), past, slots)
    for n in g.nodes:
        args = tuple(new[a] for a in n.args)
        b.origin = n.origin
        new.update(zip(n.outs, spread.node(n, args), strict=True))
    return b.graph(**{k: new[v] for k, v in g.results}, held=held)


class _Spread:
    """Nodes that know of slots: rotation, caches, attention."""

    def __init__(self, b: Builder, rows: Value, bias: Value, past: Value, slots: int):
        self.b, self.rows, self.bias, self.past, self.slots = b, rows, bias, past, slots
        count = b.sum(b.full(dtype="i64", shape=("s",), value=1), axes=(0,), keepdims=True)
        left = b.sub(b.const(dtype="i64", value=slots), count)
        self.turned = b.minimum(rows, b.const(dtype="i64", value=slots - 2))  # tables may end there
        zero = b.mul(past, b.const(dtype="i32", value=0))
        self.all = b.add(zero, b.cast(left, dtype="i32"))  # with the queries, every slot

    def node(self, n: Node, x: tuple[Value, ...]) -> tuple[Value, ...]:
        b, a = self.b, dict(n.attrs)
        if n.op == "rope" and x[3] is self.past:
            return b.emit("rope", *x[:3], self.turned, **a)
        if n.op == "cache_append":
            return (self.put(x[0], x[1]),)
        if n.op == "attention" and "past" in a.get("extra", ()):
            return (self.attend(*x[:3], a),)
        if n.op != "decode_attention":
            return b.emit(n.op, *x, **a)
        q, k, v, kc, vc, _, cos, sin = x
        spin = {"interleaved": a["interleaved"]}
        q = b.rope(q, cos, sin, self.turned, heads=a["heads"], **spin)
        kc = self.put(kc, b.rope(k, cos, sin, self.turned, heads=a["kv_heads"], **spin))
        vc = self.put(vc, v)
        return self.attend(q, kc, vc, a), kc, vc

    def put(self, cache: Value, new: Value) -> Value:
        """new [r,s,g*e] into the slots of its rows."""
        b, (_, g, _, e) = self.b, cache.type.shape
        new = b.transpose(b.reshape(new, shape=("r", "s", g, e)), perm=(0, 2, 1, 3))
        at = b.expand(b.reshape(self.rows, shape=("r", 1, "s", 1)), shape=("r", g, "s", e))
        return b.put_along(cache, at, new, axis=2)

    def attend(self, q: Value, k: Value, v: Value, a: dict[str, object]) -> Value:
        keep = {key: a[key] for key in ("heads", "kv_heads", "scale")}
        return self.b.attention(q, k, v, self.all, self.bias, mask="full",
                                extra=("past", "bias"), **keep)


def drawn_graph(vocabulary: int) -> Graph:
    """logits f32[r,c,V] -> the laws p f32[b,c,V], what the noise draws of them, i64[b,c], and, of a
    first step, that it counts."""
    b = Builder("drawn")
    logits, temperature = filtered(b, vocabulary)
    token = b.draw(logits, b.param("noise", "f32[b,c,2]"), temperature)
    one = b.full(dtype="i64", shape=("b",), value=1)
    return b.graph(p=b.law(logits, temperature), token=token, accepted=one)


def open_graph(prompt: int) -> Graph:
    """The slots of the prompt."""
    b = Builder("open")
    at = b.reshape(b.arange(dtype="i64", shape=(prompt,)), shape=(1, prompt))
    zero = b.mul(b.reshape(b.param("row", "i64[b]"), shape=("b", 1)),
                 b.const(dtype="i64", value=0))
    return b.graph(at=b.add(zero, at))


# --- the account of rows -------------------------------------------------------------------------


class _Rows:
    """Arithmetic on i64[b,h], a number a row; truth is 0 or 1."""

    def __init__(self, b: Builder, h: int, w: int, mark: str = ""):
        self.b, self.h, self.w = b, h, w
        self.base = b.mul(b.reshape(b.arange(dtype="i64", shape=(h,)), shape=(1, h)), self.of(w))
        self.drawn, self.had, self.waits = (b.param(mark + k, f"i64[b,{h}]")
                                            for k in ("drawn", "had", "waits"))

    def of(self, value: int) -> Value:
        return self.b.const(dtype="i64", value=value)

    def less(self, x: Value, y: Value) -> Value:
        return self.b.cast(self.b.less(x, y), dtype="i64")

    def same(self, x: Value, y: Value) -> Value:
        return self.b.cast(self.b.equal(x, y), dtype="i64")

    def flip(self, x: Value) -> Value:
        return self.b.sub(self.of(1), x)

    def pick(self, when: Value, x: Value, y: Value) -> Value:
        return self.b.where(self.b.equal(when, self.of(1)), x, y)

    def started(self) -> tuple[Value, Value]:
        """(tokens drawn, the very first included; tokens of the row above, w above the first)"""
        b = self.b
        first = b.maximum(b.slice(self.drawn, axis=1, start=0, stop=1), self.of(1))
        drawn = first if self.h == 1 else b.concat(
            first, b.slice(self.drawn, axis=1, start=1, stop=self.h), axis=1)
        top = b.add(b.mul(first, self.of(0)), self.of(self.w))
        above = top if self.h == 1 else b.concat(
            top, b.slice(drawn, axis=1, start=0, stop=self.h - 1), axis=1)
        return drawn, above


def wave_graph(h: int, w: int, window: int, prompt: int, vocabulary: int) -> Graph:
    """Which row draws, from which slot `at` i64[b,h+1], reading which token; the last is a row's
    true predecessor, read in the place of its stand-in once it is there."""
    b = Builder("wave")
    n = h * w
    r = _Rows(b, h, w, NEXT)
    tokens, board = b.param("tokens", f"i64[b,{n}]"), b.param(f"{NEXT}board", f"i64[b,{n + 1}]")
    stood, guess = (b.param(NEXT + k, f"i64[b,{h}]") for k in ("stood", "guess"))
    before = b.param(f"{NEXT}before", f"f32[b,{h},{vocabulary}]")
    noise, scales = b.param("noise", f"f32[b,{n - 1},2]"), b.param("scales", f"f32[b,{n - 1}]")
    board = b.concat(b.slice(tokens, axis=1, start=0, stop=1),
                     b.slice(board, axis=1, start=1, stop=n + 1), axis=1)
    drawn, above = r.started()
    need = b.minimum(b.add(b.add(drawn, r.waits), r.of(window)), r.of(w))
    need = r.pick(r.less(r.of(0), drawn),
                  b.minimum(b.add(drawn, r.of(window)), r.of(w)), need)
    active = b.mul(r.less(drawn, r.of(w)), r.flip(r.less(above, need)))
    fresh = b.mul(active, r.same(drawn, r.of(0)))
    ended = r.same(above, r.of(w))
    late = b.mul(b.mul(stood, ended), r.less(r.of(0), drawn))
    numbers = b.reshape(b.arange(dtype="i64", shape=(h,)), shape=(1, h))
    row = b.max(b.mul(late, numbers), axes=(1,), keepdims=True)  # no two rows end in one round
    any_ = b.max(late, axes=(1,), keepdims=True)
    again = b.mul(row, r.of(w))
    read = r.pick(r.less(r.of(0), drawn), b.add(r.base, b.sub(drawn, r.of(1))),
                  b.add(b.sub(r.base, r.of(w)), b.sub(above, r.of(1))))
    low = r.of(0)
    read = b.concat(b.maximum(read, low), b.maximum(b.sub(again, r.of(1)), low), axis=1)
    at = b.concat(b.add(r.base, drawn), again, axis=1)
    at = r.pick(b.concat(active, any_, axis=1), b.add(at, r.of(prompt - 1)), r.of(n + prompt - 1))
    place = b.maximum(b.minimum(b.add(r.base, b.sub(drawn, r.of(1))), r.of(n - 2)), low)
    place = b.concat(place, b.mul(again, r.of(0)), axis=1)
    two = b.expand(b.reshape(place, shape=("b", h + 1, 1)), shape=("b", h + 1, 2))
    stood = r.pick(fresh, r.flip(ended), b.mul(stood, r.flip(late)))
    return b.graph(token=b.take_along(board, read, axis=1), at=at,
                   noise=b.take_along(noise, two, axis=1),
                   scales=b.take_along(scales, place, axis=1), active=active, board=board,
                   stood=stood, drawn=r.drawn, had=r.had, waits=r.waits, guess=guess,
                   before=before)


def settle_graph(h: int, w: int, vocabulary: int) -> Graph:
    """What the rows drew -> the board, and how far it is whole. See the module for first tokens."""
    b = Builder("settle")
    n, r = h * w, _Rows(b, h, w)
    p, token = b.param("p", f"f32[b,c,{vocabulary}]"), b.param("token", "i64[b,c]")
    active, guess = b.param("active", f"i64[b,{h}]"), b.param("guess", f"i64[b,{h}]")
    board = b.param("board", f"i64[b,{n + 1}]")
    before = b.param("before", f"f32[b,{h},{vocabulary}]")
    chance, again = b.param("chance", f"f32[b,{n - 1},1]"), b.param("again", f"f32[b,{n - 1},2]")
    rows = b.arange(dtype="i64", shape=(h,))
    p, token = b.gather(p, rows, axis=1), b.gather(token, rows, axis=1)
    near = b.minimum(rows, r.of(n - 2))
    chance = b.reshape(b.gather(chance, near, axis=1), shape=("b", h))
    again = b.gather(again, near, axis=1)
    drawn, above = r.started()
    fresh, full = b.mul(active, r.same(drawn, r.of(0))), r.same(above, r.of(w))
    x = b.reshape(guess, shape=("b", h, 1))
    now, was = (b.reshape(b.take_along(law, x, axis=2), shape=("b", h)) for law in (p, before))
    keep = r.less(b.mul(chance, was), now)
    rest = b.relu(b.sub(p, before))
    some = b.less(b.const(dtype="f32", value=0.0), b.sum(rest, axes=(2,), keepdims=True))
    other = b.draw_from(b.where(some, rest, p), again)
    tested = b.mul(fresh, r.had)
    token = r.pick(tested, r.pick(keep, guess, other), token)
    started = r.less(r.of(0), drawn)
    sure = b.minimum(b.add(started, b.add(full, b.mul(r.had, keep))), r.of(1))
    commit = b.mul(active, sure)
    wait = b.mul(fresh, r.flip(commit))
    where = r.pick(commit, b.add(r.base, drawn), r.of(n))
    board = b.put_along(board, where, token, axis=1)
    done = b.add(drawn, commit)
    short = r.flip(r.same(done, r.of(w)))
    reached = r.same(b.sub(b.cumsum(short, axis=1), short), r.of(0))
    whole = b.sum(b.mul(reached, done), axes=(1,), keepdims=False)
    wide = b.reshape(b.equal(wait, r.of(1)), shape=("b", h, 1))
    left = {"board": board, "drawn": done, "waits": b.add(r.waits, wait),
            "guess": r.pick(wait, token, guess), "had": b.maximum(r.had, wait),
            "before": b.where(wide, p, before), "stood": b.param("stood", f"i64[b,{h}]")}
    return b.graph(token=b.slice(board, axis=1, start=1, stop=n), accepted=b.sub(whole, r.of(1)),
                   **{NEXT + k: v for k, v in left.items()})
