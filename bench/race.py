"""Engines and peers in one run, the first steps of an image each by turns: `arcompile bench peers`.

Whole images of every peer would take an hour. A turn begins an image anew, and no step of it
follows a turn of others but the first: of those behind it, so many are left out as feel it
(`python -m arcompile.bench.overhead llamagen-B-int8`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import arcompile
from arcompile.bench import built, machine, suites
from arcompile.bench.machine import PAUSE, Bandwidth
from arcompile.bench.peers import UNABLE, Kind, Peer, ready
from arcompile.bench.runner import Say, _needs, short
from arcompile.bench.spread import compare, figure, summary
from arcompile.bench.suites import Suite
from arcompile.bench.visits import STEPS, WARM, counted
from arcompile.errors import ArcError
from arcompile.runtime.engine import Engine, load

TURNS, QUICK = 4, 2  # rounds; of a quick race
SUITES = ("llamagen-B", "janus-small")  # what is raced
OURS = ("", "int8", "int4")  # passes of our engines in the race
SETTINGS = {
    "interleaved": f"{{}} rounds; in each every side runs the first {STEPS} steps of an image, "
                   f"{WARM} of them not counted, with {PAUSE} s between",
    "step": "one step of the decode loop for an image and its unconditional twin; ours and torch's "
            "include guidance, sampling and host work, the others stop at the logits",
    "ratio": "peer / arcompile f32, round by round",
    "not_timed": "loading, compiling, the image decoder",
}


class Ours:
    """An engine as a side of the race."""

    def __init__(self, engine: Engine, suite: Suite):
        self.engine, self.suite = engine, suite

    def turn(self, steps: int) -> list[float]:
        """By the engine's own clock. Raises ArcError."""
        out = short(self.engine, steps).generate(
            suites.condition(self.engine.manifest["info"], 1), guidance=self.suite.guidance,
            top_k=self.suite.top_k)
        return list(out.timings["steps"])


def race(suite: Suite, kinds: Sequence[Kind], home: Path, say: Say = lambda text: None,
         turns: int = TURNS) -> dict[str, Any]:
    """One row: every side's step, and how many times as long as ours it takes. Raises ArcError.

    kinds: those of the suite's family take part.
    """
    _needs()
    kinds = [k for k in kinds if k.family == suite.family]
    machine_was, sides, missing = machine.facts(), dict[str, Peer](), dict[str, str]()
    for passes in OURS:
        if _named(suite, passes) not in suites.SUITES:
            continue
        name = f"arcompile-{passes or 'f32'}"
        say(name)
        try:
            sides[name] = ours(suite, passes, say)
        except ArcError as e:
            missing[name] = e.what
    for kind in kinds:
        say(kind.name)
        peer, why = ready(kind, suite, home)
        if peer is None:
            missing[kind.name] = why
        else:
            sides[kind.name] = peer
    missing |= UNABLE.get(suite.family, {})
    bandwidth = Bandwidth()
    bandwidth.measure(2)
    bandwidth.narrow()
    times = _turns(sides, bandwidth, turns, say)
    first, says = times["arcompile-f32"], {k.name: k.says for k in kinds}
    rows = {}
    for name, found in times.items():
        rows[name] = {"step": summary([x for turn in found for x in turn]),
                      "vs_arcompile": compare(_medians(found), _medians(first)),
                      "says": says.get(name, "this compiler: guidance and sampling included")}
    return {
        "suite": f"peers-{suite.name}", "kind": "peers", "host": machine.host(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"), "family": suite.family,
        "arcompile": arcompile.__version__, "guidance": suite.guidance, "top_k": suite.top_k,
        "machine": {**machine_was, "read_gbps": bandwidth.row(), "gemm_gflops": machine.gemm(),
                    "peers": machine.versions(PACKAGES)},
        "settings": {**SETTINGS, "interleaved": SETTINGS["interleaved"].format(turns)},
        "sides": rows, "missing": missing,
    }


PACKAGES = ("openvino", "nncf", "onnxruntime-genai", "onnxscript", "transformers")


def ours(suite: Suite, passes: str, say: Say) -> Ours:
    """An engine of the suite, or of the suite of the same name with these passes."""
    folder, _ = built.ready(suites.find(_named(suite, passes)), say)
    made = Ours(load(folder), suite)
    made.turn(3)
    return made


def _named(suite: Suite, passes: str) -> str:
    return suite.name + (f"-{passes}" if passes else "")


def _turns(sides: Mapping[str, Peer], bandwidth: Bandwidth, turns: int,
           say: Say) -> dict[str, list[list[float]]]:
    """Seconds of the steps that count, by side and round."""
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    for i in range(turns):
        say(f"round {i + 1} of {turns}")
        bandwidth.measure()
        for name, peer in sides.items():
            time.sleep(PAUSE)
            times[name].append(counted(peer.turn(STEPS)))
    return times


def _medians(turns: Sequence[Sequence[float]]) -> list[float]:
    return [sorted(t)[len(t) // 2] for t in turns]


def markdown(row: Mapping[str, Any], of: str = "median (p10 to p90)") -> str:
    """The race as a table, quickest first; of: what its spans are."""
    lines = [f"| one decode step | ms, {of} | / arcompile f32 | |", "|---|---|---|---|"]
    for name, x in sorted(row["sides"].items(), key=lambda kv: kv[1]["step"]["median"]):
        s, r = x["step"], x["vs_arcompile"]
        times = f"{s['median']:g} ({s['p10']:g} to {s['p90']:g})"
        ratio = "" if name == "arcompile-f32" else f"{figure(r['median'], 3):g}x" + (
            f", {r['verdict']}" if r["verdict"].startswith("no") else "")
        lines.append(f"| {name} | {times} | {ratio} | {x['says']} |")
    lines += [f"| {name} | - | | {why} |" for name, why in row["missing"].items()]
    return "\n".join(lines)
