"""What `auto` becomes: every method a pass says is worth trying, timed on this machine."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.ceilings import Ceilings, window_of
from arcompile.cost import Cost, Graphs, program_cost
from arcompile.errors import ArcError
from arcompile.passes.auto import Auto
from arcompile.pipeline import PASSES, Pass, run
from arcompile.program import Program
from arcompile.quality import LOSSY, Judge, condition, judged, settings
from arcompile.runtime import request
from arcompile.runtime.engine import Engine
from arcompile.target import TARGETS
from arcompile.walk import walk
from arcompile.weights import Store, Weights

TURNS = 12  # times each method draws at most, by turns with plain decoding; the quickest counts
LONG = 2.0  # seconds after which a method has had its turns
WARM = 3  # rounds of the first run, which only loads
GAIN = 1.05  # what a method must win to be worth its memory
NONE = "none"


@dataclass
class Tried:
    """One method. seconds: to draw `batch` images, without the decoder; forwards: for an image.

    gain: over plain decoding beside it; predicted: the same by what plain steps of more images
    take, for methods with windows (`ceilings`), and by bytes for others.
    """

    passes: tuple[Pass, ...]
    keeps: str = ""
    seconds: float = 0.0
    forwards: float = 0.0
    gain: float = 1.0
    predicted: float = 0.0
    score: float | None = None
    refused: str = ""
    cost: Cost = field(default_factory=Cost)
    window: int = 0
    drafting: int = 0  # bytes that a second model moves, over all rounds
    engine: Engine | None = None

    @property
    def name(self) -> str:
        return ", ".join(map(str, self.passes)) or NONE

    def data(self) -> dict[str, Any]:
        if self.refused:
            return {"method": self.name, "refused": self.refused}
        found = {"method": self.name, "keeps": self.keeps, "seconds": round(self.seconds, 4),
                 "forwards": round(self.forwards, 2), "gain": round(self.gain, 3),
                 "predicted": round(self.predicted, 3)}
        return found if self.score is None else {**found, "score": round(self.score, 4)}


@dataclass(frozen=True)
class Bench:
    """What candidates are made from and measured with."""

    plain: Program  # before any pass
    source: Weights
    facts: Mapping[str, Any]  # of the manifest
    folder: Path  # an empty one for engines
    judge: Judge | None = None
    pictures: int = 0


def decide(passes: Sequence[Pass], bench: Bench,
           progress: Callable[[str, float], None] = lambda stage, share: None
           ) -> tuple[list[Pass], dict[str, Any]]:
    """The passes with `auto` replaced by what it chose, and the table it chose from.

    Raises ArcError when `auto` cannot choose: no request can be made up, or a share of quality is
    asked where there is no judge.
    """
    at = next(i for i, p in enumerate(passes) if isinstance(p, Auto))
    auto = passes[at]
    assert isinstance(auto, Auto)
    before, after = [*passes[:at]], [*passes[at + 1:]]
    share = auto.share()
    if share < 1 and bench.judge is None:
        raise ArcError(f"auto cannot tell a quality of {share:g}: nothing judges these pictures",
                       hint="give quality=exact; the shipped demos have a judge")
    tried = [*_measured(before, after, auto, share, bench, progress)]
    predict(tried, auto.batch)
    best = _best(tried, share, lambda t: _score(t, before, after, bench),
                 lambda t: _again(tried[0], t, auto.batch))
    found = {"quality": auto.quality, "batch": auto.batch, "chosen": best.name,
             "tried": [t.data() for t in tried]}
    return [*before, *best.passes, *after], found


def methods(share: float) -> Iterator[Pass]:
    """What passes say is worth trying: those that keep the law, and others when they may."""
    for cls in PASSES.all().values():
        if share < 1 or cls.keeps not in LOSSY:
            yield from (cls(**options) for options in cls.tries)


def _measured(before: list[Pass], after: list[Pass], auto: Auto, share: float, bench: Bench,
              progress: Callable[[str, float], None]) -> Iterator[Tried]:
    base = _engine([*before, *after], bench)
    cond = condition(base, count=auto.batch)
    plain = Tried((), "values", engine=base, forwards=float(len(base.program.steps)),
                  cost=program_cost(base.program, auto.batch).total)
    timed(base, cond, auto.batch, stop=WARM)
    plain.seconds = timed(base, cond, auto.batch)[0]
    yield plain
    every = [*methods(share)]
    for i, p in enumerate(every):
        progress("auto", i / len(every))
        try:
            e = _engine([*before, p, *after], bench)
        except ArcError as why:
            yield Tried((p,), refused=why.what)
            continue
        yield _beside(base, Tried((p,), p.keeps, engine=e), cond, auto.batch)
    progress("auto", 1.0)


def _beside(base: Engine, t: Tried, cond: Any, batch: int) -> Tried:
    """By turns with plain decoding, so that a machine that slows down slows both."""
    e = t.engine
    assert e is not None
    timed(e, cond, batch, stop=WARM)
    mine, theirs, rounds = [], [], []
    for turn in range(TURNS):
        theirs.append(timed(base, cond, batch, turn)[0])
        seconds, forwards = timed(e, cond, batch, turn)
        mine.append(seconds)
        rounds.append(forwards)
        if sum(mine) + sum(theirs) > LONG:
            break
    t.seconds, t.forwards = min(mine), float(np.mean(rounds))
    t.gain = min(theirs) / t.seconds
    e.__dict__.pop("models", None)  # its memory
    p = e.program
    committed = p.positions / max(t.forwards, 1) if p.accept == "prefix" else 1.0
    whole = program_cost(p, batch, committed=committed)
    t.cost, t.window, t.drafting = whole.total, window_of(p), drafted_bytes(p, batch, committed)
    return t


def drafted_bytes(p: Program, batch: int, committed: float) -> int:
    """Bytes of all runs of a window's steps that are not those of its widest graph."""
    runs = [r for turn in walk(p, batch, True, committed) for r in turn.runs
            if turn.name.isdigit() and p.steps[int(turn.name)].window > 1]
    each, total = Graphs(), dict[str, int]()
    for r in runs:
        total[r.graph.name] = total.get(r.graph.name, 0) + each.cost(r).bytes
    return sum(total.values()) - max(total.values(), default=0)


