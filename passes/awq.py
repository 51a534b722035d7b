"""Channels that speak loudly keep more of their weights when those are rounded to few bits.
https://arxiv.org/abs/2306.00978"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np

from arcompile.errors import ArcError
from arcompile.ir import Builder, Value
from arcompile.passes.int8 import blocks
from arcompile.passes.linears import Form
from arcompile.passes.migrate import LEAST, Migrate, Site, power
from arcompile.passes.ranges import NORM
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.rewrite import Miss
from arcompile.weights import Array, Store, Weights

TRIED = tuple(i / 10 for i in range(11))  # exponents, from none to the whole of an input's size
COLUMNS = 256  # of a matrix that are looked at: each is rounded by itself


@register("awq")
class Awq(Migrate):
    """Rows of matrices grow by a power of how large their inputs are, and those are divided by it
    in the norm or gate that makes them.

    Of several powers, each place takes the one that leaves the smallest error of its products once
    they are rounded to `bits` in groups of `block` (0: a scale for each column), which should be
    those of the pass that quantises next. Exact but for rounding. ranges: the file of `arcompile
    calibrate`; without it nothing changes. powers: those chosen, `matrix=power` apart by spaces;
    places without one take `alpha`.
    """

    kind: ClassVar[str] = NORM

    bits: int = 4
    block: int = 128
    alpha: float = 0.5
    powers: str = ""

    def __call__(self, p: Program) -> Program:
        if not 0 <= self.alpha <= 1 or any(not 0 <= x <= 1 for x in self.chosen().values()):
            raise ArcError(f"pass awq: powers must be from 0 to 1, got {self.alpha!r} and "
                           f"{self.powers!r}")
        if self.bits not in (4, 8) or (self.bits == 4 and not self.block):
            raise ArcError(f"pass awq: {self.bits} bits with block={self.block}",
                           hint="bits is 4, or 8 with any block; as the next pass has them")
        return super().__call__(p)

    def chosen(self) -> dict[str, float]:
        try:
            return {k: float(x) for k, x in (s.rsplit("=", 1) for s in self.powers.split())}
        except ValueError:
            raise ArcError(f"pass awq: powers are not matrix=number: {self.powers!r}",
                           hint="leave them out: a build finds them") from None

    def factor(self, b: Builder, site: Site, seen: Value) -> Value:
        own = self.chosen().get(site.name, self.alpha)
        if own == 0:
            raise Miss("rounding is best as it is")
        return power(b, seen, own)

    def prepared(self, p: Program, source: Weights) -> Pass:
        """With the power of each place that has none yet."""
        if not self.ranges:
            return self
        known, found = self.known(p), self.chosen()
        store = Store(source.plus(self.brings().load), p.fold)
        for g in p.graphs:
            for site in self.sites(g, known):
                if site.name not in found:
                    found[site.name] = self._best(site, store)
        return replace(self, powers=" ".join(f"{k}={x:g}" for k, x in found.items()))

    def _best(self, site: Site, store: Store) -> float:
        seen = store[f"@{site.name}{NORM}"]
        parts = [(self._form(w), _some(store[w.name])) for w in site.weights]
        return min(TRIED, key=lambda x: sum(error(f, w, seen, x) for f, w in parts))

    def _form(self, w: Value) -> Form:
        try:
            return blocks(w, self.bits, self.block) if self.block else Form(self.bits)
        except Miss:  # it will not be rounded
            return Form(self.bits)


def _some(w: Array) -> Array:
    """Columns of w, evenly apart."""
    n = w.shape[1]
    return w if n <= COLUMNS else w[:, np.arange(COLUMNS) * n // COLUMNS]


def error(form: Form, w: Array, seen: Array, alpha: float) -> float:
    """Squared error of the product of inputs with norms `seen` f32[k] and w [k,n], rounded after
    its rows were multiplied; the inputs' channels are taken to be independent."""
    seen = np.maximum(seen, seen.max() * np.float32(LEAST))
    factor = (seen ** np.float32(alpha))[:, None]
    off = form.stored(w * factor) / factor - w
    return float(np.square(off * seen[:, None]).sum())
