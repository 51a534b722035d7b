"""One model over batches, or over picture sizes: `arcompile bench sweep-llamagen-batch`.

A point is a whole picture (or batch), drawn by the engine after a short warm-up: seconds of the
loop and of the decoder, the floating-point operations and bytes that the cost model counts, and
the caches' size. Over batches a straight line is fitted: what a run costs, and each picture more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

import arcompile
from arcompile.bench import built, machine, suites
from arcompile.bench.machine import PAUSE, Bandwidth
from arcompile.bench.runner import _needs
from arcompile.bench.spread import figure, summary
from arcompile.bench.suites import Suite
from arcompile.cost import program_cost
from arcompile.program_text import parse_program
from arcompile.runtime.engine import Engine, load

Say = Callable[[str], None]
WARM = 4  # steps before the picture that counts
SETTINGS = {
    "point": "one generate() after a run of a few steps, the quickest of the visits; its seconds "
             "of steps and of the decoder",
    "visits": "all points in turn, so often; the seconds of each point over them",
    "flops, bytes": "of the loop, by the cost model: weights, activations, caches",
    "line": "least squares over the batches: s = start + each x batch; `off` is the largest "
            "distance of a point from it, of its own value",
}


@dataclass(frozen=True)
class Sweep:
    """axis: what is on the x axis. suites: one for each point; or batches, of one suite.

    visits: how often all batches are gone through.
    """

    name: str
    axis: str
    suites: tuple[str, ...]
    batches: tuple[int, ...] = (1,)
    visits: int = 1


SWEEPS = {s.name: s for s in (
    Sweep("sweep-llamagen-batch", "batch", ("llamagen-B",), (1, 2, 4, 8), 2),
    Sweep("sweep-var-batch", "batch", ("var-d16",), (1, 2, 4), 2),
    Sweep("sweep-demo-batch", "batch", ("demo",), (1, 2, 4, 8, 16), 5),
    Sweep("sweep-llamagen-grid", "tokens", tuple(f"llamagen-B-grid{n}" for n in (8, 16, 24))),
    Sweep("sweep-flexvar-grid", "tokens", tuple(f"flexvar-d16-grid{n}" for n in (8, 16, 24))),
    Sweep("sweep-infinity-pn", "tokens", tuple(f"infinity-layer12-{n}" for n in (
        "0.06M", "0.25M", "0.60M"))),
)}


def measure(sweep: Sweep, say: Say = lambda text: None, quick: bool = False) -> dict[str, Any]:
    """A row with a point for each suite and batch; quick: the first two. Raises ArcError."""
    _needs()
    was, bandwidth, points = machine.facts(), Bandwidth(), []
    bandwidth.measure(2)
    for name in sweep.suites[: 2 if quick else None]:
        suite = suites.find(name)
        engine = load(built.ready(suite, say)[0])
        batches = sweep.batches[: 2 if quick else None]
        turns = []
        for i in range(sweep.visits):
            say(f"{name}, visit {i + 1} of {sweep.visits}")
            turns.append([point(engine, suite, b) for b in batches])
        points += [{"suite": name, **_least(seen)} for seen in zip(*turns, strict=True)]
    found: dict[str, Any] = {
        "suite": sweep.name, "kind": "sweep", "axis": sweep.axis, "host": machine.host(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "points": points,
        "arcompile": arcompile.__version__, "settings": SETTINGS,
        "machine": {**was, "read_gbps": bandwidth.row(), "gemm_gflops": machine.gemm()},
    }
    if sweep.axis == "batch":
        found["line"] = line([p["batch"] for p in points], [p["s"] for p in points])
    return found


def _least(seen: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The quickest of a point's visits, with the times of all."""
    times = [p["s"] for p in seen]
    best = min(seen, key=lambda p: p["s"])
    return {**best, "visits": summary(times, 1.0)} if len(seen) > 1 else best


def point(engine: Engine, suite: Suite, batch: int) -> dict[str, Any]:
    cond = suites.condition(engine.manifest["info"], batch)
    short = copy(engine)
    short.program = replace(engine.program, steps=engine.program.steps[:WARM], finish=())
    short.generate(cond, guidance=suite.guidance)
    time.sleep(PAUSE)
    start = time.perf_counter()
    out = engine.generate(cond, guidance=suite.guidance)
    spent = time.perf_counter() - start
    whole = parse_program((engine.folder / "program.arc").read_text())
    cost = program_cost(whole, batch, suite.guidance != 1)
    total = sum((s.cost for s in cost.steps if s.name not in ("prompt", "finish")),
                type(cost.total)())
    return {"batch": batch, "tokens": engine.program.positions, "s": figure(spent),
            "steps_s": figure(sum(out.timings["steps"])),
            "decoder_s": figure(out.timings["finish"]), "flops": total.flops,
            "bytes": total.bytes, "weights": cost.weights, "state": cost.state,
            "pixels": list(out.pixels.shape[2:])}


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """start + each x; off: the largest relative distance of a point from it."""
    each, start = np.polyfit(x, y, 1)
    away = max(abs(start + each * a - b) / b for a, b in zip(x, y, strict=True))
    return {"start_s": figure(float(start)), "each_s": figure(float(each)),
            "off": figure(float(away), 3)}


def markdown(row: Mapping[str, Any]) -> str:
    lines = [f"| {row['axis']} | s | loop, s | decoder, s | s a picture | TFLOP of the loop |",
             "|---|---|---|---|---|---|"]
    for p in row["points"]:
        lines.append(f"| {p[row['axis']]} | {p['s']:g} | {p['steps_s']:g} | {p['decoder_s']:g} | "
                     f"{p['s'] / p['batch']:.3g} | {p['flops'] / 1e12:.3g} |")
    if "line" in row:
        x = row["line"]
        lines.append(f"\ns = {x['start_s']:g} + {x['each_s']:g} x batch; no point is further from "
                     f"it than {100 * x['off']:.3g} %")
    return "\n".join(lines)
