"""Tables of README and docs/ from the rows of bench.judged: `python -m arcompile.bench.judged
pages` writes them between their marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = Path(__file__).with_name("results") / "judged.jsonl"
PAGES = ("README.md", "docs/decoding.md")  # of the repository, where this is run for them


def kept() -> list[dict[str, Any]]:
    return [json.loads(x) for x in ROWS.read_text().splitlines()] if ROWS.exists() else []


def newest(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """By demo and set: each setting's score and, where there is one, its loop."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for r in rows:
        table = found.setdefault((r["demo"], r["set"]), {})
        for s, x in r.get("settings", {}).items():
            table[s] = {**table.get(s, {}), **x, "pictures": r["pictures"]}
        for s, ms in r.get("loop_ms", {}).items():
            table.setdefault(s, {})["ms"] = ms["least"] if "least" in ms else ms["median"]
        for s, n in r.get("forwards", {}).items():
            table.setdefault(s, {})["forwards"] = n
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


def write() -> None:
    """Fill the pages of the repository that this is run in."""
    for page in map(Path, PAGES):
        page.write_text(filled(page.read_text(), kept()))
