"""Whole images of several suites of one model, and the eager loop's, by turns in one run:
`python -m arcompile.bench.images var-d16 var-d16-int8`.

A row in results/images.jsonl. Processor seconds count both cores, and are what a busy host
disturbs least; a pool's threads that wait for work count too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcompile.bench import built, eager, machine, suites
from arcompile.runtime.engine import load

ROWS = Path(__file__).with_name("results") / "images.jsonl"
Turn = Callable[[], dict[str, float]]


def of_engine(name: str) -> Turn:
    suite = suites.SUITES[name]
    engine = load(built.ready(suite, print)[0])
    cond = suites.condition(engine.manifest["info"], suite.batch)

    def turn() -> dict[str, float]:
        out = engine.generate(cond, guidance=suite.guidance, temperature=0)
        return {"steps": sum(out.timings["steps"]), "decoder": out.timings["finish"]}

    return turn


def of_eager(name: str) -> Turn:
    import torch

    suite = suites.SUITES[name]
    torch.set_num_threads(machine.cores())
    loop = eager.load(suite.family, suites.source(suite))
    engine = load(built.ready(suite, print)[0])
    cond, steps = suites.condition(engine.manifest["info"], suite.batch), engine.program.steps
    assert loop is not None

    def turn() -> dict[str, float]:
        start = time.perf_counter()
        loop.begin(cond, suite.guidance, 0.0, 0)
        tokens = torch.cat([loop.step() for _ in steps], 1)
        middle = time.perf_counter()
        loop.finish(tokens)
        return {"steps": middle - start, "decoder": time.perf_counter() - middle}

    return turn


def measure(names: list[str], runs: int, warm: int = 1) -> dict[str, Any]:
    """Each figure is the least of `runs`; `warm` turns of each before do not count."""
    turns = {**{n: of_engine(n) for n in names}, "eager": of_eager(names[0])}
    found: dict[str, list[dict[str, float]]] = {n: [] for n in turns}
    for _ in range(warm + runs):
        for name, turn in turns.items():
            wall, spent = time.perf_counter(), time.process_time()
            told = turn()
            found[name].append({"s": time.perf_counter() - wall,
                                "cpu_s": time.process_time() - spent, **told})
    best = {n: {k: round(min(r[k] for r in rows[warm:]), 3) for k in rows[0]}
            for n, rows in found.items()}
    return {
        "suite": f"images-{names[0]}", "kind": "images",
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
        "runs": runs, "warm": warm, "weights": "random",
        "passes": {n: suites.SUITES[n].passes for n in names},
        "best": best,
        "eager_vs": {n: {k: round(best["eager"][k] / best[n][k], 3) for k in best[n]}
                     for n in names},
        "machine": machine.facts(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--warm", type=int, default=1, help="turns before that do not count; 0 for "
                        "images of minutes")
    told = parser.parse_args()
    row = measure(told.suites, told.runs, told.warm)
    with ROWS.open("a") as f:
        f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("best", "eager_vs")}, indent=1))
