"""Measures one suite: engine and eager loop side by side, then what fresh processes tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

import arcompile
from arcompile.bench import built, fresh, machine, suites, visits
from arcompile.bench.machine import PAUSE, Bandwidth
from arcompile.bench.spread import compare, figure, summary
from arcompile.bench.suites import Suite
from arcompile.bench.visits import Turns
from arcompile.cost import Cost, program_cost
from arcompile.errors import MACHINE, ArcError
from arcompile.program_text import parse_program
from arcompile.runtime.engine import Engine, load

Say = Callable[[str], None]
QUICK = 32  # steps of a quick run
SETTINGS = {
    "interleaved": "a reading of memory, all steps of an image by the engine, all by the eager "
                   f"loop, and again; {PAUSE} s between. Of {visits.STEPS} steps and more the "
                   f"first {visits.WARM} count for the image only",
    "warm_up": f"{QUICK} steps of each side before",
    "step": "one pass of the loop: transformer, guidance, sampling, next input; host work too",
    "image": "Engine.generate from the call to the uint8 picture; no PNG",
    "percent_of_read": "weight bytes that a step reads / its median time / best reading of memory; "
                       "caches and activations are not counted",
    "floor": "weight bytes that a step reads / best reading of memory in this run; with_caches: "
             "and what its caches hold, as the cost model counts them; pairs: by the reading just "
             "before the image",
    "eager": "the loop of the family's authors in plain torch, same weights, same threads",
    "run_memory": "a fresh process without torch, two pictures; weights: those of the graphs that "
                  "run, each once",
    "not_timed": "loading, except where named; encoders; writing files",
}


def measure(suite: Suite, *, quick: bool = False, say: Say = lambda text: None,
            scenarios: bool = False, brief: bool = False) -> dict[str, Any]:
    """Everything about one suite, as one row. Raises ArcError.

    brief: as the first of many visits, with one image of each kind, and the eager loop's memory
    only of a suite without passes, as it is the same with them.
    """
    _needs()
    folder, build = built.ready(suite, say)
    bench = Bench(suite, load(folder), quick, say, brief=brief)
    row = {**bench.head(), **bench.speed(), "bytes": bench.sizes()}
    if not quick:
        row |= bench.fresh(build)
        row |= bench.quality()
    if scenarios:
        from arcompile.bench import scenarios as used

        say("scenarios")
        row["scenarios"] = used.scenarios(bench.engine, suite.guidance)
    row["limits"] = limits(row, suite.limits)
    return row


def _needs() -> None:
    try:
        import onnx  # noqa: F401
        import torch
    except ImportError as e:
        raise ArcError(f"bench needs {e.name}, which is not installed", code=MACHINE,
                       hint="pip install 'arcompile[build]'") from None
    torch.set_num_threads(machine.cores())


class Bench:
    """One engine and its eager loop, ready to be timed by turns. beside: another of the same
    model in this process, whose eager loop and readings of memory are this one's too."""

    bandwidth: Bandwidth
    eager: Any

    def __init__(self, suite: Suite, engine: Engine, quick: bool, say: Say,
                 beside: Bench | None = None, brief: bool = False):
        self.suite, self.engine, self.quick, self.say = suite, engine, quick, say
        self.brief = brief
        assert engine.models  # opened here, once: shortened copies of the engine share it
        self.cond = suites.condition(engine.manifest["info"], suite.batch)
        twins = 2 if suite.guidance != 1 else 1
        self.reads = built.reads(engine, suite.batch, suite.batch * twins)
        self.machine = machine.facts()
        if beside is not None:
            self.bandwidth, self.eager = beside.bandwidth, beside.eager
            return
        say("reading memory")
        self.bandwidth = Bandwidth()
        self.bandwidth.measure(2)
        self.bandwidth.narrow()
        self.eager = self._eager()

    def _eager(self) -> Any:
        if self.suite.engine or self.suite.options or self.suite.alone:
            return None
        from arcompile.bench import eager

        self.say("loading the eager loop")
        return eager.load(self.suite.family, suites.source(self.suite))

    def head(self) -> dict[str, Any]:
        m, s = self.engine.manifest, self.suite
        return {
            "suite": s.name, "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": machine.host(), "quick": self.quick, "arcompile": arcompile.__version__,
            "family": m["family"], "target": m["target"], "dtype": m["dtype"],
            "passes": m["passes"], "model": m["info"], "batch": s.batch, "guidance": s.guidance,
            **({"quality": m["quality"]} if "quality" in m else {}),
            "weights": "the shipped demo's" if s.checkpoint else "the engine's" if s.engine
            else "random",
            "positions": self.engine.program.positions, "steps": len(self.engine.program.steps),
            "settings": SETTINGS,
        }

    # --- speed ---

    def speed(self) -> dict[str, Any]:
        self.warm_up()
        greedy = visits.draw([self])
        sampled = visits.draw([self], sampled=True)
        best = min(greedy.engine[self.suite.name], key=lambda r: r.s)
        found: dict[str, Any] = {"tokens": self._tokens(greedy),
                                 "prompt_ms": figure(best.prompt * 1e3)}
        if not self.quick:
            found["image"] = visits.image(self, greedy)
        self.bandwidth.measure(3)  # only now is the best reading known
        eager = min(greedy.eager, key=lambda e: e.s).steps if greedy.eager else []
        return {
            "greedy": self.steps(greedy), "sampled": self.sampled(sampled), **found,
            "machine": {**self.machine, "read_gbps": self.bandwidth.row(),
                        "gemm_gflops": machine.gemm()},
            "series": {"step": [*range(len(best.steps))], "engine_ms": _ms(best.steps),
                       "eager_ms": _ms(eager)}}

    @property
    def least(self) -> int:
        """Images of each side in one run."""
        return 1 if self.quick or self.brief else 2

    def asked(self, finish: bool) -> Engine:
        """The engine as a turn runs it: all steps and the decoder, or less of both."""
        return short(self.engine, QUICK, False) if self.quick else (
            self.engine if finish else short(self.engine))

    def warm_up(self) -> None:
        """Some steps of each side, and both decoders."""
        self.say("warming up")
        few, guidance = short(self.engine, QUICK, finish=not self.quick), self.suite.guidance
        out = few.generate(self.cond, guidance=guidance, temperature=0)
        if self.eager is None:
            return
        self.eager.begin(self.cond, guidance, 0.0, 0)
        for _ in few.program.steps:
            self.eager.step()
        if out.pixels is not None:
            self.eager.finish(_zeros(out.tokens.shape))

    def sampled(self, turns: Turns) -> dict[str, Any]:
        return {"top_k": self.suite.top_k, **self.steps(turns)}

    def steps(self, turns: Turns) -> dict[str, Any]:
        """Step latency of both sides, tokens a second, eager / engine image by image, and the
        engine against memory."""
        runs, eager = turns.engine[self.suite.name], turns.eager
        found: dict[str, Any] = {"engine": summary([x for r in runs for x in r.counted])}
        each = self.suite.batch * self.engine.program.positions / len(self.engine.program.steps)
        found["tokens_per_s"] = figure(1e3 * each / found["engine"]["median"])
        if eager:
            found["eager"] = summary([x for e in eager for x in e.counted])
            found["eager_tokens_per_s"] = figure(1e3 * each / found["eager"]["median"])
            found["eager_vs_engine"] = compare([e.median for e in eager], [r.median for r in runs])
        return {**found, **self._floor(found["engine"], visits.floors(self, runs))}

    def _floor(self, engine: Mapping[str, Any],
               pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
        """Against the time it takes to read a step's weights once, by the best reading so far."""
        alone, caches = zip(*pairs, strict=True)
        floor = self.reads.step / self.bandwidth.best / 1e6  # ms
        return {
            "gbps": figure(self.reads.step / engine["median"] / 1e6),
            "percent_of_read": figure(100 * floor / engine["median"], 3),
            "floor": {"ms": figure(floor), "median_vs_floor": figure(engine["median"] / floor),
                      "min_vs_floor": figure(engine["min"] / floor),
                      "pairs_vs_floor": summary(alone, 1.0),
                      "with_caches": summary(caches, 1.0)},
        }

    def _tokens(self, turns: Turns) -> dict[str, Any]:
        """Are the greedy tokens of both sides the same, and do the passes promise it?"""
        promised = self.engine.manifest["contract"]["keeps"] in ("values", "distribution")
        drawn = turns.engine[self.suite.name][0].tokens
        if self.eager is None or not drawn.size:  # continuous tokens: of other noise
            return {"equal": None, "compared": 0, "promised": promised}
        theirs = turns.eager[0].tokens.numpy()
        committed = dict.fromkeys(i for s in self.engine.program.steps for i in s.commit)
        order = [*committed][: theirs.shape[1]]  # cells that are drawn again, once
        differ = (drawn[:, order] != theirs).any(0)
        first = int(np.argmax(differ)) if differ.any() else None
        return {"equal": first is None, "compared": theirs.size, "first_difference": first,
                "promised": promised}

    def quality(self) -> dict[str, Any]:
        """Of the shipped demos: what their judge says, and what their tokenizer keeps."""
        if not self.suite.checkpoint:
            return {}
        from arcompile.bench import pictures

        self.say("quality")
        return {"quality": pictures.demo(self.engine),
                "tokenizer": pictures.tokenizer(self.engine, pictures.of_drawings(12))}

    # --- memory, build, load ---

    def sizes(self) -> dict[str, int]:
        """Bytes that are read and held, and what the cost model counts for the mean step."""
        r = self.reads
        found = {"step_weights": r.step, "run_weights": r.held, "file": r.file, "state": r.state}
        steps = self.costs
        return {**found, "step_flops": sum(c.flops for c in steps) // len(steps),
                "step_bytes": sum(c.bytes for c in steps) // len(steps)}

    @cached_property
    def costs(self) -> list[Cost]:
        """What the cost model counts for each step."""
        whole = parse_program((self.engine.folder / "program.arc").read_text())
        every = program_cost(whole, self.suite.batch, self.suite.guidance != 1).steps
        return [x.cost for x in every if x.name not in ("prompt", "finish")]

    def fresh(self, build: Mapping[str, Any]) -> dict[str, Any]:
        """What only fresh processes tell."""
        s, folder, r = self.suite, str(self.engine.folder), self.reads
        self.say("import, load")
        imported = min((fresh.imports() for _ in range(3)), key=lambda x: x["with_load_s"])
        loaded = min((fresh.run("load", folder) for _ in range(2)), key=lambda x: x["first_step_s"])
        self.say("memory of a run")
        used = fresh.run("generate", folder, str(s.batch), str(s.guidance))
        found: dict[str, dict[str, Any]] = {
            "import": {k: figure(v, 3) for k, v in imported.items()},
            "load": {**{k: figure(v, 3) for k, v in loaded.items()},
                     "first_step_beyond_read_s":
                         figure(max(0.0, loaded["first_step_s"] - loaded["read_s"]), 3)},
            "run_memory": {**_sizes(used),
                           "first_vs_weights_kv": figure(used["first"] / (r.held + r.state)),
                           "vs_weights_kv": figure(used["peak"] / (r.held + r.state))},
        }
        if self.eager is not None and not (self.brief and s.passes):
            self.say("memory of the eager loop")
            theirs = fresh.run("eager", s.name)
            found["run_memory"] |= {"eager_peak": theirs["peak"]}
        if build:
            found["build"] = {"s": figure(build["wall_s"]), "peak": build["peak"],
                              "now": build["now"], "vs_weights": figure(build["peak"] / r.file),
                              "includes": "start of python, making the weights"}
        return found


def short(engine: Engine, steps: int | None = None, finish: bool = False) -> Engine:
    """The engine, stopping after so many steps; finish: with its decoder all the same."""
    cut, p = copy(engine), engine.program
    cut.program = replace(p, steps=p.steps[:steps], finish=p.finish if finish else ())
    return cut


def _zeros(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.zeros(shape, dtype=torch.int64)


def _sizes(found: Mapping[str, Any]) -> dict[str, int]:
    return {k: v for k, v in found.items() if k != "wall_s"}


def _ms(seconds: Sequence[float]) -> list[float]:
    return [round(s * 1e3, 3) for s in seconds]


# --- limits --------------------------------------------------------------------------------------

# name -> (where its figure is in the row, whether more is better)
TARGETS: dict[str, tuple[str, bool]] = {
    "step_vs_floor": ("greedy.floor.pairs_vs_floor.median", False),
    "eager_vs_step": ("greedy.eager_vs_engine.median", True),
    "eager_vs_image": ("image.eager_vs_engine", True),
    "image_vs_parts": ("image.vs_parts", False),
    "run_rss_vs_weights_kv": ("run_memory.vs_weights_kv", False),
    "build_s": ("build.s", False), "build_rss_vs_weights": ("build.vs_weights", False),
    "first_step_beyond_read_s": ("load.first_step_beyond_read_s", False),
    "import_s": ("import.with_load_s", False),
}


def limits(row: Mapping[str, Any], wanted: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each limit of the suite that this run measured, and whether it is met."""
    found = []
    for name, limit in wanted.items():
        where, more = TARGETS[name]
        got: Any = row
        for part in where.split("."):
            got = got.get(part) if isinstance(got, Mapping) else None
        if got is not None:
            met = got >= limit if more else got <= limit
            found.append({"name": name, "limit": limit, "got": got, "met": bool(met)})
    return found
