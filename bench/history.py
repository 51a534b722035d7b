"""Rows against earlier rows, and one engine against another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcompile.bench.spread import SAME, figure
from arcompile.errors import ArcError

Row = Mapping[str, Any]
# What is compared, and where it is in a row; each is better when it is less.
FIGURES = {"step, greedy, ms": "greedy.engine", "step, sampled, ms": "sampled.engine",
           "image, s": "image.s", "one at a time, ms": "scenarios.single_stream_ms",
           "peak memory, MB": "run_memory.peak", "build, s": "build.s",
           "load to first step, s": "load.first_step_s"}


def rows(where: str) -> list[Row]:
    """Of a .jsonl file, or of the results committed at a git revision. Raises ArcError."""
    path = Path(where)
    if path.is_file():
        return [*read(path.read_text(), where)]
    home = Path(__file__).parent / "results"
    try:
        names = _git(home, "ls-tree", "--name-only", where, "./").split()
        return [r for n in names if n.endswith(".jsonl")
                for r in read(_git(home, "show", f"{where}:./{n}"), n)]
    except (OSError, subprocess.CalledProcessError):
        raise ArcError(f"{where} is neither a file of results nor a revision",
                       hint="give a .jsonl file, or a git revision of these sources") from None


def _git(home: Path, *args: str) -> str:
    if any(a.startswith("-") and a != "--name-only" for a in args[1:]):
        raise ArcError(f"not a revision: {args[1]!r}")
    return subprocess.run(["git", "-C", str(home), *args], check=True, capture_output=True,
                          text=True).stdout


def read(text: str, name: str) -> Iterator[Row]:
    for i, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            raise ArcError(f"{name}, line {i}, is not JSON") from None
        if isinstance(row, dict) and "suite" in row:
            yield row


def since(now: Sequence[Row], before: Sequence[Row]) -> list[dict[str, Any]]:
    """The newest row of each suite in both: each figure, then and now."""
    old, found = newest(before), []
    for suite, row in newest(now).items():
        if suite not in old:
            continue
        for name, where in FIGURES.items():
            a, b = _at(old[suite], where), _at(row, where)
            if a is not None and b is not None:
                found.append({"suite": suite, "figure": name, **_change(a, b)})
    return found


def newest(given: Sequence[Row]) -> dict[str, Row]:
    return {r["suite"]: r for r in sorted(given, key=lambda r: str(r.get("time", "")))}


def _at(row: Row, where: str) -> Any:
    got: Any = row
    for part in where.split("."):
        got = got.get(part) if isinstance(got, Mapping) else None
    return got


def _change(a: Any, b: Any) -> dict[str, Any]:
    """Ratio of the medians; of runs apart in time, a difference within both spreads is none."""
    if not isinstance(a, Mapping):
        return {"before": a, "now": b, "ratio": figure(b / a) if a else None,
                "verdict": "measured once"}
    apart = a["p10"] > b["p90"] or b["p10"] > a["p90"]
    verdict = SAME if not apart else "faster" if b["median"] < a["median"] else "slower"
    return {"before": a["median"], "now": b["median"],
            "ratio": figure(b["median"] / a["median"]), "verdict": verdict}


def table(changes: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| suite | figure | before | now | now / before | |", "|---|---|---|---|---|---|"]
    for c in changes:
        lines.append(f"| {c['suite']} | {c['figure']} | {c['before']:g} | {c['now']:g} | "
                     f"{c['ratio'] if c['ratio'] is not None else ''} | {c['verdict']} |")
    return "\n".join(lines)


def against(one: str, other: str, turns: int = 8) -> dict[str, Any]:
    """Two engines by turns in one run: the steps of each, and their ratio. Raises ArcError."""
    from arcompile.bench import race, suites
    from arcompile.bench.machine import Bandwidth
    from arcompile.bench.runner import _needs
    from arcompile.bench.spread import compare, summary
    from arcompile.runtime.engine import load

    _needs()
    sides = {}
    for name, where in ((one, one), (other, other)):
        suite = suites.find(where)
        from arcompile.bench import built

        folder, _ = built.ready(suite, lambda text: None)
        sides[name] = race.Ours(load(folder), suite)
        sides[name].turn(2)
    if len(sides) < 2:
        raise ArcError(f"{one} against itself", hint="name two engines or suites")
    times = race._turns(sides, Bandwidth(), turns, lambda text: None)
    first, second = (race._medians(times[k]) for k in (one, other))
    return {"suite": f"{one} against {other}", "kind": "against",
            "sides": {k: summary([x for t in v for x in t]) for k, v in times.items()},
            "other_vs_one": compare(second, first)}
