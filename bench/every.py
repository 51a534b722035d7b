"""All that README's figures are of, as one run: `arcompile bench all`.

Each part is a process of its own: one that fails or hangs ends no other, and none inherits what
another left in memory. Suites and races are visited twice, the second time for a few steps at the
end, so that the spread which a run prints holds what minutes change on the machine. All rows carry
the run's name; the last, of kind "all", says what ran, how long, and what lay in the cache before.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import arcompile
from arcompile.bench import built, machine, race, suites

Say = Callable[[str], None]
Row = dict[str, Any]
LONGEST = 900.0  # seconds of a part
KEPT = ("greedy", "sampled", "tokens", "sides", "missing", "quick", "time", "host")  # of a visit


@dataclass(frozen=True)
class Part:
    """what: as `arcompile bench` has it. again: the second visit, a few steps."""

    what: str
    again: bool = False

    def __str__(self) -> str:
        return self.what + (", again" if self.again else "")


def parts() -> list[Part]:
    visited = [*suites.ALL, *(f"peers-{name}" for name in race.SUITES)]
    return [*(Part(x) for x in (*visited, *suites.ALL_SWEEPS)), *(Part(x, True) for x in visited)]


@dataclass(frozen=True)
class Told:
    """What a part's process printed: its rows, exit code, and why it failed."""

    rows: Sequence[Row]
    code: int
    why: str = ""


def ask(part: Part, quick: bool, peers: str, longest: float = LONGEST) -> Told:
    """Run one part in a new process."""
    args = [sys.executable, "-W", "ignore", "-m", "arcompile", "bench", part.what, "--json",
            *(["--quick"] if quick or part.again else []), "--peers", peers]
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=said, text=True,
                                 start_new_session=True)
        try:
            text, _ = child.communicate(timeout=longest)
        except subprocess.TimeoutExpired:
            return Told((), 1, f"took over {longest:g} s")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return read(text, child.returncode, _tail(said))


def read(text: str, code: int, said: str = "") -> Told:
    """Rows are lines of JSON with a suite; an error is an object of its own."""
    rows = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "suite" in found:
            rows.append(found)
    if rows:
        return Told(rows, code, "other tokens than the eager loop's" if code else "")
    try:
        why = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        why = said or f"exit code {code}, and no row"
    return Told((), code or 1, why)


def _tail(said: IO[str]) -> str:
    said.seek(0)
    return (said.read().strip().splitlines() or [""])[-1][:300]


def measure(keep: Callable[[Row], None], quick: bool = False, peers: str = "all",
            say: Say = lambda text: None, ask: Callable[..., Told] = ask) -> int:
    """Every part, whatever becomes of the others; the worst exit code."""
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    was, cached, todo, done = machine.facts(), _cached(), parts(), list[Row]()
    for i, part in enumerate(todo, 1):
        say(f"{_clock(start)} {i}/{len(todo)} {part}")
        at = time.perf_counter()
        told = ask(part, quick, peers)
        for row in told.rows:
            keep({**(_visit(row, part) if part.again else row), "run": began})
        done.append({"what": part.what, "again": part.again, "code": told.code,
                     "s": round(time.perf_counter() - at, 1), "rows": len(told.rows),
                     **({"why": told.why} if told.why else {})})
        say(f"{_clock(start)} {i}/{len(todo)} {part}: {done[-1]['s']:g} s"
            + (f"; FAILED: {told.why}" if told.code else ""))
    spent, bad = time.perf_counter() - start, [str(x["what"]) for x in done if x["code"]]
    keep({"suite": "all", "kind": "all", "run": began, "host": machine.host(), "quick": quick,
          "time": datetime.now(UTC).isoformat(timespec="seconds"), "s": round(spent, 1),
          "arcompile": arcompile.__version__, "complete": not bad and peers == "all",
          "cached": cached, "parts": done, "machine": was})
    say(f"{_clock(start)} all: {spent / 60:.1f} minutes; "
        + (f"failed: {', '.join(bad)}" if bad else "every part ended well"))
    return max(int(x["code"]) for x in done)


def _visit(row: Mapping[str, Any], part: Part) -> Row:
    return {"suite": f"again-{row['suite']}", "kind": "again", "of": row["suite"],
            **{k: row[k] for k in KEPT if k in row},
            "machine": {k: row["machine"].get(k) for k in ("read_gbps", "gemm_gflops",
                                                           "load_before")}}


def _cached() -> dict[str, list[str]]:
    """What was not made in the run: engines, and what the peers keep."""
    from arcompile.bench import sweeps
    from arcompile.cache import cache

    names = dict.fromkeys((*suites.ALL, *(f"{s}{p and '-' + p}" for s in race.SUITES
                                          for p in race.OURS),
                           *(s for x in suites.ALL_SWEEPS for s in sweeps.SWEEPS[x].suites)))
    home = cache() / "bench" / "peers"
    return {"engines": [n for n in names if n in suites.SUITES and built.kept(suites.SUITES[n])],
            "peers": sorted(f"{p.parent.name}/{p.name}" for p in home.glob("*/*")
                            if any(p.iterdir()))}


def _clock(start: float) -> str:
    s = int(time.perf_counter() - start)
    return f"[{s // 60:2}:{s % 60:02}]"


def default_out() -> Path:
    """Where the rows of half an hour go when nobody says."""
    return Path(f"bench-{machine.host()}.jsonl")
