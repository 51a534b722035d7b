"""What the bench adds to what it measures: `python -m arcompile.bench.overhead demo`, a row in
results/agree.jsonl.

None of its code runs while an engine draws: steps are timed by the engine's own clock. What is left
is what the turns of other sides leave behind, in caches, in clocks and in sleeping threads. So a
turn as the bench counts it, behind steps of the eager loop, a reading of memory and pauses, is
compared with the two that the engine draws right behind it, alone (their geometric mean): the
nearer in time, the less of what the machine does from second to second is between them.

- `greedy`, `sampled`: the median step of whole images, as suites have it; `loop`: seconds of all
  steps, of which the first are slower.
- `rested`: the median step of whole greedy images behind the others, against one behind as long a
  pause, in an order drawn anew for every pair: what the turns of others add to a picture that was
  asked for by itself. A picture right behind another is quicker than either.
- `race`: of the steps of a turn that the race of the peers counts.
- `injected`: `race` with a wait of a given share of a step in each step behind the others: a
  measure that cannot see 5 % may not say 2.
- `images`: seconds of whole pictures behind a reading of memory, and behind a pause alone, by turns
  in an order drawn anew for every pair.

The ratio of a part is the median over its pairs, its interval a bootstrap over them (95 %, Efron
1979).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np

from arcompile.bench import agree, built, fresh, machine, race, runner, suites, visits
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import figure
from arcompile.bench.suites import Suite
from arcompile.runtime.engine import Engine, load

LIMIT, INJECTED = 1.02, 0.05
DRAWS = 2000  # of the bootstrap
OTHERS = 0.3  # seconds of the eager loop's steps
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


def against_next(turns: Sequence[Sequence[float]]) -> dict[str, Any]:
    """paired() of what was measured and the two behind it."""
    first, *alone = np.asarray(turns, float).T
    return paired(first, np.exp(np.mean(np.log(alone), 0)))


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


class Slowed:
    """An engine's models, each run of which takes a little longer."""

    def __init__(self, models: Any, seconds: float):
        self.of, self.seconds = models, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.of, name)

    def runner(self) -> Any:
        made = self.of.runner()
        run = made.run

        def slower(*args: Any) -> Any:
            end = time.perf_counter() + self.seconds
            while time.perf_counter() < end:
                pass
            return run(*args)

        made.run = slower
        return made


class Compared:
    """A suite's engine behind others' turns, and alone."""

    def __init__(self, suite: Suite):
        self.suite, self.engine = suite, load(built.ready(suite, print)[0])
        self.bench = runner.Bench(suite, self.engine, False,
                                  lambda text: None)
        self.bench.warm_up()

    def others(self) -> None:
        """What the machine did before a side's turn: steps of the eager loop, and reading."""
        b = self.bench
        if b.eager is not None:
            b.eager.begin(b.cond, self.suite.guidance, 0.0, 0)
            end = time.perf_counter() + OTHERS
            for _ in self.engine.program.steps:
                b.eager.step()
                if time.perf_counter() > end:
                    break
            time.sleep(PAUSE)
        b.bandwidth.measure()

    def whole(self, seconds: float, sampled: bool) -> dict[str, Any]:
        engine = runner.short(self.engine)
        return {"steps": len(engine.program.steps),
                **self._behind(engine, engine, sampled, seconds)}

    def rested(self, seconds: float) -> dict[str, Any]:
        engine = runner.short(self.engine)
        start = time.perf_counter()
        self.others()
        pause = time.perf_counter() - start

        def drawn(before: Callable[[], object]) -> Callable[[], float]:
            def one() -> float:
                before()
                return float(np.median(visits.counted(self._image(engine, False))))

            return one

        return {"pause_s": figure(pause),
                **by_turns(drawn(self.others), drawn(lambda: time.sleep(pause)), seconds)}

    def race(self, seconds: float, share: float = 0.0) -> dict[str, Any]:
        """share: of a step, what each takes longer behind the others."""
        engine = runner.short(self.engine, race.STEPS)
        slow = copy(engine)
        if share:
            step = float(np.median(self._image(engine, True)))
            calls = len(engine.program.steps[-1].calls)
            slow.__dict__["models"] = Slowed(engine.models, share * step / calls)
        return {"steps": race.STEPS - race.WARM, "left_out": race.WARM,
                **self._behind(slow, engine, True, seconds)}

    def _behind(self, measured: Engine, alone: Engine, sampled: bool,
                seconds: float) -> dict[str, Any]:
        """Turns behind others, each against the two behind it."""
        turns, end = list[list[list[float]]](), time.perf_counter() + seconds
        while time.perf_counter() < end or len(turns) < 2:
            self.others()
            turns.append([self._image(e, sampled) for e in (measured, alone, alone)])
        steps = [[float(np.median(visits.counted(x))) for x in t] for t in turns]
        loops = [[sum(x) for x in t] for t in turns]
        return {**against_next(steps), "loop": against_next(loops)}

    def _image(self, engine: Engine, sampled: bool) -> list[float]:
        """Seconds of each step."""
        how = {"temperature": 1.0, "top_k": self.suite.top_k} if sampled else {"temperature": 0}
        out = engine.generate(self.bench.cond, guidance=self.suite.guidance, **how)
        return list(out.timings["steps"])

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


PARTS: dict[str, Callable[[Compared, float], dict[str, Any]]] = {
    "greedy": lambda c, s: c.whole(s, False),
    "sampled": lambda c, s: c.whole(s, True),
    "rested": lambda c, s: c.rested(s),
    "race": lambda c, s: c.race(s),
    "injected": lambda c, s: c.race(s, INJECTED),
    "images": lambda c, s: c.images(s),
    "memory": lambda c, s: c.memory(),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="?", default="demo")
    parser.add_argument("--parts", help=f"with commas; {', '.join(PARTS)}: all")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a part")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    suite = suites.find(told.suite)
    compared, load_before = Compared(suite), machine.load()
    parts = told.parts.split(",") if told.parts else [*PARTS]
    found = {name: PARTS[name](compared, told.seconds) for name in parts}
    row = {"suite": f"overhead-{suite.name}", "kind": "overhead", "pause_s": PAUSE,
           "others_s": OTHERS, "limit": LIMIT, "injected_share": INJECTED,
           "load_before": load_before, "parts": found}
    agree.keep(row, told.dry)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
