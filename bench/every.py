"""All that README's figures are of, as one run: `arcompile bench all`.

Each part is a process of its own: one that fails or hangs ends no other, and none inherits what
another left in memory. Everything is visited several times, minutes apart, so that the span which
a run prints holds what minutes change on the machine. All rows carry the run's name; the last, of
kind "all", says what ran, how long, and what lay in the cache before.

`python -m arcompile.bench.every WHAT` is one part.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import arcompile
from arcompile.bench import built, machine, race, suites, sweeps, visits
from arcompile.bench.peers import UNABLE
from arcompile.errors import ArcError

Say = Callable[[str], None]
Row = dict[str, Any]
LONGEST = 900.0  # seconds of a part
KEPT = ("sides", "missing", "points", "axis", "quick", "time", "host")  # of a visit
TURNS = 2  # rounds of a race, each visit


@dataclass(frozen=True)
class Part:
    """what: as `arcompile bench` has it, or visits.models(). again: a later visit."""

    what: str
    again: bool = False

    def __str__(self) -> str:
        return self.what + (", again" if self.again else "")


def parts() -> list[Part]:
    """Four visits to each suite, three to each race, two to each sweep, spread over the run."""
    races, swept = [f"peers-{name}" for name in race.SUITES], suites.ALL_SWEEPS
    half = -(-len(suites.ALL) // 2)
    again = [Part(x, True) for x in visits.models()]
    return [*map(Part, (*suites.ALL[:half], *races)), *again,
            *map(Part, (*suites.ALL[half:], *swept)), *(Part(x, True) for x in races), *again,
            *(Part(x, True) for x in (*swept, *races)), *again]


@dataclass(frozen=True)
class Told:
    """What a part's process printed: its rows, exit code, and why it failed."""

    rows: Sequence[Row]
    code: int
    why: str = ""


def ask(part: Part, quick: bool, peers: str, longest: float = LONGEST) -> Told:
    """Run one part in a new process."""
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command(part, quick, peers), stdout=subprocess.PIPE,
                                 stderr=said, text=True, start_new_session=True)
        try:
            text, _ = child.communicate(timeout=longest)
        except subprocess.TimeoutExpired:
            return Told((), 1, f"took over {longest:g} s")
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        return read(text, child.returncode, _tail(said))


def command(part: Part, quick: bool, peers: str) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "arcompile.bench.every", part.what, "--peers",
            peers, *(["--again"] if part.again else []), *(["--quick"] if quick else [])]


def rows(part: Part, quick: bool, peers: str) -> list[Row]:
    """What a part's process measures. Raises ArcError."""
    from arcompile.bench import peers as known
    from arcompile.bench import runner
    from arcompile.cache import cache

    def say(text: str) -> None:
        print(f"{time.perf_counter():.1f} {text}", file=sys.stderr, flush=True)

    if part.what.startswith("peers-"):
        name = part.what.removeprefix("peers-")
        home = cache() / "bench" / "peers" / name
        row = race.race(suites.find(name), known.find(peers), home, say, TURNS)
        return [{**row, "quick": quick}]
    if part.what in sweeps.SWEEPS:
        sweep = sweeps.SWEEPS[part.what]
        fewer = replace(sweep, visits=max(1, sweep.visits // 2))
        return [{**sweeps.measure(fewer, say, quick), "quick": quick}]
    if part.again:
        return visits.visit(part.what, say)
    return [runner.measure(suites.find(part.what), quick=quick, say=say, brief=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", default="all")
    told = parser.parse_args()
    try:
        found = rows(Part(told.what, told.again), told.quick, told.peers)
    except ArcError as e:
        print(json.dumps({"error": e.what}))
        return 2
    for row in found:
        print(json.dumps(row))
    return max(int(_unequal(r)) for r in found)


def _unequal(row: Row) -> bool:
    tokens = row.get("tokens", {})
    return tokens.get("equal") is False and bool(tokens.get("promised", True))


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
    with _stoppable():
        return _measure(keep, quick, peers, say, ask)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does, so that the part's process ends with this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*x: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    was = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, was)


def _measure(keep: Callable[[Row], None], quick: bool, peers: str, say: Say,
             ask: Callable[..., Told]) -> int:
    began, start = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    was, cached, todo, done = machine.facts(), _cached(), parts(), list[Row]()
    code, lost = built.code(), dict[str, str]()
    for i, part in enumerate(todo, 1):
        say(f"{_clock(start)} {i}/{len(todo)} {part}")
        at = time.perf_counter()
        told = ask(part, quick, peers)
        for row in told.rows:
            keep({**(_visit(row) if part.again else row), "run": began})
            lost |= _lost(row)
        done.append({"what": part.what, "again": part.again, "code": told.code,
                     "s": round(time.perf_counter() - at, 1), "rows": len(told.rows),
                     **({"why": told.why} if told.why else {})})
        say(f"{_clock(start)} {i}/{len(todo)} {part}: {done[-1]['s']:g} s"
            + (f"; FAILED: {told.why}" if told.code else ""))
    spent, bad = time.perf_counter() - start, [str(x["what"]) for x in done if x["code"]]
    keep({"suite": "all", "kind": "all", "run": began, "host": machine.host(), "quick": quick,
          "time": datetime.now(UTC).isoformat(timespec="seconds"), "s": round(spent, 1),
          "arcompile": arcompile.__version__, "code": code, "lost": lost,
          "complete": not bad and not lost and peers == "all", "cached": cached,
          "parts": done, "machine": was})
    say(f"{_clock(start)} all: {spent / 60:.1f} minutes; "
        + (f"failed: {', '.join(bad)}" if bad else "every part ended well")
        + "".join(f"; without {name}: {why}" for name, why in lost.items())
        + "; no whole run for want of them" * bool(lost))
    return max(int(x["code"]) for x in done)


def _lost(row: Row) -> dict[str, str]:
    """Of a race: the sides that could have been there, and why they were not."""
    unable = UNABLE.get(str(row.get("family")), {})
    return {k: why for k, why in row.get("missing", {}).items() if k not in unable}


def _visit(row: Mapping[str, Any]) -> Row:
    """A later visit's row; those of visits.visit are so already."""
    if row.get("kind") == "again":
        return dict(row)
    return {"suite": f"again-{row['suite']}", "kind": "again", "of": row["suite"],
            **{k: row[k] for k in KEPT if k in row},
            "machine": {k: row["machine"].get(k) for k in ("read_gbps", "gemm_gflops",
                                                           "load_before")}}


def _cached() -> dict[str, list[str]]:
    """What was not made in the run: engines, and what the peers keep."""
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


if __name__ == "__main__":
    sys.exit(main())
