"""Whole images of engines and of the eager loop by turns, and short visits to a model again.

What another run will say depends on what minutes do to the machine, which no number of turns in
one of them tells: `arcompile bench all` comes back to every model several times, each time in a
new process. A visit goes over the same steps as every other, or they could not be compared.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
    whole = images(made, 1)
    rows = []
    for b in made:
        sampled = b.sampled()
        b.add_floor(sampled)
        rows.append({
            "suite": f"again-{b.suite.name}", "kind": "again", "of": b.suite.name,
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "quick": False, "image": whole[b.suite.name], "sampled": sampled,
            "machine": {"load_before": b.machine["load_before"],
                        "read_gbps": b.bandwidth.row()}})
    return rows


def images(benches: Sequence[Bench], least: int) -> dict[str, dict[str, Any]]:
    """Whole greedy images by turns, of every engine and once of the eager loop that they share: by
    suite, from the call to the picture, its steps, and both against the eager loop's.

    least: turns, and more of those that take no time.
    """
    turns: dict[str, list[dict[str, Any]]] = {b.suite.name: [] for b in benches}
    eager: list[dict[str, Any]] = []
    start = time.perf_counter()
    for i in range(MOST):
        if i >= least and time.perf_counter() - start > SHORT:
            break
        for b in benches:
            b.say(f"whole image {i + 1}, {b.suite.name}")
            turns[b.suite.name].append(_engine(b))
        if benches[0].eager is not None:
            benches[0].say(f"whole image {i + 1}, eager")
            eager.append(_eager(benches[0]))
    return {b.suite.name: _told(b, turns[b.suite.name], eager) for b in benches}


def _engine(b: Bench) -> dict[str, Any]:
    """One image, after a reading of memory."""
    read, start = b.bandwidth.measure(), time.perf_counter()
    out = b.engine.generate(b.cond, guidance=b.suite.guidance, temperature=0)
    return {"s": time.perf_counter() - start, "steps": out.timings["steps"], "read": read,
            "decoder": out.timings["finish"]}


def _eager(b: Bench) -> dict[str, Any]:
    import torch

    time.sleep(PAUSE)
    steps, tokens = list[float](), []
    begun = time.perf_counter()
    b.eager.begin(b.cond, b.suite.guidance, 0.0, 0)
    for _ in b.engine.program.steps:
        start = time.perf_counter()
        tokens.append(b.eager.step())
        steps.append(time.perf_counter() - start)
    drawn, middle = torch.cat(tokens, 1), time.perf_counter()
    b.eager.finish(drawn)
    end = time.perf_counter()
    time.sleep(PAUSE)
    return {"s": end - begun, "steps": steps, "loop": middle - begun, "decoder": end - middle}


def _told(b: Bench, runs: Sequence[Mapping[str, Any]],
          eager: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    best = min(runs, key=lambda r: r["s"])
    loop = _loop(b, best["steps"])
    kept = float(np.median([c.cache for c in b.costs]))  # bytes
    floors = [[float(np.median(r["steps"])) * r["read"] * 1e9 / n for r in runs]
              for n in (b.reads.step, b.reads.step + kept)]
    found = {
        "s": summary([r["s"] for r in runs], 1.0),
        "images_per_s": figure(b.suite.batch / best["s"]),
        "steps_s": figure(loop), "decoder_s": figure(best["decoder"]),
        "vs_parts": figure(best["s"] / (loop + best["decoder"])),
        "step": summary([x for r in runs for x in r["steps"]]),
        "floor_pairs": summary(floors[0], 1.0), "floor_with_caches": summary(floors[1], 1.0),
    }
    if not eager:
        return found
    least = min(eager, key=lambda e: e["s"])
    medians = [[float(np.median(r["steps"])) for r in side] for side in (eager, runs)]
    return {**found, "eager_steps_s": figure(least["loop"]),
            "eager_decoder_s": figure(least["decoder"]),
            "eager_vs_engine": figure(least["s"] / best["s"]),
            "eager_s": summary([e["s"] for e in eager], 1.0),
            "eager_step": summary([x for e in eager for x in e["steps"]]),
            "eager_pairs": compare([e["s"] for e in eager], [r["s"] for r in runs]),
            "step_pairs": compare(*medians)}


def _loop(b: Bench, steps: Sequence[float]) -> float:
    """Seconds of all steps: where they are alike, as many times their median."""
    alike = len(steps) == b.engine.program.positions
    return len(steps) * float(np.median(steps)) if alike else sum(steps)
