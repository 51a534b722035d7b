"""Weights by name, loaded one at a time; folded constants are computed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.ir import OPS, Graph, Value

Array = np.ndarray[Any, Any]
Load = Callable[[], Array]
TURNED = "turned"  # in a weights file's metadata: names stored column by column, a JSON list


@dataclass(frozen=True)
class Weights:
    """`@name` -> a function that makes the array. Immutable: passes add by making a new one."""

    load: Mapping[str, Load]

    def __getitem__(self, name: str) -> Array:
        if name not in self.load:
            raise ArcError(f"no weight named {name}")
        return self.load[name]()

    def __contains__(self, name: object) -> bool:
        return name in self.load

    def plus(self, more: Mapping[str, Load]) -> Weights:
        return Weights({**self.load, **more})


def of_arrays(arrays: Mapping[str, Array]) -> Weights:
    """Weights that are in memory already; names get their `@`."""
    def held(a: Array) -> Load:
        return lambda: a

    return Weights({k if k[0] == "@" else f"@{k}": held(a) for k, a in arrays.items()})


class Store(Mapping[str, Array]):
    """A program's weights at lowering time: the checkpoint's, and those folded from them.

    `fold` is a graph without parameters: weights in, weights out (`Program.fold`). Each read
    computes anew, so that one tensor at a time is in memory.
    """

    def __init__(self, source: Weights, fold: Graph | None = None):
        self.source = source
        self.results = {f"@{name}": v for name, v in fold.results} if fold else {}
        self.producer = fold.producer if fold else {}
        self.given = set(self.results.values())
        self.spare: dict[Value, Array] = {}  # small results that came with a large one

    def __getitem__(self, name: str) -> Array:
        if name not in self.results:
            return self.source[name]
        v, done = self.results[name], dict[Value, Array]()
        if v in self.spare:
            return self.spare.pop(v)
        found = np.asarray(self._value(v, done), order="C")
        self.spare.update({x: done[x] for x in (self.producer[v].outs if v in done else ())
                           if x is not v and x in self.given and 8 * done[x].nbytes < found.nbytes})
        return found

    def _value(self, v: Value, done: dict[Value, Array]) -> Array:
        if v.is_weight:
            return self.source[v.name]
        if v not in done:
            n = self.producer[v]
            outs = OPS[n.op].eval(*(self._value(a, done) for a in n.args), **n.attrs)
            done.update(zip(n.outs, outs, strict=True))
        return done[v]

    def __contains__(self, name: object) -> bool:
        return name in self.results or name in self.source

    def __iter__(self) -> Iterator[str]:
        return iter({**self.source.load, **self.results})

    def __len__(self) -> int:
        return len({**self.source.load, **self.results})


def used(graphs: Iterable[Graph]) -> dict[str, Value]:
    """Every weight some graph reads, by name, in order of first use."""
    return {w.name: w for g in graphs for w in g.weights}
