"""Whole runs: every part in a process of its own, what a run prints, and whether two agree."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from arcompile import bench
from arcompile.bench import agree, built, every, race, readme, runs, spread, suites, sweeps, visits
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
            "run_memory": {"peak": 1000},
            "image": {"s": around(1.0), "images_per_s": 1.0, "step": around(step),
                      "step_pairs": around(40 / step)}}


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


def run_of(kept, run, step=10.0, failing="", code="c"):
    """One run of stand-ins into `kept`; its exit code."""
    def ask(part, quick, peers):
        if part.what == failing and not part.again:
            return Told((), 1, "why it failed")
        if part.again and part.what in visits.models():
            return Told(tuple({**measured(n, step * 1.3), "suite": f"again-{n}", "kind": "again",
                               "of": n, "run_memory": {}} for n in visits.models()[part.what]), 0)
        return Told((measured(part.what, step * (1.3 if part.again else 1)),), 0)

    at = len(kept)
    bad = every.measure(kept.append, ask=ask)
    for r in kept[at:]:  # runs of the same second would be one
        r["run"] = run
    assert kept[-1]["code"] == built.code()
    kept[-1]["code"] = code
    return bad


def test_every_part_of_the_lists_is_known():
    names = [p.what for p in every.parts() if not p.again]
    races = [f"peers-{n}" for n in race.SUITES]
    assert sorted(names) == sorted([*suites.ALL, *races, *suites.ALL_SWEEPS])
    assert set(suites.ALL) | set(race.SUITES) <= set(suites.SUITES)
    assert set(suites.ALL_SWEEPS) <= set(sweeps.SWEEPS)
    assert [n for group in visits.models().values() for n in group] == [*suites.ALL]
    again = Counter(p.what for p in every.parts() if p.again)
    assert again == {**dict.fromkeys(visits.models(), 3), **dict.fromkeys(races, 2),
                     **dict.fromkeys(suites.ALL_SWEEPS, 1)}


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


def test_a_run_that_lacks_a_peer_names_it_and_is_not_complete():
    def ask(part, quick, peers, why="openvino is not installed"):
        row = measured(part.what)
        if part.what == "peers-llamagen-B":
            row |= {"family": "llamagen", "missing": {
                "TensorRT": "needs an NVIDIA GPU", **({"openvino-f32": why} if why else {})}}
        return Told((row,), 0)

    kept, said = [], []
    assert every.measure(kept.append, say=said.append, ask=ask) == 0
    assert kept[-1]["lost"] == {"openvino-f32": "openvino is not installed"}
    assert not kept[-1]["complete"]
    assert "without openvino-f32: openvino is not installed" in said[-1]
    assert runs.complete(kept) == []
    every.measure(kept.append, ask=lambda p, q, w: ask(p, q, w, ""))  # what none can run is no lack
    assert (kept[-1]["lost"], kept[-1]["complete"]) == ({}, True)


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


def test_figures_are_over_all_visits():
    kept = []
    assert run_of(kept, "r1") == 0
    (run,) = runs.complete(kept)
    found = runs.figures(run)
    step = found["demo", "step, greedy, ms"]
    assert (step.visits, step.mean) == (4, pytest.approx((10 * 13**3) ** 0.25))
    assert step.low < 10 < 13 < step.high
    assert found["peers-llamagen-B", "peer, ms"].visits == 3
    assert found["sweep-var-batch", "batch 2, s"].visits == 2
    memory = found["demo", "peak memory, bytes"]
    assert (str(memory), memory.low, memory.high) == ("1000", 1000, 1000)
    assert not [k for k in found if k[0].startswith("again")]


def test_two_runs():
    kept = []
    run_of(kept, "r1")
    run_of(kept, "r2", step=11.0)
    row, table = agree.whole(kept)
    by = {(x["suite"], x["figure"]): x for x in row["lines"]}
    step = by["demo", "step, greedy, ms"]
    assert (step["agree"], step["inside"], step["two_vs_one"]) == (True, 2, 1.1)
    assert by["demo", "peak memory, bytes"].keys() & {"agree"} == set()
    assert row["counts"]["once"] == {"of": len(suites.ALL), "within_2_percent": len(suites.ALL)}
    assert (row["counts"]["inside"], row["counts"]["agree"]) == (1.0, True)
    assert (row["counts"]["foretold"], row["earlier"]) == (1.0, [])
    assert "| demo | step, greedy, ms | 12.17 (" in table
    run_of(kept, "r3", step=40.0, code="other")  # of the same it would be drift
    row, table = agree.whole(kept)
    step = next(x for x in row["lines"] if x["figure"] == "step, greedy, ms")
    assert (step["agree"], step["inside"]) == (False, 0)
    assert row["counts"]["inside"] < 0.9
    assert row["earlier"] == ["r1"]
    assert not row["counts"]["agree"]
    assert "DIFFERENT" in table


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_takes_its_part_along(number, tmp_path):
    """Part and its own child: gone with the run, and the rows before are kept."""
    child = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); " \
            "time.sleep(60)"
    part = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    code = f"""if True:
        import sys
        from arcompile.bench import every
        every._cached = dict
        every.command = lambda *x: [sys.executable, "-c", {part!r}]
        every.measure(print)"""
    # whoever runs the tests in the background may have Ctrl-C ignored, and children inherit that
    run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL,
                           preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    found, end = tmp_path / "pid", time.monotonic() + 60
    while not (found.exists() and found.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    run.send_signal(number)
    assert run.wait(60) != 0
    pid = int(found.read_text())
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
    assert "Against run r1: of ratios " in made
    assert "| demo (2026-01-01T00:00:01) | 24.35 (" in made
    assert "| peer | 20 (" in made
    assert "| 99" not in made
    assert "| 55" not in made
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
