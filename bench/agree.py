"""May the bench be believed? `python -m arcompile.bench.agree demo`, a row in results/agree.jsonl.

What it adds to what it measures: the steps as it runs them, by turns with a bare loop around
generate(), round by round. And whether two whole runs of the suite, one after the other, agree
within the spread that each prints.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench import built, history, machine, runner, suites
from arcompile.bench.spread import SAME, compare
from arcompile.bench.suites import Suite
from arcompile.runtime.engine import load

ROWS = Path(__file__).with_name("results") / "agree.jsonl"
ROUNDS = 10


def overhead(suite: Suite, rounds: int = ROUNDS) -> dict[str, Any]:
    """bench / bare, by the median step of each round; the order of the two changes every round.

    Without the eager loop: what that leaves in the caches is part of every comparison with it, and
    not the bench's own.
    """
    engine = load(built.ready(suite, print)[0])
    bench = runner._Bench(replace(suite, alone=True), engine, True, lambda text: None)
    found: dict[str, list[float]] = {"bench": [], "bare": []}
    for i in range(rounds + 1):
        for side in ("bench", "bare") if i % 2 else ("bare", "bench"):
            time.sleep(machine.PAUSE)
            found[side].append(_bench(bench) if side == "bench" else _bare(bench))
    return compare(found["bench"][1:], found["bare"][1:])


def _bench(bench: runner._Bench) -> float:
    turns, _ = bench.interleave(bench.engine, 0.0, 0)
    return float(np.median(turns.engine))


def _bare(bench: runner._Bench) -> float:
    """Whole wall time of the loop over its steps, by nobody's clock but ours."""
    short = bench._short(len(bench.engine.program.steps))
    start = time.perf_counter()
    out = short.generate(bench.cond, guidance=bench.suite.guidance, temperature=0, top_k=0)
    return (time.perf_counter() - start - out.timings["prompt"]) / len(short.program.steps)


def agreement(suite: Suite) -> dict[str, Any]:
    """Each figure of two runs in a row, and whether each is within both runs' spread."""
    start = time.perf_counter()
    one, two = (runner.measure(suite) for _ in range(2))
    figures = history.since([two], [one])
    seen = [f["verdict"] for f in figures if f["verdict"] != "measured once"]
    return {"two_runs_s": round(time.perf_counter() - start, 1), "figures": figures,
            "agree": all(v == SAME for v in seen)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="demo")
    parser.add_argument("--overhead", action="store_true", help="only what the bench adds")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    suite = suites.find(told.suite)
    row = {"suite": f"{'overhead' if told.overhead else 'agree'}-{suite.name}", "kind": "agree",
           "host": machine.host(), "time": datetime.now(UTC).isoformat(timespec="seconds"),
           "machine": machine.facts(), **({} if told.overhead else agreement(suite)),
           "overhead": overhead(suite, told.rounds)}
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    print(history.table(row.get("figures", [])))
    print({k: row[k] for k in ("two_runs_s", "agree", "overhead") if k in row})
