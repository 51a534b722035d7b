"""Whole runs of `arcompile bench all` in a file of rows, and the figures of one.

A figure is the geometric mean over a run's visits, and the span beside it is where another run of
the same machine says it is 9 times of 10 (`spread.interval`), by what this run and the earlier ones
in the file know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np

from arcompile.bench import spread
from arcompile.bench.spread import INSIDE

Row = Mapping[str, Any]
Key = tuple[str, str]  # suite, name of the figure
AT_ONCE = timedelta(minutes=10)
# Where rows of a suite have their figures, and whether both sides of a run's own machine are in
# it. Greedy steps are those of whole images, which every visit draws.
SUITE = {
    "step, greedy, ms": ("image.step", False), "step, sampled, ms": ("sampled.engine", False),
    "eager step, greedy, ms": ("image.eager_step", False),
    "eager step, sampled, ms": ("sampled.eager", False),
    "eager / engine, greedy": ("image.step_pairs", True),
    "eager / engine, sampled": ("sampled.eager_vs_engine", True),
    "step / floor, greedy": ("image.floor_pairs", True),
    "step / floor, sampled": ("sampled.floor.pairs_vs_floor", True),
    "image, s": ("image.s", False), "eager image, s": ("image.eager_s", False),
    "image, eager / engine": ("image.eager_pairs", True),
    "peak memory, bytes": ("run_memory.peak", False),
    "load to first step, s": ("load.first_step_s", False),
}


@dataclass(frozen=True)
class Run:
    """told: the row of kind "all". rows: by suite, what else the run measured. again: the rows
    of later visits, by the suite they are of."""

    told: Row
    rows: Mapping[str, Row]
    again: Mapping[str, Sequence[Row]]

    @property
    def name(self) -> str:
        return str(self.told["run"])


@dataclass(frozen=True)
class Figure:
    """mean: geometric, of the visits' medians. low, high: where another run says it is; the mean
    itself where it was measured once. ratio: of two things measured side by side, so that a slower
    hour of the machine is in both."""

    mean: float
    low: float
    high: float
    visits: int
    ratio: bool

    @property
    def width(self) -> float:
        """Half the span, of the mean."""
        return (self.high - self.low) / 2 / self.mean

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (
            "" if self.visits < 2 else f" ({self.low:.4g} to {self.high:.4g})")

    def has(self, other: Figure) -> bool:
        return self.low <= other.mean <= self.high


def complete(rows: Sequence[Row], quick: bool = False) -> list[Run]:
    """The runs of which every part ended well, oldest first."""
    found = []
    for told in sorted((r for r in rows if r.get("kind") == "all"), key=lambda r: str(r["run"])):
        if told["complete"] and told["quick"] == quick:
            own = [r for r in rows if r.get("run") == told["run"] and r is not told]
            again: dict[str, list[Row]] = {}
            for r in own:
                if r.get("kind") == "again":
                    again.setdefault(str(r["of"]), []).append(r)
            found.append(Run(told, {str(r["suite"]): r for r in own
                                    if r.get("kind") != "again"}, again))
    return found


def before(run: Run, found: Sequence[Run]) -> list[Run]:
    """The runs of the same machine that a run may learn from, oldest first: only earlier ones, so
    that where the next one's figures lie tests what this one says."""
    return [r for r in found if r.name < run.name
            and all(r.told.get(k) == run.told.get(k) for k in ("host", "quick"))]


def figures(run: Run, earlier: Sequence[Run] = ()) -> dict[Key, Figure]:
    """Every figure of a run by what it is of and its name; `earlier` runs (`before`) tell how much
    visits differ, and runs (`spread.interval`)."""
    seen, visits = [visited(r) for r in (*earlier, run)], visited(run)
    own = {key: spread.own([s[key] for s in seen if key in s])
           for key in dict.fromkeys(k for s in seen for k in s)}
    prior = spread.shared([*own.values()])
    known = {key: spread.joined(x, prior) for key, x in own.items() if x.freedom}
    drift = spread.drift((seen[i][key], seen[i + 1][key], known[key])
                         for i in _pairs([*earlier, run])
                         for key in seen[i] if key in seen[i + 1] and key in known)
    ratios = {(s, name): r for s, row in run.rows.items() for name, _, r in _places(row)}
    return {key: Figure(*(spread.interval(x, known[key], drift) if len(x) > 1 else x * 3), len(x),
                        ratios[key]) for key, x in visits.items()}


def visited(run: Run) -> dict[Key, list[float]]:
    """The median of every visit to every figure."""
    found = {}
    for suite, row in run.rows.items():
        for name, where, _ in _places(row):
            medians = [_median(at(r, where)) for r in (row, *run.again.get(suite, ()))]
            if held := [m for m in medians if m is not None]:
                found[suite, name] = held
    return found


