"""Whole runs of `arcompile bench all` in a file of rows, and the figures of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
# Where a row of a suite has its figures, and whether both sides of a run's own machine are in it.
SUITE = {
    "step, greedy, ms": ("greedy.engine", False), "step, sampled, ms": ("sampled.engine", False),
    "eager step, greedy, ms": ("greedy.eager", False),
    "eager step, sampled, ms": ("sampled.eager", False),
    "eager / engine, greedy": ("greedy.eager_vs_engine", True),
    "eager / engine, sampled": ("sampled.eager_vs_engine", True),
    "step / floor, greedy": ("greedy.floor.pairs_vs_floor", True),
    "step / floor, sampled": ("sampled.floor.pairs_vs_floor", True),
    "image, s": ("image.s", False), "image, eager / engine": ("image.eager_pairs", True),
    "peak memory, bytes": ("run_memory.peak", False),
    "load to first step, s": ("load.first_step_s", False),
}


@dataclass(frozen=True)
class Run:
    """told: the row of kind "all". rows: by suite, the others of the run."""

    told: Row
    rows: Mapping[str, Row]

    @property
    def name(self) -> str:
        return str(self.told["run"])


@dataclass(frozen=True)
class Figure:
    """low, high: p10 and p90 over every visit; None where it was measured once. ratio: of two
    things measured side by side, so that a slower hour of the machine is in both."""

    median: float
    low: float | None
    high: float | None
    n: int
    ratio: bool

    def __str__(self) -> str:
        return f"{self.median:.4g}" + (
            "" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})")


def complete(rows: Sequence[Row], quick: bool = False) -> list[Run]:
    """The runs of which every part ended well, oldest first."""
    found = []
    for told in sorted((r for r in rows if r.get("kind") == "all"), key=lambda r: str(r["run"])):
        if told["complete"] and told["quick"] == quick:
            own = {str(r["suite"]): r for r in rows
                   if r.get("run") == told["run"] and r is not told}
            found.append(Run(told, own))
    return found


def figures(run: Run) -> dict[tuple[str, str], Figure]:
    """Every figure of a run by what it is of and its name."""
    found = {}
    for suite, row in run.rows.items():
        if row.get("kind") == "again":
            continue
        again = run.rows.get(f"again-{suite}", {})
        for name, where, ratio in _places(row):
            if (seen := _figure([at(row, where), at(again, where)], ratio)) is not None:
                found[suite, name] = seen
    return found


def _places(row: Row) -> Iterator[tuple[str, str, bool]]:
    if row.get("kind") == "peers":
        for side in row["sides"]:
            yield f"{side}, ms", f"sides/{side}/step", False
            if side != "arcompile-f32":
                yield f"{side} / arcompile-f32", f"sides/{side}/vs_arcompile", True
    elif row.get("kind") == "sweep":
        for i, p in enumerate(row["points"]):
            yield f"{row['axis']} {p[row['axis']]}, s", f"points/{i}/visits", False
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


def _figure(seen: Sequence[Any], ratio: bool) -> Figure | None:
    """The first visit's median, the spread of all visits."""
    held = [x for x in seen if x is not None]
    if not held:
        return None
    if not isinstance(held[0], Mapping):
        return Figure(float(held[0]), None, None, 1, ratio)
    spreads = [x for x in held if isinstance(x, Mapping) and x["n"]]
    if not spreads:
        return None
    return Figure(spreads[0]["median"], min(x["p10"] for x in spreads),
                  max(x["p90"] for x in spreads), sum(x["n"] for x in spreads), ratio)


def compare(one: Run, two: Run) -> list[dict[str, Any]]:
    """Each figure that both runs have. agree: their spreads overlap. inside: the stricter one,
    each median lies in the spread that the other run prints."""
    a, b = figures(one), figures(two)
    found = []
    for key in [k for k in a if k in b]:
        x, y = a[key], b[key]
        line: dict[str, Any] = {
            "suite": key[0], "figure": key[1], "ratio": x.ratio, "one": str(x), "two": str(y),
            "two_vs_one": round(y.median / x.median, 4) if x.median else None}
        if x.low is not None and y.low is not None:
            assert x.high is not None
            assert y.high is not None
            line["agree"] = x.low <= y.high and y.low <= x.high
            line["inside"] = x.low <= y.median <= x.high and y.low <= x.median <= y.high
        found.append(line)
    return found


def counts(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many agree, of ratios and of times; what was measured once has no spread to agree in."""
    spread = [x for x in lines if "agree" in x]
    found: dict[str, Any] = {}
    for name, some in (("ratios", [x for x in spread if x["ratio"]]),
                       ("times", [x for x in spread if not x["ratio"]])):
        found[name] = {"of": len(some), "agree": sum(x["agree"] for x in some),
                       "inside": sum(x["inside"] for x in some)}
    once = [abs(x["two_vs_one"] - 1) for x in lines if "agree" not in x and x["two_vs_one"]]
    found["once"] = {"of": len(once), "within_2_percent": sum(x <= 0.02 for x in once)}
    return found


def markdown(lines: Sequence[Mapping[str, Any]], one: Run, two: Run) -> str:
    said = [f"| of | figure | run {one.name} | run {two.name} | two / one | |",
            "|---|---|---|---|---|---|"]
    for x in lines:
        verdict = ("measured once" if "agree" not in x else "DIFFERENT" if not x["agree"]
                   else "agree" if x["inside"] else "spreads overlap")
        said.append(f"| {x['suite']} | {x['figure']} | {x['one']} | {x['two']} | "
                    f"{x['two_vs_one']} | {verdict} |")
    return "\n".join(said)
