"""What a model family is: a file in models/ with one decorated class."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from arcompile.checkpoint import Weights as Tensors
from arcompile.errors import ArcError, did_you_mean
from arcompile.program import Program
from arcompile.registry import Registry
from arcompile.weights import Weights

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """What a build starts from: the transformer's tensors and, if given, the image decoder's.

    `names` are the two file names (published sizes are told by them), `metadata` the string pairs
    that a safetensors header carries, `folder` where the other files of the model are.
    """

    tensors: Tensors
    decoder: Tensors | None = None
    names: tuple[str, str] = ("", "")
    metadata: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Model:
    """A family's model of one checkpoint, ready to export.

    module: a torch module on the meta device. entries: the graphs to export from it. program: the
    loop, without graphs. weights: `@name` -> array for every parameter and buffer of the module.
    prompt: for families that take text, how it becomes `input_ids` (see runtime.prompt). files:
    further files of the engine, by name.
    """

    module: Any
    entries: Sequence[Any]
    program: Program
    weights: Weights
    info: Mapping[str, Any] = field(default_factory=dict)  # sizes, for people
    labels: Sequence[str] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)  # guidance, temperature, top_k, ..
    prompt: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    passes: str = ""  # what makes of the exported program the one that the checkpoint is for


class Family:
    """Subclass, decorate with @family("name"), and implement `claims` and `model`.

    options: name -> what it means, for what tensors cannot show. containers: where in a checkpoint
    file the weights may be, in the order to look.
    """

    name: ClassVar[str] = ""
    order: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    verified: ClassVar[str] = ""
    sizes: ClassVar[Mapping[str, Any]] = {}
    options: ClassVar[Mapping[str, str]] = {}
    containers: ClassVar[Sequence[str]] = ("", "model", "module", "state_dict")
    decoder_containers: ClassVar[Sequence[str]] = ("", "model", "state_dict")

    def claims(self, t: Tensors) -> bool:
        """Are these this family's transformer weights? By key names and shapes alone."""
        raise NotImplementedError

    def model(self, source: Source, options: Options) -> Model:
        """Raises ArcError for missing or misshapen tensors and impossible options."""
        raise NotImplementedError

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, or "tiny": what benchmarks and tests build from."""
        raise ArcError(f"family {self.name} has no random weights of size {size!r}")

    def check_options(self, options: Options) -> None:
        for key in options:
            if key not in self.options:
                raise ArcError(f"family {self.name} has no option {key!r}",
                               hint=did_you_mean(key, self.options))


FAMILIES: Registry[Family] = Registry("family", "arcompile.models")


def family(name: str) -> Callable[[type[Family]], type[Family]]:
    """Declare a model family: one file, this decorator, nothing else."""

    def declare(cls: type[Family]) -> type[Family]:
        cls.name = name
        FAMILIES.add(name, cls())
        return cls

    return declare


def positive(options: Options, key: str, default: int | None, what: str,
             most: int = 1 << 20) -> int:
    """An integer option from 1 to `most`, or a clear error that says how to give it."""
    value = options.get(key, default)
    if value is None:
        raise ArcError(f"{what} cannot be told from the tensors", hint=f"give --option {key}=N")
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ArcError(f"option {key} must be a positive integer, got {value!r}",
                       hint=f"{key} is {what}")
    if value > most:
        raise ArcError(f"{key}={value} is more than {most}", hint=f"{key} is {what}")
    return value


SETTINGS = ("guidance", "temperature", "top_k", "top_p")


def described(model: Model, metadata: Mapping[str, str]) -> Model:
    """With the class names and sampling settings that a safetensors header tells, if it does.

    class_names: a JSON list of text; sampling: a JSON object of numbers. Raises ArcError.
    """
    labels = _json(metadata, "class_names", list)
    sampling = _json(metadata, "sampling", dict)
    if labels and (len(labels) != model.info.get("classes") or not all(
            isinstance(x, str) for x in labels)):
        raise ArcError(f"the header names {len(labels)} classes, the model has "
                       f"{model.info.get('classes', 0)}")
    for key, value in sampling.items():
        if key not in SETTINGS or isinstance(value, bool) or not isinstance(value, int | float):
            raise ArcError(f"the header's sampling setting {key!r} is not one we know",
                           hint=f"known: {', '.join(SETTINGS)}")
    return replace(model, labels=model.labels or labels, defaults={**model.defaults, **sampling})


def _json(metadata: Mapping[str, str], key: str, kind: type) -> Any:
    try:
        found = json.loads(metadata.get(key, "") or json.dumps(kind()))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise ArcError(f"the header's {key} is not a JSON {kind.__name__}")
    return found
