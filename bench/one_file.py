"""What a single ONNX file costs: `python -m arcompile.bench.one_file SUITE...`.

A suite's model is built for `onnx-loop` and for `ort-cpu`. Both draw the same pictures by turns,
each in a Python process of its own, from noise of the same seed; a row of results/one-file.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench import built, machine, suites
from arcompile.bench.native import RESULTS, Side
from arcompile.cache import cache

ROWS = RESULTS.with_name("one-file.jsonl")
TARGETS = ("onnx-loop", "ort-cpu")


def engine(name: str, target: str) -> Path:
    """The suite's engine for a target, built here unless it is there. Raises ArcError."""
    own = replace(suites.find(name), name=f"{name}-{target}", target=target)
    folder = cache() / "bench" / own.name / built.key(own)[:16]
    if not (folder / "manifest.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        built.build(own, folder)
    return folder


def measure(name: str, times: int, threads: int) -> dict[str, Any]:
    """The row: each side's time to open, median and best picture, and peak memory."""
    suite = suites.find(name)
    folders = {t: engine(name, t) for t in TARGETS}
    peer = (sys.executable, "-m", "arcompile.bench.one_file", "--peer")
    sides = {t: Side(*peer, t, str(f), str(threads), str(suite.guidance), str(suite.top_k))
             for t, f in folders.items()}
    drawn: dict[str, list[str]] = {t: [] for t in TARGETS}
    for i in range(times + 1):  # the first also loads the models
        for t in TARGETS[:: 1 if i % 2 else -1]:
            sides[t].draw(i, i)
            drawn[t].append(sides[t].drawn)
    same = sum(a == b for a, b in zip(*drawn.values(), strict=True))
    told: dict[str, Any] = {}
    for t, side in sides.items():
        side.images = side.images[1:]
        told[t] = {k: v for k, v in side.close().items() if k != "host_us"}
        told[t]["file_mb"] = round(sum(f.stat().st_size for f in folders[t].iterdir()) / 1e6, 1)
    one, usual = (told[t]["image_ms"] for t in TARGETS)
    return {"suite": f"one-file-{name}", "kind": "one-file", "pictures": times, "threads": threads,
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "load": machine.load(),
            "cpu": machine.facts()["cpu"], **told, "same_pictures": f"{same} of {times + 1}",
            "file_vs_engine": round(one / usual, 3)}


# --- a side ---------------------------------------------------------------------------------------


def peer(target: str, folder: str, threads: int, guidance: float, top_k: int) -> None:
    """Draws by the protocol of examples/serve.cpp; a picture is named by what is in it."""
    draw = (file_drawer if target == "onnx-loop" else engine_drawer)(Path(folder), threads)
    print("ready", target, flush=True)
    for line in sys.stdin:
        if (words := line.split()) == ["quit"]:
            return
        start = time.perf_counter()
        tokens, images = draw(int(words[0]), int(words[1]), guidance, top_k)
        seconds = time.perf_counter() - start
        name = hashlib.sha256(tokens.tobytes() + images.tobytes()).hexdigest()[:16]
        print("ok", name, seconds, 0, flush=True)


def engine_drawer(folder: Path, threads: int) -> Any:
    import arcompile

    loaded = arcompile.load(folder, threads=threads)

    def draw(label: int, seed: int, guidance: float, top_k: int) -> Any:
        out = loaded.generate([label], seed=seed, guidance=guidance, top_k=top_k)
        return out.tokens, out.images

    return draw


def file_drawer(folder: Path, threads: int) -> Any:
    """Plain ONNX Runtime. Only the noise is ours, so that both sides draw the same."""
    import onnxruntime

    from arcompile.program_text import from_data
    from arcompile.runtime import bundle, rng

    program = from_data(bundle.read_json(folder / "program.json", "program"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def draw(label: int, seed: int, guidance: float, top_k: int) -> Any:
        where = np.arange(program.positions), np.full(1, seed, np.uint64), np.zeros(1, int)
        noise = {d.name: rng.draw(d, i, where[1], where[2], where[0])
                 for i, d in enumerate(program.draws)}
        return session.run(["tokens", "images"], {
            "cond": np.array([label]), **noise, "guidance": np.array(guidance, np.float32),
            "top_k": np.array(top_k, np.int64)})

    return draw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="+")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--build", action="store_true", help="only build what is measured")
    parser.add_argument("--keep", action="store_true", help=f"append the rows to {ROWS.name}")
    args = parser.parse_args()
    for suite in args.suite:
        if args.build:
            print(*(engine(suite, t) for t in TARGETS))
            continue
        row = measure(suite, args.times, args.threads)
        print(json.dumps(row), flush=True)
        if args.keep:
            with ROWS.open("a") as f:
                f.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        target, folder, threads, guidance, top_k = sys.argv[2:]
        peer(target, folder, int(threads), float(guidance), int(top_k))
    else:
        main()
