"""What a round of a window costs in plain steps: `python -m arcompile.bench.windows llamagen-B-int8
llamagen-B-int8-scd16 [--batch 4]`, a row in results/windows.jsonl.

A method that drafts wins where a round of it costs less than the tokens it commits. Both engines
run a few steps by turns; random weights accept almost nothing, which a round's cost does not know.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench import built, machine, suites
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import compare, figure, summary
from arcompile.runtime.engine import Engine, load

ROWS = Path(__file__).with_name("results") / "windows.jsonl"
TURNS, STEPS, WARM = 6, 10, 3


def some(e: Engine, batch: int, guidance: float) -> list[float]:
    """Seconds of a few steps of one run, the first ones left out."""
    more = iter(range(1, STEPS + WARM))
    out = e.generate(suites.condition(e.manifest["info"], batch), guidance=guidance,
                     on_step=lambda p: next(more, None) is not None)
    return [float(s) for s in out.timings["steps"][WARM:]]


def measure(names: Sequence[str], batch: int, turns: int) -> dict[str, Any]:
    """Every engine's step, and how many of the first one's it takes, turn by turn."""
    engines = {n: load(built.ready(suites.SUITES[n], print)[0]) for n in names}
    guidance = suites.SUITES[names[0]].guidance
    times: dict[str, list[list[float]]] = {n: [] for n in names}
    for _ in range(turns + 1):
        for name, e in engines.items():
            time.sleep(PAUSE)
            times[name].append(some(e, batch, guidance))
    first = [float(np.median(t)) for t in times[names[0]][1:]]
    sides = {}
    for name, found in times.items():
        each = [float(np.median(t)) for t in found[1:]]
        sides[name] = {"step": summary([x for t in found[1:] for x in t]),
                       "vs_first": compare(each, first), "passes": suites.SUITES[name].passes}
    return {"suite": f"windows-{names[0]}-batch{batch}", "kind": "windows", "batch": batch,
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "guidance": guidance, "weights": "random", "sides": sides,
            "machine": {**machine.facts(), "gemm_gflops": machine.gemm()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    row = measure(told.suites, told.batch, told.turns)
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    for name, x in row["sides"].items():
        print(f"{name:32} {x['step']['median']:8g} ms (min {x['step']['min']:g}), "
              f"{figure(x['vs_first']['median'], 3):g} steps")
