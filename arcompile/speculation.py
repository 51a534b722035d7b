"""A raster program made speculative: the graphs of a round, and the steps that run them.

A round tests the drafts of a window with one forward: `draft` moves what the last round left over
and fills up with guesses, the family's own `feed` embeds them, and `window` is the family's step on
several slots, then the laws of all of them, then the verifier. A method is two functions: what a
draft weighs, and where a rejected one is drawn from instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from arcompile.errors import ArcError, did_you_mean
from arcompile.ir import Builder, Graph, Value, merge
from arcompile.program import Call, Draw, Program, Step
from arcompile.raster import bare, check, square

GUESSES = ("repeat", "above", "copy")


@dataclass(frozen=True)
class Tested:
    """What a method may look at: laws p and q f32[b,c,V], the drafts i64[b,c] and what they have
    there, p_x and q_x f32[b,c]; done i64[b]: slots that are committed already."""

    b: Builder
    p: Value
    q: Value
    draft: Value
    p_x: Value
    q_x: Value
    done: Value


@dataclass(frozen=True)
class Method:
    """weight: how likely a draft is kept, f32[b,c]; rest: masses a rejected one is drawn from."""

    weight: Callable[[Tested], Value]
    rest: Callable[[Tested], Value]
    coupling: str = "independent"


def ratio(t: Tested) -> Value:
    return t.b.div(t.p_x, t.q_x)


def residual(t: Tested) -> Value:
    return t.b.relu(t.b.sub(t.p, t.q))


def speculate(p: Program, name: str, window: int, method: Method, guess: str = "repeat") -> Program:
    """`p` with its tokens drawn in windows. Raises ArcError where it cannot be.

    guess: what is tried where nothing was drawn yet: the token before, the one `above`, or what
    followed the last time that the two tokens before came together (`copy`).
    """
    _check(p, name, window, guess)
    step = p.graph(p.steps[0].calls[0].graph)
    v = int(step.result("logits").type.shape[-1])  # type: ignore[union-attr]
    law = merge(bare(step), law_graph(v))
    graphs = (open_graph(v), draft_graph(v, window, p.positions, guess),
              merge(law, verify_graph(v, method), "window"))
    draws = (*p.draws, Draw("chance", "uniform"))
    if method.coupling == "gumbel":
        draws += (Draw("gumbel", "gumbel", v, "place"),)
    return _rounds(p, window, graphs, draws)


def jacobi(p: Program, name: str, window: int, guess: str = "repeat") -> Program:
    """`p` with its tokens drawn in windows by the very noise of plain decoding."""
    _check(p, name, window, guess)
    step = p.graph(p.steps[0].calls[0].graph)
    v = int(step.result("logits").type.shape[-1])  # type: ignore[union-attr]
    graphs = (open_graph(0), draft_graph(0, window, p.positions, guess),
              merge(bare(step), agree_graph(v), "window"))
    return _rounds(p, window, graphs, tuple(replace(d, when="place") for d in p.draws))


ROUNDS = 32  # of an image in blind windows, at least


def blind(p: Program, name: str, window: int) -> Program:
    """`p` in windows whose drafts nobody looks at: each round commits the first few, so that some
    dozens of rounds go through the image. No picture: what a network takes on so many slots."""
    window_of(p, name, window)
    step = p.graph(p.steps[0].calls[0].graph)
    stride = min(window, max(1, p.positions // ROUNDS))
    graphs = (open_graph(0), draft_graph(0, window, p.positions, "repeat"),
              merge(bare(step), blind_graph(stride), "window"))
    return _rounds(p, window, graphs, p.draws)


def _rounds(p: Program, window: int, graphs: tuple[Graph, ...],
            draws: tuple[Draw, ...]) -> Program:
    """The first token by the prompt alone, the others in windows."""
    first, rest = p.steps[0], tuple(range(1, p.positions))
    gone = {c.graph for c in first.calls} - {"feed"}
    steps = (
        replace(first, calls=(Call("open"), Call("window")), window=1),
        Step(rest, rest, (Call("draft"), Call("feed"), Call("window")), first.guide,
             len(rest), window=window))
    kept = tuple(g for g in p.graphs if g.name not in gone)
    return replace(p, graphs=(*kept, *graphs), steps=steps, draws=draws, accept="prefix")


def _check(p: Program, name: str, window: int, guess: str) -> None:
    if guess not in GUESSES:
        raise ArcError(f"pass {name} has no guess {guess!r}", hint=did_you_mean(guess, GUESSES))
    window_of(p, name, window)
    if guess == "above":
        square(p, name)


def window_of(p: Program, name: str, window: int) -> None:
    """Raise ArcError unless p is a plain raster program whose image holds such a window."""
    check(p, name)
    if not 1 <= window < p.positions:
        raise ArcError(f"a window of {window} positions in an image of {p.positions}",
                       hint=f"give 1 (plain decoding) to {p.positions - 1}")


# --- graphs --------------------------------------------------------------------------------------


def filtered(b: Builder, vocabulary: int) -> tuple[Value, Value]:
    """(logits f32[b,c,V] after guidance and every filter, temperature)."""
    logits = b.param("logits", f"f32[r,c,{vocabulary}]")
    row, null_row = b.param("row", "i64[b]"), b.param("null_row", "i64[b]")
    scales = b.reshape(b.param("scales", "f32[b,c]"), shape=("b", "c", 1))
    temperature = b.param("temperature", "f32[b]")
    top_k, top_p = b.param("top_k", "i64[b]"), b.param("top_p", "f32[b]")
    most = b.param("most", "i64[1]")
    cond, null = b.gather(logits, row, axis=0), b.gather(logits, null_row, axis=0)
    extra = b.sub(scales, b.const(dtype="f32", value=1.0))
    guided = b.add(cond, b.mul(extra, b.sub(cond, null)))
    return b.filter_logits(guided, temperature, top_k, top_p, most), temperature


def law_graph(vocabulary: int) -> Graph:
    """logits f32[r,c,V] -> p f32[b,c,V]: what a token is drawn from."""
    b = Builder("law")
    return b.graph(p=b.law(*filtered(b, vocabulary)))


def verify_graph(vocabulary: int, method: Method) -> Graph:
    """p, q, draft -> token i64[b,c], accepted i64[b]."""
    b = Builder("verify")
    p, q = (b.param(k, f"f32[b,c,{vocabulary}]") for k in "pq")
    draft = b.param("draft", "i64[b,c]")
    chance, noise = b.param("chance", "f32[b,c,1]"), b.param("noise", "f32[b,c,2]")
    done = b.param("done", "i64[b]")
    at = b.reshape(draft, shape=("b", "c", 1))
    p_x, q_x = (b.reshape(b.take_along(x, at, axis=2), shape=("b", "c")) for x in (p, q))
    t = Tested(b, p, q, draft, p_x, q_x, done)
    more: list[Any] = []
    if method.coupling == "gumbel":
        more = [b.param("gumbel", f"f32[b,c,{vocabulary}]")]
    token, accepted = b.verify(p, method.rest(t), method.weight(t), draft, chance, noise, done,
                               *more, coupling=method.coupling)
    return b.graph(p=p, token=token, accepted=accepted)


def agree_graph(vocabulary: int) -> Graph:
    """logits, draft -> token i64[b,c], accepted i64[b]: a draft must be what the noise draws."""
    b = Builder("agree")
    drawn = b.draw(*_drawn_by(b, vocabulary))
    token, accepted = b.agree(drawn, b.param("draft", "i64[b,c]"), b.param("done", "i64[b]"))
    return b.graph(token=token, accepted=accepted)


def blind_graph(stride: int) -> Graph:
    """draft, done -> token i64[b,c], accepted i64[b]: so many more, whatever they are."""
    b = Builder("blind")
    draft, done = b.param("draft", "i64[b,c]"), b.param("done", "i64[b]")
    return b.graph(token=b.mul(draft, b.const(dtype="i64", value=1)),
                   accepted=b.add(done, b.const(dtype="i64", value=stride)))


def _drawn_by(b: Builder, vocabulary: int) -> tuple[Value, Value, Value]:
    logits, temperature = filtered(b, vocabulary)
    return logits, b.param("noise", "f32[b,c,2]"), temperature


def open_graph(vocabulary: int) -> Graph:
    """The first round's draft: token 0, a guess. Without a vocabulary there are no laws."""
    b = Builder("open")
    row = b.reshape(b.param("row", "i64[b]"), shape=("b", 1))
    draft = b.mul(row, b.const(dtype="i64", value=0))
    laws = {"q": _guessed(b, draft, vocabulary)} if vocabulary else {}
    return b.graph(draft=draft, **laws)


