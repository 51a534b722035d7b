"""What the machine is, and the two ceilings that bound every engine: reading memory, and GEMM."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.bench.spread import figure

PAUSE = 0.1  # seconds: the threads of torch and of ONNX Runtime spin on after a run, in the way
FLOATS = 1 << 27  # 512 MB, five times the largest cache of the machines we know
PACKAGES = ("numpy", "onnxruntime", "torch", "onnx")


def cores() -> int:
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        return os.cpu_count() or 1


def host() -> str:
    """A name that tells the kind of machine and nobody's machine."""
    return f"cpu-{cores()}core"


def facts() -> dict[str, Any]:
    """Device, cores, threads, versions."""
    system = f"{platform.system()} {platform.machine()}"
    return {"cpu": _cpu(), "cores": cores(), "threads": cores(), "memory_gb": _memory(),
            "system": system, "load_before": load(), "versions": {
                "python": platform.python_version(), **versions(PACKAGES)}}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def load() -> float | None:
    """Processes that wanted a core in the last minute: more than none says the host is shared."""
    try:
        return figure(os.getloadavg()[0], 3)
    except (AttributeError, OSError):
        return None


def _cpu() -> str:
    """The model's name, and the instruction sets that decide its arithmetic."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {k.strip(): v.strip() for k, v in (x.split(":", 1) for x in lines if ":" in x)}
    flags = set(found.get("flags", "").split())
    sets = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_bf16", "amx_int8") if f in flags]
    return " ".join((found.get("model name", platform.machine()), *sets))


def _memory() -> float | None:
    try:
        return figure(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    except (AttributeError, ValueError, OSError):
        return None


# --- reading memory ------------------------------------------------------------------------------


class Bandwidth:
    """Reads 512 MB by all cores in a few ways; the best of all readings is the machine's.

    Ways: numpy's maximum in threads, torch's matrix times vector, ONNX Runtime's vector times
    matrix: none writes more than it must, and on no machine is the same one the quickest.
    """

    def __init__(self) -> None:
        block = np.random.default_rng(0).standard_normal(1 << 22, np.float32)
        side = 1 << 14  # no constant: what is all alike may be stored or read in a cheaper way
        self.data = np.tile(block, -(-FLOATS // block.size))[:FLOATS].reshape(-1, side)
        self.ways = {"numpy max": self._numpy, **self._torch(), **self._ort()}
        self.readings: dict[str, list[float]] = {name: [] for name in self.ways}

    def measure(self, times: int = 1) -> float:
        """GB/s, the best of every way `times` over."""
        best = 0.0
        for _ in range(times):
            for name, way in self.ways.items():
                time.sleep(PAUSE)
                start = time.perf_counter()
                way()
                rate = self.data.nbytes / (time.perf_counter() - start) / 1e9
                self.readings[name].append(rate)
                best = max(best, rate)
        time.sleep(PAUSE)
        return best

    @property
    def best(self) -> float:
        return max(max(v) for v in self.readings.values())

    def row(self) -> dict[str, Any]:
        """best: the ceiling that percentages refer to. median: of the way that reached it."""
        how = max(self.readings, key=lambda k: max(self.readings[k]))
        return {"best": figure(self.best), "median": figure(float(np.median(self.readings[how]))),
                "how": how, "readings": sum(map(len, self.readings.values())),
                "bytes": self.data.nbytes}

    def narrow(self) -> None:
        """From now on only the two ways that were quickest."""
        order = sorted(self.ways, key=lambda k: -max(self.readings[k]))
        self.ways = {k: self.ways[k] for k in order[:2]}

    def _numpy(self) -> None:
        parts = np.array_split(self.data, cores())
        threads = [threading.Thread(target=p.max) for p in parts]
        for t in threads:
            t.start()
        for t in threads:
            t.join()

    def _torch(self) -> dict[str, Callable[[], object]]:
        import torch

        matrix = torch.from_numpy(self.data)
        vector = torch.ones(matrix.shape[1])
        return {"torch mv": lambda: matrix @ vector}

    def _ort(self) -> dict[str, Callable[[], object]]:
        rows, columns = self.data.shape
        model = _matmul((1, rows), (rows, columns))
        vector = np.ones((1, rows), np.float32)
        return {"ort matmul": lambda: model.run(None, {"a": vector, "b": self.data})}


def gemm(times: int = 5, n: int = 1024, k: int = 1024, m: int = 4096) -> float:
    """f32 GFLOP/s of ONNX Runtime, the best of several."""
    model = _matmul((n, k), (k, m), constant=True)
    a, best = np.ones((n, k), np.float32), 0.0
    for _ in range(times + 1):
        start = time.perf_counter()
        model.run(None, {"a": a})
        best = max(best, 2e-9 * n * k * m / (time.perf_counter() - start))
    return figure(best)


def _matmul(a: tuple[int, int], b: tuple[int, int], constant: bool = False) -> Any:
    import onnx
    import onnxruntime

    h, f32 = onnx.helper, onnx.TensorProto.FLOAT
    given = [h.make_tensor_value_info("a", f32, a)]
    held = []
    if constant:
        held = [onnx.numpy_helper.from_array(np.ones(b, np.float32), "b")]
    else:
        given.append(h.make_tensor_value_info("b", f32, b))
    out = [h.make_tensor_value_info("c", f32, (a[0], b[1]))]
    graph = h.make_graph([h.make_node("MatMul", ["a", "b"], ["c"])], "matmul", given, out, held)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)])
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])
