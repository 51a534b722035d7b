"""Each matrix in the form that is the quickest for the rows it meets, by a measured table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from math import log, prod
from pathlib import Path
from typing import Any

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.ir import Value
from arcompile.passes.int8 import blocks
from arcompile.passes.linears import Form, How, Quantise, Use, named
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss
from arcompile.walk import walk
from arcompile.weights import Weights

TABLE = Path(__file__).with_name("linear_ms.json")
FORMS = {"int8": 0, "int8-128": 128, "int4-128": 128}  # of the table -> weights in a group


@register("mixed")
class Mixed(Quantise):
    """Forms of 8 and 4 bits, or none, chosen matrix by matrix.

    A matrix takes the form whose measured time, summed over all runs of the loop for `batch`
    guided images, is the least: groups of 4 bits where few rows wait for memory, products of 8-bit
    integers where many rows wait for arithmetic. bound: as of the other passes; a matrix that is
    beyond it at 4 bits is tried at 8. eight: names of matrices that are not to have 4.
    """

    bound: float = 0.15
    batch: int = 1
    eight: str = ""

    def __call__(self, p: Program) -> Program:
        if self.batch < 1:
            raise ArcError(f"pass mixed: batch must be 1 or more, got {self.batch}")
        return super().__call__(p)

    def forms(self, p: Program) -> How:
        runs = _runs(p, self.batch)
        return lambda w, uses: self._quickest(w, rows(uses, runs))

    def _quickest(self, w: Value, met: Counter[int]) -> Form:
        k, n = w.type.shape
        assert isinstance(k, int)
        assert isinstance(n, int)
        allowed = ("f32", *(f for f in FORMS if f[3] == "8" or not named(w, self.eight)))
        spent = {f: sum(times * estimate(f, r, k, n) for r, times in met.items()) for f in allowed}
        best = min(spent, key=spent.__getitem__)
        if best == "f32":
            raise Miss(f"no form is quicker than f32 for {met.most_common(3)} (rows, times)")
        bits = int(best[3])
        return blocks(w, bits, FORMS[best]) if FORMS[best] else Form(bits)

    def prepared(self, p: Program, source: Weights) -> Pass:
        """First those beyond the bound at 4 bits go to 8, then those beyond it at 8 stay."""
        if self.bound <= 0:
            return self
        found = self.errors(p, source)
        beyond = [name.lstrip("@") for name, (f, e) in found.items() if f.bits < 8 and
                  e > self.bound]
        eight = " ".join((*self.eight.split(), *beyond))
        return Quantise.prepared(replace(self, eight=eight), p, source)


Runs = Mapping[str, list[tuple[Any, int]]]  # graph -> (its sizes, how many runs have them)


def _runs(p: Program, batch: int) -> Runs:
    found: dict[str, Counter[Any]] = {g.name: Counter() for g in p.graphs}
    for turn in walk(p, batch):
        for run in turn.runs:
            found[run.graph.name][tuple(sorted(run.sizes.items()))] += run.times
    return {name: list(c.items()) for name, c in found.items()}


def rows(uses: list[Use], runs: Runs) -> Counter[int]:
    """Rows of the left operand -> how often a product with so many runs."""
    found: Counter[int] = Counter()
    for u in uses:
        for sizes, times in runs[u.graph.name]:
            x = u.node.args[0].type.shape[:-1]
            found[prod(dims.value(d, dict(sizes)) for d in x)] += times
    return found


# --- the table -----------------------------------------------------------------------------------


@lru_cache(1)
def table() -> dict[str, Any]:
    """rows: a list; shapes: of the measured matrices; us: form -> shape -> microseconds by rows.

    Made by `python -m arcompile.bench.linears`.
    """
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def estimate(form: str, rows: int, k: int, n: int) -> float:
    """Microseconds of `rows` rows times [k,n]: the nearest measured matrix, scaled by its size."""
    t = table()
    at = min(range(len(t["shapes"])), key=lambda i: abs(log(prod(t["shapes"][i]) / (k * n))))
    line: Callable[[int], float] = _line(tuple(t["rows"]), tuple(t["us"][form][at]))
    return line(rows) * k * n / prod(t["shapes"][at])


@lru_cache(64)
def _line(x: tuple[int, ...], y: tuple[float, ...]) -> Callable[[int], float]:
    """Straight between the measured points, and on along the last piece."""
    def at(rows: int) -> float:
        pieces = list(pairwise(zip(x, y, strict=True)))
        (a, ya), (b, yb) = next((p for p in pieces if rows <= p[1][0]), pieces[-1])
        return max(ya + (yb - ya) * (rows - a) / (b - a), 0.0)

    return at
