"""What a round of a window costs in plain steps: `python -m arcompile.bench.windows llamagen-B-int8
llamagen-B-int8-scd16 [--batch 4]`, a row in results/windows.jsonl.

A method that drafts wins where a round of it costs less than the tokens it commits. All engines
run a few steps by turns; random weights accept almost nothing, which a round's cost does not know.
`predicted` is what `auto` expects (arcompile/ceilings.py): the first engine's own steps of as many
images as a window has slots, in the same turns, and what the narrowest window of the method takes
beside that.
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

from arcompile.auto import drafted_bytes
from arcompile.bench import built, machine, suites
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import compare, figure, summary
from arcompile.ceilings import window_of
from arcompile.compile import PROGRAM
from arcompile.cost import program_cost
from arcompile.pipeline import parse_pipeline
from arcompile.program_text import parse_program
from arcompile.runtime import request
from arcompile.runtime.engine import Engine, load

ROWS = Path(__file__).with_name("results") / "windows.jsonl"
TURNS, STEPS, WARM = 6, 10, 3


def some(e: Engine, batch: int, guidance: float) -> list[float]:
    """Seconds of a few steps of one run, the first ones left out; nothing is decoded."""
    more = iter(range(1, STEPS + WARM))
    q = request.make(e, suites.condition(e.manifest["info"], batch), [*range(batch)], 1, guidance,
                     None, 1.0, 0, 1.0, {})
    out = e._loop(q).run(lambda p: next(more, None) is not None, finish=False)
    return [float(s) for s in out.timings["steps"][WARM:]]


def drafting(e: Engine, plain: Engine, batch: int) -> float:
    """What a second model takes of a round, in plain steps, by the bytes it moves."""
    p, q = (parse_program((x.folder / PROGRAM).read_text()) for x in (e, plain))
    rounds = p.positions - 1
    return (drafted_bytes(p, batch, 1.0) / rounds) / (program_cost(q, batch).total.bytes /
                                                      len(q.steps))


def method(passes: str) -> str:
    """The pass that drafts."""
    return parse_pipeline(passes)[-1].name


def measure(names: Sequence[str], batch: int, turns: int) -> dict[str, Any]:
    """Every engine's step, and how many of the first one's it takes, turn by turn."""
    engines = {n: load(built.ready(suites.SUITES[n], print)[0]) for n in names}
    guidance = suites.SUITES[names[0]].guidance
    windows = {n: window_of(e.program) for n, e in engines.items()}
    plain = engines[names[0]]
    runs = {n: (e, batch) for n, e in engines.items()}
    runs |= {str(w): (plain, w * batch) for w in sorted({*windows.values()} - {0, 1})}
    times: dict[str, list[list[float]]] = {n: [] for n in runs}
    for _ in range(turns + 1):
        for name, (e, images) in runs.items():
            time.sleep(PAUSE)
            times[name].append(some(e, images, guidance))
    each = {n: [float(np.median(t)) for t in found[1:]] for n, found in times.items()}
    first = each[names[0]]
    sides: dict[str, Any] = {}
    beside: dict[str, float] = {}
    for name in sorted(names, key=lambda n: windows[n]):
        sides[name] = {"step": summary([x for t in times[name][1:] for x in t]),
                       "vs_first": compare(each[name], first),
                       "passes": suites.SUITES[name].passes}
        if windows[name] > 1:
            more = drafting(engines[name], plain, batch)
            told = more + float(np.median([x / y for x, y in zip(
                each[str(windows[name])], first, strict=True)]))
            took, way = sides[name]["vs_first"]["median"], method(suites.SUITES[name].passes)
            if way in beside:
                sides[name]["predicted"] = figure(told + beside[way], 3)
            else:
                beside[way] = took - told
            sides[name] |= {"window": windows[name], "as_images": figure(told, 3)}
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
              f"{figure(x['vs_first']['median'], 3):g} steps"
              + (f", predicted {x['predicted']:g}" if "predicted" in x else ""))
