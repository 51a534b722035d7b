"""What people see of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from arcompile.cost import figure

Row = Mapping[str, Any]


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says on standard error what is being measured."""
    console = Console(stderr=True, quiet=quiet)
    with console.status("starting") as status:
        yield lambda text: status.update(text)


def note(text: str) -> None:
    Console().print(text, highlight=False, soft_wrap=True)


def suites(rows: Sequence[Row]) -> None:
    shown = ("name", "family", "size", "target", "dtype", "batch", "guidance", "passes")
    t = Table(*shown, title="suites", title_justify="left")
    for r in rows:
        t.add_row(*(str(r["checkpoint"] or r[k]) if k == "size" else str(r[k]) for k in shown))
    Console().print(t)


def show(row: Row) -> None:
    """One table; every line says what its figures count."""
    m = row["machine"]
    note(f"{m['cpu']}, {m['threads']} threads; reads {m['read_gbps']['best']} GB/s at best "
         f"({m['read_gbps']['median']} in the median, {m['read_gbps']['how']}), GEMM "
         f"{m['gemm_gflops']} GFLOP/s; "
         + ", ".join(f"{k} {v}" for k, v in m["versions"].items()))  # fmt: skip
    title = (f"{row['suite']}: {row['family']}, {row['target']}, {row['dtype']}, batch "
             f"{row['batch']}, guidance {row['guidance']:g}, {row['weights']} weights"
             + (", quick" if row["quick"] else ""))  # fmt: skip
    t = Table("", "engine", "eager torch", "eager / engine", title=title, title_justify="left")
    for line in (*_speed(row), *_sizes(row)):
        t.add_row(*line)
    Console().print(t)
    _limits(row)


def _speed(row: Row) -> Iterator[tuple[str, ...]]:
    for kind in ("greedy", "sampled"):
        s, e = row[kind], row[kind].get("eager")
        name = kind if kind == "greedy" else f"top-k {s['top_k']}"
        ratio = s.get("eager_vs_engine")
        yield (f"step, {name}: ms median (min, p90)", _span(s["engine"]), _span(e) if e else "",
               _ratio(ratio) if ratio else "")  # fmt: skip
        yield (f"step, {name}: tokens/s", f"{s['tokens_per_s']:g}",
               f"{s['eager_tokens_per_s']:g}" if e else "", "")  # fmt: skip
        yield (f"step, {name}: weight bytes / median, % of best reading",
               f"{s['gbps']:g} GB/s, {s['percent_of_read']:g} %", "", "")  # fmt: skip
        f = s["floor"]
        yield (f"step, {name}: against {f['ms']:g} ms to read its weights: median, min, paired",
               f"{f['median_vs_floor']:g}x, {f['min_vs_floor']:g}x, "
               f"{f['pairs_vs_floor']['median']:g}x", "", "")  # fmt: skip
    equal = {True: "the same", False: "DIFFERENT", None: "not compared"}[row["tokens"]["equal"]]
    yield ("greedy tokens", equal, f"{row['tokens']['compared']} compared", "")
    yield ("prompt, ms", f"{row['prompt_ms']:g}", "", "")
    if "image" in row:
        yield from _image(row["image"])


def _image(i: Row) -> Iterator[tuple[str, ...]]:
    eager = "eager_steps_s" in i
    yield ("whole image, s, call to picture", f"{i['s']['min']:g}",
           f"{i['eager_steps_s'] + i['eager_decoder_s']:.4g} (steps + decoder)" if eager else "",
           f"{i['eager_vs_engine']:g}x" if eager else "")  # fmt: skip
    yield ("  of it steps (n x median), decoder, s", f"{i['steps_s']:g}, {i['decoder_s']:g}",
           f"{i['eager_steps_s']:g}, {i['eager_decoder_s']:g}" if eager else "", "")  # fmt: skip
    yield "  whole / (steps + decoder)", f"{i['vs_parts']:g}x", "", ""
    yield "  images/s", f"{i['images_per_s']:g}", "", ""


def _sizes(row: Row) -> Iterator[tuple[str, ...]]:
    b = row["bytes"]
    yield ("weights a step reads, of a run, of the file; caches",
           ", ".join(figure(b[k], "B") for k in ("step_weights", "run_weights", "file", "state")),
           "", "")  # fmt: skip
    if "run_memory" in row:
        r = row["run_memory"]
        yield ("peak resident memory of a run; / (weights + caches)",
               f"{figure(r['peak'], 'B')}; {r['vs_weights_kv']:g}x",
               figure(r["eager_peak"], "B") if "eager_peak" in r else "", "")  # fmt: skip
        x = row["load"]
        yield ("load to first step, s; reading the file once, s",
               f"{x['first_step_s']:g}; {x['read_s']:g}", "", "")  # fmt: skip
        yield ("import arcompile, s; and load ready", f"{row['import']['import_s']:g}; "
               f"{row['import']['with_load_s']:g}", "", "")  # fmt: skip
    if "build" in row:
        x = row["build"]
        when = "now" if x["now"] else "when it was built"
        yield (f"build, s; peak memory / weights ({when})",
               f"{x['s']:g}; {figure(x['peak'], 'B')}, {x['vs_weights']:g}x", "", "")  # fmt: skip


def _limits(row: Row) -> None:
    for x in row["limits"]:
        note(f"{'met   ' if x['met'] else 'MISSED'} {x['name']}: {x['got']:g} "
             f"(limit {x['limit']:g})")  # fmt: skip


def _span(s: Row) -> str:
    return f"{s['median']:g} ({s['min']:g}, {s['p90']:g})"


def _ratio(r: Row) -> str:
    return f"{r['median']:g}x (p10 {r['p10']:g}, p90 {r['p90']:g}): {r['verdict']}"
