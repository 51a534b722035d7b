"""Measures one suite: engine and eager loop side by side, then what fresh processes tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np

import arcompile
from arcompile.bench import built, fresh, machine, suites, visits
from arcompile.bench.machine import PAUSE, Bandwidth
from arcompile.bench.spread import compare, figure, summary
from arcompile.bench.suites import Suite
from arcompile.cost import Cost, program_cost
from arcompile.errors import MACHINE, ArcError
from arcompile.program_text import parse_program
from arcompile.runtime.engine import Engine, load
from arcompile.runtime.loop import Progress

Say = Callable[[str], None]
QUICK = 32  # steps of a quick run
SAMPLED = 64  # steps of the run that samples; its law does not depend on the position
SETTINGS = {
    "interleaved": "a turn of `block` engine steps, a reading of memory, a turn of eager steps, "
                   f"with {PAUSE} s between",
    "warm_up": "one whole run of each side before; the first `warm` steps of each turn",
    "step": "one pass of the loop: transformer, guidance, sampling, next input; host work too",
    "image": "Engine.generate from the call to the uint8 picture; no PNG",
    "percent_of_read": "weight bytes that a step reads / its median time / best reading of memory; "
                       "caches and activations are not counted",
    "floor": "weight bytes that a step reads / best reading of memory in this run; with_caches: "
             "and what its caches hold, as the cost model counts them, by the reading of the turn",
    "eager": "the loop of the family's authors in plain torch, same weights, same threads",
    "run_memory": "a fresh process without torch, two pictures; weights: those of the graphs that "
                  "run, each once",
    "not_timed": "loading, except where named; encoders; writing files",
}


def measure(suite: Suite, *, quick: bool = False, say: Say = lambda text: None,
            scenarios: bool = False, brief: bool = False) -> dict[str, Any]:
    """Everything about one suite, as one row. Raises ArcError.

    brief: as the first of many visits, with one whole image, few sampled steps, and the eager
    loop's memory only of a suite without passes, as it is the same with them.
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