def draft_graph(vocabulary: int, window: int, positions: int, guess: str) -> Graph:
    """The last round's token i64[b,k] and p f32[b,k,V] -> this round's draft i64[b,window] with
    its law q, and `token`, what the network reads: the token before each slot."""
    b = Builder("draft")
    shift, first = b.param("shift", "i64[b]"), b.param("first", "i64[b]")
    tokens, old = b.param("tokens", f"i64[b,{positions}]"), b.param("token", "i64[b,k]")
    at = b.reshape(b.sub(first, b.const(dtype="i64", value=1)), shape=("b", 1))
    before = b.take_along(tokens, at, axis=1)
    fresh = b.expand(before, shape=("b", window))
    if guess != "repeat":
        fresh = _GUESS[guess](b, tokens, first, fresh, b.slide(old, shift, fresh))
    draft = b.slide(old, shift, fresh)
    read = before if window == 1 else b.concat(
        before, b.slice(draft, axis=1, start=0, stop=window - 1), axis=1)
    laws = {}
    if vocabulary:
        law = b.param("p", f"f32[b,k,{vocabulary}]")
        laws = {"q": b.slide(law, shift, _guessed(b, fresh, vocabulary))}
    return b.graph(token=read, draft=draft, **laws)


def _guessed(b: Builder, draft: Value, vocabulary: int) -> Value:
    """The law of a guess: nothing but itself."""
    all_ = b.arange(dtype="i64", shape=(vocabulary,))
    same = b.equal(b.reshape(draft, shape=(*draft.type.shape, 1)), all_)
    return b.cast(same, dtype="f32")


