"""One HTML page of a file of results, with its plots inside: no script, no network."""

from __future__ import annotations

import base64
import html
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arcompile.bench.charts import charts
from arcompile.bench.history import newest
from arcompile.bench.plots import EAGER, ENGINE, _bars, _steps

Row = Mapping[str, Any]
STYLE = ("body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
         "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em;"
         "text-align:left}img{max-width:100%}small{color:#666}")


def write(rows: Sequence[Row], path: Path, title: str = "arcompile bench") -> Path:
    """The newest row of each suite, as one page."""
    last = newest(rows)
    parts = [*overall([*last.values()]), *(section(r) for _, r in sorted(last.items()))]
    path.write_text(f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}"
                    f"</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
                    f"{''.join(parts)}</html>\n")
    return path


def overall(rows: Sequence[Row]) -> list[str]:
    """Pictures over all suites: none without matplotlib."""
    return [f"<h2>{html.escape(title)}</h2>{_image(_png(paint))}"
            for title, paint in charts(rows)] if _drawable() else []


def section(row: Row) -> str:
    m = row.get("machine", {})
    versions = ", ".join(f"{k} {v}" for k, v in {**m.get("versions", {}),
                                                  **m.get("peers", {})}.items())
    head = (f"{row.get('time', '')}; {m.get('cpu', '')}, {m.get('threads', '?')} threads; reads "
            f"{_get(m, 'read_gbps.best')} GB/s, GEMM {m.get('gemm_gflops')} GFLOP/s; {versions}")
    settings = "".join(f"<li>{html.escape(k)}: {html.escape(str(v))}"
                       for k, v in row.get("settings", {}).items())
    return (f"<h2>{html.escape(row['suite'])}</h2><p><small>{html.escape(head)}</small>"
            f"{_table(facts(row))}{''.join(map(_image, plots(row)))}"
            f"<details><summary>what is timed, and how</summary><ul>{settings}</ul></details>")


def facts(row: Row) -> list[tuple[str, str]]:
    """The figures of any kind of row, in words."""
    found = []
    for name, x in row.get("sides", {}).items():
        step, ratio = x.get("step", x), x.get("vs_arcompile")
        found.append((name, _span(step) + (f"; {ratio['median']:g}x, {ratio['verdict']}"
                                           if ratio else "")))
    found += [(name, f"not there: {why}") for name, why in row.get("missing", {}).items()]
    for name in ("greedy", "sampled"):
        for side in ("engine", "eager"):
            if s := _get(row, f"{name}.{side}"):
                found.append((f"step, {name}, {side}", _span(s)))
        if s := _get(row, f"{name}.percent_of_read"):
            found.append((f"step, {name}, of the best reading of memory", f"{s:g} %"))
    for name, where in (("image, s", "image.s.min"), ("decoder, s", "image.decoder_s"),
                        ("image, eager / engine", "image.eager_vs_engine"),
                        ("build, s", "build.s"), ("load to first step, s", "load.first_step_s"),
                        ("offline, images/s", "scenarios.offline.images_per_s"),
                        ("server, mean batch", "scenarios.server.mean_batch")):
        if (x := _get(row, where)) is not None:
            found.append((name, f"{x:g}"))
    for name, where in (("one at a time", "scenarios.single_stream_ms"),
                        ("server latency", "scenarios.server.latency_ms")):
        if s := _get(row, where):
            found.append((name, _span(s)))
    return found


def _get(row: Row, where: str) -> Any:
    got: Any = row
    for part in where.split("."):
        got = got.get(part) if isinstance(got, Mapping) else None
    return got


def _span(s: Row) -> str:
    return f"{s['median']:g} ms (min {s['min']:g}, p10 {s['p10']:g}, p90 {s['p90']:g}, n {s['n']})"


def _table(lines: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(a)}<td>{html.escape(b)}" for a, b in lines)
    return f"<table>{cells}</table>"


def plots(row: Row) -> list[bytes]:
    """PNG pictures; none without matplotlib, and none of a second visit, which is a few steps."""
    if not _drawable() or row.get("kind") == "again":
        return []
    painters = [p for key, p in (("series", _steps), ("sampled", _bars), ("sides", _sides),
                                 ("scenarios", _batches)) if key in row]
    return [_png(lambda ax, p=paint: p(ax, row)) for paint in painters]  # type: ignore[misc]


def _drawable() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _png(paint: Callable[[Any], None]) -> bytes:
    from matplotlib.figure import Figure

    picture, held = Figure(figsize=(7, 4), dpi=100, layout="constrained"), io.BytesIO()
    paint(picture.subplots())
    picture.savefig(held, format="png")
    return held.getvalue()


def _image(png: bytes) -> str:
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _sides(ax: Any, row: Row) -> None:
    """A bar for each side, quickest on top."""
    steps = {k: v.get("step", v) for k, v in row["sides"].items()}
    names = sorted(steps, key=lambda k: -steps[k]["median"])
    x = [steps[k]["median"] for k in names]
    reach = [[steps[k]["median"] - steps[k]["p10"] for k in names],
             [steps[k]["p90"] - steps[k]["median"] for k in names]]
    colours = [ENGINE if k.startswith("arcompile") else EAGER for k in names]
    bars = ax.barh(names, x, xerr=reach, color=colours, capsize=3)
    ax.bar_label(bars, fmt="%.3g", padding=8)
    ax.set(xlabel="ms a step (median, p10 to p90)", title=row["suite"])


def _batches(ax: Any, row: Row) -> None:
    rates = _get(row, "scenarios.offline.by_batch") or {}
    x = [int(k) for k in rates]
    ax.plot(x, [b / r for b, r in zip(x, rates.values(), strict=True)], "o-", color=ENGINE)
    ax.set(xlabel="batch", ylabel="s a batch", ylim=(0, None), title=f"{row['suite']}: batches")
