"""One graph through every pass and every CPU target, against its numpy meaning."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import tiny
from fuzz.grow import agree, inputs, sizes_of, tolerance, weights

from arcompile import safetensors
from arcompile.errors import ArcError
from arcompile.ir import Graph, Type, evaluate, verify
from arcompile.kernels import cpu
from arcompile.pipeline import PASSES, parse_pipeline, run
from arcompile.program import Program
from arcompile.target import TARGETS
from arcompile.targets.onnx_emit import WEIGHTS, emit, few_integers
from arcompile.targets.onnx_few import turned
from arcompile.targets.ort import Bound, Session
from arcompile.text import parse_graph
from arcompile.weights import Store, of_arrays, used

# Made when an engine is built, from weights; no target computes them while it runs.
BUILT = {"quantize_channels", "quantize_blocks", "nearest"}
LOSSY = ("int8", "int4{block=16,only='*'}", "int8{block=16}", "mixed")
CUT = 0.2  # how far lossy weights may move a result, of its size


class Wrong(AssertionError):
    """What differs, and from what."""


def values() -> list[str]:
    return [name for name, p in PASSES.all().items() if p.keeps == "values"]


def check(g: Graph, lossy: bool = True) -> None:
    """Raise Wrong where a pass or a target says something else than the op table."""
    _text(g)
    case = _Case(g)
    for passes in case.pipelines():
        case.passed(passes)
    for how in ("raw", "passes"):
        case.on_ort(how)
    if lossy:
        case.lossy()


def _text(g: Graph) -> None:
    text = str(g)
    again = parse_graph(text)
    verify(again)
    if str(again) != text:
        raise Wrong("text: it does not read back as it was written")


class _Case:
    def __init__(self, g: Graph):
        self.g, self.sizes = g, sizes_of(g.name)
        self.given, self.held = inputs(g, self.sizes), weights(g.weights)
        with np.errstate(all="ignore"):
            self.expected = evaluate(g, self.given, self.held)
        self.tolerance = tolerance(g, self.given, self.held, self.expected)
        self.program = program(g)

    def pipelines(self) -> list[str]:
        """Each pass alone; the default ones; some of them in any order, often the same twice."""
        random = Random(self.g.name)
        some = [random.choice(values()) for _ in range(4)]
        return [*values(), TARGETS["ort-cpu"].passes, ", ".join(some)]

    def passed(self, passes: str) -> None:
        try:
            new = run(self.program, parse_pipeline(passes))
        except ArcError as e:
            if _refusal(e):
                return
            raise Wrong(f"passes {passes}: {e.what}") from e
        if new is self.program:
            return
        self.compare(f"passes {passes}", self.evaluated(new))

    def evaluated(self, p: Program):
        store = Store(of_arrays(self.held), p.fold)
        if missing := [n for n in used(p.graphs) if n not in store]:
            raise Wrong(f"nobody makes {missing}")
        with np.errstate(all="ignore"):
            return evaluate(p.graphs[0], self.given, store)

    def compare(self, where: str, found) -> None:
        for name, x in self.expected.items():
            if name not in found:
                raise Wrong(f"{where}: {name} is gone")
            y = found[name]
            if not agree(x, y, self.tolerance[name]):
                raise Wrong(f"{where}: {_differs(name, x, y, self.tolerance[name])}")

    def on_ort(self, how: str) -> None:
        """ort-cpu, with our kernels and without them."""
        passes = TARGETS["ort-cpu"].passes if how == "passes" else self.needed()
        try:
            p = run(self.program, parse_pipeline(passes))
            sides = self.ort(p)
        except ArcError as e:
            if _refusal(e):
                return
            raise Wrong(f"ort {how}: {e.what}") from e
        for name, found in sides.items():
            self.compare(f"ort {how}, {name}", found)

    def needed(self) -> str:
        return "fold" if BUILT & {n.op for n in self.g.nodes} else ""

    def ort(self, p: Program):
        g, store = p.graphs[0], Store(of_arrays(self.held), p.fold)
        types = {k: v.type for k, v in used(p.graphs).items()}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "g.onnx"
            columns = turned([g]) if Random(self.g.name).random() < 0.5 else ()
            types = {k: Type(t.dtype, t.shape[::-1] if k in columns else t.shape)
                     for k, t in types.items()}
            _, spans = safetensors.layout(types)

            def read(name: str):
                return np.ascontiguousarray(store[name].T) if name in columns else store[name]

            path.write_bytes(emit(g, spans, values={k: read(k) for k in few_integers(types)},
                                  wide=self.sizes["s"] > 1, turned=columns, kernels=True))
            safetensors.write(path.parent / WEIGHTS, types, read)
            sides = {"no kernels": None, **({"kernels": library()} if library() else {})}
            return {name: _session_run(path, kernels, self.given)
                    for name, kernels in sides.items()}

    def lossy(self) -> None:
        """Passes that change weights: another program, which must be sound, alike on both
        targets, and not far away."""
        if not any(n.op in ("matmul", "gather") for n in self.g.nodes):
            return
        for passes in LOSSY:
            try:
                new = run(self.program, parse_pipeline(f"fold, {passes}"), of_arrays(self.held))
                found = self.evaluated(new)
            except ArcError as e:
                if _refusal(e):
                    continue
                raise Wrong(f"passes {passes}: {e.what}") from e
            for name, x in self.expected.items():
                y = found.get(name)
                if y is None or y.shape != x.shape or y.dtype.kind != x.dtype.kind:
                    raise Wrong(f"passes {passes}: {name} is of another type")


def _session_run(path: Path, kernels, given):
    session = Session(path, "CPUExecutionProvider", 1, kernels)
    env = {k: np.array(v) for k, v in given.items()}
    # what a graph has no use for is not among a session's inputs
    out = Bound(session).run(_states(session, env))
    return {k: np.array(v.numpy()) for k, v in out.items()}


def _states(session: Session, env):
    import onnxruntime

    state = {n for n, t in session.results.items() if session.inputs.get(n) == t}
    return {k: onnxruntime.OrtValue.ortvalue_from_numpy(v, "cpu", 0) if k in state else v
            for k, v in env.items()}


@cache
def library():
    return cpu.library()


def program(g: Graph) -> Program:
    """One step around the graph; what it reads is an input."""
    p = tiny.of(str(parse_graph(str(g))), steps=f"1 x 1 : {g.name}")
    reads = tuple((v.name, v.type) for v in g.params)
    return replace(p, graphs=(g,), inputs=reads)


def _refusal(e: ArcError) -> bool:
    """A pass or a target that says what it does not do, with what to do instead."""
    return bool(e.hint) and any(word in e.what for word in (
        "has no", "takes a bias or a mask", "cannot", "no ONNX form", "needs"))


def _differs(name, x, y, tolerance) -> str:
    if x.shape != y.shape or x.dtype.kind != y.dtype.kind:
        return f"{name} is {y.dtype}{list(y.shape)}, not {x.dtype}{list(x.shape)}"
    with np.errstate(all="ignore"):
        gap = np.abs(np.nan_to_num(x.astype(float) - y.astype(float), nan=np.inf))
    at = np.unravel_index(int(gap.argmax()), gap.shape) if gap.size else ()
    return (f"{name} at {[int(i) for i in at]} is {y[at]}, not {x[at]} "
            f"(tolerated {tolerance:.1e}; {int((gap > tolerance).sum())} of {x.size} differ)")
