"""What lossy passes cost on the demos, and what they save: `python -m arcompile.bench.judged score
demo-var weights`, and `time demo-var decoding`, each a row in results/judged.jsonl.

score: pictures of the same classes and seeds, with a setting and without, by the demos' judge, and
how often the model was called for one. time: the loop of one image, all settings by turns, each in
a few sessions of its own; take it on a machine that does nothing else. Tables of README and docs/
come from the newest rows (judged_pages.py).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import arcompile
from arcompile import quality
from arcompile.bench import judged_pages, machine
from arcompile.bench.judged_pages import ROWS
from arcompile.bench.spread import figure, summary
from arcompile.cache import cache
from arcompile.ceilings import PAUSE, WARM, Drawn, close, drawn, forwards_of
from arcompile.cli.options import parse_options
from arcompile.runtime.acceptance import spent
from arcompile.runtime.engine import Engine

PICTURES = {"weights": 1440, "decoding": 360}
TURNS, LONG = 4, 35.0  # pictures a session draws; seconds after which none are opened
RANGES = 8  # pictures that `arcompile calibrate` looks at

# As they are typed behind `arcompile build DEMO --passes`, or as its --option. @NAME is the folder
# of that demo's plain engine, @ranges the file of `arcompile calibrate`.
HACK = "kv-hack{ratio=0.5,ranges='@ranges'}"
WEIGHTS: dict[str, tuple[str, ...]] = {
    "demo": ("int8", "int4"),
    "demo-var": ("int8", "int4", HACK),
    "demo-mar": ("int8", "int4"),
    "demo-shuffle": ("int8", "int4"),
}
DECODING: dict[str, tuple[str, ...]] = {
    "demo": (
        "jacobi{window=16}", "sjd{window=16}", "scd{window=16}",
        "gsd{group=4}", "gsd", "gsd{group=30,near=0.3,distance=2.0}",
        "lantern{most=0.05}", "lantern{most=0.1}", "lantern{most=0.3}",
        "lantern{times=2.0}", "lantern{times=5.0}", "lantern{times=10.0}",
        "cool-sd{delta=1.2}", "cool-sd{delta=1.5}", "cool-sd{delta=2.0}",
        "zipar{window=7}", "zipar{window=6}", "zipar{window=4}",
        "zipar-adaptive{window=7}", "zipar-adaptive{window=4}", "zipar-adaptive{window=2}"),
    "demo-var": (
        "guidance{last=4}", "guidance{last=3}", "guidance{last=2}",
        "guidance{first=1}", "guidance{first=2}", "guidance{first=3}",
        "trim{scales=1}", "trim{scales=2}", "trim{scales=3}"),
    "demo-var-small": (
        "@demo-var", *(f"code{{engine='@demo-var',scales={n}}}" for n in (4, 3, 2, 1))),
    "demo-mar": (
        "cspd{window=2}", "cspd{window=4}", "cspd{window=4,ease=10}",
        "--option diffusion_least=10", "--option diffusion_least=5", "--option diffusion_least=2",
        "--option diffusion_least=5 --option annealing=cosine",
        "--option diffusion_least=5 --option annealing=two-stage"),
}
SETS = {"weights": WEIGHTS, "decoding": DECODING}


# --- engines -------------------------------------------------------------------------------------


def ready(demo: str, setting: str) -> Engine:
    """The demo's engine with this setting. Raises ArcError."""
    if setting.startswith("@"):
        demo, setting = setting[1:], ""
    if setting.startswith("--option"):
        options = parse_options(re.findall(r"--option (\S+)", setting))
        return arcompile.build(demo, options=options, report=False)
    return arcompile.build(demo, passes=_filled(demo, setting), report=False)


def _filled(demo: str, passes: str) -> str:
    if "@ranges" in passes:
        passes = passes.replace("@ranges", str(_ranges(demo)))
    for name in re.findall(r"@([\w-]+)", passes):
        passes = passes.replace(f"@{name}", str(ready(name, "").folder))
    return passes


