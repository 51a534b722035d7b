"""What the bench adds to what it measures: `python -m arcompile.bench.overhead demo`, a row in
results/agree.jsonl.

Two things are compared by turns, in an order drawn anew for every pair, so that whatever the
machine does from second to second is in both:

- `steps`: loops of a few steps by nobody's clock but ours, with the bench's watch on every step
  and without. What the bench's own code costs.
- `turns`: blocks of steps of one long loop, each after what the bench does between blocks (pauses,
  a reading of memory) or straight after the block before. What being interrupted makes of the
  steps that count. The eager loop's turn is left out: what it leaves in the caches is part of every
  comparison with it.

The ratio of a part is the median over its pairs, its interval a bootstrap over them (95 %, Efron
1979). `injected` repeats `steps` with a wait of a given share of a step on the watched side: a
measure that cannot see 5 % may not say 2.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arcompile.bench import agree, built, fresh, machine, race, runner, suites
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import figure
from arcompile.bench.suites import Suite
from arcompile.runtime.engine import load
from arcompile.runtime.loop import OnStep, Progress

LIMIT, INJECTED = 1.02, 0.05
DRAWS = 2000  # of the bootstrap
BARE = """
import sys
sys.modules.update({"torch": None, "onnx": None})
import arcompile, json
engine = arcompile.load(sys.argv[1])
cond = json.loads(sys.argv[3])
for _ in range(2):
    engine.generate(cond, guidance=float(sys.argv[2]), temperature=0)
