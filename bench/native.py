"""One engine in C++ and in Python, picture by picture in turn: `python -m arcompile.bench.native`.

Both sides are processes of their own that draw when they are asked, so that neither warms or fills
the other: the example `serve` of libarcompile, and this module as `--peer`. A side `native` is
Python with ARC_RUNTIME=native, where that is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from arcompile.bench import machine

PAUSE = 0.05  # seconds between two pictures: the workers of the side before spin for a while
RESULTS = Path(__file__).parent / "results" / "native.jsonl"


class Side:
    """A process that draws by the protocol of examples/serve.cpp."""

    def __init__(self, *command: str, **env: str):
        start = time.perf_counter()
        self.run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                    text=True, env={**os.environ, **env})
        self._answer("ready")
        self.open_s = time.perf_counter() - start
        self.images: list[float] = []
        self.host_us: list[float] = []
        self.drawn = ""

    def draw(self, label: int, seed: int) -> None:
        assert self.run.stdin
        self.run.stdin.write(f"{label} {seed} -\n")
        self.run.stdin.flush()
        self.drawn, seconds, us = self._answer("ok")
        self.images.append(float(seconds))
        self.host_us.append(float(us))

    def close(self) -> dict[str, Any]:
        status = Path(f"/proc/{self.run.pid}/status").read_text().splitlines()
        peak = next(int(s.split()[1]) for s in status if s.startswith("VmHWM"))
        self.run.communicate("quit\n")
        return {"open_s": round(self.open_s, 3), "peak_mb": round(peak * 1024 / 1e6, 1),
                "image_ms": round(1e3 * statistics.median(self.images), 2),
                "best_ms": round(1e3 * min(self.images), 2),
                "host_us": round(statistics.median(self.host_us), 1)}

    def _answer(self, word: str) -> list[str]:
        assert self.run.stdout
        said = self.run.stdout.readline().split()
        if said[:1] != [word]:
            raise SystemExit(f"{self.run.args}: {' '.join(said) or 'it ended'}")
        return said[1:]


def measure(engine: Path, serve: Path, times: int, threads: int) -> dict[str, Any]:
    """A row: each side's time to open, median and best picture, and peak memory."""
    from arcompile.kernels import cpu
    from arcompile.runtime.native import _ort_library

    kernels = str(cpu.library() or "off")
    env = {"ARC_ORT_LIBRARY": os.getenv("ARC_ORT_LIBRARY") or _ort_library(),
           "ARC_KERNELS": kernels, "ARC_THREADS": str(threads)}
    peer = (sys.executable, "-m", "arcompile.bench.native", str(engine), "--peer")
    sides = {"cpp": Side(str(serve), str(engine), str(threads), **env),
             "python": Side(*peer, **env, ARC_RUNTIME="python")}
    if _installed():
        sides["native"] = Side(*peer, **env, ARC_RUNTIME="native")
    for i in range(times + 1):  # the first also loads the models
        for side in list(sides.values())[:: 1 if i % 2 else -1]:
            time.sleep(PAUSE)
            side.draw(0, i)
    for side in sides.values():
        side.images, side.host_us = side.images[1:], side.host_us[1:]
    told = json.loads((engine / "manifest.json").read_text())
    row = {"engine": engine.name, "passes": told["passes"], "times": times, "threads": threads,
           "load": machine.load(), "cpu": machine.facts()["cpu"],
           **{k: s.close() for k, s in sides.items()}}
    return {**row, "cpp_vs_python": round(row["cpp"]["image_ms"] / row["python"]["image_ms"], 3)}


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("arcompile.runtime._native") is not None


def peer(engine: str) -> None:
    """The Python runtime by the same protocol. Its host time is not told apart."""
    import arcompile

    loaded = arcompile.load(engine, threads=int(os.getenv("ARC_THREADS", "0")))
    print("ready", loaded.manifest["family"], flush=True)
    for line in sys.stdin:
        words = line.split()
        if words == ["quit"]:
            return
        out = loaded.generate(int(words[0]), seed=int(words[1]))
        steps = out.timings["steps"]
        inside = out.timings.get("sessions", sum(steps))
        us = 1e6 * (out.timings["loop"] - inside) / len(steps)
        print("ok -", out.timings["total"], us, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", type=Path, nargs="+")
    parser.add_argument("--serve", type=Path, help="the example of that name, as built by CMake")
    parser.add_argument("--times", type=int, default=9)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help=f"append the rows to {RESULTS.name}")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return peer(str(args.engine[0]))
    for engine in args.engine:
        row = measure(engine, args.serve, args.times, args.threads)
        print(json.dumps(row), flush=True)
        if args.keep:
            with RESULTS.open("a") as f:
                f.write(json.dumps(row) + "\n")
    return None


if __name__ == "__main__":
    main()
