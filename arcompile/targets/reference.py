"""Target `reference`: every op by its numpy meaning. Slow, obvious, and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arcompile import safetensors
from arcompile.errors import ArcError, quoted
from arcompile.ir import Graph, Type, evaluate
from arcompile.ops.tensor import NUMPY
from arcompile.program import Program
from arcompile.runtime.runner import Array, AtOnce, Env, zeros
from arcompile.target import Target, target
from arcompile.text import parse_graph, show_graph
from arcompile.weights import Store, used


class Runner(AtOnce):
    """One run. Nothing is shared or updated in place, so there is nothing to hold."""

    def __init__(self, graphs: Mapping[str, Graph], weights: Mapping[str, Array]):
        self.graphs, self.weights = graphs, weights

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Array:
        return zeros(t, sizes)

    def inputs(self, graph: str) -> list[str]:
        return [p.name for p in self.graphs[graph].params]

    def run(self, graph: str, env: Env) -> Env:
        g = self.graphs[graph]
        try:
            return evaluate(g, {p.name: env[p.name] for p in g.params}, self.weights)
        except (LookupError, ValueError, TypeError, ArithmeticError) as e:
            raise ArcError(f"graph {graph} cannot run: {type(e).__name__}: {quoted(e)}",
                           hint="the inputs, or the engine, are not what they should be") from e

    def by_row(self, graph: str) -> set[str]:
        return {k for k, v in self.graphs[graph].results if v.type.shape[:1] == ("r",)}

    def first(self, value: Array, rows: int) -> Array:
        return value[:rows].copy()

    def keep(self, graphs: set[str]) -> None:
        """Nothing is held."""

    def numpy(self, value: Array) -> Array:
        return value


class Models:
    def __init__(self, graphs: Mapping[str, Graph], weights: Mapping[str, Array]):
        self.graphs, self.weights = graphs, weights

    def runner(self) -> Runner:
        return Runner(self.graphs, self.weights)


def models(program: Program, store: Mapping[str, Any]) -> Models:
    """The reference over weights in memory, without a folder: what tests compare with."""
    weights = {name: store[name] for name in used(program.graphs)}
    return Models({g.name: g for g in program.graphs}, weights)


@target("reference")
class Reference(Target):
    """Interpreted by numpy."""

    passes = ""

    def lower(self, program: Program, store: Store, folder: Path,
              progress: Callable[[str, float], None], batch: int = 1) -> None:
        for g in program.graphs:
            (folder / f"{g.name}.arc").write_text(show_graph(g, origins=True) + "\n")
        types = {k: v.type for k, v in used(program.graphs).items()}
        safetensors.write(folder / "weights.safetensors", types, store.__getitem__,
                          lambda f: progress("weights", f))

    def open(self, program: Program, folder: Path, threads: int) -> Any:
        return Models(*stored(program, folder))


def stored(program: Program, folder: Path) -> tuple[dict[str, Graph], dict[str, Array]]:
    """The graphs and weights that `lower` wrote. Raises ArcError."""
    graphs = {}
    for path in sorted(folder.glob("*.arc")):
        if path.name != "program.arc":  # the whole program, for people
            g = parse_graph(_text(path))
            graphs[g.name] = g
    replace(program, graphs=tuple(graphs.values())).verify()
    weights = safetensors.mapped(folder / "weights.safetensors")
    for name, w in used(graphs.values()).items():
        found = weights.get(name)
        if found is None or found.shape != w.type.shape or found.dtype != _stored(w.type):
            raise ArcError(f"the weights file has no {name} of type {w.type}",
                           hint="rebuild the engine")
    return graphs, weights


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as e:
        raise ArcError(f"cannot read {path.name}: {quoted(e)}", hint="rebuild the engine") from None


def _stored(t: Type) -> Any:
    return np.uint16 if t.dtype == "bf16" else NUMPY[t.dtype]
