"""One model on every target of this machine: `python -m arcompile.bench.targets demo`.

Each target's engine draws greedy tokens, which are compared with those of ort-cpu in f32 (a target
of 16 bits may turn where two logits are near), and whole images are timed by turns. A row of
results/targets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench import built, machine, suites
from arcompile.bench.images import ROWS
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import figure, summary
from arcompile.bench.suites import Suite
from arcompile.cache import cache
from arcompile.errors import ArcError
from arcompile.runtime.engine import Engine, load
from arcompile.target import TARGETS

RESULTS = ROWS.with_name("targets.jsonl")
FIRST = "ort-cpu"  # whose tokens are right
WIDTHS = ("f32", "bf16", "f16")  # the first that a target takes


def here(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The targets that can run here, the first one first, and why others cannot. Raises ArcError
    for names that are none."""
    asked = [TARGETS[n].name for n in names] if names else sorted(TARGETS.all())
    why = {n: TARGETS[n].available() for n in asked if n != FIRST}
    return [FIRST, *(n for n, said in why.items() if not said)], {k: v for k, v in why.items() if v}


def opened(suite: Suite, target: str, dtype: str) -> Engine:
    """The suite's engine for a target, built unless it is there. Raises ArcError."""
    own = replace(suite, name=f"{suite.name}-{target}-{dtype}", target=target, dtype=dtype)
    folder = cache() / "bench" / own.name / built.key(own)[:16]
    if not (folder / "manifest.json").is_file():
        try:
            TARGETS[target].prepare(lambda stage, share: None)
        except ArcError as e:
            print(f"{target}: {e.what}; {e.hint}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        built.build(own, folder)
    return load(folder, check=False)


def run(suite: Suite, names: Sequence[str], turns: int) -> dict[str, Any]:
    """The row."""
    able, missing = here(names)
    engines: dict[str, Engine] = {}
    widths: dict[str, str] = {}
    for name in able:
        widths[name] = next(w for w in WIDTHS if w in TARGETS[name].dtypes)
        try:
            engines[name] = opened(suite, name, widths[name])
        except ArcError as e:
            missing[name] = e.what
    cond = suites.condition(engines[FIRST].manifest["info"], suite.batch)
    tokens = {k: e.generate(cond, seed=0, guidance=suite.guidance, temperature=0).tokens
              for k, e in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(turns):
        for name, e in engines.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            e.generate(cond, seed=0, guidance=suite.guidance, top_k=suite.top_k)
            times[name].append(time.perf_counter() - start)
    return {"suite": f"targets-{suite.name}", "kind": "targets",
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "targets": {k: {"dtype": widths[k], "same_tokens": share(tokens[k], tokens[FIRST]),
                            "image_s": summary(times[k], 1.0)} for k in engines},
            "missing": missing, "machine": machine.facts()}


def share(x: np.ndarray[Any, Any], want: np.ndarray[Any, Any]) -> float | None:
    """Of tokens that are equal, up to the first that is not: later ones follow from it."""
    if not want.size:
        return None  # a model without tokens
    same = (x == want).reshape(len(want), -1)
    return figure(float(np.cumprod(same, axis=1).mean()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("targets", nargs="*", help="default: all that can run here")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="the file that gets a row")
    told = parser.parse_args()
    row = run(suites.SUITES[told.suite], told.targets, told.turns)
    with told.out.open("a") as f:
        f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("targets", "missing")}, indent=1))
