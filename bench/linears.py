"""Measure what products of each form cost on this machine: `python -m arcompile.bench.linears`.

Writes the table that the pass `mixed` chooses by. Every figure is the processor time of one thread
(which other programs disturb little), the least of several interleaved runs of a graph with so many
matrices that no core's cache holds them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench import machine
from arcompile.ir import Builder
from arcompile.passes.int4 import Int4
from arcompile.passes.int8 import Int8
from arcompile.passes.mixed import TABLE
from arcompile.pipeline import Pass, run
from arcompile.program import Call, Program, Step
from arcompile.target import TARGETS
from arcompile.weights import Store, Weights, used

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHAPES = ((256, 768), (768, 2304), (1024, 4096), (2048, 8192))
FORMS: dict[str, list[Pass]] = {"f32": [], "int8": [Int8()], "int8-128": [Int8(block=128)],
                                "int4-128": [Int4(block=128)]}
BYTES = 48 << 20  # of f32 weights in a graph
MOST = 24  # matrices in a graph


def products(k: int, n: int) -> Program:
    """A graph of products of x [r,k] with a matrix each, of which one number each is kept."""
    b = Builder("products")
    x = b.param("x", f"f32[r,{k}]")
    found = {}
    for i in range(max(2, min(MOST, BYTES // (4 * k * n)))):
        each = b.mul(x, b.const(dtype="f32", value=1.0 + i))  # activations of its own
        y = b.matmul(each, b.weight(f"w{i}", f"f32[{k},{n}]"))
        found[f"y{i}"] = b.slice(b.slice(y, axis=0, start=0, stop=1), axis=1, start=0, stop=1)
    g = b.graph(**found)
    return Program("products", 1, (Step((0,), (0,), (Call("products"),)),), (g,),
                   inputs=(("x", x.type),))


def session(form: str, k: int, n: int, folder: Path, threads: int = 1) -> tuple[Any, int]:
    """The lowered graph, ready to run, and how many products are in it."""
    p = products(k, n)
    rng = np.random.default_rng(0)
    block = rng.standard_normal((k, n), np.float32)
    source = Weights({name: lambda: block for name in used(p.graphs)})
    new, count = run(p, FORMS[form]), len(p.graphs[0].weights)
    folder.mkdir()
    TARGETS["ort-cpu"].lower(new, Store(source, new.fold), folder, lambda stage, share: None)
    return TARGETS["ort-cpu"].open(new, folder, threads).session("products").model, count


def measure(k: int, n: int, times: int, folder: Path) -> dict[str, list[float]]:
    """Form -> microseconds of one product, for each of ROWS."""
    made = {f: session(f, k, n, folder / f"{f}-{k}-{n}") for f in FORMS}
    found: dict[str, list[float]] = {f: [] for f in FORMS}
    for rows in ROWS:
        x = {"x": np.random.default_rng(0).standard_normal((rows, k), np.float32)}
        best = dict.fromkeys(FORMS, float("inf"))
        for _ in range(times + 1):
            for form, (model, count) in made.items():
                start = time.process_time()
                model.run(None, x)
                best[form] = min(best[form], 1e6 * (time.process_time() - start) / count)
        for form, us in best.items():
            found[form].append(round(us, 1))
    return found


SWEEP = ROWS[:7]  # up to a guided window of 32
OUT = Path(__file__).with_name("results") / "linears.jsonl"
# LlamaGen-B's products in a step: (k, n) and how many
LLAMAGEN_B = (((768, 2304), 12), ((768, 768), 12), ((768, 2048), 24), ((2048, 768), 12),
              ((768, 16384), 1))


def sweep(times: int) -> dict[str, Any]:
    """All products of a LlamaGen-B step by rows, on all cores: ms, and 10^9 operations a second."""
    form: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("f32", "int8"):
            total = np.zeros(len(SWEEP))
            for (k, n), often in LLAMAGEN_B:  # one by one: threads of others spin in the way
                model, count = session(name, k, n, Path(folder) / f"{name}-{k}-{n}",
                                       machine.cores())
                best = np.full(len(SWEEP), np.inf)
                for _ in range(times + 1):
                    for i, rows in enumerate(SWEEP):
                        x = {"x": np.ones((rows, k), np.float32)}
                        start = time.perf_counter()
                        model.run(None, x)
                        best[i] = min(best[i], time.perf_counter() - start)
                total += 1e3 * often * best / count
                del model
            form[name] = [round(float(ms), 3) for ms in total]
    work = 2e-6 * sum(k * n * often for (k, n), often in LLAMAGEN_B)  # 10^9 a second, of a ms
    return {"suite": "linears-llamagen-B", "kind": "linears", "rows": SWEEP, "ms": form,
            "gops": {f: [round(work * r / t) for r, t in zip(SWEEP, ms, strict=True)]
                     for f, ms in form.items()},
            "times": times, "host": machine.host(), "machine": machine.facts(),
            "time": datetime.now(UTC).isoformat(timespec="seconds")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", action="store_true", help="instead: the products of a step of "
                        "LlamaGen-B by rows, a row in results/linears.jsonl")
    parser.add_argument("--times", type=int, default=4)
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args()
    if args.rows:
        found = sweep(args.times)
        with OUT.open("a") as f:
            f.write(json.dumps(found) + "\n")
        print(json.dumps({k: found[k] for k in ("rows", "ms", "gops")}, indent=1))
        return
    us: dict[str, list[list[float]]] = {f: [] for f in FORMS}
    for k, n in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(k, n, args.times, Path(folder))
        print(f"{k} x {n}", found, flush=True)
        for form, line in found.items():
            us[form].append(line)
    told = {"machine": machine.facts()["cpu"], "threads": 1, "rows": ROWS,
            "shapes": SHAPES, "us": us}
    args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
