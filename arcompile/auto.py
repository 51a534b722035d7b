"""What `auto` becomes: every method a pass says is worth trying, timed on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.ceilings import PLAIN, Ceilings, Drawn, by_turns, drawn, spent, window_of
from arcompile.errors import ArcError
from arcompile.passes.auto import Auto
from arcompile.pipeline import PASSES, Pass, run
from arcompile.program import Program
from arcompile.quality import LOSSY, Judge, judged
from arcompile.runtime.engine import Engine
from arcompile.target import TARGETS
from arcompile.weights import Store, Weights

LONG = 4.0  # seconds after which a method and its parts have had their turns
WARM = 3  # rounds of a run that only loads
MINE = "the method"
GAIN = 1.05  # what a method must win to be worth its memory
NONE = "none"


@dataclass
class Tried:
    """One method. seconds: to draw `batch` images, without the decoder; beside: the same by plain
    decoding, by turns with it; forwards: for an image; rounds: of the slowest image.

    gain: beside over seconds; predicted: the same by parts, by turns with the method, of methods
    that draw in windows (`ceilings`; None of others, and where a pass behind refuses those parts).
    """

    passes: tuple[Pass, ...]
    keeps: str = ""
    seconds: float = 0.0
    beside: float = 0.0
    forwards: float = 0.0
    rounds: float = 0.0
    gain: float = 1.0
    predicted: float | None = None
    score: float | None = None
    refused: str = ""
    window: int = 0
    engine: Engine | None = None

    @property
    def name(self) -> str:
        return ", ".join(map(str, self.passes)) or NONE

    def data(self) -> dict[str, Any]:
        if self.refused:
            return {"method": self.name, "refused": self.refused}
        found = {"method": self.name, "keeps": self.keeps, "seconds": round(self.seconds, 4),
                 "beside": round(self.beside, 4), "forwards": round(self.forwards, 2),
                 "gain": round(self.gain, 3),
                 "predicted": self.predicted and round(self.predicted, 3)}
        return found if self.score is None else {**found, "score": round(self.score, 4)}


@dataclass(frozen=True)
class Bench:
    """What candidates are made from and measured with."""

    plain: Program  # before the passes that are to be tried
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
    before, behind = [*passes[:at]], [*passes[at + 1:]]
    share = auto.share()
    if share < 1 and bench.judge is None:
        raise ArcError(f"auto cannot tell a quality of {share:g}: nothing judges these pictures",
                       hint="give quality=exact; the shipped demos have a judge")
    ready = after(bench, before)
    told = Ceilings(
        ready.plain, lambda p, more: engine([*more, *behind], replace(ready, plain=p)), auto.batch)
    tried = [*_measured(behind, auto, share, ready, told, progress)]
    best = _best(tried, share, lambda t: _score(t, behind, ready),
                 lambda t: _again(tried[0], t, told))
    found = {"quality": auto.quality, "batch": auto.batch, "chosen": best.name,
             "tried": [t.data() for t in tried]}
    return [*before, *best.passes, *behind], found


def after(bench: Bench, passes: Sequence[Pass]) -> Bench:
    """The bench of the program that these passes make."""
    source = bench.source.plus({k: v for p in passes for k, v in p.brings().load.items()})
    return replace(bench, plain=run(bench.plain, passes, source), source=source)


def methods(share: float, p: Program) -> Iterator[Pass]:
    """What passes say is worth trying: those that keep the law, and others when they may."""
    for cls in PASSES.all().values():
        if share < 1 or cls.keeps not in LOSSY:
            yield from cls.worth(p)


def _measured(behind: list[Pass], auto: Auto, share: float, bench: Bench, told: Ceilings,
              progress: Callable[[str, float], None]) -> Iterator[Tried]:
    """Plain decoding, whose seconds are those of all turns, and every method beside it."""
    base = engine(behind, bench)
    plain = Tried((), "values", engine=base, forwards=float(len(base.program.steps)))
    every, tried = [*methods(share, bench.plain)], [plain]
    for i, p in enumerate(every):
        progress("auto", i / len(every))
        try:
            e = engine([p, *behind], bench)
        except ArcError as why:
            tried.append(Tried((p,), refused=why.what))
            continue
        tried.append(_beside(base, Tried((p,), p.keeps, engine=e), told))
    progress("auto", 1.0)
    turns = [t.beside for t in tried if t.beside]
    if not turns:
        runs = by_turns({PLAIN: base}, _one(auto.batch), LONG)[PLAIN]
        turns = [min(r.seconds for r in runs)]
    plain.seconds = plain.beside = float(np.median(turns))
    yield from tried


def _beside(base: Engine, t: Tried, told: Ceilings) -> Tried:
    """By turns with plain decoding and with what its prediction is made of. Each turn has other
    seeds, of which some take fewer rounds: the quickest round and the mean of rounds count."""
    assert t.engine is not None
    p = t.engine.program
    t.window = window_of(p)
    parts = _parts(t, told)
    runs = by_turns({PLAIN: base, MINE: t.engine, **parts}, _one(told.batch), LONG)
    mine = runs.pop(MINE)
    t.forwards, t.rounds = (float(np.mean([getattr(m, k) for m in mine]))
                            for k in ("forwards", "rounds"))
    t.seconds = min(m.seconds / m.rounds for m in mine) * t.rounds
    t.beside = min(r.seconds for r in runs[PLAIN])
    t.gain = t.beside / t.seconds
    if parts:
        took = {k: spent([r.steps for r in found]) for k, found in runs.items()}
        t.predicted = (took[PLAIN].total(len(base.program.steps))
                       / told.round(t.passes[0], took).total(t.rounds))
    return t


def _parts(t: Tried, told: Ceilings) -> Mapping[str, Engine]:
    """None where a method has no windows, or a pass behind refuses: it wants caches, say."""
    try:
        return told.parts(t.passes[0]) if t.window else {}
    except ArcError:
        return {}


def _one(batch: int) -> Callable[[Engine, int | None], Drawn]:
    return lambda e, turn: drawn(e, batch, *((0, WARM) if turn is None else (turn,)))


def engine(passes: Sequence[Pass], bench: Bench, whole: bool = False) -> Engine:
    """Lowered to a folder of its own, to be run; what follows the loop only if it is `whole`."""
    made = after(bench, passes)
    if not whole:
        p = made.plain
        called = {c.graph for calls in (p.prompt, *(s.calls for s in p.steps)) for c in calls}
        made = replace(made, plain=replace(p, finish=(), preview=(), graphs=tuple(
            g for g in p.graphs if g.name in called)))
    where = Path(tempfile.mkdtemp(dir=bench.folder))
    TARGETS[bench.facts["target"]].lower(made.plain, Store(made.source, made.plain.fold), where,
                                         lambda stage, part: None)
    return Engine(where, bench.facts, made.plain, (), 0)


# --- the choice ----------------------------------------------------------------------------------


def _again(plain: Tried, t: Tried, told: Ceilings) -> float:
    """The gain of a second measurement: the best of many was lucky, too."""
    assert plain.engine is not None
    return _beside(plain.engine, replace(t), told).gain


def _best(tried: Sequence[Tried], share: float, score: Callable[[Tried], float],
          again: Callable[[Tried], float]) -> Tried:
    """The quickest that gains, and does so again, and keeps enough. Measured again, and judged, are
    those that come first only."""
    plain = tried[0]
    if share < 1:
        plain.score = score(plain)
    left, sure = [*tried[1:]], set[str]()
    while left:
        t = max(left, key=lambda t: t.gain)
        if t.refused or t.gain < GAIN:
            break
        if t.name not in sure:
            t.gain = min(t.gain, again(t))
            sure.add(t.name)
            continue
        left.remove(t)
        if t.keeps in LOSSY:
            t.score = score(t)
            if t.score < share * (plain.score or 0.0):
                continue
        return t
    return plain


def _score(t: Tried, behind: list[Pass], bench: Bench) -> float:
    assert bench.judge is not None
    e = engine([*t.passes, *behind], bench, whole=True)
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
    """A row for each method that was timed, under a row of titles; the chosen one has a mark."""
    table: list[tuple[str, ...]] = [
        ("tried", "", "keeps", "forwards", "s", "plain s", "gain", "predicted", "judge")]
    for t in found["tried"]:
        mark = "*" if t["method"] == found["chosen"] else ""
        if "refused" in t:
            continue
        predicted = "" if t["predicted"] is None else f"{t['predicted']:.2f}x"
        score = "" if "score" not in t else f"{t['score']:.3f}"
        table.append((t["method"], mark, t["keeps"], f"{t['forwards']:.1f}",
                      f"{t['seconds']:.3g}", f"{t.get('beside', 0):.3g}",
                      f"{t['gain']:.2f}x", predicted, score))
    return table


def notes(found: Mapping[str, Any]) -> list[str]:
    """A line for each reason why methods refused the program, most of all its family."""
    why: dict[str, dict[str, None]] = {}
    for t in found["tried"]:
        if "refused" in t:
            name = t["method"].partition("{")[0]
            why.setdefault(t["refused"].removeprefix(f"pass {name} "), {})[name] = None
    return [f"not tried: {', '.join(names)}: {reason}" for reason, names in why.items()]
