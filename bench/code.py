"""CoDe against the model that draws its coarse scales: `python -m arcompile.bench.code --scales 8`.

A row in results/images.jsonl.

VAR-d16 is the large model and one of half its width and depth the small one, with random weights.
Whole images by turns, without the decoder, which all have in common; what their plans say is
carried from step to step; and the most that a process holds while it draws several pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcompile.bench import built, machine, peaks, suites
from arcompile.bench.images import ROWS
from arcompile.bench.machine import PAUSE
from arcompile.cache import cache
from arcompile.compile import write
from arcompile.family import FAMILIES, Source
from arcompile.pipeline import parse_pipeline
from arcompile.runtime.engine import Engine, load
from arcompile.target import TARGETS

LARGE = "var-d16"
HALF = (512, 8, 8)  # width, layers, heads
BATCHES = (1, 16)  # of the plans
PICTURES = 4  # at once, of a process whose peak is measured


def half() -> Source:
    """Random weights of half of VAR-d16, with the same image tokenizer."""
    import torch

    from arcompile.models import multiscale_vq, var

    dim, layers, heads = HALF
    c = var.Config(dim, layers, heads, 4 * dim, 4096, 32, 1000, var.PUBLISHED[False])
    with torch.device("meta"):
        net = var.Net(c, multiscale_vq.published(c.patch_nums))
    return var.invent(net, 0)


def engine(folder: Path, passes: str = "") -> Engine:
    """The small model's, built once."""
    if not (folder / "manifest.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        model = FAMILIES["var"].model(half(), {})
        more = ", ".join(filter(None, (TARGETS["ort-cpu"].passes, passes)))
        write(folder, "var", model, "ort-cpu", "f32", parse_pipeline(more))
    return load(folder)


def once(e: Engine, guidance: float) -> float:
    """Seconds of one image's loop."""
    suite = suites.SUITES[LARGE]
    from arcompile.runtime import request

    q = request.make(e, suites.condition(e.manifest["info"], 1), [0], 1, guidance, None, 1.0,
                     suite.top_k, 1.0, {})
    out = e._loop(q).run(finish=False)
    return float(out.timings["prompt"] + out.timings["loop"])


def measure(large: Path, home: Path, scales: int, turns: int, pictures: int) -> dict[str, Any]:
    guidance = suites.SUITES[LARGE].guidance
    engines = {"large": load(large), "small": engine(home / "small"),
               "code": engine(home / f"code{scales}", f"code{{engine='{large}',scales={scales}}}")}
    found: dict[str, list[float]] = {n: [] for n in engines}
    for _ in range(turns + 1):
        for name, e in engines.items():
            time.sleep(PAUSE)
            found[name].append(once(e, guidance))
    best = {n: min(x[1:]) for n, x in found.items()}
    state = {n: {b: e.plan(b).state for b in BATCHES} for n, e in engines.items()}
    return {"suite": f"code-{LARGE}-half", "kind": "code", "scales": scales, "weights": "random",
            "runs": turns,
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
            "loop_s": {n: round(x, 3) for n, x in best.items()},
            "gain": round(best["large"] / best["code"], 3),
            "carried_bytes": state,
            "peaks": {n: peaks.of(e.folder, pictures, guidance) for n, e in engines.items()},
            "machine": machine.facts()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scales", type=int, default=8, help="that the large model draws")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=PICTURES,
                        help="drawn at once where peaks are measured")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    big = built.ready(suites.SUITES[LARGE], print)[0]
    row = measure(big, cache() / "bench-code", told.scales, told.turns, told.pictures)
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("loop_s", "gain", "carried_bytes", "peaks")}, indent=1))
