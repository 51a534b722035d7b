"""Our CPU kernels on and off, by turns: `python -m arcompile.bench.kernels llamagen-B-int8`.

on: the engine as it is built. off: the same engine without the library (ARC_KERNELS=off), whose
models then run the functions that stand for the kernels. ort: an engine lowered to ONNX Runtime's
own ops, without the passes that are there for our kernels. Whole images, decoder included; then,
from a watched run each of `on` and `ort`, kernel time by kind of op: a kernel of ours does what
several ops of ONNX Runtime did, so kinds are wide. A row of results/kernels.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arcompile.bench import built, machine, suites
from arcompile.bench.attribute import Spot
from arcompile.bench.images import ROWS
from arcompile.bench.machine import PAUSE
from arcompile.bench.profile import Asked, measure
from arcompile.bench.spread import compare, figure, summary
from arcompile.bench.suites import Suite
from arcompile.cache import cache
from arcompile.runtime.engine import Engine, load
from arcompile.target import TARGETS

RESULTS = ROWS.with_name("kernels.jsonl")
OURS = ("channels-last", "int8-tiles", "bf16-conv")  # passes that are there for our kernels
KINDS = {
    "products, gates and norms": ("matmul", "matmul_int8", "matmul_blocks", "quantize_rows",
                                  "linear_int8", "swiglu", "residual_norm", "rms_norm",
                                  "layer_norm", "gelu"),
    "convolutions and their norms": ("conv2d", "conv_last", "norm_conv_last", "narrow_conv",
                                     "group_norm", "group_norm_silu", "silu", "upsample"),
    "attention": ("attention", "decode_attention", "rope", "cache_append"),
    "sampling": ("filter_logits", "draw"),
}


@contextmanager
def kernels(value: str) -> Iterator[None]:
    """$ARC_KERNELS while sessions are opened."""
    was = os.environ.get("ARC_KERNELS")
    os.environ["ARC_KERNELS"] = value
    try:
        yield
    finally:
        os.environ.pop("ARC_KERNELS")
        if was is not None:
            os.environ["ARC_KERNELS"] = was


def plain(suite: Suite) -> Suite:
    """The suite without passes for our kernels."""
    kept = [p for p in suite.passes.split(",") if p.strip() not in OURS]
    return replace(suite, name=f"{suite.name}-ort", passes=",".join(kept))


def build_plain(suite: Suite) -> None:
    """Lower it to ONNX Runtime's own ops. In a process of its own: the target is changed."""
    target: Any = TARGETS["ort-cpu"]
    target.kernels = False
    target.passes = ", ".join(p for p in target.passes.split(", ") if p not in OURS)
    built.build(plain(suite), _plain_folder(suite))


def _plain_folder(suite: Suite) -> Path:
    return cache() / "bench" / f"{suite.name}-ort" / built.key(plain(suite))[:16]


def sides(suite: Suite) -> dict[str, Engine]:
    """Opened engines, built where they are not there."""
    folder, ort = built.ready(suite, print)[0], _plain_folder(suite)
    if not (ort / "manifest.json").is_file():
        ort.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", __spec__.name, suite.name, "--build"], check=True)
    found = {}
    for name, where in (("on", folder), ("off", folder), ("ort", ort)):
        with kernels("" if name == "on" else "off"):
            found[name] = load(where)
            assert found[name].models is not None  # they are opened now
    return found


def image(e: Engine, suite: Suite) -> float:
    """Seconds of a whole image."""
    start = time.perf_counter()
    e.generate(suites.condition(e.manifest["info"], suite.batch), seed=0,
               guidance=suite.guidance, top_k=suite.top_k)
    return time.perf_counter() - start


def by_kind(spots: list[Spot]) -> dict[str, float]:
    """Milliseconds of kernels."""
    kind = {op: name for name, ops in KINDS.items() for op in ops}
    found: dict[str, float] = defaultdict(float)
    for s in spots:
        found[kind.get(s.op, "the rest")] += 1e3 * s.seconds
    return {k: figure(v) for k, v in found.items()}


def watched(e: Engine, suite: Suite, on: bool) -> dict[str, float]:
    cond = suites.condition(e.manifest["info"], suite.batch)
    with kernels("" if on else "off"):
        return by_kind(measure(e, Asked(cond, suite.guidance, suite.top_k)).spots)


def run(suite: Suite, turns: int) -> dict[str, Any]:
    """The row. One turn before does not count."""
    every = sides(suite)
    times: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(turns + 1):
        for name, e in every.items():
            time.sleep(PAUSE)
            times[name].append(image(e, suite))
    times = {k: v[1:] for k, v in times.items()}
    kinds = {name: watched(every[name], suite, name == "on") for name in ("on", "ort")}
    return {
        "suite": f"kernels-{suite.name}", "kind": "kernels",
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
        "weights": "random", "passes": suite.passes, "turns": turns,
        "image_s": {k: summary(v, 1.0) for k, v in times.items()},
        "vs_on": {k: compare(times[k], times["on"]) for k in ("off", "ort")},
        "kernels_ms": kinds, "slower_kinds": slower(kinds["on"], kinds["ort"]),
        "machine": machine.facts(),
    }


def slower(on: Mapping[str, float], ort: Mapping[str, float]) -> list[str]:
    """Kinds of ops that take longer with our kernels."""
    return [k for k in KINDS if on.get(k, 0) > ort.get(k, 0)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--build", action="store_true", help="only build what is compared with")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    chosen = suites.SUITES[told.suite]
    if told.build:
        build_plain(chosen)
        sys.exit()
    row = run(chosen, told.turns)
    if not told.dry:
        with RESULTS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    shown = ("image_s", "vs_on", "kernels_ms", "slower_kinds")
    print(json.dumps({k: row[k] for k in shown}, indent=1))
