"""What people see of a measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from arcompile.cost import figure

Row = Mapping[str, Any]
BUSY = 0.5  # load above which the host is not ours alone


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
    """One table, and under it what its figures count."""
    m = row["machine"]
    note(f"{m['cpu']}, {m['threads']} threads; reads {m['read_gbps']['best']} GB/s at best "
         f"({m['read_gbps']['median']} in the median, {m['read_gbps']['how']}), GEMM "
         f"{m['gemm_gflops']} GFLOP/s; load before {m['load_before']}; "
         + ", ".join(f"{k} {v}" for k, v in m["versions"].items()))
    if (m["load_before"] or 0) > BUSY:
        note(f"the machine was busy ({m['load_before']:g} processes wanted a core before): "
             "believe the ratios within this run, not the milliseconds")
    title = (f"{row['suite']}: {row['family']}, {row['target']}, {row['dtype']}, batch "
             f"{row['batch']}, guidance {row['guidance']:g}, {row['weights']} weights"
             + (", quick" if row["quick"] else ""))
    t = Table(title=title, title_justify="left")
    t.add_column("", no_wrap=True)
    for name in ("engine", "eager torch", "eager / engine"):
        t.add_column(name, justify="right")
    for line in (*_speed(row), *_sizes(row)):
        t.add_row(*line, *[""] * (4 - len(line)))
    Console().print(t)
    note(f"steps: median (min, p90) in ms; GB/s: the {figure(row['bytes']['step_weights'], 'B')} "
         "of weights that a step reads / its median; floor: their bytes / the best reading of "
         "memory in this run; paired: each turn against the reading next to it; peak memory: "
         "resident, / (weights of the graphs that run + caches).")
    _limits(row)


def _speed(row: Row) -> Iterator[tuple[str, ...]]:
    for kind in ("greedy", "sampled"):
        s, e = row[kind], row[kind].get("eager")
        name = kind if kind == "greedy" else f"top-k {s['top_k']}"
        ratio = s.get("eager_vs_engine")
        yield (f"step, {name}, ms", _span(s["engine"]), _span(e) if e else "",
               _ratio(ratio) if ratio else "")
        yield ("  tokens/s", f"{s['tokens_per_s']:g}",
               f"{s['eager_tokens_per_s']:g}" if e else "")
        yield "  weights, % of best reading", f"{s['gbps']:g} GB/s, {s['percent_of_read']:g} %"
        f = s["floor"]
        yield (f"  / floor of {f['ms']:g} ms", f"{f['median_vs_floor']:g}x (min "
               f"{f['min_vs_floor']:g}x, paired {f['pairs_vs_floor']['median']:g}x; with "
               f"what the caches hold {f['with_caches']['median']:g}x)")
    other = "DIFFERENT" if row["tokens"].get("promised", True) else "others, as lossy passes may"
    equal = {True: "the same", False: other, None: "not compared"}[row["tokens"]["equal"]]
    yield f"greedy tokens ({row['tokens']['compared']})", equal
    yield "prompt, ms", f"{row['prompt_ms']:g}"
    if "image" in row:
        yield from _image(row["image"])


def _image(i: Row) -> Iterator[tuple[str, ...]]:
    eager = "eager_steps_s" in i
    yield ("whole image, s", f"{i['s']['min']:g}",
           f"{i['eager_steps_s'] + i['eager_decoder_s']:.4g}" if eager else "",
           f"{i['eager_vs_engine']:g}x" if eager else "")
    yield ("  steps + decoder, s", f"{i['steps_s']:g} + {i['decoder_s']:g}",
           f"{i['eager_steps_s']:g} + {i['eager_decoder_s']:g}" if eager else "")
    yield "  whole / (steps + decoder)", f"{i['vs_parts']:g}x"
    yield "  images/s", f"{i['images_per_s']:g}"


def _sizes(row: Row) -> Iterator[tuple[str, ...]]:
    b = row["bytes"]
    held, caches = figure(b["run_weights"], "B"), figure(b["state"], "B")
    yield "weights of a run + caches", f"{held} + {caches}"
    if "run_memory" in row:
        r, x = row["run_memory"], row["load"]
        yield ("  peak memory, one picture", f"{figure(r['first'], 'B')}, "
               f"{r['first_vs_weights_kv']:g}x",
               figure(r["eager_peak"], "B") if "eager_peak" in r else "")
        yield "  peak memory, two pictures", f"{figure(r['peak'], 'B')}, {r['vs_weights_kv']:g}x"
        yield "load to first step, s", f"{x['first_step_s']:g}"
        yield "  of it more than reading the file", f"{x['first_step_beyond_read_s']:g}"
        yield "import arcompile; and load, s", (
            f"{row['import']['import_s']:g}; {row['import']['with_load_s']:g}")
    if "build" in row:
        x = row["build"]
        yield f"build{'' if x['now'] else ', earlier'}, s", f"{x['s']:g}"
        yield "  peak memory / weights file", f"{figure(x['peak'], 'B')}, {x['vs_weights']:g}x"


def _limits(row: Row) -> None:
    for x in row["limits"]:
        note(f"{'met   ' if x['met'] else 'MISSED'} {x['name']}: {x['got']:g} "
             f"(limit {x['limit']:g})")


def _span(s: Row) -> str:
    return f"{s['median']:g} ({s['min']:g}, {s['p90']:g})"


def _ratio(r: Row) -> str:
    return f"{r['median']:g}x (p10 {r['p10']:g}, p90 {r['p90']:g}): {r['verdict']}"
