"""Whole images of engines and of the eager loop by turns, and short visits to a model again.

A side's turn is all steps of an image: the first of them find the caches full of what the other
sides read, and their threads asleep; no other step follows a turn of others. Of long loops the
first sixteen are left out of what is said of a step. What that leaves of the others in a figure,
`arcompile.bench.overhead` measures.

What another run will say depends on what minutes do to the machine, which no number of turns in
one of them tells: `arcompile bench all` comes back to every model several times, each time in a
new process. A visit goes over the same steps as every other, or they could not be compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from arcompile.bench import built, machine, suites
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import compare, figure, summary
from arcompile.runtime.engine import load

if TYPE_CHECKING:
    from arcompile.bench.runner import Bench, Say

SHORT, MOST = 3.0, 20  # seconds of turns at least, unless they are so many
STEPS, WARM = 48, 16  # of a loop this long, the first steps of a turn that no figure counts


def models() -> dict[str, list[str]]:
    """The suites of `bench all` by the first of the same weights, whose eager loop they share."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name in suites.ALL:
        s = suites.SUITES[name]
        found.setdefault((s.family, s.size, s.checkpoint), []).append(name)
    return {names[0]: names for names in found.values()}


def visit(model: str, say: Say) -> list[dict[str, Any]]:
    """One of `models()` again: a row for each of its suites. Raises ArcError."""
    from arcompile.bench import runner

    runner._needs()
    made: list[Bench] = []
    for name in models()[model]:
        suite = suites.SUITES[name]
        made.append(runner.Bench(suite, load(built.ready(suite, say)[0]), False, say,
                                 made[0] if made else None, brief=True))
    made[0].warm_up()
    for b in made[1:]:
        b.engine.generate(b.cond, guidance=b.suite.guidance, temperature=0)
    greedy, sampled = draw(made), draw(made, sampled=True)
    return [{
        "suite": f"again-{b.suite.name}", "kind": "again", "of": b.suite.name,
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
        "quick": False, "image": image(b, greedy), "sampled": b.sampled(sampled),
        "machine": {"load_before": b.machine["load_before"],
                    "read_gbps": b.bandwidth.row()}} for b in made]


# --- turns ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """One image of one side. s, prompt, decoder, and each of steps: seconds. read: GB/s, memory
    just before. tokens [B,n], of the steps that ran: the engine's are in the order of cells, the
    eager loop's in that of drawing."""

    s: float
    steps: list[float]
    decoder: float
    tokens: Any = field(repr=False)
    prompt: float = 0.0
    read: float = 0.0

    @property
    def counted(self) -> Sequence[float]:
        return counted(self.steps)

    @property
    def median(self) -> float:
        return float(np.median(self.counted))


@dataclass(frozen=True)
class Turns:
    """Images of engines, by suite, and of the eager loop that they share."""

    engine: dict[str, list[Turn]]
    eager: list[Turn]


def counted(steps: Sequence[float]) -> Sequence[float]:
    """The steps of a turn that count: all of a short loop, whose steps are seldom alike."""
    return steps[WARM:] if len(steps) >= STEPS else steps


def draw(benches: Sequence[Bench], sampled: bool = False, most: int = MOST) -> Turns:
    """Images by turns, of every engine and once of the eager loop that they share: as many as the
    first bench wants, and more of those that take no time.

    Greedy ones with their pictures, unless the bench is quick; sampled ones by the suite's top_k,
    and as far as the tokens.
    """
    first, start = benches[0], time.perf_counter()
    found = Turns({b.suite.name: [] for b in benches}, [])
    how = (1.0, first.suite.top_k) if sampled else (0.0, 0)
    for i in range(most):
        if i >= first.least and time.perf_counter() - start > SHORT:
            break
        for b in benches:
            b.say(f"{'sampled' if sampled else 'greedy'} image {i + 1}, {b.suite.name}")
            found.engine[b.suite.name].append(_engine(b, *how, finish=not sampled))
        if first.eager is not None:
            first.say(f"{'sampled' if sampled else 'greedy'} image {i + 1}, eager")
            found.eager.append(_eager(first, *how, finish=not sampled))
    return found


def _engine(b: Bench, temperature: float, top_k: int, finish: bool) -> Turn:
    """One image, after a reading of memory."""
    engine = b.asked(finish)
    read, start = b.bandwidth.measure(), time.perf_counter()
    out = engine.generate(b.cond, guidance=b.suite.guidance, temperature=temperature, top_k=top_k)
    end = time.perf_counter()
    return Turn(end - start, out.timings["steps"], out.timings["finish"], out.tokens,
                out.timings["prompt"], read)


def _eager(b: Bench, temperature: float, top_k: int, finish: bool) -> Turn:
    import torch

    program = b.asked(finish).program
    time.sleep(PAUSE)
    steps, tokens = list[float](), []
    begun = time.perf_counter()
    b.eager.begin(b.cond, b.suite.guidance, temperature, top_k)
    for _ in program.steps:
        start = time.perf_counter()
        tokens.append(b.eager.step())
        steps.append(time.perf_counter() - start)
    drawn, middle = torch.cat(tokens, 1), time.perf_counter()
    if program.finish:
        b.eager.finish(drawn)
    end = time.perf_counter()
    time.sleep(PAUSE)
    return Turn(end - begun, steps, end - middle, drawn)


# --- figures -------------------------------------------------------------------------------------


def image(b: Bench, turns: Turns) -> dict[str, Any]:
    """From the call to the picture, its steps, and both against the eager loop's."""
    runs, eager = turns.engine[b.suite.name], turns.eager
    best = min(runs, key=lambda r: r.s)
    loop = _loop(b, best.steps)
    alone, caches = zip(*floors(b, runs), strict=True)
    found = {
        "s": summary([r.s for r in runs], 1.0),
        "images_per_s": figure(b.suite.batch / best.s),
        "steps_s": figure(loop), "decoder_s": figure(best.decoder),
        "vs_parts": figure(best.s / (loop + best.decoder)),
        "step": summary([x for r in runs for x in r.counted]),
        "floor_pairs": summary(alone, 1.0), "floor_with_caches": summary(caches, 1.0),
    }
    if not eager:
        return found
    least = min(eager, key=lambda e: e.s)
    return {**found, "eager_steps_s": figure(least.s - least.decoder),
            "eager_decoder_s": figure(least.decoder),
            "eager_vs_engine": figure(least.s / best.s),
            "eager_s": summary([e.s for e in eager], 1.0),
            "eager_step": summary([x for e in eager for x in e.counted]),
            "eager_pairs": compare([e.s for e in eager], [r.s for r in runs]),
            "step_pairs": compare([e.median for e in eager], [r.median for r in runs])}


def floors(b: Bench, runs: Sequence[Turn]) -> list[tuple[float, float]]:
    """Of each image, its median step over the time it takes to read a step's weights once, by the
    reading of memory just before; and over that to read what the caches hold, too."""
    kept = float(np.median([c.cache for c in b.costs[: len(runs[0].steps)]]))  # bytes
    least = (b.reads.step, b.reads.step + kept)
    return [(r.median * r.read * 1e9 / least[0], r.median * r.read * 1e9 / least[1])
            for r in runs]


def _loop(b: Bench, steps: Sequence[float]) -> float:
    """Seconds of all steps: where they are alike, as many times their median."""
    alike = len(steps) == b.engine.program.positions
    return len(steps) * float(np.median(steps)) if alike else sum(steps)
