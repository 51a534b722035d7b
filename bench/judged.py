"""What lossy passes cost on the demos, and what they save: `python -m arcompile.bench.judged score
demo-var weights`, and `time demo-var decoding`, each a row in results/judged.jsonl.

score: pictures of the same classes and seeds, with a setting and without, by the demos' judge, and
how often the model was called for one. time: the loop of one image, all settings by turns; take it
on a machine that does nothing else. Tables of README and docs/ come from the newest rows:
`python -m arcompile.bench.judged pages` writes them between their marks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import arcompile
from arcompile import quality
from arcompile.auto import timed
from arcompile.bench import machine
from arcompile.bench.machine import PAUSE
from arcompile.bench.spread import figure, summary
from arcompile.cache import cache
from arcompile.cli.options import parse_options
from arcompile.runtime.engine import Engine

ROWS = Path(__file__).with_name("results") / "judged.jsonl"
PAGES = ("README.md", "docs/decoding.md")  # of the repository, where this is run for them
PICTURES = {"weights": 1440, "decoding": 360}
TURNS, LONG = 9, 60.0  # of the loops; seconds that are enough
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
    """Of the model, for one image alone: the mean of one of each class."""
    if e.program.accept == "all":
        return float(len(e.program.steps))
    classes = e.manifest["info"]["classes"]
    return figure(float(np.mean([timed(e, [i % classes], 1, i)[1] for i in range(pictures)])))


def time(demo: str, kind: str) -> dict[str, Any]:
    """The loop of one image, in ms: every setting by turns, each turn another seed."""
    import time as clock

    engines = {s: ready(demo, s) for s in ("", *SETS[kind][demo])}
    found: dict[str, list[float]] = {s: [] for s in engines}
    start = clock.perf_counter()
    for turn in range(TURNS + 1):
        for s, e in engines.items():
            clock.sleep(PAUSE)
            found[s].append(timed(e, [turn], 1, turn)[0])
        if turn > 1 and clock.perf_counter() - start > LONG:
            break
    return {"loop_ms": {s: summary(x[1:]) for s, x in found.items()}}


# --- tables --------------------------------------------------------------------------------------


def newest(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """By demo and set: each setting's score and, where there is one, its loop."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for r in rows:
        table = found.setdefault((r["demo"], r["set"]), {})
        for s, x in r.get("settings", {}).items():
            table[s] = {**table.get(s, {}), **x, "pictures": r["pictures"]}
        for s, ms in r.get("loop_ms", {}).items():
            table.setdefault(s, {})["ms"] = ms["median"]
    return found


