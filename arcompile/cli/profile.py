"""arcompile profile: where an engine's time goes, down to lines of model code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from arcompile.cli.options import Json
from arcompile.cli.terminal import print_json
from arcompile.errors import ArcError, did_you_mean

BY = ("op", "pass", "line", "node")


def profile(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine folder.")],
    against: Annotated[Path | None, typer.Option("--against", metavar="ENGINE", help="Another "
                       "engine to compare with.")] = None,
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="What to sum over: op, pass, "
                  "line, node, or several with commas.")] = "op,pass",
    top: Annotated[int, typer.Option("--top", metavar="N", min=1, help="Rows of each table.")] = 12,
    label: Annotated[int | None, typer.Option("--label", help="Class to draw. [default: some "
                     "condition the engine takes]")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    guidance: Annotated[float | None, typer.Option("--guidance", help="[default: the "
                        "engine's]")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=0)] = 0,
    steps: Annotated[int, typer.Option("--steps", min=0, help="Only the first steps of the loop. "
                     "[default: all, and the decoder]", show_default=False)] = 0,
    threads: Annotated[int, typer.Option("--threads", min=0, help="[default: one per core]",
                                         show_default=False)] = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Write "
                   "profile.json, trace.json (Perfetto, chrome://tracing) and roofline.png "
                   "there.")] = None,
    as_json: Json = False,
) -> None:
    """Tell where an engine's time goes: by graph, op, pass and line of model code."""
    keys = _keys(by)
    from arcompile.bench import profile_report as report
    from arcompile.bench import suites, table
    from arcompile.bench.profile import Asked, Profile, measure
    from arcompile.runtime.engine import Engine, load
    from arcompile.target import TARGETS

    def run(held: Engine) -> Profile:
        cond = suites.condition(held.manifest["info"], batch) if label is None else [label] * batch
        return measure(held, Asked(cond, guidance, top_k, 0, steps), say)

    with table.progress(quiet=as_json) as say:
        say("the machine's ceilings")
        held = [load(p, threads=threads) for p in (engine, against) if p is not None]
        ceilings = report.Ceilings.measure(TARGETS[held[0].manifest["target"]].device)
        found = [run(e) for e in held]
        rows = [report.row(p, ceilings) for p in found]
    written = report.write(found[0], rows[0], ceilings, out) if out else []
    if as_json:
        return print_json(rows[0] if against is None else {"engines": rows})
    report.show(rows[0], keys, top)
    for other in rows[1:]:
        for key in keys:
            report.show_comparison(rows[0], other, key, top)
    if written:
        print(f"written: {', '.join(map(str, written))}")
    return None


def _keys(by: str) -> tuple[Any, ...]:
    keys = tuple(k.strip() for k in by.split(","))
    for k in keys:
        if k not in BY:
            raise ArcError(f"nothing to sum over named {k!r}", hint=did_you_mean(k, BY))
    return keys
