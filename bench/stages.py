"""A long loop by samples of its steps, and of what they are made: `python -m arcompile.bench.stages
mar-base --steps 0,16,32,48,63`.

For loops whose whole image takes minutes. Engine and eager loop run each chosen step by turns; a
row in results/images.jsonl says what each took, by graph of the engine and by stage of the eager
loop, and what a whole image comes to with straight lines between the chosen steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from arcompile.bench import built, eager, machine, suites
from arcompile.bench.images import ROWS
from arcompile.bench.machine import PAUSE
from arcompile.bench.profile import Watch
from arcompile.bench.suites import Suite
from arcompile.runtime.engine import Engine, load

Parts = Mapping[str, float]


def of_engine(e: Engine, suite: Suite, step: int) -> dict[str, float]:
    """Seconds of one step, "whole", and of its graphs."""
    one, watch = copy(e), Watch(e.models)
    one.__dict__["models"] = watch
    one.program = replace(e.program, steps=(e.program.steps[step],), finish=())
    out = one.generate(suites.condition(e.manifest["info"], suite.batch), guidance=suite.guidance)
    found: dict[str, float] = defaultdict(float)
    for span in watch.spans:
        found[span.graph] += span.seconds
    return {"whole": out.timings["steps"][0], **found}


def of_eager(loop: Any, e: Engine, suite: Suite, step: int) -> dict[str, float]:
    """The same of the authors' loop, which can jump to a step and tells its stages."""
    loop.begin(suites.condition(e.manifest["info"], suite.batch), suite.guidance, 1.0, suite.top_k)
    loop.jump(step)
    loop.spent.clear()
    start = time.perf_counter()
    loop.step()
    return {"whole": time.perf_counter() - start, **loop.spent}


def measure(suite: Suite, steps: Sequence[int], runs: int) -> dict[str, Any]:
    """A row: the least of `runs` for each step and part; one turn before does not count."""
    import torch

    torch.set_num_threads(machine.cores())
    e = load(built.ready(suite, print)[0])
    sides: dict[str, Callable[[int], Parts]] = {"engine": lambda i: of_engine(e, suite, i)}
    if not (suite.alone or suite.options):
        loop = eager.load(suite.family, suites.source(suite))
        sides["eager"] = lambda i: of_eager(loop, e, suite, i)
    for run in sides.values():
        run(steps[0])
    found: dict[str, list[list[Parts]]] = {name: [] for name in sides}
    for step in steps:
        for each in found.values():
            each.append([])
        for _ in range(runs):
            for name, run in sides.items():
                time.sleep(PAUSE)
                found[name][-1].append(run(step))
    best = {side: [least(turns) for turns in each] for side, each in found.items()}
    whole = {side: over_all(steps, each, len(e.program.steps)) for side, each in best.items()}
    return {
        "suite": f"stages-{suite.name}", "kind": "stages",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": machine.host(), "weights": "random", "runs": runs, "steps": list(steps),
        "of": len(e.program.steps), "facts": {**suite.facts, **suite.options},
        "passes": suite.passes,
        "s": {side: [_rounded(x) for x in each] for side, each in best.items()},
        "whole_loop_s": {side: _rounded(x) for side, x in whole.items()},
        "machine": machine.facts(),
    }


def least(turns: Sequence[Parts]) -> dict[str, float]:
    return {k: min(t[k] for t in turns) for k in turns[0]}


def over_all(steps: Sequence[int], each: Sequence[Parts], count: int) -> dict[str, float]:
    """Sums over `count` steps of what was measured at some of them."""
    return {k: float(np.interp(np.arange(count), steps, [x[k] for x in each]).sum())
            for k in each[0]}


def _rounded(x: Parts) -> dict[str, float]:
    return {k: round(v, 4) for k, v in x.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("--steps", required=True, help="numbers with commas, rising")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    row = measure(suites.SUITES[told.suite], [int(s) for s in told.steps.split(",")], told.runs)
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("s", "whole_loop_s")}, indent=1))