held = dict(x.split(":", 1) for x in open("/proc/self/status") if x.startswith("VmHWM"))
print(int(held["VmHWM"].split()[0]) << 10)
"""


def paired(measured: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    """The median of measured / bare over the pairs, and its interval of 95 %."""
    logs = np.log(np.asarray(measured, float) / np.asarray(bare, float))
    draw = np.random.default_rng(0)
    medians = [np.median(logs[draw.integers(0, len(logs), len(logs))]) for _ in range(DRAWS)]
    low, high = np.exp(np.percentile(medians, (2.5, 97.5)))
    p10, p90 = np.exp(np.percentile(logs, (10, 90)))
    return {"pairs": len(logs), "ratio": figure(float(np.exp(np.median(logs)))),
            "low": figure(low), "high": figure(high), "p10": figure(p10), "p90": figure(p90),
            "within_limit": bool(high <= LIMIT)}


def by_turns(measured: Callable[[], float], bare: Callable[[], float],
             seconds: float) -> dict[str, Any]:
    """Pairs of the two for so long, which goes first drawn anew each time."""
    draw, end = np.random.default_rng(1), time.perf_counter() + seconds
    found: tuple[list[float], list[float]] = ([], [])
    sides: tuple[Callable[[], float], ...] = (measured, bare)
    while time.perf_counter() < end or len(found[0]) < 2:
        for i in draw.permutation(2):
            found[i].append(sides[i]())
    return paired(*found)


class Watched:
    """A suite's loop as the bench runs it, and as nobody watches it."""

    def __init__(self, suite: Suite):
        self.suite, self.engine = suite, load(built.ready(suite, print)[0])
        self.bench = runner.Bench(replace(suite, alone=True), self.engine, True,
                                   lambda text: None)

    def loop(self, steps: int, on_step: OnStep | None) -> float:
        """Seconds of the steps of one short loop, by a clock around it; its prompt taken off."""
        short = self.bench._short(steps)
        start = time.perf_counter()
        out = short.generate(self.bench.cond, guidance=self.suite.guidance, temperature=0,
                             top_k=0, on_step=on_step)
        return time.perf_counter() - start - float(out.timings["prompt"])

    def steps(self, seconds: float, share: float = 0.0) -> dict[str, Any]:
        """With the bench's watch and without; share: of a step, what its watch waits besides."""
        count = self.suite.block - 1  # no block ends
        watch = self.bench.watch(runner.Turns(), len(self.engine.program.steps))
        least = min(self.loop(count, None) for _ in range(5)) / count

        def waits(p: Progress) -> None:
            end = time.perf_counter() + share * least
            while time.perf_counter() < end:
                pass
            watch(p)

        on_step = waits if share else watch
        return {"steps": count, **by_turns(lambda: self.loop(count, on_step),
                                           lambda: self.loop(count, None), seconds)}

    def turns(self, seconds: float) -> dict[str, Any]:
        """Blocks that begin as the bench begins them, and blocks that just go on."""
        end, draw = time.perf_counter() + seconds, np.random.default_rng(1)
        found: tuple[list[float], list[float]] = ([], [])
        while time.perf_counter() < end or len(found[0]) < 2:
            self._blocks(draw, found)
        return {"steps": self.suite.block - self.suite.warm, **paired(*found)}

    def _blocks(self, draw: np.random.Generator, found: tuple[list[float], list[float]]) -> None:
        """One whole loop: its first block is nobody's, then two by two in an order drawn anew."""
        block, steps = self.suite.block, len(self.engine.program.steps)
        watch = self.bench.watch(runner.Turns(), steps)
        order = np.concatenate([draw.permutation(2) for _ in range((steps // block - 1) // 2)])

        def on_step(p: Progress) -> None:
            if p.step % block == 0 and p.step // block <= len(order) and (
                    order[p.step // block - 1] == 0):
                watch(p)

        out = self.engine.generate(self.bench.cond, guidance=self.suite.guidance, temperature=0,
                                   top_k=0, on_step=on_step)
        for i, side in enumerate(order, 1):
            spent = out.timings["steps"][i * block + self.suite.warm : (i + 1) * block]
            found[side].append(float(np.median(spent)))

    def race(self, pictures: int) -> dict[str, Any]:
        """A step as the race of the peers sees it, against the engine's own clock of that step."""
        ours, seen, own = race.Ours(self.engine, self.suite), list[float](), list[float]()
        for _ in range(pictures):
            ours.begin(0)
            outer = []
            for _ in self.engine.program.steps:
                start = time.perf_counter()
                ours.step()
                outer.append(time.perf_counter() - start)
            ours.end()
            seen += outer[1:]
            own += ours.spent[1:]
        return paired(seen, own)

    def images(self, seconds: float) -> dict[str, Any]:
        """Whole pictures after a pause: with a reading of memory in it, as the bench draws them,
        and without. `in_a_row`: one right behind another, against one after a pause; what differs
        there is the engine's own, whose threads go on spinning."""
        def drawn(before: Callable[[], object]) -> Callable[[], float]:
            def one() -> float:
                before()
                start = time.perf_counter()
                self.engine.generate(self.bench.cond, guidance=self.suite.guidance, temperature=0)
                return time.perf_counter() - start

            return one

        rested = drawn(lambda: time.sleep(2 * PAUSE))
        second = drawn(drawn(lambda: None))
        return {**by_turns(drawn(self.bench.bandwidth.measure), rested, seconds),
                "in_a_row": by_turns(second, rested, seconds / 2)}

    def processor(self, calls: int = 100_000) -> dict[str, Any]:
        """Nanoseconds of processor time: of the bench's watch of a step, and of a step."""
        watch = self.bench.watch(runner.Turns(), 0)
        p = Progress(1, 2, np.zeros((1, 1), np.int64), lambda: None)  # type: ignore[arg-type,return-value]
        start = time.process_time()
        for _ in range(calls):
            watch(p)
        own = (time.process_time() - start) / calls
        count = self.suite.block - 1
        start = time.process_time()
        for _ in range(10):
            self.loop(count, None)
        step = (time.process_time() - start) / 10 / count
        return {"watch_ns": figure(own * 1e9), "step_ns": figure(step * 1e9),
                "share": figure(own / step)}

    def memory(self, turns: int = 3) -> dict[str, Any]:
        """Peak of the fresh process that the bench reports, and of one without the bench."""
        s, folder = self.suite, str(self.engine.folder)
        found: tuple[list[float], list[float]] = ([], [])
        for _ in range(turns):
            found[0].append(fresh.run("generate", folder, str(s.batch), str(s.guidance))["peak"])
            made = subprocess.run([sys.executable, "-c", BARE, folder, str(s.guidance),
                                   json.dumps(self.bench.cond)], capture_output=True, text=True,
                                  check=True)
            found[1].append(int(made.stdout))
        return {"bytes": [max(found[0]), max(found[1])], **paired(*found)}


PARTS: dict[str, Callable[[Watched, float], dict[str, Any]]] = {
    "steps": lambda w, s: w.steps(s),
    "injected": lambda w, s: w.steps(s, INJECTED),
    "turns": lambda w, s: w.turns(3 * s),
    "race": lambda w, s: w.race(2),
    "images": lambda w, s: w.images(s),
    "processor": lambda w, s: w.processor(),
    "memory": lambda w, s: w.memory(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="demo")
    parser.add_argument("--parts", help="with commas; all, and `race` of what is raced")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a part; of turns 3 x it")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    suite = suites.find(told.suite)
    watched, load_before = Watched(suite), machine.load()
    raced = any(suite.name.startswith(name) for name in race.SUITES)
    parts = told.parts.split(",") if told.parts else [p for p in PARTS if p != "race" or raced]
    found = {name: PARTS[name](watched, told.seconds) for name in parts}
    row = {"suite": f"overhead-{suite.name}", "kind": "overhead", "pause_s": PAUSE,
           "block": suite.block, "limit": LIMIT, "injected_share": INJECTED,
           "load_before": load_before, "parts": found}
    agree.keep(row, told.dry)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
