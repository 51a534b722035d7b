"""Weights of 8 bits by scales known beforehand, for GPUs: QDQ of integers or of floats.

https://arxiv.org/abs/2004.09602 (integers), https://arxiv.org/abs/2209.05433 (E4M3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcompile.errors import ArcError, did_you_mean
from arcompile.ir import OPS, Builder, Node, Value
from arcompile.ops.quant_static import MOST
from arcompile.passes import ranges
from arcompile.passes.linears import Form, How, Quantise
from arcompile.pipeline import register
from arcompile.program import Program
from arcompile.weights import Array

FINEST = 2.0**-14  # the smallest normal f16


@dataclass(frozen=True)
class Column(Form):
    """Integers or E4M3 with a scale for each column; step: of the activations, 0 to leave them."""

    form: str = "int8"
    step: float = 0.0

    def apply(self, b: Builder, n: Node, rows: dict[Any, Any]) -> Value:
        x, w = n.args
        q, scale = (b.quantize_channels(w, axis=1, bits=8) if self.form == "int8"
                    else b.quantize_fp8(w))
        if self.step and (x, self.step) not in rows:
            rows[x, self.step] = b.fake_quantize(x, step=self.step, form=self.form)
        made: Value = b.matmul_columns(rows.get((x, self.step), x), q, scale)
        return made

    def stored(self, w: Array) -> Array:
        parts = (OPS["quantize_channels"].eval(w, axis=1, bits=8) if self.form == "int8"
                 else OPS["quantize_fp8"].eval(w))
        one = np.eye(len(w), dtype=np.float32)
        found: Array = OPS["matmul_columns"].eval(one, *parts)[0]
        return found


@register("qdq")
class QDQ(Quantise):
    """Matrices become 8-bit numbers with a scale for each column, widened where they are read.

    form: int8, or fp8 (E4M3: compute capability 8.9 and later). ranges: a file of `arcompile
    calibrate`: activations of the products that it knows are rounded to 8 bits too, by one
    symmetric step a product, so that a GPU multiplies the 8-bit numbers themselves.
    """

    embeddings: bool = False
    form: str = "int8"
    ranges: str = ""

    def reads(self) -> tuple[str, ...]:
        return ranges.mark(self.ranges)

    def forms(self, p: Program) -> How:
        if self.form not in MOST:
            raise ArcError(f"pass qdq: no form {self.form!r}",
                           hint=did_you_mean(self.form, tuple(MOST)))
        seen = ranges.of_model(self.ranges, p) if self.ranges else {}

        def how(w: Value, uses: object) -> Form:
            most = seen.get(f"{w.name.lstrip('@')}{ranges.INPUT}")
            step = 0.0 if most is None else exact(float(most.max()) / MOST[self.form])
            return Column(8, form=self.form, step=step)

        return how


def exact(step: float) -> float:
    """The next larger number that every float of 16 bits holds exactly."""
    fraction, exponent = math.frexp(max(step, FINEST))
    return math.ldexp(math.ceil(fraction * 256) / 256, exponent)
