"""Whole runs: every part in a process of its own, what a run prints, and whether two agree."""

from __future__ import annotations

import json

import pytest

from arcompile import bench
from arcompile.bench import agree, every, race, readme, runs, spread, suites, sweeps
from arcompile.bench.every import Part, Told
from arcompile.errors import ArcError

MACHINE = {"cpu": "c", "threads": 2, "read_gbps": {"best": 9.0}}


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch):
    monkeypatch.setattr(every, "_cached", lambda: {"engines": ["demo"], "peers": []})


def around(x, by=0.1):
    return {"n": 9, "median": x, "min": x * (1 - by), "p10": x * (1 - by), "p90": x * (1 + by)}


def suite_row(name, step=10.0, time="2026-01-01T00:00:01"):
    return {"suite": name, "time": time, "quick": False, "host": "h", "machine": MACHINE,
            "greedy": {"engine": around(step), "eager": around(40.0),
                       "eager_vs_engine": around(40 / step)},
            "sampled": {"engine": around(step)}, "tokens": {"equal": True},
            "run_memory": {"peak": 1000}, "image": {"s": around(1.0), "images_per_s": 1.0}}


def measured(name, step=10.0):
    """What the process of a part might print."""
    if name.startswith("peers"):
        sides = {k: {"step": around(x), "says": k,
                     "vs_arcompile": {**around(x / 10), "verdict": "faster"}}
                 for k, x in (("arcompile-f32", 10.0), ("peer", 20.0))}
        return {**suite_row(name), "kind": "peers", "sides": sides, "missing": {}}
    if name.startswith("sweep"):
        points = [{"suite": "s", "batch": b, "s": 1.0 * b, "visits": around(1.0 * b)}
                  for b in (1, 2)]
        return {"suite": name, "kind": "sweep", "axis": "batch", "time": "2026", "host": "h",
                "points": points, "machine": MACHINE,
                "line": {"start_s": 0, "each_s": 1, "off": 0.01}}
    return suite_row(name, step)


def run_of(kept, run, step=10.0, failing=""):
    """One run of stand-ins into `kept`; its exit code."""
    def ask(part, quick, peers):
        if part.what == failing:
            return Told((), 1, "why it failed")
        return Told((measured(part.what, step * (1.3 if part.again else 1)),), 0)

    at = len(kept)
    code = every.measure(kept.append, ask=ask)
    for r in kept[at:]:  # runs of the same second would be one
        r["run"] = run
    return code


def test_every_part_of_the_lists_is_known():
    names = [p.what for p in every.parts() if not p.again]
    assert names == [*suites.ALL, *(f"peers-{n}" for n in race.SUITES), *suites.ALL_SWEEPS]
    assert set(suites.ALL) | set(race.SUITES) <= set(suites.SUITES)
    assert set(suites.ALL_SWEEPS) <= set(sweeps.SWEEPS)
    again = [p.what for p in every.parts() if p.again]
    assert again == [n for n in names if not n.startswith("sweep")]


def test_a_failing_part_ends_no_other():
    kept, said = [], []

    def ask(part, quick, peers):
        bad = part.what == "demo" and not part.again
        return Told((), 2, "killed") if bad else Told((measured(part.what),), 0)

    assert every.measure(kept.append, say=said.append, ask=ask) == 2
    *rows, told = kept
    assert len(rows) == len(every.parts()) - 1
    assert not told["complete"]
    assert [p["what"] for p in told["parts"] if p["code"]] == ["demo"]
    assert "FAILED: killed" in "".join(said)
    assert {r["run"] for r in kept} == {told["run"]}


def test_a_run_without_all_peers_is_not_complete():
    kept = []
    every.measure(kept.append, peers="torch-f32", ask=lambda p, q, w: Told((measured(p.what),), 0))
    assert kept[-1]["complete"] is False


@pytest.mark.parametrize(("text", "code", "rows", "why"), [
    ('{"suite": "a"}\nnoise\n{"suite": "b"}\n', 0, 2, ""),
    ('{"suite": "a"}', 1, 1, "other tokens than the eager loop's"),
    ('{"error": "no suite", "hint": ""}', 1, 0, "no suite"),
    ("", -9, 0, "the last line"),
])
def test_what_a_process_printed(text, code, rows, why):
    told = every.read(text, code, "the last line")
    assert (len(told.rows), told.why) == (rows, why)
    assert told.code == code


