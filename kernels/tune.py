"""Which version and block sizes to run: a small measured search, kept on disk and with an engine.

A choice belongs to a kernel, a case and a device. `python -m arcompile.kernels.tune ENGINE` draws
one picture on this machine's GPU, searches every case it met, and writes tuned.json into the
engine; whoever has the same GPU then starts with these choices. Without any, the last version that
takes a case runs with its own block sizes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.cache import cache
from arcompile.errors import ArcError
from arcompile.kernel import KERNELS, Case, Kernel, Version
from arcompile.kernels.check import absent, tensors

FILE = "tuned.json"
Timer = Callable[[Callable[[], Any]], float]  # seconds of a run
Choice = tuple[str, dict[str, Any]]  # a version's name, and options of its run


@dataclass
class Choices:
    """What was found on one device, and the cases that were asked for."""

    device: str
    known: dict[str, Choice] = field(default_factory=dict)
    asked: dict[str, tuple[str, Case]] = field(default_factory=dict)

    def read(self, path: Path) -> str:
        """Add what a file knows of this device. Returns why it could not be used, or ""."""
        try:
            found = json.loads(path.read_text()).get(self.device, {})
            self.known |= {k: (str(v["version"]), _options(v["options"]))
                           for k, v in found.items()}
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as e:
            return f"{path.name} is not a file of choices: {e}"
        return ""

    def write(self, path: Path) -> None:
        """Merge into a file, which may know other devices."""
        try:
            held = json.loads(path.read_text())
        except (OSError, ValueError):
            held = {}
        held.setdefault(self.device, {}).update(
            {k: {"version": v, "options": o} for k, (v, o) in self.known.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        spare = path.with_suffix(f".{os.getpid()}")
        spare.write_text(json.dumps(held, indent=1) + "\n")
        os.replace(spare, path)

    def pick(self, k: Kernel, c: Case) -> Callable[..., Any]:
        """What to call for a case. Raises ArcError when no version takes it."""
        name = key(k, c)
        self.asked[name] = (k.name, c)
        version, options = self.known.get(name, ("", {}))
        if version in k.versions and not (k.versions[version].refusal(c)
                                          or absent(k.versions[version])):
            return partial(k.versions[version].run, **options)
        return k.best(c, absent).run

    def search(self, timer: Timer, device: str = "cuda",
               say: Callable[[str], None] = lambda text: None) -> int:
        """Time every asked case that is not known yet; how many were found."""
        todo = {n: x for n, x in self.asked.items() if n not in self.known}
        for name, (kernel, c) in todo.items():
            found = fastest(KERNELS[kernel], c, timer, device)
            if found is not None:
                self.known[name] = found[0]
                say(f"{name}: {found[0][0]} {found[0][1]}, {found[1] * 1e6:.1f} us")
        return len(todo)


def key(k: Kernel, c: Case) -> str:
    return f"{k.name} {c}"


def _options(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def candidates(k: Kernel, c: Case,
               missing: Callable[[Version], str] = absent) -> list[tuple[Version, dict[str, Any]]]:
    return [(v, dict(options)) for v in k.versions.values() if not (v.refusal(c) or missing(v))
            for options in v.tune]


def fastest(k: Kernel, c: Case, timer: Timer, device: str = "cuda") -> tuple[Choice, float] | None:
    """The choice that takes the least, and its seconds; what fails to run is passed over."""
    arguments = tensors(k, k.inputs(c, np.random.default_rng(0)), c.dtype, device)
    best: tuple[Choice, float] | None = None
    for v, options in candidates(k, c):
        try:
            spent = timer(partial(v.run, **arguments, **options))
        except (ArcError, RuntimeError):  # too much shared memory, for one
            continue
        if best is None or spent < best[1]:
            best = (v.name, options), spent
    return best


def kept() -> Path:
    """Where choices of this machine lie."""
    return cache() / "kernels" / FILE


def main(argv: Sequence[str] | None = None) -> int:
    import arcompile
    from arcompile.kernels import lang
    from arcompile.kernels.timing import measure
    from arcompile.runtime import bundle
    from arcompile.targets import torch_kernels

    folder = Path((argv or sys.argv[1:])[0])
    arcompile.load(folder).generate([0], seed=0)
    if (choices := torch_kernels.CHOICES.get("now")) is None or not choices.asked:
        raise ArcError(f"{folder} met no kernel", hint="build it with --target torch-cuda")
    choices.search(measure, lang.device(), print)
    choices.write(kept())
    choices.write(folder / FILE)
    manifest = json.loads((folder / bundle.MANIFEST).read_text())
    manifest["files"][FILE] = bundle.entry(folder / FILE)
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from arcompile.kernels.tune import main as run  # the one that targets know

    sys.exit(run())
