"""Weights of 8 bits, products of integers. https://arxiv.org/abs/2208.07339"""

from __future__ import annotations

from arcompile.errors import ArcError
from arcompile.ir import Value
from arcompile.passes.linears import Form, How, Quantise
from arcompile.pipeline import register
from arcompile.program import Program
from arcompile.rewrite import Miss

LEAST = 16  # weights in a group


@register("int8")
class Int8(Quantise):
    """Matrices become 8-bit integers with a scale for each column; activations are rounded by row.

    block: scales for groups of so many weights instead: more exact, made for few rows. bits: 7 for
    processors without VNNI, whose sums of 8-bit products overflow.
    """

    block: int = 0
    bits: int = 8

    def forms(self, p: Program) -> How:
        if self.bits not in (7, 8) or (self.block and self.bits != 8):
            raise ArcError(f"pass int8: {self.bits} bits with block={self.block}",
                           hint="bits is 8, or 7 without block")
        if self.block:
            return lambda w, uses: blocks(w, 8, self.block)
        return lambda w, uses: Form(self.bits)


def blocks(w: Value, bits: int, block: int) -> Form:
    """Groups of `block`, or the largest half, quarter, .. of it that divides the matrix.

    Raises Miss when there is none, ArcError for impossible groups.
    """
    if block < LEAST or block & (block - 1):
        raise ArcError(f"groups of {block} weights", hint="block is 16, 32, 64, 128 or 256")
    k, size = w.type.shape[0], block
    assert isinstance(k, int)
    while k % size:
        size //= 2
    if size < LEAST:
        raise Miss(f"no groups of {LEAST} to {block} divide its {k} rows")
    return Form(bits, size)
