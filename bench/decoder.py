"""Measure the forms of an image decoder side by side: `python -m arcompile.bench.decoder`.

One row in results/decoders.jsonl: seconds of ONNX Runtime's own f32, of ours in f32, bf16 and int8,
and of OpenVINO where asked for, interleaved in one run; and how far each is from f32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile import safetensors
from arcompile.bench import machine
from arcompile.bench.spread import summary
from arcompile.kernels import cpu
from arcompile.pipeline import parse_pipeline
from arcompile.targets.onnx_emit import WEIGHTS, emit
from arcompile.weights import Store, used

Run = Callable[[Any], Any]
ROWS = Path(__file__).with_name("results") / "decoders.jsonl"
COMMON = "fold, simplify, cse, norm-silu, dead-code"
FORMS = {"ort-f32": "", "f32": "channels-last", "bf16": "channels-last, bf16-conv",
         "int8": "channels-last, int8-conv{dynamic=True}"}
PEERS = ("openvino-f32", "openvino-bf16")


def decoder(family: str, size: str) -> tuple[Any, Any]:
    """(program of the decode graph alone, its weights), of random weights of a published size."""
    from arcompile.export import call
    from arcompile.family import FAMILIES

    made = FAMILIES[family].model(FAMILIES[family].random(size), {})
    entry = next(e for e in made.entries if e.name == "decode")
    return replace(made.program, graphs=(call(made.module, entry),)), made.weights


def written(p: Any, weights: Any, passes: str, folder: Path, kernels: bool) -> Path:
    """The lowered graph in a folder of its own, unless it is there already."""
    path = folder / "decode.onnx"
    if path.is_file():
        return path
    for each in parse_pipeline(f"{COMMON}, {passes}" if passes else COMMON):
        p = each(p)
    types = {k: v.type for k, v in used(p.graphs).items()}
    folder.mkdir()
    safetensors.write(folder / WEIGHTS, types, Store(weights, p.fold).__getitem__)
    path.write_bytes(emit(p.graphs[0], safetensors.layout(types)[1], kernels=kernels))
    return path


def ours(path: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = machine.cores(), 3
    options.register_custom_ops_library(str(cpu.build()))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)[0]


def openvino(path: Path, precision: str) -> Run:
    import openvino as ov

    model = ov.Core().compile_model(str(path), "CPU", {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": machine.cores()})
    return lambda feed: model(feed)[0]


def forms_of(family: str, size: str, peers: bool, home: Path) -> tuple[dict[str, Run], Any]:
    """Every form, ready to run, and what to run it on."""
    p, weights = decoder(family, size)
    forms = {k: ours(written(p, weights, v, home / k, True)) for k, v in FORMS.items()}
    if peers:
        plain = written(p, weights, "", home / "plain", False)
        forms |= {k: openvino(plain, k.split("-")[1]) for k in PEERS}
    rng, feed = np.random.default_rng(0), {}
    for v in p.graphs[0].params:
        shape = [d if isinstance(d, int) else 1 for d in v.type.shape]
        feed[v.name] = (rng.integers(0, 64, shape) if v.type.dtype == "i64"
                        else rng.standard_normal(shape).astype(np.float32))
    return forms, feed


def measure(forms: dict[str, Run], feed: Any, runs: int) -> dict[str, Any]:
    """The figures of a row; each form's first run does not count."""
    spent: dict[str, list[float]] = {k: [] for k in forms}
    images = {}
    for _ in range(runs + 1):
        for name, run in forms.items():
            start = time.perf_counter()
            images[name] = run(feed)
            spent[name].append(time.perf_counter() - start)
    want = images["ort-f32"]
    best = {k: min(v[1:] or v) for k, v in spent.items()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "host": machine.host(),
        "weights": "random",
        "s": {k: summary(v[1:] or v, 1.0) for k, v in spent.items()},
        "vs_ort_f32": {k: round(s / best["ort-f32"], 3) for k, s in best.items()},
        "psnr_db": {k: round(_psnr(y, want), 1) for k, y in images.items() if k != "ort-f32"},
        "machine": machine.facts(),
    }


def _psnr(y: Any, want: Any) -> float:
    """Of pixels, nominally in [-1,1]."""
    return float(10 * np.log10(4 / max(float(np.square(y - want).mean()), 1e-30)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", nargs="?", default="llamagen")
    parser.add_argument("size", nargs="?", default="B")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--peers", action="store_true", help="OpenVINO too")
    parser.add_argument("--folder", type=Path, help="keep the graphs there for the next run")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = told.folder or Path(temporary)
        home.mkdir(exist_ok=True)
        ready = forms_of(told.family, told.size, told.peers, home)
        row = {"suite": f"decoder-{told.family}-{told.size}", **measure(*ready, told.runs)}
    if told.runs:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    print(json.dumps({k: row[k] for k in ("suite", "s", "vs_ort_f32", "psnr_db")}, indent=1))
