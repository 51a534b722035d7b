"""The performance section of README, from committed rows: `arcompile bench markdown`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from arcompile.bench import race, runs
from arcompile.bench.history import newest
from arcompile.bench.spread import SAME, figure

Row = Mapping[str, Any]
Figures = Mapping[tuple[str, str], runs.Figure]
BEGIN, END = "<!-- bench: written by `arcompile bench markdown` -->", "<!-- /bench -->"


def block(rows: Sequence[Row]) -> str:
    """Between the two marks: the newest whole run of `bench all`, then rows of their own.

    Before there is such a run, the newest row of each kind.
    """
    last, whole = newest(rows), runs.complete(rows)
    if not whole:
        return "\n\n".join((BEGIN, *_tables(last.values(), {}), *_apart(last.values()), END))
    run = whole[-1]
    own = [*run.rows.values()]
    rest = [r for r in last.values() if r.get("run") != run.name and r["suite"] not in run.rows]
    figures = runs.figures(run, _before(run, rows))
    return "\n\n".join((BEGIN, _run(run, rows), *_tables(own, figures),
                        *_apart(rest), END))


def _tables(rows: Iterable[Row], figures: Figures) -> Iterator[str]:
    """What `bench all` measures."""
    rows = list(rows)
    if suites := [r for r in rows if "greedy" in r and not r["quick"]]:
        yield _suites(suites, figures)
    if lines := [r for r in rows if "line" in r]:
        yield _sweeps(lines)
    for r in rows:
        if r.get("kind") == "peers":
            seen = bool(figures) and (r["suite"], "arcompile-f32, ms") in figures
            yield f"{_said(r)}\n\n" + (race.markdown(_over(r, figures), "mean (span)") if seen
                                       else race.markdown(r))


def _apart(rows: Iterable[Row]) -> Iterator[str]:
    """What takes too long for it: rows of other commands and days."""
    if long := [r for r in rows if _is_long(r)]:
        yield _images(long)


def _run(run: runs.Run, rows: Sequence[Row]) -> str:
    """What ran, how long, where; and whether the run before says the same."""
    told, m = run.told, run.told["machine"]
    said = (f"Run {run.name} of `arcompile bench all`: {len(told['parts'])} parts in "
            f"{told['s'] / 60:.1f} minutes on {m['cpu']}, {m['threads']} threads; its rows carry "
            f"this name as `run`. {len(told['cached']['engines'])} engines were built before, and "
            "`build` of their rows says how long that took. A figure is the geometric mean over "
            "visits in processes of their own, minutes apart; the span beside it is where another "
            f"run says it is, 9 times of 10, {_by(run, rows)} (docs/reliability.md).")
    checked = [r for r in newest(rows).values() if r.get("kind") == "agree-runs"
               and run.name in (r["one"], r["two"]) and not r["quick"]]
    for r in checked:
        other = r["one"] if r["two"] == run.name else r["two"]
        c = r["counts"]
        said += f" Against run {other}: {agreed(c)} (`agree.jsonl`, row of {r['time']})."
    return said


def _by(run: runs.Run, rows: Sequence[Row]) -> str:
    n = len(_before(run, rows))
    return (f"by what this run's visits and those of {n} earlier run{'s' * (n > 1)} tell" if n else
            "by what this run's own visits tell")


def _before(run: runs.Run, rows: Sequence[Row]) -> list[runs.Run]:
    return runs.before(run, runs.complete(rows, run.told["quick"]))


def agreed(c: Row) -> str:
    """runs.counts() in a sentence."""
    r, t = c["ratios"], c["times"]
    if "means" not in r:  # of a row before spans were of the next run
        return (f"spreads overlap for {r['agree']} of {r['of']} ratios and {t['agree']} of "
                f"{t['of']} times")
    return (f"of ratios {r['inside']} of {r['means']} and of times {t['inside']} of {t['means']} "
            f"means lie in the other run's span, {100 * c['inside']:.3g} % where 90 are promised"
            f"{_foretold(c)}; "
            f"spans overlap for {r['agree'] + t['agree']} of {r['of'] + t['of']} figures; half a "
            f"span is {100 * r['width']:.3g} % of a ratio and {100 * t['width']:.3g} % of a time, "
            "in the median")


def _foretold(c: Row) -> str:
    """Of rows since spans are of more runs than one."""
    return (f" (of the later run's in the span that the earlier one printed before, "
            f"{100 * c['foretold']:.3g} %)" if "foretold" in c else "")


def _over(r: Row, figures: Figures) -> Row:
    """The race with the figures of all its visits."""
    sides = {}
    for name, x in r["sides"].items():
        step = figures[r["suite"], f"{name}, ms"]
        ratio = figures.get((r["suite"], f"{name} / arcompile-f32"))
        sides[name] = {**x, "step": _span(step), "vs_arcompile": {
            **x["vs_arcompile"], **(_span(ratio) if ratio else {})}}
        if ratio:
            sides[name]["vs_arcompile"]["verdict"] = (
                SAME if ratio.low <= 1 <= ratio.high else "slower" if ratio.low > 1 else "faster")
    return {**r, "sides": sides}


def _span(f: runs.Figure) -> dict[str, float]:
    return {"median": figure(f.mean), "p10": figure(f.low), "p90": figure(f.high)}


def _said(r: Row) -> str:
    m = r["machine"]
    return (f"`arcompile bench peers`, row of {r['time']}: one decode step of "
            f"{r['suite'].removeprefix('peers-')}, random weights, an image and its twin, by turns "
            f"in one run on {m['cpu']}, {m['threads']} threads, memory read at "
            f"{m['read_gbps']['best']:g} GB/s.")


def _suites(rows: Sequence[Row], figures: Figures) -> str:
    lines = ["| suite (row) | step, ms: engine | eager torch | image, s: engine | eager torch | "
             "peak memory: engine | eager torch |", "|---|---|---|---|---|---|---|"]
    for r in sorted(rows, key=lambda r: r["suite"]):
        s, e = r["greedy"]["engine"], r["greedy"].get("eager")
        i, mem = r.get("image", {}), r.get("run_memory", {})
        cells = [_step(r, "step, greedy, ms", s, figures),
                 _step(r, "eager step, greedy, ms", e, figures) if e else "",
                 _step(r, "image, s", i["s"], figures) if i else "",
                 _step(r, "eager image, s", i["eager_s"], figures) if "eager_s" in i else
                 f"{i['eager_steps_s'] + i['eager_decoder_s']:.3g}" if "eager_steps_s" in i else "",
                 f"{mem['peak'] / 1e9:.2f} GB" if mem else "",
                 f"{mem['eager_peak'] / 1e9:.2f} GB" if "eager_peak" in mem else ""]
        lines.append(f"| {r['suite']} ({r['time']}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _step(r: Row, name: str, s: Row, figures: Figures) -> str:
    """With its spread, where the row is of a run."""
    return str(figures[r["suite"], name]) if (r["suite"], name) in figures else f"{s['median']:g}"


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
