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
from arcompile.bench.profile import PROGRAM
from arcompile.bench.spread import figure, summary
from arcompile.bench.suites import Suite
from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.program_text import parse_program
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


def run(suite: Suite, names: Sequence[str], turns: int, dtype: str = "",
        alone: bool = False) -> dict[str, Any]:
    """The row. dtype: of all but the first; alone: without the first, so that no tokens are
    compared."""
    able, missing = here(names)
    able = able[1:] if alone else able
    engines: dict[str, Engine] = {}
    widths: dict[str, str] = {}
    for name in able:
        asked = WIDTHS if name == FIRST else (dtype, *WIDTHS)
        widths[name] = next(w for w in asked if w in TARGETS[name].dtypes)
        try:
            engines[name] = opened(suite, name, widths[name])
        except ArcError as e:
            missing[name] = e.what
    if not engines:
        raise ArcError("no target can run here", hint=str(missing), code=MACHINE)
    cond = suites.condition(next(iter(engines.values())).manifest["info"], suite.batch)
    tokens: dict[str, Any] = {}
    for name, e in list(engines.items()):
        try:
            tokens[name] = e.generate(cond, seed=0, guidance=suite.guidance, temperature=0).tokens
        except (ArcError, RuntimeError) as wrong:  # of one target: the others are timed
            if name == FIRST:
                raise
            missing[name] = quoted(wrong)
            del engines[name]
    times: dict[str, list[float]] = {name: [] for name in engines}
    steps: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(turns):
        for name, e in engines.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            out = e.generate(cond, seed=0, guidance=suite.guidance, top_k=suite.top_k)
            times[name].append(time.perf_counter() - start)
            steps[name].append(out.timings["loop"] / len(out.timings["steps"]))
    return {"suite": f"targets-{suite.name}", "kind": "targets",
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "targets": {k: {"dtype": widths[k], "same_tokens": share(tokens[k], tokens[FIRST])
                            if FIRST in tokens else None,
                            "image_s": summary(times[k], 1.0), "step_ms": summary(steps[k], 1e3),
                            "step_read_gbs": figure(read(e.folder) / 1e9 / min(steps[k]))}
                        for k, e in engines.items()},
            "missing": missing, "machine": machine.facts(), **_gpu()}


def read(folder: Path) -> float:
    """Bytes of weights that an engine's average step reads whole: tables that it looks rows up in
    are left out."""
    p = parse_program((folder / PROGRAM).read_text())
    each = {g.name: sum(w.type.nbytes() for w in g.weights
                        if any(n.op != "gather" for n in g.users[w])) for g in p.graphs}
    return sum(each[c.graph] * built._turns(p, c.loop) for s in p.steps for c in s.calls) / len(
        p.steps)


def _gpu() -> dict[str, Any]:
    """The GPU's own facts and ceilings, where torch sees one."""
    try:
        from arcompile.kernels import timing

        top = timing.ceilings()
    except ArcError:
        return {}
    return {"gpu": {**timing.facts(), "read_gbs": figure(top["bytes"] / 1e9),
                    "bf16_tflops": figure(top["flops"] / 1e12)}}


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
    parser.add_argument("--dtype", default="", help="of all but ort-cpu; default: f32 if it can")
    parser.add_argument("--alone", action="store_true", help="without ort-cpu and its tokens")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS, help="the file that gets a row")
    told = parser.parse_args()
    row = run(suites.SUITES[told.suite], told.targets, told.turns, told.dtype, told.alone)
    with told.out.open("a") as f:
        f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("targets", "missing", "gpu") if k in row}, indent=1))
