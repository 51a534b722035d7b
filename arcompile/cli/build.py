"""arcompile build: a checkpoint in, an engine folder out."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcompile.cli.draw import takes_words
from arcompile.cli.options import Decoder, Family, Json, Option, Passes, Target, parse_options
from arcompile.cli.terminal import Bars, columns, facts, print_json, size

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine


def build(
    checkpoint: Annotated[str, typer.Argument(
        metavar="CKPT", help="A published file or folder, or the name of a shipped demo.")],
    decoder: Decoder = None,
    family: Family = None,
    target: Target = "ort-cpu",
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME",
                                       help="What weights and activations are.")] = "f32",
    passes: Passes = None,
    option: Option = None,
    out: Annotated[str | None, typer.Option("-o", "--out", metavar="DIR",
                                            help="The engine folder; in the cache unless given.")]
    = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only tell what a run would need in memory, "
                                       "on each target.")] = False,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="What a run may "
        "take, such as 4GiB: the build adds passes until it does.")] = None,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Guided images of a run, for "
                                       "--plan, --memory and the plans of TensorRT.")] = 1,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Measure what lossy passes "
                                         "cost in quality.")] = True,
    pictures: Annotated[int, typer.Option("--pictures", metavar="N", help="How many the demos' "
                                          "judge sees in that.")] = 72,
    as_json: Json = False,
) -> None:
    """Compile a checkpoint to an engine folder. The same inputs again are a cache hit."""
    import arcompile
    from arcompile.plan import read_bytes

    if plan:
        return _print_plan(checkpoint, decoder, family, parse_options(option), passes, batch,
                           as_json)
    limit = None if memory is None else read_bytes(memory)
    start, seen = time.perf_counter(), set[str]()
    with Bars() as bars:

        def tell(stage: str, share: float) -> None:
            seen.add(stage)
            if not stage.startswith("note: "):
                bars(stage, share)

        engine = arcompile.build(
            checkpoint, decoder=decoder, family=family, target=target, dtype=dtype, passes=passes,
            options=parse_options(option), out=out, memory=limit, batch=batch, report=report,
            pictures=pictures, progress=tell)
    told = summary(engine) | {"seconds": round(time.perf_counter() - start, 3),
                              "cached": "cached" in seen,
                              "notes": sorted(s.removeprefix("note: ") for s in seen
                                              if s.startswith("note: "))}
    print_json(told) if as_json else _print(told)
    return None


def _print_plan(checkpoint: str, decoder: str | None, family: str | None, options: dict[str, Any],
                passes: str | None, batch: int, as_json: bool) -> None:
    from arcompile.choose import plans
    from arcompile.compile import program
    from arcompile.pipeline import parse_pipeline
    from arcompile.plan import rows

    with Bars() as bars:
        p, _ = program(checkpoint, decoder=decoder, family=family, options=options, progress=bars)
        found = plans(p, parse_pipeline(passes or ""), batch)
    if as_json:
        print_json({k: {**v.parts(), "total": v.total, "batch": batch} for k, v in found.items()})
    else:
        print(columns(rows(found)))


def summary(engine: Engine) -> dict[str, Any]:
    """The facts of an engine that people ask for first."""
    m, p = engine.manifest, engine.program
    files = {name: int(f["bytes"]) for name, f in m["files"].items()}
    row = p.sizes()
    return {
        "engine": str(engine.folder), "family": m["family"], "target": m["target"],
        "dtype": m["dtype"], "passes": m["passes"], "info": m["info"], "key": m["key"],
        "bytes": sum(files.values()),
        "weights_bytes": sum(n for name, n in files.items() if name.endswith(".safetensors")),
        "cache_bytes_per_row": sum(t.nbytes(row) for _, t in p.state),
        "plan": {**(need := engine.plan()).parts(), "total": need.total},
        "memory": m.get("memory"), "quality": m.get("quality"), "auto": m.get("auto"),
        "drafts": m.get("drafts"), "next": next_command(engine),
    }


def next_command(engine: Engine) -> str:
    names = dict(engine.program.inputs)
    given = "--label 0" if set(names) == {"cond"} else "--features inputs.npz"
    given = "--prompt 'a red apple'" if takes_words(engine) else given
    out = "-o picture.png" if engine.program.finish else "--tokens tokens.npy"
    return f"arcompile generate {shlex.quote(str(engine.folder))} {given} {out}"


def _print(told: dict[str, Any]) -> None:
    how = "was built before" if told["cached"] else f"built in {told['seconds']:.1f} s"
    cache = told["cache_bytes_per_row"]
    info = ", ".join(f"{k} {v}" for k, v in told["info"].items())
    print(f"{told['family']} for {told['target']} ({told['dtype']}), {how}")
    print(facts({
        "engine": told["engine"],
        "model": info,
        "passes": ", ".join(told["passes"]),
        "size": f"{size(told['bytes'])}, weights {size(told['weights_bytes'])}",
        "cache": f"{size(cache)} an image, twice that when guided" if cache else "",
        "memory": f"{size(told['plan']['total'])} to draw one guided image",
        "tried": "; ".join((told["memory"] or {}).get("tried", ())),
    }))
    if told["auto"]:
        from arcompile import auto

        print(columns(auto.rows(told["auto"])))
        print(*auto.notes(told["auto"]), sep="\n", end="\n" if auto.notes(told["auto"]) else "")
    if told["drafts"]:
        from arcompile import rounds

        print(columns(rounds.rows(told["drafts"])))
    if told["quality"]:
        from arcompile.quality import notes, rows

        print(columns(rows(told["quality"])))
        print(*notes(told["quality"]), sep="\n", end="\n" if notes(told["quality"]) else "")
    for note in told["notes"]:
        print(f"note: {note}")
    print(f"next: {told['next']}")