def _ranges(demo: str) -> Path:
    from arcompile.calibrate import calibrate
    from arcompile.compile import read

    home = cache() / "bench" / "judged"
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"{ready(demo, '').manifest['key'][:16]}.safetensors"
    if not path.exists():
        calibrate(read(demo, None, None, {}, lambda stage, share: None), path, RANGES)
    return path


# --- rows ----------------------------------------------------------------------------------------


def score(demo: str, kind: str, pictures: int) -> dict[str, Any]:
    """Each setting's judged share, and its pictures against the plain engine's, one by one."""
    from arcompile.models.demo.judge import score as judge

    plain = quality.judged(ready(demo, ""), judge, pictures)
    found = {"": {**quality.score(plain), "forwards": forwards(ready(demo, ""))}}
    for setting in SETS[kind][demo]:
        e = ready(demo, setting)
        said = quality.judged(e, judge, pictures)
        found[setting] = {**quality.score(said), "forwards": forwards(e),
                          "against_plain": quality.paired(plain["right"], said["right"])}
        print(setting, found[setting], flush=True)
    return {"pictures": pictures, "settings": found}


def forwards(e: Engine, pictures: int = 36) -> float:
    """Of the model, for one image: the mean of one of each class."""
    if e.program.accept != "prefix":
        return float(forwards_of(e.program))
    classes = e.manifest["info"]["classes"]
    out = e.generate([i % classes for i in range(pictures)], seed=[*range(pictures)],
                     **quality.settings(e))
    assert out.rounds is not None
    return figure(spent(out.rounds)[0])


def loops(demo: str, kind: str) -> dict[str, Any]:
    """The loop of one image, in ms: every setting by turns, on the same seeds.

    By sessions of its own, closed after a few pictures: threads of others spin on, and how those of
    one came to lie stays as it is and may double its time. So there are several.
    """
    engines = {s: ready(demo, s) for s in ("", *SETS[kind][demo])}
    found: dict[str, list[Drawn]] = {s: [] for s in engines}
    start = time.perf_counter()
    while time.perf_counter() - start < LONG:
        for s, e in engines.items():
            drawn(e, 1, 0, WARM)
            for turn in range(TURNS):
                time.sleep(PAUSE)
                found[s].append(drawn(e, 1, turn))
            close({s: e})
    whole = {s: float(forwards_of(e.program)) for s, e in engines.items()
             if e.program.accept != "prefix"}
    return {"loop_ms": {s: least(x) for s, x in found.items()}, "forwards": whole}


def least(turns: Sequence[Drawn]) -> dict[str, Any]:
    """A summary of loops, and the quickest round of all times the mean of rounds. Seeds take more
    rounds and fewer; the host slows down, and never speeds up."""
    each = min(d.seconds / d.rounds for d in turns)
    mean = float(np.mean([d.rounds for d in turns]))
    return {**summary([d.seconds for d in turns]), "least": figure(1e3 * each * mean)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("score", "time", "pages"))
    parser.add_argument("demo", nargs="?", choices=tuple({**WEIGHTS, **DECODING}), default="demo")
    parser.add_argument("set", nargs="?", choices=tuple(SETS), default="decoding")
    parser.add_argument("--pictures", type=int, help="0: 1440 of weights, 360 of decoding")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    if told.what == "pages":
        judged_pages.write()
        return
    made = (loops(told.demo, told.set) if told.what == "time"
            else score(told.demo, told.set, told.pictures or PICTURES[told.set]))
    row = {"suite": f"judged-{told.what}-{told.demo}-{told.set}", "kind": "judged",
           "demo": told.demo, "set": told.set, "host": machine.host(),
           "time": datetime.now(UTC).isoformat(timespec="seconds"), **made,
           "machine": machine.facts()}
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    scored = told.what == "score"
    print(judged_pages.markdown([row], told.set) if scored else json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
