"""Do two programs compute the same? Both run by the reference on the same small random inputs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.ir import Graph, Type, evaluate
from arcompile.ops.tensor import NUMPY
from arcompile.program import Program
from arcompile.runtime.loop import Array, Env, Loop, Request, Runner
from arcompile.targets.reference import models
from arcompile.weights import Store, Weights, of_arrays, used

SEEN = ("logits", "token", "latents", "pixels")  # what a program's user can see
BATCH = 2
BROKEN = (ArcError, ArithmeticError, LookupError, TypeError, ValueError)  # of numpy on a bad graph


class _Trace:
    """A runner that keeps what the graphs compute, by result name."""

    def __init__(self, inner: Runner):
        self.inner, self.kept = inner, dict[str, list[Array]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, graph: str, env: Env) -> Env:
        out = self.inner.run(graph, env)
        for name, value in out.items():
            self.kept.setdefault(name, []).append(np.array(value))
        return out


class Check:
    """How far another program is from `old` on the first steps, the finish and unused graphs.

    weights: those of the checkpoint, or random ones of the program's shapes.
    """

    def __init__(self, old: Program, weights: Weights | None = None, steps: int = 3):
        self.old, self.steps = old, steps
        self.weights = weights or random_weights(old)
        self.expected = self._run(old)

    def errors(self, new: Program) -> dict[str, float]:
        """By result name, the largest difference over the largest magnitude; integers: 0 or 1.

        A result of another shape, or made another number of times, is infinitely far; so is
        `run`, for a program that cannot run.
        """
        try:
            found = self._run(new)
        except BROKEN:
            return {"run": float("inf")}
        both = [k for k in self.expected if k in found]
        names = [k for k in both if k in SEEN or "." in k] or both
        if not names:
            raise ArcError("the two programs have no result in common")
        return {k: _far(self.expected[k], found[k]) for k in names}

    def _run(self, p: Program) -> dict[str, list[Array]]:
        store = Store(self.weights, p.fold)
        runner = _Trace(models(p, store).runner())
        loop = Loop(replace(p, steps=p.steps[: self.steps]), runner, _request(p), 0)
        loop.tokens[:] = 0  # the finish reads all, and few are drawn
        loop.run()
        called = {c.graph for c in p.calls()}
        alone = {f"{g.name}.{k}": [v] for g in p.graphs
                 if g.name not in called and g.name in {x.name for x in self.old.graphs}
                 for k, v in evaluate(g, _inputs(g), store).items()}
        return {**runner.kept, **alone}


def _far(old: list[Array], new: list[Array]) -> float:
    if len(old) != len(new) or any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(old, new, strict=True):
        if a.dtype.kind in "iub" or not a.size:
            worst = max(worst, float(not np.array_equal(a, b)))
            continue
        with np.errstate(invalid="ignore"):
            x, y = (np.nan_to_num(v.astype(np.float64), nan=np.inf) for v in (a, b))
            gap = np.where(x == y, 0, np.abs(x - y)).max()
        finite = np.abs(x[np.isfinite(x)]).max(initial=0)
        worst = max(worst, float(gap / max(finite, 1e-30)))
    return worst


# --- inputs --------------------------------------------------------------------------------------


def _request(p: Program) -> Request:
    """Two guided images with every sampling filter on."""
    sizes = {"b": BATCH, "N": p.positions}
    ones = np.ones(BATCH, np.float32)
    return Request(
        {name: _array(name, t, sizes) for name, t in p.inputs},
        np.arange(BATCH, dtype=np.uint64), np.zeros(BATCH, np.int64), 2.0 * ones.astype(float),
        ones, np.zeros(BATCH, np.int64), 0.9 * ones,
    )


def _inputs(g: Graph) -> dict[str, Array]:
    """Random inputs of one graph; a size that is not known is 1."""
    return {v.name: _array(v.name, v.type, {}) for v in g.params}


def _array(name: str, t: Type, sizes: Mapping[str, int]) -> Array:
    """The same for the same name and shape. Integers are 0 or 1: they index tables."""
    known = {s: sizes.get(s, 1) for d in t.shape for s in dims.symbols(d)}
    shape = tuple(dims.value(d, known) for d in t.shape)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if t.dtype == "bool":
        found = rng.integers(0, 2, shape).astype(bool)
        found[..., -1:] = True  # a mask that hides everything has no answer
        return found
    if t.dtype[0] in "iu":
        return (np.arange(int(np.prod(shape))) % 2).reshape(shape).astype(NUMPY[t.dtype])
    return rng.standard_normal(shape).astype(NUMPY[t.dtype])


def random_weights(p: Program) -> Weights:
    """Weights of the program's shapes, small enough that depth does not blow values up."""
    made = {f"@{k}" for k, _ in p.fold.results} if p.fold else set[str]()
    wanted = {**used(p.graphs), **({w.name: w for w in p.fold.weights} if p.fold else {})}
    found = {}
    for name in wanted.keys() - made:
        a = _array(name, wanted[name].type, {})
        found[name] = a / np.sqrt(a.shape[-1]).astype(a.dtype) if a.dtype.kind == "f" else a
    return of_arrays(found)
