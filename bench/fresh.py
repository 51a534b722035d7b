"""Figures that only a fresh process can tell: import, load, build, and the most memory each took.

`python -m arcompile.bench.fresh what ...` prints one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from arcompile.errors import ArcError

LONGEST = 1800  # seconds
IMPORTS = """
import json, time
start = time.perf_counter()
import arcompile
bare = time.perf_counter()
arcompile.load
print(json.dumps({"import_s": bare - start, "with_load_s": time.perf_counter() - start}))
"""


def imports() -> dict[str, Any]:
    """Seconds to `import arcompile`, and until `arcompile.load` can be called."""
    made = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True,
                          check=True)
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def run(what: str, *args: str) -> dict[str, Any]:
    """Ask a new interpreter; `wall_s` is the time from its start to its end. Raises ArcError."""
    start = time.perf_counter()
    try:
        made = subprocess.run([sys.executable, "-m", __name__, what, *args], capture_output=True,
                              text=True, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise ArcError(f"the fresh process for {what!r} took over {LONGEST} s") from None
    wall = time.perf_counter() - start
    if made.returncode:
        last = (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1]
        raise ArcError(f"the fresh process for {what!r} failed: {last[:300]}")
    found: dict[str, Any] = json.loads(made.stdout.splitlines()[-1])
    return {**found, "wall_s": wall}


def memory() -> dict[str, int]:
    """Bytes: the most that was resident, and what is now, by kind.

    Not ru_maxrss where the kernel tells better: a child starts with its parent's in that.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    held = {k: int(v.split()[0]) << 10 for k, v in (x.split(":", 1) for x in lines)
            if v.endswith("kB")}
    return {"peak": held["VmHWM"], "private": held["RssAnon"], "file": held["RssFile"]}


def load(folder: str) -> dict[str, Any]:
    """From an import of nothing to the first token of an engine, its file in the page cache."""
    path = Path(folder)
    for _ in range(2):
        start = time.perf_counter()
        for f in path.glob("weights*"):
            _read(f)
        read = time.perf_counter() - start
    start = time.perf_counter()
    import arcompile

    imported = time.perf_counter()
    engine = arcompile.load(path)
    loaded = time.perf_counter()
    _one_step(engine)
    first = time.perf_counter()
    return {"read_s": read, "import_s": imported - start, "load_s": loaded - imported,
            "step_s": first - loaded, "first_step_s": first - imported}


def _read(path: Path) -> None:
    block = bytearray(1 << 22)
    with path.open("rb", buffering=0) as f:
        while f.readinto(block):
            pass


def _one_step(engine: Any) -> None:
    from arcompile.bench.suites import condition

    engine.program = replace(engine.program, steps=engine.program.steps[:1], finish=())
    engine.generate(condition(engine.manifest["info"], 1), guidance=4.0, temperature=0)


def generate(folder: str, batch: str, guidance: str) -> dict[str, Any]:
    """Two whole pictures by the engine, where torch and onnx cannot be imported."""
    sys.modules.update({"torch": None, "onnx": None})  # type: ignore[dict-item]
    import arcompile
    from arcompile.bench.suites import condition

    engine = arcompile.load(folder)
    peaks = {"loaded": memory()["peak"]}
    cond = condition(engine.manifest["info"], int(batch))
    for name in ("first", "second"):
        engine.generate(cond, guidance=float(guidance), temperature=0)
        peaks[name] = memory()["peak"]
    return {**memory(), **peaks}


def eager(name: str) -> dict[str, Any]:
    """The whole picture by the eager loop."""
    import torch

    from arcompile.bench import eager as loops
    from arcompile.bench.suites import SUITES, condition, source
    from arcompile.family import FAMILIES

    suite = SUITES[name]
    held = source(suite)
    model = loops.load(suite.family, held)
    assert model is not None
    made = FAMILIES[suite.family].model(held, {})
    model.begin(condition(made.info, suite.batch), suite.guidance, 0.0, 0)
    tokens = torch.cat([model.step() for _ in made.program.steps], 1)
    model.finish(tokens)
    return memory()


def build(name: str, folder: str) -> dict[str, Any]:
    from arcompile.bench import built
    from arcompile.bench.suites import SUITES

    built.build(SUITES[name], Path(folder))
    return memory()


ASKED: dict[str, Callable[..., dict[str, Any]]] = {
    "load": load, "generate": generate, "eager": eager, "build": build,
}

if __name__ == "__main__":
    print(json.dumps(ASKED[sys.argv[1]](*sys.argv[2:])))
