"""Weights of 4 bits in groups: a seventh of the memory. https://arxiv.org/abs/2306.00978"""

from __future__ import annotations

from arcompile.passes.int8 import blocks
from arcompile.passes.linears import How, Quantise
from arcompile.pipeline import register
from arcompile.program import Program


@register("int4")
class Int4(Quantise):
    """Matrices become 4-bit integers with a scale for each group of `block` weights of a column.

    Made for steps of few rows, which wait for memory; `mixed` chooses by rows. Embeddings are
    stored as 8 bits, a scale a row.
    """

    bound: float = 0.25
    block: int = 128

    def forms(self, p: Program) -> How:
        return lambda w, uses: blocks(w, 4, self.block)
