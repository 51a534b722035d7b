"""build: a checkpoint in, an engine folder out."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import arcompile
from arcompile import rounds
from arcompile.auto import Bench, chosen
from arcompile.auto import rows as auto_rows
from arcompile.cache import cache
from arcompile.checkpoint import FOLDER as WEIGHTS
from arcompile.checkpoint import open_checkpoint
from arcompile.choose import fit
from arcompile.digest import digest
from arcompile.errors import MACHINE, ArcError
from arcompile.glance import fitted
from arcompile.pipeline import Pass, contract, parse_pipeline, run, said
from arcompile.plan import plan
from arcompile.program import Program
from arcompile.program_text import to_data
from arcompile.quality import LOSSY, WHATEVER, Judge, Wanted, measure
from arcompile.quality import rows as quality_rows
from arcompile.runtime import bundle
from arcompile.runtime.engine import Engine, load
from arcompile.sampling import GRAPHS
from arcompile.target import TARGETS
from arcompile.weights import Store, Weights

if TYPE_CHECKING:
    from arcompile.family import Family, Model

Options = Mapping[str, Any]
Report = Callable[[str, float], None]
TOOLS = ("torch", "onnx", "onnxruntime", "numpy")
PATHS = ("text_encoder",)  # options that name files: their bytes count, wherever they lie
PROGRAM = "program.arc"  # the program as it was lowered, graphs included: what `show` reads


def build(
    checkpoint: str | Path,
    *,
    decoder: str | Path | None = None,
    family: str | None = None,
    target: str = "ort-cpu",
    dtype: str = "f32",
    passes: str | Sequence[Pass] | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    memory: int | None = None,
    batch: int = 1,
    report: bool = True,
    pictures: int = 72,
    progress: Report = lambda stage, share: None,
) -> Engine:
    """Compile a checkpoint to an engine folder, and load it.

    checkpoint: a published file or folder, or the name of a shipped demo. passes: extra passes
    after the target's own, as text such as "int8, kv-hack{ratio=0.5}" or as objects. options:
    what tensors cannot show. out: the folder (default: one in the cache, by content). memory: bytes
    that drawing `batch` guided images may take; passes that save memory are added until they do.
    Target tensorrt makes plans for up to so many images, and for four at least.
    report: measure what lossy passes cost in quality, of a demo also by its judge over so many
    `pictures`. The same inputs again are a cache hit. progress is told the stages and how much of
    each is done; a stage "note: ..." is something to know. Raises ArcError; writes the whole engine
    or nothing.
    """
    judge = _judge(checkpoint)
    checkpoint, decoder = _resolve(checkpoint, decoder)
    wanted = Wanted(memory, batch, report, pictures, judge)
    chosen = TARGETS[target]
    if dtype not in chosen.dtypes:
        raise ArcError(f"target {target} has no dtype {dtype!r}",
                       hint=f"it takes {', '.join(chosen.dtypes)}")
    pipeline = parse_pipeline(chosen.passes)
    pipeline += parse_pipeline(passes) if isinstance(passes, str) else list(passes or ())
    pipeline += narrowing(dtype)
    key = _key(checkpoint, decoder, family, target, dtype, pipeline, options or {}, wanted)
    folder = Path(out) if out is not None else cache() / "engines" / key[:24]
    if (hit := _cached(folder, key)) is not None:
        bundle.sweep(folder)
        progress("cached", 1.0)
        return hit
    try:
        chosen.prepare(progress)
    except ArcError as e:
        progress(f"note: {e.what}; {e.hint}", 1.0)
    with bundle.replacing(folder) as made:
        found, model = _model(checkpoint, decoder, family, options or {}, progress)
        write(made, found.name, model, target, dtype, pipeline, key, progress, wanted)
    return load(folder, check=False)  # it may be built here for another machine


def narrowing(dtype: str) -> list[Pass]:
    """What makes a program of f32 one of this dtype."""
    return [] if dtype == "f32" else parse_pipeline(f"half{{dtype={dtype}}}")


def write(folder: Path, family: str, model: Model, target: str, dtype: str,
          pipeline: Sequence[Pass], key: str = "", progress: Report = lambda s, f: None,
          wanted: Wanted = WHATEVER) -> None:
    """Export, optimise and lower one model into an empty folder. Raises ArcError."""
    plain = exported(model, progress)
    source = model.weights
    facts: dict[str, Any] = {"family": family, "target": target, "dtype": dtype, "key": key}
    known = {**facts, "info": dict(model.info), "defaults": dict(model.defaults),
             "vocabulary": int(model.info.get("vocabulary", 0))}
    bench = Bench(plain, source, known, folder, wanted.judge, wanted.pictures)
    pipeline, told = chosen(fitted(pipeline, bench, progress), bench, progress)
    source = source.plus({k: v for p in pipeline for k, v in p.brings().load.items()})
    made = fit(plain, pipeline, source, target, wanted.memory, wanted.batch)
    progress("passes", 1.0)
    TARGETS[target].lower(made.program, Store(source, made.program.fold), folder, progress,
                          wanted.batch)
    ran = [*map(str, (*parse_pipeline(model.passes), *made.passes))]
    facts |= {"passes": ran, "contract": contract(made.passes)}
    if told:
        facts["auto"] = told
    if wanted.memory is not None:
        facts["memory"] = {"limit": wanted.memory, "batch": made.batch, "tried": [*made.tried]}
    if wanted.report and any(p.keeps in LOSSY for p in made.passes):
        progress("quality", 0.0)
        facts["quality"] = measure(plain, source, made.passes, {**known, **facts}, folder, wanted)
    drafts = any(s.window for s in made.program.steps)
    if wanted.report and drafts and not TARGETS[target].available():
        facts["drafts"] = rounds.measure(Engine(folder, {**known, **facts}, made.program, (), 0))
    _describe(folder, made.program, model, facts)


def program(
    checkpoint: str | Path,
    *,
    decoder: str | Path | None = None,
    family: str | None = None,
    options: Options | None = None,
    progress: Report = lambda stage, share: None,
) -> tuple[Program, Weights]:
    """A checkpoint's program before any pass, and its weights. Raises ArcError."""
    model = read(checkpoint, decoder, family, options, progress)
    return exported(model, progress), model.weights


