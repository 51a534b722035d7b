"""The engine of a suite: built once into the cache by a fresh process, and what it must read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcompile.bench.suites import PROMPT, Suite, describe, source
from arcompile.errors import ArcError

if TYPE_CHECKING:
    from arcompile.program import Program
    from arcompile.runtime.engine import Engine

Say = Callable[[str], None]
NATIVE = (".cc", ".cpp", ".h", ".hpp", ".cu", ".cuh")
APART = ("limits", "top_k")  # of a suite: what does not change its engine


def key(suite: Suite) -> str:
    """Of everything that decides what is built: the suite, and the compiler's own sources."""
    from arcompile.compile import _own_digest

    what = {k: v for k, v in describe(suite).items() if k not in APART}
    return hashlib.sha256(f"{json.dumps(what)}\0{_own_digest()}".encode()).hexdigest()


def code() -> str:
    """Of everything that decides what is measured: the sources of compiler and bench, by content,
    so that two checkouts of one commit are the same."""
    from arcompile.compile import own_sources

    found = hashlib.sha256()
    for f in (*own_sources(*NATIVE), *sorted(Path(__file__).parent.glob("*.py"))):
        found.update(f"{f.name}\0".encode() + f.read_bytes())
    return found.hexdigest()[:16]


def ready(suite: Suite, say: Say) -> tuple[Path, dict[str, Any]]:
    """The engine's folder and how its build went, building it in a fresh process if need be.

    What the target compiles for this machine is made too: an engine runs without, slower, and
    that is not what is to be measured.
    """
    from arcompile.bench import fresh
    from arcompile.target import TARGETS

    TARGETS[suite.target].prepare(lambda stage, share: None)
    if suite.engine:
        return Path(suite.engine), {}
    folder, told = _home(suite)
    if (had := kept(suite)) is not None:
        return folder, {**had, "now": False}
    say(f"building {suite.name}")
    figures = {**fresh.run("build", suite.name, str(folder)), "key": key(suite)}
    told.write_text(json.dumps(figures))
    return folder, {**figures, "now": True}


def _home(suite: Suite) -> tuple[Path, Path]:
    """The engine's folder, and the file that says how its build went."""
    from arcompile.cache import cache

    home = cache() / "bench" / suite.name
    return home / "engine", home / "build.json"


def kept(suite: Suite) -> dict[str, Any] | None:
    """How the engine that lies in the cache was built; None if it would have to be built now."""
    folder, told = _home(suite)
    want = key(suite)
    try:
        found: dict[str, Any] = json.loads(told.read_text())
        manifest = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return found if found.get("key") == want == manifest.get("key") else None


def build(suite: Suite, folder: Path) -> None:
    """Compile the suite's weights into `folder`, replacing what is there. Raises ArcError."""
    from arcompile.compile import narrowing, write
    from arcompile.family import FAMILIES
    from arcompile.pipeline import parse_pipeline
    from arcompile.runtime import bundle
    from arcompile.target import TARGETS

    family = FAMILIES[suite.family]
    passes = parse_pipeline(TARGETS[suite.target].passes) + parse_pipeline(suite.passes)
    passes += narrowing(suite.dtype)
    with bundle.replacing(folder) as made:
        model = family.model(source(suite), suite.options)
        write(made, suite.family, model, suite.target, suite.dtype, passes, key(suite))


# --- what a run must read ------------------------------------------------------------------------

# Inputs of which a node reads a few rows, or nothing that counts.
ROWS = {"Gather": (0,), "RotaryEmbedding": (1, 2), "GroupQueryAttention": (7, 8)}


@dataclass(frozen=True)
class Reads:
    """Bytes. step: weights that the average step reads. held: weights of all graphs of a run,
    each once. file: the whole weights file. state: the caches."""

    step: int
    held: int
    file: int
    state: int


def reads(engine: Engine, batch: int, rows: int) -> Reads:
    """Counted from the graphs as they are lowered; rows: batch, twice that when guided."""
    p = engine.program
    graphs = {name: _weights(engine.folder / f"{name}.onnx") for name in _called(p)}
    total = sum(_bytes(graphs[c.graph][0]) * _turns(p, c.loop) for s in p.steps for c in s.calls)
    held: dict[str, int] = {}
    for _, every in graphs.values():
        held.update(every)
    sizes = {"b": batch, "r": rows, "N": p.positions,
             "p": min(PROMPT, engine.manifest["info"].get("max_prompt", 0))}
    return Reads(total // len(p.steps), _bytes(held), _file(engine.folder),
                 sum(t.nbytes(sizes) for _, t in p.state))


def _called(p: Program) -> set[str]:
    return {c.graph for c in p.calls()}


def _turns(p: Program, loop: str) -> int:
    return len(next(iter(p.tables[loop].values()), ())) if loop else 1


def _bytes(weights: Mapping[str, int]) -> int:
    return sum(weights.values())


def _file(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("weights*"))


def _weights(path: Path) -> tuple[dict[str, int], dict[str, int]]:
    """External initializers of an ONNX file by name: those it reads whole, and all."""
    import onnx

    if not path.is_file():
        raise ArcError(f"{path.name} is missing: only engines of ONNX graphs can be measured")
    graph = onnx.load(str(path), load_external_data=False).graph
    every = {}
    for t in graph.initializer:
        told = {e.key: e.value for e in t.external_data}
        if "length" in told:
            every[t.name] = int(told["length"])
    whole = {name for n in graph.node for i, name in enumerate(n.input)
             if i not in ROWS.get(n.op_type, ())}
    return {k: v for k, v in every.items() if k in whole}, every