def _engine(passes: Sequence[Pass], bench: Bench) -> Engine:
    """Lowered to a folder of its own, to be run."""
    source = bench.source.plus({k: v for p in passes for k, v in p.brings().load.items()})
    p = run(bench.plain, passes, source)
    where = Path(tempfile.mkdtemp(dir=bench.folder))
    TARGETS[bench.facts["target"]].lower(p, Store(source, p.fold), where, lambda stage, part: None)
    return Engine(where, bench.facts, p, (), 0)


def timed(e: Engine, cond: Any, batch: int, turn: int = 0, stop: int = 0) -> tuple[float, float]:
    """(seconds until all is drawn, forwards an image) of one request; without the decoder."""
    s, seeds = settings(e), [turn * batch + i for i in range(batch)]
    q = request.make(e, cond, seeds, 1, s["guidance"], None, s["temperature"], s["top_k"],
                     s["top_p"], {})
    count = itertools.count(1)
    out = e._loop(q).run((lambda _: next(count) < stop) if stop else None, finish=False)
    spent = out.timings["prompt"] + out.timings["loop"]
    rounds = float((out.rounds > 0).sum(0).mean()) if len(out.rounds) else 0.0
    return spent, rounds or float(len(e.program.steps))


# --- the choice ----------------------------------------------------------------------------------


def predict(tried: Sequence[Tried], batch: int = 1,
            ceilings: Callable[[int, int], float] | None = None) -> None:
    """Gains by the cost model. Fills in `predicted`.

    A round of a window takes as many plain steps as `ceilings` (window, batch) says, by default
    measured with the plain engine, and what drafting and verifying take beside, which the
    narrowest window of each method tells: that one is no prediction. A second model goes by the
    bytes it moves, as does what has no windows.
    """
    plain = tried[0]
    assert ceilings or plain.engine
    told = ceilings or Ceilings(plain.engine).steps  # type: ignore[arg-type]
    each = max(plain.cost.bytes / max(plain.forwards, 1), 1)
    beside: dict[str, float] = {}
    for t in sorted((t for t in tried if not t.refused), key=lambda t: t.window):
        steps = t.cost.bytes / each
        if t.window:
            rounds = t.forwards * told(t.window, batch) + t.drafting / each
            took = plain.forwards / t.gain
            own = beside.setdefault(t.passes[0].name, (took - rounds) / t.forwards)
            steps = rounds + t.forwards * own
        t.predicted = plain.forwards / max(steps, 1e-12)


def _again(plain: Tried, t: Tried, batch: int) -> float:
    """The gain of a second measurement: the best of many was lucky, too."""
    assert plain.engine is not None
    cond = condition(plain.engine, count=batch)
    return _beside(plain.engine, replace(t), cond, batch).gain


def _best(tried: Sequence[Tried], share: float, score: Callable[[Tried], float],
          again: Callable[[Tried], float]) -> Tried:
    """The quickest that gains, and does so again, and keeps enough; scores are looked at from the
    quickest on."""
    plain = tried[0]
    if share < 1:
        plain.score = score(plain)
    for t in sorted((t for t in tried[1:] if t.gain >= GAIN), key=lambda t: -t.gain):
        t.gain = min(t.gain, again(t))
        if t.gain < GAIN:
            continue
        if t.keeps in LOSSY:
            t.score = score(t)
            if t.score < share * (plain.score or 0.0):
                continue
        return t
    return plain


def _score(t: Tried, before: list[Pass], after: list[Pass], bench: Bench) -> float:
    assert bench.judge is not None
    e = _engine([*before, *t.passes, *after], bench)
    return float(judged(e, bench.judge, bench.pictures)["both"])


def chosen(passes: Sequence[Pass], bench: Bench,
           progress: Callable[[str, float], None] = lambda stage, share: None
           ) -> tuple[list[Pass], dict[str, Any] | None]:
    """`decide` where there is something to decide."""
    if not any(isinstance(p, Auto) for p in passes):
        return [*passes], None
    with tempfile.TemporaryDirectory(dir=bench.folder.parent) as scratch:
        return decide(passes, replace(bench, folder=Path(scratch)), progress)


# --- for people ----------------------------------------------------------------------------------


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each method, under a row of titles; the chosen one has a mark."""
    table: list[tuple[str, ...]] = [
        ("tried", "", "keeps", "forwards", "s", "gain", "predicted", "judge")]
    for t in found["tried"]:
        mark = "*" if t["method"] == found["chosen"] else ""
        if "refused" in t:
            table.append((t["method"], mark, "refused: " + t["refused"], "", "", "", "", ""))
            continue
        score = "" if "score" not in t else f"{t['score']:.3f}"
        table.append((t["method"], mark, t["keeps"], f"{t['forwards']:.1f}",
                      f"{t['seconds']:.3g}", f"{t['gain']:.2f}x", f"{t['predicted']:.2f}x", score))
    return table