def read(checkpoint: str | Path, decoder: str | Path | None = None, family: str | None = None,
         options: Options | None = None, progress: Report = lambda stage, share: None) -> Model:
    """A checkpoint as its family's model, before it is exported. Raises ArcError."""
    return _model(*_resolve(checkpoint, decoder), family, options or {}, progress)[1]


def _resolve(checkpoint: str | Path, decoder: str | Path | None) -> tuple[Path, Path | None]:
    """Paths; the name of a shipped demo stands for its files."""
    from arcompile.models.demo import DEMOS, FOLDER

    path = Path(checkpoint)
    if str(checkpoint) in DEMOS and not path.exists():
        first, second = DEMOS[str(checkpoint)]
        return FOLDER / first, Path(decoder) if decoder else FOLDER / second
    if path.is_dir():  # before all that is in it is hashed
        if (path / bundle.MANIFEST).is_file():
            raise ArcError(f"{path} is an engine already", hint=f"arcompile generate {path}")
        if not any(fnmatch.filter(os.listdir(path), p) for p in WEIGHTS):
            raise ArcError(f"{path} holds no weights", hint="name a file, or a folder that has one")
    return path, Path(decoder) if decoder else None


def _judge(checkpoint: str | Path) -> Judge | None:
    """Of the shipped demos: what says whether a picture shows what was asked."""
    from arcompile.models.demo import DEMOS
    from arcompile.models.demo.judge import score

    return score if str(checkpoint) in DEMOS else None


