"""The performance section of README, from committed rows: `arcompile bench markdown`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from arcompile.bench import race
from arcompile.bench.history import newest

Row = Mapping[str, Any]
BEGIN, END = "<!-- bench: written by `arcompile bench markdown` -->", "<!-- /bench -->"


def block(rows: Sequence[Row]) -> str:
    """Between the two marks: the suites against the authors' loops, whole images of long loops,
    what more images cost, and the race of the peers."""
    last = newest(rows)
    suites = [r for r in last.values() if "greedy" in r and not r["quick"]]
    races = [r for r in last.values() if r.get("kind") == "peers"]
    parts = [_suites(suites)] if suites else []
    parts += [_images(long)] if (long := [r for r in last.values() if _is_long(r)]) else []
    parts += [_sweeps(lines)] if (lines := [r for r in last.values() if "line" in r]) else []
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


def _is_long(r: Row) -> bool:
    return r.get("kind") == "images" or (r.get("kind") == "stages" and "eager" in r["s"])


def _images(rows: Sequence[Row]) -> str:
    lines = ["Loops of a minute and more, random weights, by turns with eager torch in one run:",
             "", "| model (row) | engine, s | eager torch, s | eager / engine |",
             "|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: str(r["suite"])):
        for name, ours, theirs in _long(r):
            lines.append(f"| {name} ({r['time']}) | {ours:.3g} | {theirs:.3g} | "
                         f"{theirs / ours:.3g}x |")
    return "\n".join(lines)


def _long(r: Row) -> Iterator[tuple[str, float, float]]:
    """(what, seconds of the engine, of the eager loop)"""
    if r["kind"] == "images":
        theirs = r["best"]["eager"]["s"]
        yield from ((f"{name}, image", x["s"], theirs) for name, x in r["best"].items()
                    if name != "eager")
    else:
        whole = r["whole_loop_s"]
        yield (f"{r['suite'].removeprefix('stages-')}, loop, by {len(r['steps'])} of its "
               f"{r['of']} steps", *(max(whole[side].values()) for side in ("engine", "eager")))


def _sweeps(rows: Sequence[Row]) -> str:
    lines = ["What more images at once cost (seconds; `arcompile bench sweeps`):", ""]
    for r in sorted(rows, key=lambda r: str(r["suite"])):
        x = r["line"]
        lines.append(f"- {r['points'][0]['suite']}, batch {r['points'][0]['batch']} to "
                     f"{r['points'][-1]['batch']} ({r['time']}): {x['start_s']:g} + "
                     f"{x['each_s']:g} x batch, every point within {100 * x['off']:.3g} % of it")
    return "\n".join(lines)