def markdown(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """Every setting of a set a line."""
    lines = _titles(["demo", "setting", "forwards", *MS[kind], "judged right, %", "95 %",
                     "points against plain", "pictures"])
    for demo, s, x in _scored(rows, kind):
        low, high = (100 * v for v in x["interval"])
        cells = [demo, _named(s), _forwards(x), *([_ms(x)] if MS[kind] else []), _share(x),
                 f"{low:.1f}-{high:.1f}", _points(x), str(x["pictures"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def by_method(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of decoding: every method a line, its settings side by side."""
    lines = _titles(["demo", "method", "settings", "forwards", *MS["decoding"], "judged right, %"])
    groups: dict[tuple[str, str], list[tuple[str, Mapping[str, Any]]]] = {}
    for demo, s, x in _scored(rows, "decoding"):
        name, how = _split(s)
        groups.setdefault((demo, name), []).append((how, x))
    for (demo, name), each in groups.items():
        told = ["" if name.endswith("plain") else f"`{h}`" if h else "as it is" for h, _ in each]
        cells = [", ".join(f(x) for _, x in each) for f in (_forwards, _ms, _share)]
        lines.append(f"| {demo} | {name} | {', '.join(told)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def weights(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of weights and caches: every demo a line, every pass a column."""
    tables = {demo: t for (demo, kind), t in newest(rows).items() if kind == "weights"}
    columns = list(dict.fromkeys(s for t in tables.values() for s in t))
    lines = _titles(["judged right, %", *(_named(s).replace(",ranges='ranges'", "")
                                          for s in columns), "pictures"])
    for demo, t in tables.items():
        cells = [f"{_share(t[s])} {_points(t[s])}".strip() if s in t else "" for s in columns]
        lines.append(f"| `{demo}` | {' | '.join(cells)} | {t['']['pictures']} |")
    return "\n".join(lines)


MS = {"decoding": ["loop, ms"], "weights": []}


def _titles(titles: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def _scored(rows: Sequence[Mapping[str, Any]],
            kind: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """(demo, setting, figures)"""
    for (demo, k), table in newest(rows).items():
        yield from ((demo, s, x) for s, x in table.items() if k == kind and "score" in x)


def _forwards(x: Mapping[str, Any]) -> str:
    return f"{x['forwards']:.3g}"


def _ms(x: Mapping[str, Any]) -> str:
    return f"{x['ms']:.3g}" if "ms" in x else ""


def _share(x: Mapping[str, Any]) -> str:
    return f"{100 * x['score']:.1f}"


def _points(x: Mapping[str, Any]) -> str:
    return ("{:+.1f} ({:+.1f} to {:+.1f})".format(*x["against_plain"]["points"])
            if "against_plain" in x else "")


def _split(setting: str) -> tuple[str, str]:
    """A setting as method and how: `gsd{group=4}` as `gsd` and `group=4`."""
    if setting.startswith("--option"):
        return "DiSA", ", ".join(re.findall(r"--option (\S+)", setting))
    if not setting or setting.startswith("@"):
        return _named(setting), ""
    name, _, how = setting.rstrip("}").partition("{")
    return f"`{name}`", ",".join(x for x in how.split(",") if "@" not in x)


def _named(setting: str) -> str:
    if setting.startswith("@"):
        return f"{setting[1:]}, plain"
    return f"`{setting.replace('@', '')}`" if setting else "plain"


TABLES = {"weights": weights, "methods": by_method,
          "settings": lambda rows: markdown(rows, "decoding")}


def filled(page: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The page with each table between its marks: `<!-- judged weights -->`, `<!-- /judged -->`."""
    for name, table in TABLES.items():
        marks = f"(<!-- judged {name} -->\n).*?(<!-- /judged -->)"
        text = table(rows)
        page = re.sub(marks, lambda m, t=text: f"{m[1]}{t}\n{m[2]}", page, flags=re.S)
    return page


def kept() -> list[dict[str, Any]]:
    return [json.loads(x) for x in ROWS.read_text().splitlines()] if ROWS.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("score", "time", "pages"))
    parser.add_argument("demo", nargs="?", choices=tuple({**WEIGHTS, **DECODING}), default="demo")
    parser.add_argument("set", nargs="?", choices=tuple(SETS), default="decoding")
    parser.add_argument("--pictures", type=int, help="0: 1440 of weights, 360 of decoding")
    parser.add_argument("--dry", action="store_true", help="keep no row")
    told = parser.parse_args()
    if told.what == "pages":
        for page in map(Path, PAGES):
            page.write_text(filled(page.read_text(), kept()))
        return
    made = (time(told.demo, told.set) if told.what == "time"
            else score(told.demo, told.set, told.pictures or PICTURES[told.set]))
    row = {"suite": f"judged-{told.what}-{told.demo}-{told.set}", "kind": "judged",
           "demo": told.demo, "set": told.set, "host": machine.host(),
           "time": datetime.now(UTC).isoformat(timespec="seconds"), **made,
           "machine": machine.facts()}
    if not told.dry:
        with ROWS.open("a") as f:
            f.write(json.dumps(row) + "\n")
    print(markdown([row], told.set) if told.what == "score" else json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
