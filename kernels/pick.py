"""Inverse CDF in two levels, as `ops.sampling.draw` says it: for kernels that draw tokens.

Values lie as [NB,128]: blocks of consecutive tokens, those beyond the vocabulary with no mass.
"""

from __future__ import annotations

from arcompile.kernels.lang import jit, tl

BLOCK = 128  # ops.sampling.BLOCK
MOST = 32768  # tokens; more do not stay in the registers of one program


@jit
def pick(p, u, N: tl.constexpr):
    """The first of N masses at which the running sum exceeds u of the total."""
    total = tl.cumsum(p, 0)
    beyond = total > u * tl.max(total, 0)
    return tl.min(tl.where(beyond, tl.arange(0, N), N - 1), 0)


@jit
def pick_token(p, u0, u1, NB: tl.constexpr):
    """A token of masses p [NB,128]: a block by u0, then a token in it by u1."""
    block = pick(tl.sum(p, 1), u0, NB)
    inner = tl.sum(tl.where(tl.arange(0, NB)[:, None] == block, p, 0.0), 0)
    return block * 128 + pick(inner, u1, 128)


@jit
def first_of_largest(x, at, NB: tl.constexpr):
    """The lowest token with the largest of x [NB,128]; `at` numbers them."""
    best = tl.max(tl.max(x, 1), 0)
    return tl.min(tl.min(tl.where(x == best, at, NB * 128), 1), 0)
