"""arcompile show, arcompile bisect: what is inside, and which rewrite is to blame."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcompile.cli.options import Decoder, Family, Json, Option, Passes, parse_options
from arcompile.cli.terminal import Bars, coloured_diff, columns, print_json
from arcompile.errors import THEIRS, ArcError

if TYPE_CHECKING:
    from arcompile.pipeline import Pass
    from arcompile.program import Program
    from arcompile.show import Shown, Stage

Name = Annotated[str | None, typer.Option(metavar="NAME")]


def show(
    path: Annotated[str, typer.Argument(metavar="TARGET",
                                        help="An engine folder, a checkpoint or an .arc file.")],
    graph: Annotated[str | None, typer.Option("--graph", metavar="NAME",
                                              help="The text of one graph.")] = None,
    dot: Annotated[bool, typer.Option("--dot", help="Graphs in Graphviz's language.")] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Flops and bytes of each step, for one "
                                       "guided image.")] = False,
    after: Annotated[str | None, typer.Option("--after", metavar="PASS",
                                              help="The text after a pass.")] = None,
    before: Annotated[str | None, typer.Option("--before", metavar="PASS",
                                               help="The text before a pass.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="What changed, as a diff: by the pass of "
                                       "--after, between both, or by all passes.")] = False,
    passes: Passes = None,
    decoder: Decoder = None,
    family: Family = None,
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", help="Whose passes to "
                      "run. [default: ort-cpu for a checkpoint, none for text]")] = None,
    option: Option = None,
    as_json: Json = False,
) -> None:
    """Show the loop, the graphs, what passes do and what it costs."""
    from arcompile import show as see

    opened = _open(path, decoder, family, option)
    found = see.stages(opened.program, _pipeline(opened, target, passes))
    p = see.after(found, after) if after else found[-1].program
    if diff:
        old = see.before(found, before or after or found[-1].name) if before or after else (
            found[0].program)
        if before and not after:
            old, p = found[0].program, see.before(found, before)
        text = see.diff(old, p, graph or "")
        print_json({"diff": text}) if as_json else print(coloured_diff(text) or "no change")
        return
    if before:
        p = see.before(found, before)
    if cost:
        return _print_cost(p, as_json)
    if dot:
        return _print_text("dot", _dot(p, graph), as_json)
    if graph:
        return _print_text("text", str(see.graph(p, graph)), as_json)
    if after or before:
        return _print_text("text", str(p), as_json)
    _print_summary(opened, found, as_json)


def _open(path: str, decoder: str | None, family: str | None, option: list[str] | None) -> Shown:
    from arcompile.show import open_shown

    with Bars() as bars:

        def read() -> Any:
            from arcompile.compile import program

            return program(path, decoder=decoder, family=family, options=parse_options(option),
                           progress=bars)

        return open_shown(path, read)


def _pipeline(opened: Shown, target: str | None, passes: str | None) -> list[Pass]:
    """The target's passes, where they have not run yet, and the extra ones."""
    from arcompile.pipeline import parse_pipeline
    from arcompile.target import TARGETS

    if target is None and opened.kind == "checkpoint":
        target = "ort-cpu"
    own = TARGETS[target].passes if target else ""
    return parse_pipeline(own) + parse_pipeline(passes or "")


def _print_text(key: str, text: str, as_json: bool) -> None:
    print_json({key: text}) if as_json else print(text)


def _dot(p: Program, graph: str | None) -> str:
    from arcompile.show import every
    from arcompile.show import graph as named

    try:
        from arcompile.analysis import dot
    except ImportError:
        raise ArcError("--dot needs networkx, which is not installed", code=2,
                       hint="pip install networkx") from None
    return "\n".join(map(dot, [named(p, graph)] if graph else every(p)))


def _print_cost(p: Program, as_json: bool) -> None:
    from dataclasses import asdict

    from arcompile.cost import COLUMNS, program_cost, table

    found = program_cost(p)
    if as_json:
        return print_json({**asdict(found), "total": asdict(found.total)})
    print(columns([COLUMNS, *table(found)]))
    return None


