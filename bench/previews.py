"""What previews cost: `python -m arcompile.bench.previews demo demo-var --every 1`, a row in
results/previews.jsonl.

One engine with a cheap preview draws the same image by turns without looking and looking every so
many steps. The image is the same, bit by bit, or there is no row.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import arcompile
from arcompile.bench import machine, suites
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import figure, summary
from arcompile.compile import write
from arcompile.errors import ArcError
from arcompile.family import FAMILIES
from arcompile.pipeline import parse_pipeline
from arcompile.runtime.engine import Engine, load
from arcompile.target import TARGETS

ROWS = Path(__file__).with_name("results") / "previews.jsonl"
PASSES = "glance{pictures=2}"
LIMIT = 0.03


def ready(name: str, folder: Path, passes: str) -> Engine:
    """The suite's model with these passes, built once."""
    suite = suites.SUITES[name]
    if not (folder / "manifest.json").is_file():
        source = suites.source(suite)
        model = FAMILIES[suite.family].model(source, dict(suite.options))
        folder.mkdir(parents=True, exist_ok=True)
        target = TARGETS[suite.target]
        target.prepare(lambda stage, share: None)
        more = ", ".join(filter(None, (target.passes, suite.passes, passes)))
        write(folder, suite.family, model, suite.target, suite.dtype, parse_pipeline(more))
    return load(folder)


def once(e: Engine, every: int, ask: dict[str, Any]) -> tuple[float, float, Any]:
    """(seconds of one image, of which in previews before the last, what was drawn)"""
    spent = [0.0]

    def look(p: Any) -> None:
        if every and p.step < p.steps and p.step % every == 0:
            begun = time.perf_counter()
            p.pixels()
            spent[0] += time.perf_counter() - begun

    begun = time.perf_counter()
    out = e.generate(**ask, on_step=look)
    return time.perf_counter() - begun, spent[0], out


def measure(name: str, e: Engine, every: int, turns: int) -> dict[str, Any]:
    """Raises ArcError where a preview changes the image."""
    suite = suites.SUITES[name]
    ask = {"cond": suites.condition(e.manifest["info"], suite.batch), "seed": 1,
           "guidance": suite.guidance, "top_k": suite.top_k}
    plain, looked, inside = [], [], []
    for turn in range(turns + 1):
        time.sleep(PAUSE)
        a, _, one = once(e, 0, ask)
        time.sleep(PAUSE)
        b, spent, two = once(e, every, ask)
        if one.pixels.tobytes() != two.pixels.tobytes():
            raise ArcError(f"previews change what {name} draws", hint="report this")
        if turn:
            plain.append(a), looked.append(b), inside.append(spent / b)
    shown = len(range(every, len(e.program.steps), every))
    cost = sorted(b / a - 1 for a, b in zip(plain, looked, strict=True))
    return {"suite": f"previews-{name}", "kind": "previews", "every": every, "previews": shown,
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "passes": e.manifest["passes"][-1].split("{")[0], "limit": LIMIT,
            "image": summary(plain), "looked": summary(looked),
            "share_inside": figure(sorted(inside)[len(inside) // 2]),
            "cost": figure(cost[len(cost) // 2]), "machine": machine.facts()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("--every", type=int, default=1, help="steps from one preview to the next")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="of the engine: built there, or used again")
    parser.add_argument("--decoder", action="store_true", help="previews by the decoder itself")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    way = "" if told.decoder else PASSES
    where = told.folder or arcompile.cache.cache() / "previews" / f"{told.suite}-{way or 'decoder'}"
    row = measure(told.suite, ready(told.suite, where, way), told.every, told.turns)
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    print(f"{row['suite']}: {row['previews']} previews cost {row['cost']:.2%} of "
          f"{row['image']['median']:g} ms, {row['share_inside']:.2%} inside them")
