"""Target `reference`: every op by its numpy meaning. Slow, obvious, and the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arcompile import safetensors
from arcompile.ir import Graph, Type, evaluate
from arcompile.program import Program
from arcompile.runtime.loop import Array, Env, zeros
from arcompile.target import Target, target
from arcompile.text import parse_graph
from arcompile.weights import Store, used


class Runner:
    """One run. Nothing is shared or updated in place, so there is nothing to hold."""

    def __init__(self, graphs: Mapping[str, Graph], weights: Mapping[str, Array]):
        self.graphs, self.weights = graphs, weights

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Array:
        return zeros(t, sizes)

    def inputs(self, graph: str) -> list[str]:
        return [p.name for p in self.graphs[graph].params]

    def run(self, graph: str, env: Env) -> Env:
        g = self.graphs[graph]
        return evaluate(g, {p.name: env[p.name] for p in g.params}, self.weights)

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
              progress: Callable[[str, float], None]) -> None:
        for g in program.graphs:
            (folder / f"{g.name}.arc").write_text(str(g) + "\n")
        types = {k: v.type for k, v in used(program.graphs).items()}
        safetensors.write(folder / "weights.safetensors", types, store.__getitem__,
                          lambda f: progress("weights", f))

    def open(self, program: Program, folder: Path, threads: int) -> Models:
        graphs = {}
        for path in sorted(folder.glob("*.arc")):
            if path.name != "program.arc":  # the whole program, for people
                g = parse_graph(path.read_text())
                graphs[g.name] = g
        return Models(graphs, safetensors.mapped(folder / "weights.safetensors"))
