"""What families share of the way from a module's parameters to a checkpoint's tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from arcompile.checkpoint import check_finite
from arcompile.weights import Array, Weights


def state(module: Any, skip: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter and buffer, but those under the prefixes of `skip`."""
    return {k: tuple(v.shape) for k, v in module.state_dict().items()
            if not any(k.startswith(s) for s in skip)}  # fmt: skip


def view(module: Any, *names: str) -> Any:
    """A shallow copy of a module that holds only these submodules and parameters, by dotted name.

    The graphs of its methods name weights as the module's would, and are traced in a fraction of
    the time.
    """
    new = copy.copy(module)
    tops = {n.split(".")[0] for n in names}
    new._parameters = {k: v for k, v in module._parameters.items() if k in tops}
    new._buffers = {k: v for k, v in module._buffers.items() if k in tops}
    new._modules = {}
    for top in sorted(tops & module._modules.keys()):
        inner = [n.partition(".")[2] for n in names if n.split(".")[0] == top]
        child = module._modules[top]
        new._modules[top] = child if "" in inner else view(child, *inner)
    return new


def bind(sources: Mapping[str, Any], names: Mapping[str, Any]) -> Weights:
    """Weights `@prefix.name` read from the checkpoint under each prefix; NaN is refused."""

    def loader(tensors: Any, key: str) -> Any:
        def load() -> Array:
            found = tensors.load(key)
            check_finite(key, found)
            return found

        return load

    made = {}
    for name in names:
        prefix = next(p for p in sources if name.startswith(p))
        made[f"@{name}"] = loader(sources[prefix], name[len(prefix) :])
    return Weights(made)