# --- guesses: any is right in law ----------------------------------------------------------------


def _above(b: Builder, tokens: Value, first: Value, repeat: Value, now: Value) -> Value:
    """The token above each slot, committed or drafted; `repeat` in the first row."""
    n, window = int(tokens.type.shape[1]), int(repeat.type.shape[1])
    at = b.add(b.reshape(first, shape=("b", 1)), b.arange(dtype="i64", shape=(window,)))
    whole = b.put_along(tokens, at, now, axis=1)
    up = b.sub(at, b.const(dtype="i64", value=math.isqrt(n)))
    zero = b.const(dtype="i64", value=0)
    return b.where(b.less(up, zero), repeat, b.take_along(whole, b.maximum(up, zero), axis=1))


def _copy(b: Builder, tokens: Value, first: Value, repeat: Value, now: Value) -> Value:
    """What followed the last place where the two tokens before the window stand; else `repeat`."""
    n, window = int(tokens.type.shape[1]), int(repeat.type.shape[1])
    one = b.const(dtype="i64", value=1)
    last = b.reshape(b.sub(first, one), shape=("b", 1))
    zero = b.const(dtype="i64", value=0)
    ends = [b.take_along(tokens, b.maximum(x, zero), axis=1) for x in (last, b.sub(last, one))]
    place = b.arange(dtype="i64", shape=(n,))
    earlier = b.take_along(tokens, b.expand(b.reshape(
        b.maximum(b.sub(place, one), zero), shape=(1, n)), shape=("b", n)), axis=1)
    same = _and(b, b.equal(tokens, ends[0]), b.equal(earlier, ends[1]))
    seen = _and(b, same, b.less(place, last))
    found = b.max(b.where(seen, b.expand(place, shape=("b", n)), b.const(dtype="i64", value=-1)),
                  axes=(1,), keepdims=True)
    step = b.arange(dtype="i64", shape=(window,))
    at = b.minimum(b.add(b.add(found, one), step), last)
    return b.where(b.less(found, zero), repeat, b.take_along(tokens, at, axis=1))


def _and(b: Builder, x: Value, y: Value) -> Value:
    return b.emit("and", x, y)[0]


_GUESS = {"above": _above, "copy": _copy}
