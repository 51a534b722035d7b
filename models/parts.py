"""What families share of the way from a module's parameters to a checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcompile.checkpoint import check_finite
from arcompile.weights import Array, Weights


def state(module: Any, skip: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter and buffer, but those under the prefixes of `skip`."""
    return {k: tuple(v.shape) for k, v in module.state_dict().items()
            if not any(k.startswith(s) for s in skip)}  # fmt: skip


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
