"""What a target is: a file in arcompile/targets/ with one decorated class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from arcompile.errors import MACHINE, ArcError
from arcompile.plan import Memory
from arcompile.program import Program
from arcompile.registry import Registry
from arcompile.weights import Store

RUN = "model_run"  # kind of the event that is a whole run of a graph


@dataclass(frozen=True, slots=True)
class Event:
    """One kernel that a profiled run took: seconds since the epoch, and how long.

    name: `origin/op:value#k` where the target kept the names of lowering (see `Node.origin`). kind:
    the runtime's own word for the op. peak: bytes in use in the runtime's arena.
    """

    graph: str
    name: str
    kind: str
    start: float
    seconds: float
    peak: int = 0


class Target:
    """Subclass, decorate with @target("name"), and implement `lower` and `open`.

    passes: the default pipeline, in order, visible here and nowhere else. dtypes: what it takes.
    memory: how it uses memory, for plans. sized: its engines are made for so many images at once.
    device: what it runs on, cpu or cuda.
    """

    name: ClassVar[str] = ""
    passes: ClassVar[str] = ""
    dtypes: ClassVar[tuple[str, ...]] = ("f32",)
    needs: ClassVar[tuple[str, ...]] = ()  # packages, for `doctor`
    memory: ClassVar[Memory] = Memory()
    sized: ClassVar[bool] = False
    device: ClassVar[str] = "cpu"

    def lower(self, program: Program, store: Store, folder: Path,
              progress: Callable[[str, float], None], batch: int = 1) -> None:
        """Write the program's graphs and weights into `folder`, of a target that is `sized` for up
        to `batch` images at once. Raises ArcError."""
        raise NotImplementedError

    def open(self, program: Program, folder: Path, threads: int) -> Any:
        """Models ready to run: an object with `runner()` and `vocabulary`. Raises ArcError."""
        raise NotImplementedError

    def profile(self, program: Program, folder: Path, threads: int, notes: Path) -> Any:
        """Like `open`, but the models take note of every kernel, in files under `notes`: they also
        have `events() -> list[Event]`, to be called once, after the last run. Raises ArcError."""
        raise ArcError(f"target {self.name} has no profiler", code=MACHINE,
                       hint="profile an engine built with --target ort-cpu")

    def prepare(self, progress: Callable[[str, float], None]) -> None:
        """Make what engines of this target gain from on this machine. Raises ArcError when it
        cannot be made; engines run without it."""

    def available(self) -> str:
        """"" when this machine can run it, else the reason it cannot."""
        return ""


TARGETS: Registry[Target] = Registry("target", "arcompile.targets")


def target(name: str) -> Callable[[type[Target]], type[Target]]:
    def declare(cls: type[Target]) -> type[Target]:
        made = cls()
        made.name = name  # type: ignore[misc]
        TARGETS.add(name, made)
        return cls

    return declare


Progress = Callable[[str, float], None]

