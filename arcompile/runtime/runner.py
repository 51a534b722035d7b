"""What the loop asks of a target: to run graphs, and to hold what they hand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from arcompile import dims
from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.ir import Type
from arcompile.ops.tensor import NUMPY

Array = np.ndarray[Any, Any]
Env = dict[str, Any]  # name -> numpy array, or a target's own handle


class Runner(Protocol):
    """One target's sessions for one run: private buffers over shared, read-only models. A run may
    return before it is done."""

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Any:
        """A zeroed tensor to be carried."""

    def run(self, graph: str, env: Env) -> Env:
        """Run a graph on `env`; results by name. A result named as an input replaces it."""

    def inputs(self, graph: str) -> list[str]:
        """What the graph reads, by name."""

    def by_row(self, graph: str) -> set[str]:
        """Those of its results that have a row of their own for each row."""

    def first(self, value: Any, rows: int) -> Any:
        """The first rows of a value, as one of its own."""

    def keep(self, graphs: set[str]) -> None:
        """No others will be run: let go of the buffers of the rest."""

    def numpy(self, value: Any) -> Array:
        """The value as an array of its own."""

    def held(self, value: Any) -> Any:
        """The value as it is now, whatever runs next; for `arrays`, later."""

    def arrays(self, held: list[Any]) -> list[Array]:
        """What was held, as arrays."""

    def wait(self) -> None:
        """Until all that was run is done."""


class AtOnce:
    """Part of a Runner whose runs are done when they return, or whose `numpy` waits."""

    def held(self, value: Any) -> Any:
        return self.numpy(value)

    def arrays(self, held: list[Any]) -> list[Array]:
        return held

    def wait(self) -> None:
        """Nothing is under way."""

    def numpy(self, value: Any) -> Array:
        raise NotImplementedError


def zeros(t: Type, sizes: Mapping[str, int]) -> Array:
    shape = [dims.value(d, sizes) for d in t.shape]
    if any(n < 0 for n in shape):
        raise ArcError(f"state {t} has a negative size for {dict(sizes)}")
    try:
        return np.zeros(shape, NUMPY[t.dtype])
    except (MemoryError, ValueError) as e:
        raise ArcError(f"no memory for a state {t}: {quoted(e)}", code=MACHINE,
                       hint="draw fewer images at once") from None
