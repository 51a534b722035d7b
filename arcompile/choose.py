"""What fits: plans of a program for every target, and the passes a memory limit asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from arcompile.cost import figure
from arcompile.errors import ArcError
from arcompile.pipeline import Pass, parse_pipeline, run
from arcompile.plan import Plan, plan
from arcompile.program import Program
from arcompile.target import TARGETS
from arcompile.weights import Weights

# What to add where memory lacks, from the least loss to the most.
LADDER = ("", "int8", "int8{decoder=True}", "int4", "int4{decoder=True}", "int4{bound=1.0}")


@dataclass(frozen=True)
class Chosen:
    """The program that fits, the passes that made it, and a line for each attempt."""

    program: Program
    passes: Sequence[Pass]
    tried: Sequence[str]


def plans(p: Program, passes: Sequence[Pass], batch: int = 1, guided: bool = True
          ) -> dict[str, Plan]:
    """What a run needs on each target, after its own passes and these. Raises ArcError."""
    return {name: plan(run(p, [*parse_pipeline(t.passes), *passes]), t.memory, batch, guided)
            for name, t in TARGETS.all().items()}


def fit(p: Program, passes: Sequence[Pass], source: Weights, target: str,
        memory: int | None = None, batch: int = 1) -> Chosen:
    """Run the passes, and further ones until a run of `batch` guided images fits into `memory`.

    Raises ArcError when none of LADDER is enough, saying what each would need.
    """
    tried: list[str] = []
    for more in LADDER:
        every = [*passes, *parse_pipeline(more)]
        need = 0 if memory is None else _need(run(p, every), target, batch)
        if memory is None or need <= memory:  # only then are weights looked at
            done: list[Pass] = []
            new = run(p, every, source, done)
            need = _need(new, target, batch)
            if memory is None or need <= memory:
                tried.append(_line(more, need))
                return Chosen(new, done, tried)
        tried.append(_line(more, need))
    assert memory is not None
    images = f"{batch} images" if batch > 1 else "an image"
    raise ArcError(f"{images} cannot be drawn in {figure(memory, 'B')}: " + "; ".join(tried),
                   hint="a smaller batch, or more memory")


def _line(more: str, need: int) -> str:
    return f"{more or 'as it is'}: {figure(need, 'B')}"


def _need(p: Program, target: str, batch: int) -> int:
    return plan(p, TARGETS[target].memory, batch).total