def _pairs(found: Sequence[Run]) -> list[int]:
    """Which run and the next measured the same code, so that what differs is the machine's."""
    return [i for i, (one, two) in enumerate(pairwise(found)) if _same(one.told, two.told)]


def _same(one: Row, two: Row) -> bool:
    """By the digest of the code; rows of before there was one, by how soon the next run began."""
    if "code" in one and "code" in two:
        return bool(one["code"] == two["code"])
    ended, began = (datetime.fromisoformat(x) for x in (one["time"], two["run"]))
    return began - ended < AT_ONCE


def _median(got: Any) -> float | None:
    """Of the turns of a visit, or what was measured once."""
    return got["median"] if isinstance(got, Mapping) else got


def _places(row: Row) -> Iterator[tuple[str, str, bool]]:
    if row.get("kind") == "peers":
        for side in row["sides"]:
            yield f"{side}, ms", f"sides/{side}/step", False
            if side != "arcompile-f32":
                yield f"{side} / arcompile-f32", f"sides/{side}/vs_arcompile", True
    elif row.get("kind") == "sweep":
        for i, p in enumerate(row["points"]):
            yield (f"{row['axis']} {p[row['axis']]}, s",
                   f"points/{i}/{'visits' if 'visits' in p else 's'}", False)
    else:
        yield from ((name, where.replace(".", "/"), r) for name, (where, r) in SUITE.items())


def at(row: Row, where: str) -> Any:
    """What lies at a path of names and numbers; None where it ends early."""
    got: Any = row
    for part in where.split("/"):
        if isinstance(got, Mapping):
            got = got.get(part)
        elif isinstance(got, Sequence) and int(part) < len(got):
            got = got[int(part)]
        else:
            return None
    return got


def compare(one: Run, two: Run, earlier: Sequence[Run] = ()) -> list[dict[str, Any]]:
    """Each figure that both runs have, `two` the later, with the spans of what each could know.
    inside: of the two means, how many lie in the span that the other run prints, of which 9 in 10
    should. foretold: the later mean is in the earlier span. agree: the spans overlap."""
    a, b = figures(one, earlier), figures(two, (*earlier, one))
    found = []
    for key in [k for k in a if k in b]:
        x, y = a[key], b[key]
        line: dict[str, Any] = {
            "suite": key[0], "figure": key[1], "ratio": x.ratio, "one": str(x), "two": str(y),
            "two_vs_one": round(y.mean / x.mean, 4) if x.mean else None}
        if min(x.visits, y.visits) > 1:
            line |= {"agree": x.low <= y.high and y.low <= x.high, "inside": x.has(y) + y.has(x),
                     "foretold": x.has(y),
                     "width": spread.figure(max(x.width, y.width), 3)}
        found.append(line)
    return found


def counts(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many agree, of ratios and of times; what was measured once has no span to agree in."""
    spans = [x for x in lines if "agree" in x]
    found: dict[str, Any] = {}
    for name, some in (("ratios", [x for x in spans if x["ratio"]]),
                       ("times", [x for x in spans if not x["ratio"]])):
        found[name] = {"of": len(some), "agree": sum(x["agree"] for x in some),
                       "means": 2 * len(some), "inside": sum(x["inside"] for x in some),
                       "width": spread.figure(float(np.median([x["width"] for x in some] or [0])),
                                              3)}
    means = sum(found[k]["means"] for k in found)
    foretold = sum(x["foretold"] for x in spans) / max(1, len(spans))
    found["inside"] = spread.figure(sum(found[k]["inside"] for k in ("ratios", "times"))
                                    / max(1, means), 3)
    found["foretold"] = spread.figure(foretold, 3)
    found["agree"] = found["inside"] >= INSIDE
    once = [abs(x["two_vs_one"] - 1) for x in lines if "agree" not in x and x["two_vs_one"]]
    found["once"] = {"of": len(once), "within_2_percent": sum(x <= 0.02 for x in once)}
    return found


def markdown(lines: Sequence[Mapping[str, Any]], one: Run, two: Run) -> str:
    said = [f"| of | figure | run {one.name} | run {two.name} | two / one | |",
            "|---|---|---|---|---|---|"]
    for x in lines:
        verdict = ("measured once" if "agree" not in x else "DIFFERENT" if not x["agree"]
                   else ("spans overlap", "one in the other's span", "agree")[x["inside"]])
        said.append(f"| {x['suite']} | {x['figure']} | {x['one']} | {x['two']} | "
                    f"{x['two_vs_one']} | {verdict} |")
    return "\n".join(said)