def _key(checkpoint: Path, decoder: Path | None, family: str | None, target: str, dtype: str,
         pipeline: Sequence[Pass], options: Options, wanted: Wanted) -> str:
    """sha256 over everything that decides what is built."""
    parts = [arcompile.__version__, _own_digest(), checkpoint.name, digest(checkpoint),
             decoder.name if decoder else "", digest(decoder) if decoder else "", family or "",
             target, dtype, *map(str, pipeline), *(x for p in pipeline for x in p.reads()),
             *(() if wanted.memory is None else (
                 f"memory {wanted.memory} {wanted.batch}",)),
             *((f"batch {wanted.batch}",) if TARGETS[target].sized else ()),
             json.dumps({k: _content(k, v) for k, v in options.items()}, sort_keys=True,
                        default=str)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _content(option: str, value: Any) -> Any:
    """What an option means for the engine: of a path, the digest of what is there."""
    is_path = option in PATHS and isinstance(value, str | os.PathLike)
    return digest(value) if is_path and Path(value).exists() else value


def _own_digest() -> str:
    """Of the compiler's own sources, by size and time: a changed pass must not hit the cache."""
    marks = []
    for f in own_sources():
        s = f.stat()
        marks.append(f"{f.name}:{s.st_size}:{s.st_mtime_ns}")
    return hashlib.sha256("\n".join(marks).encode()).hexdigest()


def own_sources(*suffixes: str) -> Iterator[Path]:
    """The compiler's Python files, in order, and those of other suffixes beside them."""
    import arcompile.kernels
    import arcompile.models
    import arcompile.passes

    for package in (arcompile, arcompile.kernels, arcompile.models, arcompile.passes):
        # not __path__: of an editable install that has the whole checkout in it, .venv too
        yield from (f for f in sorted(Path(str(package.__file__)).parent.rglob("*"))
                    if f.suffix in (".py", *suffixes))


def _cached(folder: Path, key: str) -> Engine | None:
    """The engine that is already there, when it was built from the same inputs and is whole."""
    try:
        if bundle.read_manifest(folder)["key"] == key:
            return load(folder, check=False)
    except ArcError:
        return None
    return None


def _model(checkpoint: Path, decoder: Path | None, family: str | None, options: Options,
           progress: Report) -> tuple[Family, Model]:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ArcError("building needs torch, which is not installed", code=MACHINE,
                       hint="pip install 'arcompile[build]'") from None
    from arcompile.family import Source, described

    progress("read", 0.0)
    held = open_checkpoint(checkpoint)
    found, tensors = _family(held, family)
    found.check_options(options)
    second = open_checkpoint(decoder).weights(*found.decoder_containers) if decoder else None
    names = (checkpoint.name, decoder.name if decoder else "")
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    model = found.model(Source(tensors, second, names, held.metadata, folder), options)
    model = described(model, held.metadata)
    progress("read", 1.0)
    return found, model


def _family(held: Any, name: str | None) -> tuple[Family, Any]:
    """The named family, or the only one that claims the tensors."""
    from arcompile.family import FAMILIES

    if name is not None:
        return FAMILIES[name], held.weights(*FAMILIES[name].containers)
    claims, failures = [], []
    for f in FAMILIES.all().values():
        try:
            tensors = held.weights(*f.containers)
        except ArcError as e:
            failures.append(e)
            continue
        if f.claims(tensors):
            claims.append((f, tensors))
    if not claims and failures and len(failures) == len(FAMILIES.all()):
        raise failures[0]
    if len(claims) != 1:
        which = ", ".join(f.name for f, _ in claims) or "no family"
        raise ArcError(f"{which} recognises the tensors of {held.path.name}",
                       hint="name the family with --family; arcompile list models")
    return claims[0]


def exported(model: Model, progress: Report = lambda stage, share: None) -> Program:
    """The program with its graphs, the sampling chain where a graph yields logits, and the passes
    that the checkpoint was trained for."""
    from arcompile.export import call

    graphs = []
    for i, entry in enumerate(model.entries):
        progress("export", i / len(model.entries))
        graphs.append(call(model.module, entry))
    progress("export", 1.0)
    called = {c.graph for c in model.program.calls()}
    for name in sorted(GRAPHS.keys() & called - {g.name for g in graphs}):
        logits = next(v for g in graphs if (v := g.result("logits")) is not None)
        graphs.append(GRAPHS[name](int(logits.type.shape[-1])))
    return run(replace(model.program, graphs=tuple(graphs)), parse_pipeline(model.passes))


def _describe(folder: Path, program: Program, model: Model, facts: Mapping[str, Any]) -> None:
    """Program (as data, and as text for people), labels, README, and the manifest last."""
    (folder / "program.json").write_text(json.dumps(to_data(program)))
    (folder / PROGRAM).write_text(f"{program}\n")
    if model.labels:
        (folder / "labels.json").write_text(json.dumps(list(model.labels)))
    for name, path in model.files.items():
        shutil.copyfile(path, folder / name)
    vocabulary = int(model.info.get("vocabulary", 0))
    (folder / "README.md").write_text(_readme(facts, model, bool(program.finish)))
    manifest = {
        "format": bundle.FORMAT, "arcompile": arcompile.__version__, **facts,
        "vocabulary": vocabulary, "graphs": [g.name for g in program.graphs],
        "info": dict(model.info), "defaults": dict(model.defaults), "tools": _tools(),
        "plan": _plans(program, facts["target"]),
        **({"prompt": dict(model.prompt)} if model.prompt else {}),
        "files": {f.name: bundle.entry(f) for f in sorted(folder.iterdir())},
    }
    (folder / bundle.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _plans(p: Program, target: str) -> dict[str, Any]:
    """Of one image and of two, guided and not: any other batch follows from those."""
    memory = TARGETS[target].memory
    return {name: [plan(p, memory, b, guided).parts() for b in (1, 2)]
            for name, guided in (("guided", True), ("plain", False))}


def _tools() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _contract(facts: Mapping[str, Any]) -> str:
    """For people, with the figures that back it."""
    lines = [said(facts["contract"])]
    for key, what, table in (("auto", "Tried when it was built", auto_rows),
                             ("drafts", "Drafts, when it was built", rounds.rows),
                             ("quality", "Measured", quality_rows)):
        if key in facts and (rows := table(facts[key])):
            lines += ["", f"{what}:", "", "| " + " | ".join(rows[0]) + " |",
                      "|" + "---|" * len(rows[0]),
                      *("| " + " | ".join(r) + " |" for r in rows[1:])]
    return "\n".join(lines)


def _readme(facts: Mapping[str, Any], model: Model, draws: bool) -> str:
    words = "'a red apple'" if model.prompt or "text" in model.info else "{...}"
    given = "0" if "classes" in model.info else words
    asked = "--features inputs.npz" if words == "{...}" else f"--prompt {words}"
    shell = "--label 0" if "classes" in model.info else asked
    shell += " -o picture.png" if draws else " --tokens tokens.npy"
    picture = "\n    engine.generate(" + given + ", seed=1).save('picture.png')" if draws else (
        f"\n    engine.generate({given}, seed=1).tokens")
    passes = ", ".join(facts["passes"]) or "none"
    return f"""# An arcompile engine: {facts['family']}, {facts['target']}, {facts['dtype']}

Run it from the shell:

    arcompile generate . {shell}

or from Python, with numpy, onnxruntime and Pillow installed (no torch):

    import arcompile
    engine = arcompile.load('.'){picture}

Model: {json.dumps(dict(model.info))}
Passes: {passes}
Contract: {_contract(facts)}
`manifest.json` lists every file with its size and sha256; `program.json` is the decode loop.
"""

