"""The performance section of README, from committed rows: `arcompile bench markdown`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arcompile.bench import race
from arcompile.bench.history import newest

Row = Mapping[str, Any]
BEGIN, END = "<!-- bench: written by `arcompile bench markdown` -->", "<!-- /bench -->"


def block(rows: Sequence[Row]) -> str:
    """Between the two marks: the suites against the authors' loops, and the race of the peers."""
    last = newest(rows)
    suites = [r for r in last.values() if "greedy" in r and not r["quick"]]
    races = [r for r in last.values() if r.get("kind") == "peers"]
    parts = [_suites(suites)] if suites else []
    parts += [f"{_said(r)}\n\n{race.markdown(r)}" for r in races]
    return "\n\n".join((BEGIN, *parts, END))


def _said(r: Row) -> str:
    m = r["machine"]
    return (f"`arcompile bench peers`, row of {r['time']}: one decode step of "
            f"{r['suite'].removeprefix('peers-')}, random weights, an image and its twin, by turns "
            f"in one run on {m['cpu']}, {m['threads']} threads, memory read at "
            f"{m['read_gbps']['best']:g} GB/s.")


def _suites(rows: Sequence[Row]) -> str:
    lines = ["| suite (row) | step, ms: engine | eager torch | image, s: engine | eager torch | "
             "peak memory: engine | eager torch |", "|---|---|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: r["suite"]):
        s, e = r["greedy"]["engine"], r["greedy"].get("eager")
        i, mem = r.get("image", {}), r.get("run_memory", {})
        cells = [f"{s['median']:g}", f"{e['median']:g}" if e else "",
                 f"{i['s']['min']:g}" if i else "",
                 f"{i['eager_steps_s'] + i['eager_decoder_s']:.3g}" if "eager_steps_s" in i else "",
                 f"{mem['peak'] / 1e9:.2f} GB" if mem else "",
                 f"{mem['eager_peak'] / 1e9:.2f} GB" if "eager_peak" in mem else ""]
        lines.append(f"| {r['suite']} ({r['time']}) | {' | '.join(cells)} |")
    return "\n".join(lines)
