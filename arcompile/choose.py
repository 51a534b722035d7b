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

# What to add where memory lacks, from the least loss to the most. A program that a rung is not for
# goes past it.
TILED, ROUNDED = "tile-decoder{bands=8}", "int8-conv{dynamic=True}"  # the image decoder
CACHES = ("kv-int8", "kv-hack{ratio=0.5}, kv-int8", "kv-rows{ratio=0.5}, kv-int8")
EIGHT, FOUR = (f"int{bits}, {ROUNDED}" for bits in ("8{decoder=True}", "4{bound=1.0}"))
LADDER = ("", TILED, "bf16-conv", f"bf16-conv, {TILED}", "int8", f"int8, bf16-conv, {TILED}",
          EIGHT, *(f"{EIGHT}, {x}" for x in CACHES),
          "int4", f"int4{{decoder=True}}, {ROUNDED}", FOUR, *(f"{FOUR}, {x}" for x in CACHES))


@dataclass(frozen=True)
class Chosen:
    """The program that fits, the passes that made it, a line for each attempt, and how many images
    of those that were asked for it draws at a time."""

    program: Program
    passes: Sequence[Pass]
    tried: Sequence[str]
    batch: int


def plans(p: Program, passes: Sequence[Pass], batch: int = 1, guided: bool = True
          ) -> dict[str, Plan]:
    """What a run needs on each target, after its own passes and these. Raises ArcError."""
    return {name: plan(run(p, [*parse_pipeline(t.passes), *passes]), t.memory, batch, guided)
            for name, t in TARGETS.all().items()}


def fit(p: Program, passes: Sequence[Pass], source: Weights, target: str,
        memory: int | None = None, batch: int = 1) -> Chosen:
    """Run the passes, and further ones until a run of `batch` guided images fits into `memory`.

    Where none of LADDER is enough, fewer images. Raises ArcError when not even one can be drawn,
    saying what each rung would need.
    """
    if memory is None:
        return _made(p, passes, source, [], batch)
    tried: list[str] = []
    usable: list[tuple[str, Program]] = []
    for more in LADDER:
        try:
            new = run(p, [*passes, *parse_pipeline(more)])
        except ArcError as e:
            if not more:
                raise
            tried.append(f"{more}: {e.what}")
            continue
        usable.append((more, new))
        tried.append(_line(more, _need(new, target, batch)))
        if _need(new, target, batch) <= memory:  # only then are weights looked at
            made = _made(p, [*passes, *parse_pipeline(more)], source, tried, batch)
            tried[-1] = _line(more, need := _need(made.program, target, batch))
            if need <= memory:
                return made
    more, least = usable[-1]
    fewer = _most(least, target, memory, batch)
    if fewer:
        tried.append(f"{fewer} at a time of {batch}: {_line(more, _need(least, target, fewer))}")
        return _made(p, [*passes, *parse_pipeline(more)], source, tried, fewer)
    images = f"{batch} images" if batch > 1 else "an image"
    raise ArcError(f"{images} cannot be drawn in {figure(memory, 'B')}: " + "; ".join(tried),
                   hint="more memory, or a smaller model")


def _made(p: Program, passes: Sequence[Pass], source: Weights, tried: list[str],
          batch: int) -> Chosen:
    done: list[Pass] = []
    return Chosen(run(p, passes, source, done), done, tried, batch)


def _most(p: Program, target: str, memory: int, batch: int) -> int:
    """The most images at a time, fewer than `batch`, that fit; 0 when none does."""
    one, two = (plan(p, TARGETS[target].memory, n) for n in (1, 2))
    return next((n for n in range(batch - 1, 0, -1) if one.of(n, two).total <= memory), 0)


def _line(more: str, need: int) -> str:
    return f"{more or 'as it is'}: {figure(need, 'B')}"


def _need(p: Program, target: str, batch: int) -> int:
    return plan(p, TARGETS[target].memory, batch).total
