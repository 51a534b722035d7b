"""What `arcompile show` shows: programs of engines, checkpoints and text; passes at work."""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from arcompile.errors import ArcError, did_you_mean
from arcompile.ir import Graph, Value
from arcompile.pipeline import Pass, run
from arcompile.program import Program
from arcompile.program_text import parse_program, show_program
from arcompile.runtime import bundle
from arcompile.text import MAX_TEXT, parse_graph
from arcompile.weights import Weights

REPORTS = ("contract", "auto", "drafts", "quality")  # of a manifest: what its passes cost
HEADS = (b"program ", b"graph ", b"#")  # how IR text starts


@dataclass(frozen=True)
class Shown:
    """A program, where it comes from, and the passes that made it (of an engine: by name)."""

    kind: str  # engine, checkpoint or text
    program: Program
    built: Sequence[str] = ()
    weights: Weights | None = None
    quality: Any = None  # the engine's report
    contract: Any = None  # what its passes keep together
    auto: Any = None  # what its methods were chosen from
    drafts: Any = None  # what its rounds commit


def open_shown(path: str, read: Callable[[], tuple[Program, Weights]]) -> Shown:
    """An engine folder, IR text, or else a checkpoint, which `read` opens. Raises ArcError."""
    where = Path(path)
    if (where / bundle.MANIFEST).is_file():
        return _engine(where)
    if where.is_file() and (where.suffix == ".arc" or _head(where).startswith(HEADS)):
        return Shown("text", _text(where))
    program, weights = read()
    return Shown("checkpoint", program, weights=weights)


def _head(path: Path) -> bytes:
    with path.open("rb") as f:
        return f.read(16)


def _text(path: Path) -> Program:
    """A program, or one graph as a program of no steps."""
    try:
        if path.stat().st_size > MAX_TEXT:
            raise ArcError(f"{path} is larger than {MAX_TEXT} bytes")
        text = path.read_text()
    except OSError as e:
        raise ArcError(f"cannot read {path}: {e.strerror}") from None
    except UnicodeDecodeError:
        raise ArcError(f"{path} is not text") from None
    lines = (s for s in text.splitlines() if s.strip() and not s.lstrip().startswith("#"))
    if next(lines, "").startswith("graph "):
        graph = parse_graph(text)
        return Program(graph.name, 0, (), graphs=(graph,))
    return parse_program(text)


def _engine(folder: Path) -> Shown:
    manifest = bundle.read_manifest(folder)
    said = manifest["files"].get("program.arc")
    if said is None:
        raise ArcError(f"{folder} holds no program text", hint="rebuild the engine")
    bundle.intact(folder, {"program.arc": said})
    for name in REPORTS:
        if not isinstance(manifest.get(name), dict | None):
            raise _invalid(name)
    return Shown("engine", _text(folder / "program.arc"), manifest["passes"],
                 quality=manifest.get("quality"), contract=manifest.get("contract"),
                 auto=manifest.get("auto"), drafts=manifest.get("drafts"))


def told(name: str, write: Callable[[Any], str], found: Any) -> str:
    """What a part of an engine's manifest says, which may be anybody's JSON: no control characters.
    Raises ArcError where `write` cannot read it."""
    try:
        text = write(found)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise _invalid(name) from None
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _invalid(name: str) -> ArcError:
    return ArcError(f"the engine's manifest has no valid {name!r}", hint="rebuild the engine")


# --- passes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """The program after one pass of a pipeline."""

    name: str
    program: Program
    keeps: str = ""
    seconds: float = 0.0


def stages(p: Program, passes: Sequence[Pass]) -> list[Stage]:
    """The input, then the program after each pass. Raises ArcError."""
    p.verify()
    found = [Stage("input", p)]
    for each in passes:
        start = time.perf_counter()
        p = run(p, [each])
        found.append(Stage(str(each), p, each.keeps, time.perf_counter() - start))
    return found


def after(found: Sequence[Stage], name: str) -> Program:
    """The program after the last pass of that name."""
    return found[_at(found, name)[-1]].program


def before(found: Sequence[Stage], name: str) -> Program:
    """The program before the first pass of that name."""
    return found[_at(found, name)[0] - 1].program


def _at(found: Sequence[Stage], name: str) -> list[int]:
    at = [i for i, s in enumerate(found) if i and name in (s.name, s.name.split("{")[0])]
    if not at:
        known = [s.name.split("{")[0] for s in found[1:]]
        hint = did_you_mean(name, known) if known else "add it with --passes"
        raise ArcError(f"no pass {name!r} runs here", hint=hint)
    return at


def diff(old: Program, new: Program, graph: str = "") -> str:
    """A unified diff of the texts; empty when they are the same."""
    a, b = (_part(p, graph).splitlines() for p in (old, new))
    return "\n".join(difflib.unified_diff(a, b, "before", "after", lineterm=""))


def _part(p: Program, graph: str) -> str:
    found = "\n".join(str(g) for g in every(p) if g.name == graph)
    return found if graph else str(p)


def every(p: Program) -> tuple[Graph, ...]:
    """The program's graphs, and the one that folds weights."""
    return (*p.graphs, p.fold) if p.fold else p.graphs


def graph(p: Program, name: str) -> Graph:
    found = {g.name: g for g in every(p)}
    if name not in found:
        raise ArcError(f"no graph named {name!r}", hint=did_you_mean(name, found))
    return found[name]


# --- summaries -----------------------------------------------------------------------------------


def outline(p: Program) -> str:
    """The program without graphs; states of one type are one line."""
    kinds = Counter(t for _, t in p.state)
    lines, states = [], dict[Any, list[str]]()
    for name, t in p.state:
        states.setdefault(t, []).append(name)
    bare = replace(p, graphs=(), state=(), fold=None)
    for line in show_program(bare).splitlines():
        lines.append(line if len(line) <= 100 else line[:97] + "...")
    at = 2 + len(p.inputs)
    lines[at:at] = [f"  state {_few(states[t])}: {f'{n} x ' if n > 1 else ''}{t}"
                    for t, n in kinds.items()]
    return "\n".join(lines)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else (*names[:2], "...", names[-1]))


def graph_rows(p: Program) -> list[tuple[str, ...]]:
    """A row for each graph under a row of titles."""
    rows: list[tuple[str, ...]] = [("graph", "runs", "nodes", "weights", "ops")]
    runs = Counter(c.graph for c in p.calls())
    for g in every(p):
        ops = Counter(n.op for n in g.nodes).most_common(5)
        rows.append((g.name, "build" if g is p.fold else str(runs[g.name]), str(len(g.nodes)),
                     _bytes(g.weights), ", ".join(f"{n} {op}" for op, n in ops)))
    return rows


def _bytes(weights: Sequence[Value]) -> str:
    from arcompile.cost import figure

    return figure(sum(w.type.nbytes() for w in weights), "B")


def stage_rows(found: Sequence[Stage]) -> list[tuple[str, ...]]:
    """A row for each pass: what it keeps, and how many nodes it left of how many."""
    rows: list[tuple[str, ...]] = [("pass", "nodes", "left", "ms", "keeps")]
    for old, new in pairwise(found):
        counts = [str(sum(len(g.nodes) for g in s.program.graphs)) for s in (old, new)]
        rows.append((new.name, *counts, f"{new.seconds * 1e3:.1f}", new.keeps))
    return rows
