"""arcompile list, doctor, bench: what there is, what this machine can do, how fast it does it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from arcompile.cli.options import Json
from arcompile.cli.terminal import columns, print_json
from arcompile.errors import MACHINE, ArcError, did_you_mean

Rows = list[dict[str, Any]]


def doctor(as_json: Json = False) -> None:
    """Tell what this machine can do, and what to install for more."""
    from arcompile.doctor import examine, report

    told = examine()
    print_json(told) if as_json else print(report(told))


def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="passes, models, targets, kernels")],
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="as a Markdown table")] = False,
) -> None:
    """List passes, models, targets or kernels, with their options."""
    if what not in LISTS:
        raise ArcError(f"nothing to list named {what!r}", hint=did_you_mean(what, LISTS))
    rows = LISTS[what]()
    if as_json:
        return print_json(rows)
    if markdown:
        return print(markdown_table(rows))
    if not rows:
        print(f"no {what}")
    for row in rows:
        name = row.pop("name")
        about = row.pop("about")
        print(f"{name}  {about}")
        print(columns([(k, _plain(v)) for k, v in row.items() if v], indent=4) or "", end="")
        print("\n" if any(row.values()) else "")
    return None


def markdown_table(rows: Rows) -> str:
    """All but the options, one row each."""
    names = [k for k in rows[0] if k not in ("about", "options")] if rows else []
    lines = [names, ["---"] * len(names), *([_plain(r[n]) for n in names] for r in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" if not isinstance(v, str) else f"{k} ({v})"
                         for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _about(thing: Any) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(thing) or "").partition("\n")[0]


def _passes() -> Rows:
    from arcompile.pipeline import PASSES

    return [{"name": name, "about": _about(cls), "keeps": cls.keeps,
             "options": {f.name: f.default for f in dataclasses.fields(cls)}}
            for name, cls in PASSES.all().items()]


def _models() -> Rows:
    from arcompile.family import FAMILIES

    try:
        found = FAMILIES.all()
    except ModuleNotFoundError as e:
        raise ArcError(f"listing models needs {e.name}, which is not installed", code=MACHINE,
                       hint="pip install 'arcompile[build]'") from None
    return [{"name": name, "about": _about(f), "order": f.order, "licence": f.licence,
             "sizes": list(f.sizes), "containers": [c or "raw" for c in f.containers],
             "verified": f.verified, "options": dict(f.options)}
            for name, f in found.items()]


def _targets() -> Rows:
    from arcompile.target import TARGETS

    return [{"name": name, "about": _about(t), "dtypes": list(t.dtypes), "needs": list(t.needs),
             "passes": t.passes, "not here": t.available()}
            for name, t in TARGETS.all().items()]


def _kernels() -> Rows:
    for module in ("arcompile.kernel", "arcompile.kernels"):
        try:
            table = getattr(importlib.import_module(module), "KERNELS", None)
        except ModuleNotFoundError as e:
            if e.name != module:
                raise
            continue
        if table is not None:
            return [{"name": name, "about": _about(k)} for name, k in table.all().items()]
    return []


LISTS: dict[str, Callable[[], Rows]] = {
    "passes": _passes, "models": _models, "targets": _targets, "kernels": _kernels,
}


def bench(
    what: Annotated[str, typer.Argument(metavar="WHAT",
        help="A suite, an engine folder, or list, all, peers, sweeps, report, markdown.")] = "list",
    quick: Annotated[bool, typer.Option("--quick", help="Few repetitions, small sizes.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE",
                                             help="Where to keep the results.")] = None,
    peers: Annotated[str, typer.Option("--peers", metavar="NAMES", help="Of `bench peers`: which, "
                                       "with commas.")] = "all",
    against: Annotated[str | None, typer.Option("--against", metavar="ENGINE", help="Another "
        "suite or engine folder, by turns in the same run.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="FILE|REV", help="Compare with "
        "earlier results: a .jsonl file, or those of a git revision.")] = None,
    scenarios: Annotated[bool, typer.Option("--scenarios", help="Also one picture at a time, as "
                                            "many as possible, and arrivals.")] = False,
    reference: Annotated[Path | None, typer.Option("--reference", metavar="DIR", help="Score the "
        "pictures against those of a folder, instead of timing.")] = None,
    inception: Annotated[Path | None, typer.Option("--inception", metavar="FILE", help="Inception "
        "as TorchScript or ONNX: FID and IS by the standard formulas.")] = None,
    pictures: Annotated[int, typer.Option("--pictures", metavar="N", help="How many to draw for "
        "--reference; 0: as many as it holds.")] = 0,
    as_json: Json = False,
) -> int:
    """Measure this machine."""
    from arcompile import bench as suites

    if not hasattr(suites, "run"):
        raise ArcError("this arcompile has no benchmarks", hint="upgrade arcompile")
    return int(suites.run(what, quick=quick, as_json=as_json, out=out, peers=peers, against=against,
                          since=since, scenarios=scenarios, reference=reference,
                          inception=inception, pictures=pictures))