def test_nothing_printed_is_no_success():
    assert every.read("", 0).code == 1


def test_a_real_process_that_fails_and_one_that_hangs():
    told = every.ask(Part("no-such-suite"), True, "all")
    assert told.code
    assert "no suite or engine named 'no-such-suite'" in told.why
    told = every.ask(Part("list"), True, "all", longest=0.01)
    assert told == Told((), 1, "took over 0.01 s")


def test_spread_is_over_both_visits():
    kept = []
    assert run_of(kept, "r1") == 0
    (run,) = runs.complete(kept)
    step = runs.figures(run)["demo", "step, greedy, ms"]
    assert (step.median, step.low, step.high, step.n) == (10.0, 9.0, pytest.approx(14.3), 18)
    assert str(step) == "10 (9 to 14.3)"
    assert runs.figures(run)["demo", "peak memory, bytes"].low is None
    assert not [k for k in runs.figures(run) if k[0].startswith("again")]


def test_two_runs():
    kept = []
    run_of(kept, "r1")
    run_of(kept, "r2", step=14.0)  # within the second visit of the first, nowhere near the ratio
    row, table = agree.whole(kept)
    by = {(x["suite"], x["figure"]): x for x in row["lines"]}
    step, ratio = (by["demo", k] for k in ("step, greedy, ms", "eager / engine, greedy"))
    assert (step["agree"], step["inside"], step["two_vs_one"]) == (True, False, 1.4)
    assert ratio["agree"]  # 4 (2.8 to 4.4) and 2.86 (1.98 to 3.1)
    assert by["demo", "peak memory, bytes"].keys() & {"agree"} == set()
    assert row["counts"]["once"] == {"of": len(suites.ALL), "within_2_percent": len(suites.ALL)}
    run_of(kept, "r3", step=40.0)
    lines = agree.whole(kept)[0]["lines"]
    assert not next(x for x in lines if x["figure"] == "step, greedy, ms")["agree"]
    assert "DIFFERENT" in agree.whole(kept)[1]
    assert "| demo | step, greedy, ms | 10 (9 to 14.3) |" in table


def test_one_run_has_nothing_to_agree_with():
    kept = []
    run_of(kept, "r1")
    run_of(kept, "r2", failing="demo")
    with pytest.raises(ArcError, match="1 whole runs"):
        agree.whole(kept)


def test_block_is_of_the_newest_whole_run(monkeypatch):
    kept = [suite_row("demo", 99.0, "2027"), suite_row("other", 98.0, "2027")]
    run_of(kept, "r1")
    run_of(kept, "r2", step=20.0)
    run_of(kept, "r3", step=55.0, failing="demo")
    row, _ = agree.whole(kept)
    made = readme.block([*kept, {**row, "time": "t"}])
    assert made.startswith(f"{readme.BEGIN}\n\nRun r2 of `arcompile bench all`")
    assert "Against run r1, figure by figure" in made
    assert "| demo (2026-01-01T00:00:01) | 20 (18 to 28.6) |" in made
    assert "99" not in made
    assert "55" not in made
    assert made.count("`arcompile bench peers`") == 2
    quick = [{**r, "quick": True} for r in kept]
    assert "Run r" not in readme.block(quick)


def test_rows_of_half_an_hour_are_kept_unasked(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(every, "measure", lambda keep, *x: keep({"suite": "all", "host": "h"}) or 0)
    assert bench.run("all") == 0
    (file,) = tmp_path.glob("bench-*.jsonl")
    assert json.loads(file.read_text())["suite"] == "all"
    assert f"rows go to {file.name}" in capsys.readouterr().err


def test_the_quickest_visit_of_a_point():
    best = sweeps._least([{"s": 2.0, "x": 1}, {"s": 1.0, "x": 2}])
    assert (best["s"], best["x"], best["visits"]) == (1.0, 2, spread.summary([2.0, 1.0], 1.0))
    assert sweeps._least([{"s": 2.0}]) == {"s": 2.0}
