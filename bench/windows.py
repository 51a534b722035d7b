"""What a round of a window costs in plain steps: `python -m arcompile.bench.windows llamagen-B-int8
llamagen-B-int8-scd16 [--batch 4]`, a row in results/windows.jsonl.

A method that drafts wins where a round of it costs less than the tokens it commits. All engines
run a few steps by turns; random weights accept almost nothing, which a round's cost does not know.
`expected` is a round as `auto` expects it (arcompile/ceilings.py): what the method takes on a
network that is nothing, and the network on as many slots as the window has, by turns with all
engines; `vs_expected` compares turn by turn, as the memory of a machine may have two speeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile import auto
from arcompile.bench import built, machine, suites
from arcompile.bench.spread import compare, figure, summary
from arcompile.ceilings import PLAIN, Ceilings, Spent, by_turns, window_of
from arcompile.compile import exported
from arcompile.family import FAMILIES
from arcompile.pipeline import Pass, parse_pipeline
from arcompile.runtime import request
from arcompile.runtime.engine import Engine, load
from arcompile.target import TARGETS

ROWS = Path(__file__).with_name("results") / "windows.jsonl"
STEPS, WARM = 10, 3


def some(e: Engine, batch: int, guidance: float) -> list[float]:
    """Seconds of a few steps of one run, the first ones left out; nothing is decoded."""
    more = iter(range(1, STEPS + WARM))
    q = request.make(e, suites.condition(e.manifest["info"], batch), [*range(batch)], 1, guidance,
                     None, 1.0, 0, 1.0, {})
    out = e._loop(q).run(lambda p: next(more, None) is not None, finish=False)
    return [float(s) for s in out.timings["steps"][WARM:]]


def ceilings(name: str, batch: int, folder: Path) -> Ceilings:
    """Of a suite: what its methods' rounds are made of."""
    suite = suites.SUITES[name]
    model = FAMILIES[suite.family].model(suites.source(suite), dict(suite.options))
    facts = {"target": suite.target, "info": dict(model.info), "defaults": {
        **model.defaults, "guidance": suite.guidance, "top_k": 0},
        "vocabulary": int(model.info["vocabulary"])}
    passes = parse_pipeline(TARGETS[suite.target].passes) + parse_pipeline(suite.passes)
    made = auto.after(auto.Bench(exported(model), model.weights, facts, folder), passes)
    return Ceilings(made.plain, lambda p, more: auto.engine(more, replace(made, plain=p)), batch)


def measure(names: Sequence[str], batch: int) -> dict[str, Any]:
    """Every engine's step, and how many of the first one's it takes, turn by turn."""
    engines = {n: load(built.ready(suites.SUITES[n], print)[0]) for n in names}
    first = suites.SUITES[names[0]]
    guidance, weights = first.guidance, f"of {first.checkpoint}" if first.checkpoint else "random"
    passes = {n: parse_pipeline(suites.SUITES[n].passes)[-1] for n, e in engines.items()
              if window_of(e.program)}
    with tempfile.TemporaryDirectory() as folder:
        told = ceilings(names[0], batch, Path(folder))
        parts = {k: e for p in passes.values() for k, e in told.parts(p).items()}
        runs = by_turns({**engines, **parts}, lambda e, turn: some(e, batch, guidance))
        each = {n: [float(np.median(t)) for t in found] for n, found in runs.items()}
        each[PLAIN] = each[names[0]]
        sides = {name: {"step": summary([x for t in runs[name] for x in t]),
                        "vs_first": compare(each[name], each[PLAIN]),
                        "passes": suites.SUITES[name].passes} for name in engines}
        for name, p in passes.items():
            expected = _expected(told, p, each)
            sides[name] |= {"window": window_of(engines[name].program),
                            "expected": summary(expected),
                            "vs_expected": compare(each[name], expected)}
    return {"suite": f"windows-{names[0]}-batch{batch}", "kind": "windows", "batch": batch,
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "guidance": guidance, "weights": weights, "sides": sides,
            "parts_ms": {k: figure(1e3 * float(np.median(each[k])), 3) for k in parts},
            "machine": {**machine.facts(), "gemm_gflops": machine.gemm()}}


def _expected(told: Ceilings, p: Pass, each: Mapping[str, Sequence[float]]) -> list[float]:
    """Seconds that a round takes, by what its parts took in each turn."""
    names = [PLAIN, *told.parts(p)]
    return [told.round(p, {k: Spent(0.0, s) for k, s in zip(names, turn, strict=True)}).each
            for turn in zip(*(each[k] for k in names), strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="+", help="the first is what the others are compared with")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    row = measure(told.suites, told.batch)
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    for name, x in row["sides"].items():
        print(f"{name:32} {x['step']['median']:8g} ms (min {x['step']['min']:g}), "
              f"{figure(x['vs_first']['median'], 3):g} steps"
              + (f", {x['expected']['median']:g} ms expected: "
                 f"{x['vs_expected']['median']:g} of it" if "expected" in x else ""))
