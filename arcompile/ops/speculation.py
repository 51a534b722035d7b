"""Drafts and their verification: one verifier for every speculative method.

A round tests the drafts of a window of c positions per image. Sizes: b images, V tokens. A law is
a row of probabilities [b,c,V] after guidance, temperature, top-k and top-p; the law of a draft is
the one it was really drawn from, for a guessed token the one that holds nothing else.
"""

from __future__ import annotations

import numpy as np

from arcompile.errors import IRError
from arcompile.ir import Type, op
from arcompile.ops.sampling import BLOCK, _pick
from arcompile.ops.tensor import Array, floating

NEAREST = 512
COUPLINGS = ("independent", "maximal", "gumbel")


def _law(x: Type, temperature: Type) -> Type:
    if x.rank != 3 or temperature.shape != x.shape[:1]:
        raise IRError(f"no law of {x} with temperature {temperature}")
    return floating(x)


@op("law", _law)
def law(x: Array, temperature: Array) -> Array:
    """Filtered logits [b,c,V] as probabilities; all on the likeliest token at temperature 0."""
    p = np.exp(x - x.max(-1, keepdims=True))
    best = np.arange(x.shape[-1]) == x.argmax(-1)[..., None]
    p = np.where(temperature[:, None, None] > 0, p / p.sum(-1, keepdims=True), best)
    return p.astype(x.dtype)


def _draw_from(p: Type, noise: Type) -> Type:
    if p.rank != 3 or noise.shape != (*p.shape[:2], 2):
        raise IRError(f"cannot draw from {p} with noise {noise}")
    return Type("i64", p.shape[:2])


@op("draw_from", _draw_from)
def draw_from(p: Array, noise: Array) -> Array:
    """Tokens [b,c] from masses p [b,c,V] of any positive sum, in two levels as `draw` does."""
    b, c, v = p.shape
    size = min(BLOCK, v)
    p = np.pad(p, ((0, 0), (0, 0), (0, -v % size))).reshape(b, c, -1, size)
    block = _pick(p.sum(-1), noise[..., :1])
    inner = np.take_along_axis(p, block[..., None, None], 2)[:, :, 0]
    return (block * size + _pick(inner, noise[..., 1:])).astype(np.int64)


def _slide(x: Type, shift: Type, fill: Type) -> Type:
    lead, rest = (x.shape[0], x.shape[2:]), (fill.shape[0], fill.shape[2:])
    if x.dtype != fill.dtype or lead != rest or shift != Type("i64", x.shape[:1]):
        raise IRError(f"cannot slide {x} by {shift} and fill up with {fill}")
    return fill


@op("slide", _slide)
def slide(x: Array, shift: Array, fill: Array) -> Array:
    """out[i,j] = x[i, j + shift[i]] where x has such an entry, else fill[i,j]."""
    at = np.arange(fill.shape[1]) + shift[:, None]
    here = at < x.shape[1]
    moved = x[np.arange(len(x))[:, None], np.where(here, at, 0)]
    return np.where(here.reshape(here.shape + (1,) * (x.ndim - 2)), moved, fill)


def _verify(p: Type, rest: Type, weight: Type, draft: Type, chance: Type, noise: Type, done: Type,
            *gumbel: Type, coupling: str) -> list[Type]:
    if coupling not in COUPLINGS:
        raise IRError(f"unknown coupling {coupling!r}", hint=f"known: {', '.join(COUPLINGS)}")
    if len(gumbel) != (coupling == "gumbel") or any(g != p for g in (rest, *gumbel)):
        raise IRError(f"cannot verify by {p} with residuals {rest} and {len(gumbel)} noises")
    cells = p.shape[:2]
    for t, shape in ((weight, cells), (draft, cells), (chance, (*cells, 1)), (noise, (*cells, 2)),
                     (done, cells[:1])):
        if t.shape != shape:
            raise IRError(f"verifying {p} takes {list(shape)}, got {t}")
    return [Type("i64", cells), Type("i64", cells[:1])]


@op("verify", _verify)
def verify(p: Array, rest: Array, weight: Array, draft: Array, chance: Array, noise: Array,
           done: Array, *gumbel: Array, coupling: str) -> tuple[Array, Array]:
    """(token [b,c], accepted [b]): the drafts of a window tested against the laws p [b,c,V].

    A draft is kept when chance [b,c,1] (a uniform) is below its weight [b,c]; the first `done` [b]
    slots were committed before and are kept in any case. `accepted` counts the tokens that can be
    committed: the drafts before the first rejection, and there a token drawn from the residual
    masses `rest` (from p where they sum to nothing) with noise [b,c,2]. Later tokens are drafts of
    the next round, drawn from p by the coupling: `independent` draws them anew, `maximal` keeps
    those that pass their own test and draws the others from their residuals
    (https://arxiv.org/abs/2510.24211), `gumbel` takes the argmax of log p + gumbel [b,c,V], noise
    that belongs to the position. In each case the law of all tokens, kept or not, is p.
    """
    c = p.shape[1]
    slot = np.arange(c)
    kept = (chance[..., 0] < weight) | (slot < done[:, None])
    first = np.cumprod(kept, 1).sum(1)
    rest = np.where(rest.sum(-1, keepdims=True) > 0, rest, p)
    before, here = slot < first[:, None], slot == first[:, None]
    if coupling == "independent":
        token = draw_from(np.where(here[..., None], rest, p), noise)
        token = np.where(before, draft, token)
    else:
        token = draw_from(rest, noise)
        if coupling == "maximal":
            token = np.where(kept, draft, token)
        else:
            with np.errstate(divide="ignore"):
                shared = (np.log(p) + gumbel[0]).argmax(-1)
            token = np.where(before, draft, np.where(here, token, shared))
    return token.astype(np.int64), np.minimum(first + 1, c).astype(np.int64)


def _agree(token: Type, draft: Type, done: Type) -> list[Type]:
    if token.rank != 2 or draft != token or done != Type("i64", token.shape[:1]):
        raise IRError(f"cannot compare {token} with {draft} from {done} on")
    return [token, done]


@op("agree", _agree)
def agree(token: Array, draft: Array, done: Array) -> tuple[Array, Array]:
    """(token [b,c], accepted [b]) where a draft is right if it is the token itself.

    The first `done` [b] slots keep their draft; the first token that differs is the last that
    counts, since those after it were drawn behind a wrong one.
    """
    slot = np.arange(token.shape[1])
    token = np.where(slot < done[:, None], draft, token)
    first = np.cumprod(token == draft, 1).sum(1)
    return token, np.minimum(first + 1, len(slot)).astype(np.int64)


def _nearest(x: Type, *, k: int) -> Type:
    if x.rank != 2:
        raise IRError(f"{x} is not a table of vectors")
    return Type("i64", (x.shape[0], k))


@op("nearest", _nearest)
def nearest(x: Array, *, k: int) -> Array:
    """The k other rows nearest to each row of x [n,d], nearest first: i64[n,k]."""
    x = x.astype(np.float64)
    norm, out = (x * x).sum(1), np.empty((len(x), k), np.int64)
    for at in range(0, len(x), NEAREST):  # few rows at a time: the whole table may not fit
        part = slice(at, at + NEAREST)
        far = norm[part, None] + norm - 2 * x[part] @ x.T
        far[np.arange(len(far)), np.arange(at, at + len(far))] = np.inf
        some = np.sort(np.argpartition(far, k - 1)[:, :k], 1)
        order = np.argsort(np.take_along_axis(far, some, 1), 1, kind="stable")
        out[part] = np.take_along_axis(some, order, 1)
    return out
