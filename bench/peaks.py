"""The plan against what runs take: `python -m arcompile.bench.peaks var-d16-batch4
var-d16-hack50-batch4`, a row in results/peaks.jsonl.

Each engine draws two images, one after the other, in a fresh process without torch. Time is not
looked at, so the machine may be busy.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcompile.bench import built, fresh, machine, suites
from arcompile.bench.spread import figure
from arcompile.runtime.engine import load

ROWS = Path(__file__).with_name("results") / "peaks.jsonl"


def peak(name: str) -> dict[str, Any]:
    """Of a suite."""
    suite = suites.SUITES[name]
    return {"passes": suite.passes, **of(built.ready(suite, print)[0], suite.batch,
                                         suite.guidance)}


def of(folder: Path, batch: int, guidance: float) -> dict[str, Any]:
    """Bytes. carried: from step to step, as the engine's states say; plan: the most at once, as
    `engine.plan` says; peak: the most that was resident; off: plan / peak - 1."""
    need = load(folder).plan(batch)
    told = fresh.run("generate", str(folder), str(batch), str(guidance))
    return {"batch": batch, "carried": need.state, "weights": need.weights, "plan": need.total,
            "peak": told["peak"], "off": figure(need.total / told["peak"] - 1)}


def measure(names: Sequence[str]) -> dict[str, Any]:
    found = {n: peak(n) for n in names}
    first = found[names[0]]
    for x in found.values():
        x["less"] = {k: first[k] - x[k] for k in ("carried", "plan", "peak")}
    return {"suite": f"peaks-{names[0]}", "kind": "peaks", "weights": "random",
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "engines": found, "machine": machine.facts()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+", help="the others are compared with the first")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    row = measure(told.suites)
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    for name, x in row["engines"].items():
        print(f"{name}: carries {x['carried'] / 1e6:.0f} MB, plan {x['plan'] / 1e6:.0f}, peak "
              f"{x['peak'] / 1e6:.0f} ({x['off']:+.1%})")