def _print_summary(opened: Shown, found: Sequence[Stage], as_json: bool) -> None:
    from arcompile import show as see
    from arcompile.program_text import to_data

    p, graphs, steps = found[-1].program, see.graph_rows(found[-1].program), see.stage_rows(found)
    if as_json:
        return print_json({
            "kind": opened.kind, "program": to_data(p), "built": list(opened.built),
            "quality": opened.quality, "contract": opened.contract, "auto": opened.auto,
            "drafts": opened.drafts,
            "graphs": [dict(zip(graphs[0], g, strict=True)) for g in graphs[1:]],
            "passes": [dict(zip(steps[0], s, strict=True)) for s in steps[1:]]})
    reports = _reports(opened)  # before anything is printed: it may refuse
    print(see.outline(p))
    print(columns(graphs))
    for text in reports:
        print(text)
    if steps[1:]:
        print(columns(steps))
    return None


def _reports(opened: Shown) -> list[str]:
    """What an engine's manifest says of its passes and their cost."""
    from arcompile import auto, pipeline, quality, rounds
    from arcompile.show import told

    parts: list[tuple[str, Any, Callable[[Any], str]]] = [
        ("passes", opened.built, lambda x: f"  built with {', '.join(x)}"),
        ("contract", opened.contract, lambda x: f"  {pipeline.said(x)}"),
        ("auto", opened.auto, lambda x: _lines(columns(auto.rows(x)), *auto.notes(x))),
        ("drafts", opened.drafts, lambda x: columns(rounds.rows(x))),
        ("quality", opened.quality,
         lambda x: _lines(columns(quality.rows(x)), *quality.notes(x))),
    ]
    return [s for name, found, write in parts if found and (s := told(name, write, found))]


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


# --- bisect --------------------------------------------------------------------------------------


def bisect(
    path: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint or an .arc file.")],
    passes: Passes = None,
    good: Annotated[str, typer.Option("--good", metavar="RULE", help="When a program still is "
                                      "good: max-error=X, relative.")] = "max-error=1e-4",
    steps: Annotated[int, typer.Option("--steps", help="Steps of the loop to compare.")] = 3,
    decoder: Decoder = None,
    family: Family = None,
    target: Annotated[str | None, typer.Option("--target", metavar="NAME", help="Whose passes to "
                      "run. [default: ort-cpu for a checkpoint, none for text]")] = None,
    option: Option = None,
    as_json: Json = False,
) -> int:
    """Find the first rewrite that changes values. Exit code 1 when there is one.

    Every program runs by the numpy reference, on small random inputs, against the one no pass
    has touched.
    """
    from arcompile import debug
    from arcompile.bisect import bisect as search
    from arcompile.check import Check

    limit = _limit(good)
    opened = _open(path, decoder, family, option)
    pipeline, said = _pipeline(opened, target, passes), dict[str, float]()
    if not pipeline:
        raise ArcError("no passes to search", hint='give --passes "swiglu" or --target ort-cpu')
    with Bars() as bars:
        bars("checking", 0.0)
        check = Check(opened.program, opened.weights, steps)

        def fine(p: Program) -> bool:
            errors = check.errors(p)
            if not said:  # the whole pipeline runs first
                said.update(errors)
            return max(errors.values()) <= limit

        guilty = search(opened.program, pipeline, fine)
    if as_json:
        print_json({"guilty": guilty, "rewrites": len(debug.fired), "limit": limit,
                    "errors": said})
    elif guilty is None:
        print(f"all {len(debug.fired)} rewrites keep the values: "
              f"{', '.join(said)} differ by {max(said.values()):.2g} at most")
    else:
        worst = max(said, key=said.__getitem__)
        print(f"guilty: {guilty}\n  {worst} is off by {said[worst]:.2g}, the limit is {limit:g}")
        print(f"next: ARC_DEBUG=3 arcompile show {shlex.quote(path)} --diff --after PASS")
    return THEIRS if guilty else 0


def _limit(good: str) -> float:
    name, _, raw = good.partition("=")
    try:
        if name.strip() == "max-error" and (limit := float(raw)) >= 0:
            return limit
    except ValueError:
        pass
    raise ArcError(f"not a rule: {good!r}", hint="write --good max-error=1e-4")
