"""What families share of the way from a module's parameters to a checkpoint's tensors."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import check_finite
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Source
from arcompile.weights import Array, Weights

MOST_JSON = 64 << 20  # bytes of a json file we agree to parse


def state(module: Any, skip: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter and buffer, but those under the prefixes of `skip`."""
    return {k: tuple(v.shape) for k, v in module.state_dict().items()
            if not any(k.startswith(s) for s in skip)}


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


def coder(tokenizer: Any, latent: Mapping[str, str], height: int, width: int) -> list[Entry]:
    """The graphs of an image tokenizer: `decode` of `latent`, and `encode` where it has an encoder.

    height, width: of the picture in cells.
    """
    found = [Entry("decode", tokenizer.decode, latent)]
    if tokenizer.has_encoder:
        px = f"{height * tokenizer.factor},{width * tokenizer.factor}"
        found.append(Entry("encode", tokenizer.encode, {"pixels": f"f32[b,3,{px}]"}))
    return found


def shape(t: Tensors, key: str, rank: int) -> tuple[int, ...]:
    """The shape of a tensor that tells sizes. Raises ArcError unless it has `rank` axes."""
    if key not in t or len(t.shape(key)) != rank:
        raise ArcError(f"{key} is missing, or has not {rank} axes",
                       hint="is it the right family? name one with --family")
    return t.shape(key)


def count(t: Tensors, prefix: str) -> int:
    """How many n there are in names like `prefix` n `.weight`."""
    return len({m[1] for k in t if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", k))})


def told(source: Source, key: str) -> int | None:
    """A number that the file's metadata tells."""
    text = source.metadata.get(key, "")
    return int(text) if text.isdecimal() else None


def settings(source: Source, name: str) -> dict[str, Any]:
    """A json file beside the weights, or {}; made-up weights carry theirs in `metadata`."""
    text: str | bytes = source.metadata.get(name, "")
    path = source.folder / name if source.folder else None
    if not text and path is not None and path.is_file():
        if path.stat().st_size > MOST_JSON:
            raise ArcError(f"{path} is larger than {MOST_JSON} bytes", hint="download it again")
        text = path.read_bytes()
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as e:
        raise ArcError(f"{path or name} is not JSON: {e}", hint="download it again") from None
    if not isinstance(found, dict):
        raise ArcError(f"{path or name} does not hold an object", hint="download it again")
    return found