@dataclass
class Turns:
    """What an interleaved run timed: for each turn the steps that count, and memory between."""

    at: list[int] = field(default_factory=list)  # the step of each entry below
    engine: list[float] = field(default_factory=list)
    eager: list[float] = field(default_factory=list)
    turns: list[slice] = field(default_factory=list)
    read: list[float] = field(default_factory=list)  # GB/s, one for each turn
    tokens: list[Any] = field(default_factory=list)  # the eager loop's

    def add(self, at: range, eager: Sequence[float], read: float) -> None:
        if not at:
            return
        self.turns.append(slice(len(self.at), len(self.at) + len(at)))
        self.at += at
        self.eager += eager
        self.read.append(read)

    def medians(self, side: Sequence[float]) -> list[float]:
        return [float(np.median(side[t])) for t in self.turns]


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
            "block": s.block, "warm": s.warm, "settings": SETTINGS,
        }

    # --- speed ---

    def speed(self) -> dict[str, Any]:
        self.warm_up()
        self.say("steps, greedy")
        program = self._short(QUICK) if self.quick else self.engine
        greedy, output = self.interleave(program, 0.0, 0)
        found: dict[str, Any] = {
            "greedy": self._steps(greedy), "tokens": self._tokens(greedy, output),
            "prompt_ms": figure(output.timings["prompt"] * 1e3),
        }
        found["sampled"] = self.sampled()
        if not self.quick:
            found["image"] = visits.images([self], 1 if self.brief else 2)[self.suite.name]
        self.bandwidth.measure(3)
        found["machine"] = {**self.machine, "read_gbps": self.bandwidth.row(),
                            "gemm_gflops": machine.gemm()}
        for name in ("greedy", "sampled"):  # only now is the best reading known
            self.add_floor(found[name])
        found["series"] = {"step": greedy.at, "engine_ms": _ms(greedy.engine),
                           "eager_ms": _ms(greedy.eager)}
        return found

    def warm_up(self) -> None:
        self.say("warming up")
        few = self._short(min(2 * self.suite.block, QUICK), finish=not self.quick)
        self.interleave(few, 0.0, 0, warm=True)

    def sampled(self) -> dict[str, Any]:
        self.say("steps, sampled")
        steps = QUICK if self.quick or self.brief else SAMPLED
        turns, _ = self.interleave(self._short(steps), 1.0, self.suite.top_k)
        return {"top_k": self.suite.top_k, **self._steps(turns)}

    def _short(self, steps: int, finish: bool = False) -> Engine:
        """The engine, stopping after so many steps."""
        cut, p = copy(self.engine), self.engine.program
        cut.program = replace(p, steps=p.steps[:steps], finish=p.finish if finish else ())
        return cut

    def interleave(self, engine: Engine, temperature: float, top_k: int,
                   warm: bool = False) -> tuple[Turns, Any]:
        """One run of the engine that stops every `block` steps for the eager loop's turn."""
        turns, steps = Turns(), len(engine.program.steps)
        if self.eager is not None:
            self.eager.begin(self.cond, self.suite.guidance, temperature, top_k)
        output = engine.generate(self.cond, guidance=self.suite.guidance, temperature=temperature,
                                 top_k=top_k, on_step=self.watch(turns, steps, warm))
        turns.engine = [output.timings["steps"][i] for i in turns.at]
        if warm and self.eager is not None and output.pixels is not None:
            self.eager.finish(_zeros(output.tokens.shape))
        return turns, output

    def watch(self, turns: Turns, steps: int, dry: bool = False) -> Callable[[Progress], None]:
        """What the bench does after each step: nothing, or at the end of a block the eager loop's
        turn and a reading of memory."""
        block, warm = self.suite.block, self.suite.warm

        def on_step(p: Progress) -> None:
            if p.step % block and p.step != steps:
                return
            first = (p.step - 1) // block * block
            time.sleep(PAUSE)
            read = 0.0 if dry else self.bandwidth.measure()
            spent = self._eager_turn(turns, p.step - first)
            turns.add(range(first + warm, p.step), spent[warm:], read)
            time.sleep(PAUSE)

        return on_step

    def _eager_turn(self, turns: Turns, steps: int) -> list[float]:
        if self.eager is None:
            return []
        spent = []
        for _ in range(steps):
            start = time.perf_counter()
            turns.tokens.append(self.eager.step())
            spent.append(time.perf_counter() - start)
        return spent

    def _steps(self, t: Turns) -> dict[str, Any]:
        """Step latency of both sides, tokens a second, and eager / engine pair by pair."""
        found: dict[str, Any] = {"engine": summary(t.engine)}
        committed = self.engine.program.positions / len(self.engine.program.steps)
        each = self.suite.batch * committed
        found["tokens_per_s"] = figure(each / float(np.median(t.engine)))
        turns = zip(t.medians(t.engine), t.read, strict=True)
        caches = t.medians([self.costs[i].cache for i in t.at])
        least = [(self.reads.step, self.reads.step + c) for c in caches]  # bytes
        found["read_pairs"] = [[s * gbps * 1e9 / n for n in both]
                               for (s, gbps), both in zip(turns, least, strict=True)]
        if self.eager is not None:
            found["eager"] = summary(t.eager)
            found["eager_tokens_per_s"] = figure(each / float(np.median(t.eager)))
            found["eager_vs_engine"] = compare(t.medians(t.eager), t.medians(t.engine))
        return found

    def add_floor(self, steps: dict[str, Any]) -> None:
        """Against the time it takes to read a step's weights once, by the best reading so far;
        pair by pair also to read them and what the caches hold at that step."""
        engine, pairs = steps["engine"], steps.pop("read_pairs")
        alone, caches = ([p[i] for p in pairs] for i in range(2))
        floor = self.reads.step / self.bandwidth.best / 1e6  # ms
        steps |= {
            "gbps": figure(self.reads.step / engine["median"] / 1e6),
            "percent_of_read": figure(100 * floor / engine["median"], 3),
            "floor": {"ms": figure(floor), "median_vs_floor": figure(engine["median"] / floor),
                      "min_vs_floor": figure(engine["min"] / floor),
                      "pairs_vs_floor": summary(alone, 1.0),
                      "with_caches": summary(caches, 1.0)},
        }

    def _tokens(self, t: Turns, output: Any) -> dict[str, Any]:
        """Are the greedy tokens of both sides the same, and do the passes promise it?"""
        promised = self.engine.manifest["contract"]["keeps"] in ("values", "distribution")
        if self.eager is None or not output.tokens.size:  # continuous tokens: of other noise
            return {"equal": None, "compared": 0, "promised": promised}
        import torch

        theirs = torch.cat(t.tokens, 1).numpy()
        committed = dict.fromkeys(i for s in self.engine.program.steps for i in s.commit)
        order = [*committed][: theirs.shape[1]]  # cells that are drawn again, once
        differ = (output.tokens[:, order] != theirs).any(0)
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
