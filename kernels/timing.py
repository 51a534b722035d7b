"""Times kernels on a GPU: TFLOP/s, GB/s and the share of what the machine was measured to reach.

`python -m arcompile.kernels.<op>` checks every version, and where a GPU is, times it on the real
shapes and appends a row to bench/results/<device>.jsonl.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.kernel import KERNELS, Case, Kernel
from arcompile.kernels import lang
from arcompile.kernels.check import absent, check, sweep, tensors

REPEATS, WARM = 20, 5
FLUSH = 256 << 20  # bytes written between runs, so that no run finds its data in the cache
CALLS = (8, 60)  # in a captured graph, at least and at most
LARGE = 1 << 16  # bytes of a tensor that every call has its own of
PACKAGES = ("torch", "triton", "numpy")


def measure(run: Callable[[], Any]) -> float:
    """Seconds of one run on the GPU, the median of a few, with a cold cache."""
    import torch

    spill = torch.empty(FLUSH // 4, dtype=torch.float32, device="cuda")
    spent = []
    for i in range(WARM + REPEATS):
        spill.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if i >= WARM:
            spent.append(start.elapsed_time(end) / 1e3)
    return statistics.median(spent)


def replayed(calls: Sequence[Callable[[], Any]]) -> float:
    """Seconds of one of the calls in a captured CUDA graph of them all: without what a launch from
    Python costs, which is more than a small kernel does."""
    import torch

    with torch.inference_mode():
        for run in calls[:3]:
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for run in calls:
                run()
        graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(WARM):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / WARM / len(calls)


def apart(arguments: dict[str, Any], moved: float) -> list[dict[str, Any]]:
    """The arguments of calls that find nothing of each other in the cache: large tensors copied."""
    count = max(CALLS[0], min(CALLS[1], int(FLUSH / max(moved, 1))))

    def own(x: Any) -> Any:
        return x.clone() if hasattr(x, "clone") and x.nbytes >= LARGE else x

    return [{k: own(v) for k, v in arguments.items()} for _ in range(count)]


def ceilings() -> dict[str, float]:
    """Bytes a second of a copy, and flops a second of a bf16 product, measured now. Raises
    ArcError."""
    try:
        import torch
    except ImportError:
        raise ArcError("torch, which measures a GPU's ceilings, is not installed", code=MACHINE,
                       hint="pip install torch") from None
    if not torch.cuda.is_available():
        raise ArcError("torch sees no NVIDIA GPU to measure the ceilings of", code=MACHINE,
                       hint="install a torch that is built for CUDA")
    a = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    x = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    return {"bytes": 2 * a.numel() / measure(lambda: b.copy_(a)),
            "flops": 2 * 8192**3 / measure(lambda: x @ x)}


def row(k: Kernel, version: str, c: Case, seconds: float, top: dict[str, float]) -> dict[str, Any]:
    """One result. The share is of the ceiling that bounds the case."""
    flops, moved = k.cost(c)
    floor = max(flops / top["flops"], moved / top["bytes"])
    return {"bench": "kernel", "kernel": k.name, "version": version, "case": str(c),
            "us": seconds * 1e6, "tflops": flops / seconds / 1e12,
            "gbs": moved / seconds / 1e9, "share": floor / seconds, "ceilings": top}


def facts() -> dict[str, Any]:
    """The device, its driver, and versions."""
    import torch

    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    major, minor = torch.cuda.get_device_capability()
    driver = Path("/proc/driver/nvidia/version")
    said = driver.read_text().splitlines()[0] if driver.is_file() else ""
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return {"device": torch.cuda.get_device_name(), "sm": 10 * major + minor,
            "driver": found[0] if found else "", "versions": versions}


def results(device: str) -> Path:
    """The file that results of this device are appended to."""
    name = re.sub(r"\W+", "-", device.lower().replace("nvidia", "")).strip("-")
    here = Path(__file__).parents[1] / "bench" / "results"
    folder = here if here.is_dir() else cache() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.jsonl"


def time_all(k: Kernel, path: Path | None = None) -> list[dict[str, Any]]:
    """Every version on every real shape, appended to the device's results."""
    told, top, rows = facts(), ceilings(), []
    stamp = time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
    for c in k.large:
        arguments = tensors(k, k.inputs(c, np.random.default_rng(0)), c.dtype, "cuda")
        ours = {v.name: v.run for v in k.versions.values() if not (v.refusal(c) or absent(v))}
        theirs = {**({"torch": k.peer} if k.peer else {}), **k.rivals(c)}
        spent: dict[str, float] = {}
        many = apart(arguments, k.cost(c)[1])
        for name, fn in {**ours, **theirs}.items():
            try:
                spent[name] = measure(partial(fn, **arguments))
                graph = replayed([partial(fn, **own) for own in many])
            except RuntimeError as e:  # torch refuses a backend, or has too little memory for it
                print(f"  {name} {c}: {quoted(e)}")
                continue
            rows.append({**row(k, name, c, spent[name], top), "graph_us": graph * 1e6, **told,
                         "at": stamp})
            print("  {version} {case}: {us:.1f} us, in a graph {graph_us:.1f}, {tflops:.2f} "
                  "TFLOP/s, {gbs:.0f} GB/s, {share:.0%} of what bounds it".format(**rows[-1]))
        best = min(((spent[n], n) for n in ours if n in spent), default=None)
        for name in sorted(theirs.keys() & spent.keys()) if best else ():
            print(f"  {best[1]} takes {best[0] / spent[name]:.2f} of {name}'s time")
    with (path or results(told["device"])).open("a") as f:
        f.writelines(json.dumps(r) + "\n" for r in rows)
    return rows


def main(name: str, argv: Sequence[str] | None = None) -> None:
    """Of one kernel's file run as a program. Exits with 1 when a check fails."""
    asked = argparse.ArgumentParser(prog=f"python -m arcompile.kernels.{name}")
    asked.add_argument("--wide", action="store_true", help="many random cases")
    asked.add_argument("--untimed", action="store_true", help="only check")
    told = asked.parse_args(argv)
    k, wrong = KERNELS[name], 0
    print(f"{k.name}: {k.about}")
    for found in sweep(k, told.wide):
        wrong += bool(found.wrong)
        said = found.wrong or found.reason or f"right, error {found.error:.1e}"
        print(f"  {found.version} {found.case}: {said}")
    gpu = not lang.interpreting() and not lang.missing()
    if gpu:
        for c in k.large:
            for v in k.versions.values():
                found = check(k, v, c)
                wrong += bool(found.wrong)
                print(f"  {v.name} {c}: {found.wrong or found.reason or 'right'}")
        if not told.untimed:
            time_all(k)
    else:
        print(f"  not timed: {lang.missing() or 'interpreted on the CPU'}")
    sys.exit(int(wrong > 0))
