"""arcompile generate: an engine and a condition in, a picture out."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arcompile.cli.options import Json
from arcompile.cli.terminal import Bars, facts, print_json
from arcompile.errors import ArcError

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine, Output
    from arcompile.runtime.loop import Array, Progress

PICTURE = Path("picture.png")


def generate(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="A folder made by build.")],
    label: Annotated[list[str] | None, typer.Option("--label", metavar="CLASS",
        help="A class number or name, or several with commas. Repeatable. [default: 0]")] = None,
    class_name: Annotated[list[str] | None, typer.Option("--class-name", metavar="NAME",
        help="A class name as it is, commas included. Repeatable.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="TEXT",
        help="What to draw, for models that take words. Repeatable.")] = None,
    features: Annotated[Path | None, typer.Option("--features", metavar="F.npz",
        help="The engine's inputs by name, in place of words.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same tokens.")] = 0,
    n: Annotated[int, typer.Option("-n", help="Images for each condition.")] = 1,
    guidance: Annotated[float | None, typer.Option("--guidance", metavar="SCALE",
        help="The CFG scale; 1 is none. [default: the engine's]")] = None,
    guidance_interval: Annotated[int | None, typer.Option("--guidance-interval", metavar="N",
        help="Guide only until so many tokens follow the first.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", metavar="T",
        help="0 takes the likeliest token. [default: the engine's]")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="K",
        help="Draw among the K likeliest; 0 is all. [default: the engine's]")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", metavar="P",
        help="Draw among the likeliest that make up P. [default: the engine's]")] = None,
    threads: Annotated[int, typer.Option("--threads", help="0 is one per core.")] = 0,
    signed_by: Annotated[Path | None, typer.Option("--signed-by", metavar="FILE.pub",
        help="Refuse an engine that the owner of this public key did not sign.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE.png",
        help="The picture, or a contact sheet of several. [default: picture.png]")] = None,
    tokens: Annotated[Path | None, typer.Option("--tokens", metavar="FILE.npy",
        help="Save the tokens, int64 [images, positions], or the latents.")] = None,
    preview: Annotated[str | None, typer.Option("--preview", metavar="FILE.png|FILE.gif|terminal",
        help="Show the picture while it is drawn; the result is the same.")] = None,
    acceptance: Annotated[Path | None, typer.Option("--acceptance", metavar="FILE.png",
        help="A map of where drafts held, bright, for engines that draft in windows.")] = None,
    as_json: Json = False,
) -> None:
    """Draw pictures. The settings used are written into the PNG (text chunk `parameters`)."""
    import arcompile

    if threads < 0:
        raise ArcError(f"threads must be 0 or more, got {threads}")
    start = time.perf_counter()
    opened = arcompile.load(engine, threads=threads, signed_by=signed_by)
    ready = time.perf_counter() - start
    out = _destination(opened, out, tokens, acceptance)
    cond = _condition(opened, label, class_name, prompt, features)
    base = opened.defaults
    chosen = {"guidance": _or(guidance, base["guidance"]),
              "guidance_interval": _or(guidance_interval, base.get("guidance_interval")),
              "temperature": _or(temperature, base["temperature"]),
              "top_k": int(_or(top_k, base["top_k"])),
              "top_p": _or(top_p, base["top_p"])}
    with Bars() as bars:
        result = _draw(opened, cond, {"seed": seed, "n": n, **chosen}, preview, bars)
    said = str(features) if features is not None else cond
    made_by = {k: opened.manifest[k] for k in ("family", "target", "dtype", "passes", "key")}
    used = {"seed": seed, "cond": said, "n": n, **chosen, "engine": made_by}
    _write(opened, result, (out, tokens, acceptance), used)
    told = {"path": str(out) if out else None, "tokens_path": str(tokens) if tokens else None,
            **used, **_told(result, acceptance), "timings": {"open": ready, **result.timings}}
    print_json(told) if as_json else _print(told)


def _draw(engine: Engine, cond: Any, asked: Mapping[str, Any], preview: str | None,
          bars: Bars) -> Output:
    """Generate; a bar tells how far it is, and a preview shows it."""
    from arcompile.cli.preview import Preview

    show = Preview(preview) if preview is not None else None

    def on_step(p: Progress) -> None:
        bars("drawing", p.step / p.steps)
        if show is not None:
            show(p)

    result = engine.generate(cond, **asked, on_step=on_step)
    if show is not None:
        show.close()
    return result


def _told(result: Output, acceptance: Path | None) -> dict[str, Any]:
    return {
        "images": len(result.tokens),
        "pixels": list(result.images.shape[1:3]) if result.images is not None else None,
        "tokens_sha256": hashlib.sha256(_drawn(result).tobytes()).hexdigest(),
        **_rounds(result),
        **({"acceptance_path": str(acceptance)} if acceptance is not None else {}),
    }


def _rounds(result: Output) -> dict[str, Any]:
    """Of engines that draft: forwards an image took, and positions each committed, on average."""
    if result.rounds is None:
        return {}
    from arcompile.runtime.acceptance import spent

    forwards, committed = spent(result.rounds)
    return {"forwards": round(forwards, 2), "committed": round(committed, 2)}


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _destination(engine: Engine, out: Path | None, tokens: Path | None,
                 acceptance: Path | None) -> Path | None:
    """Where the picture goes; refused before anything is drawn."""
    from arcompile.runtime.acceptance import side

    if tokens is not None and tokens.is_dir():
        raise ArcError(f"{tokens} is a folder", hint="name a file, such as tokens.npy")
    if acceptance is not None:
        _png(acceptance)
        side(engine.program)
    if not engine.program.finish:
        if out is not None or tokens is None:
            hint = "save them with --tokens tokens.npy, or build with --decoder"
            raise ArcError("this engine draws tokens only", hint=hint)
        return None
    out = out or PICTURE
    _png(out)
    return out


def _png(path: Path) -> None:
    if path.is_dir():
        raise ArcError(f"{path} is a folder", hint="name a file, such as picture.png")
    if path.suffix.lower() != ".png":
        raise ArcError(f"{path} does not end in .png", hint="pictures are PNG files")


# --- conditions ----------------------------------------------------------------------------------


def _condition(engine: Engine, labels: Sequence[str] | None, names: Sequence[str] | None,
               prompts: Sequence[str] | None, features: Path | None) -> Any:
    """Class numbers and names, words, or arrays by input name. Raises ArcError."""
    wanted = dict(engine.program.inputs)
    if set(wanted) == {"cond"}:
        if prompts or features is not None:
            raise ArcError("this engine draws classes, not captions", hint="give --label")
        classes = [c for item in labels or () for c in _classes(engine, item)]
        return [*classes, *(names or ())] or [0]
    hint = f"give --features F.npz with {', '.join(f'{k}: {t}' for k, t in wanted.items())}"
    if takes_words(engine):
        hint = 'give --prompt "a red apple"'
    if labels or names:
        raise ArcError(f"family {engine.manifest['family']} has no classes", hint=hint)
    if bool(prompts) == (features is not None):
        raise ArcError("--prompt or --features, not both" if prompts else "no condition given",
                       hint=hint)
    return list(prompts) if prompts else _arrays(Path(str(features)), wanted)


def takes_words(engine: Engine) -> bool:
    from arcompile.runtime import text

    return "prompt" in engine.manifest or text.takes(engine)


def _classes(engine: Engine, text: str) -> list[int | str]:
    """`207,88` or `golden retriever, tabby`; a known name is never split."""
    parts = [text] if text in engine.labels else [p.strip() for p in text.split(",") if p.strip()]
    return [int(p) if p.lstrip("-").isdigit() else p for p in parts]


def _arrays(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np

    hint = f"save it with numpy.savez(path, {', '.join(f'{k}=...' for k in wanted)})"
    try:
        with np.load(path, allow_pickle=False) as held:
            if not hasattr(held, "files"):
                raise ArcError(f"{path} is one array, not an .npz of several", hint=hint)
            if not wanted.keys() & set(held.files):
                raise ArcError(f"{path} holds {', '.join(held.files)[:200] or 'nothing'}, "
                               f"and no {' or '.join(wanted)}", hint=hint)
            return {k: held[k] for k in held.files if k in wanted}
    except ArcError:
        raise
    except OSError as e:
        raise ArcError(f"cannot read {path}: {e.strerror or e}") from None
    except (ValueError, EOFError, KeyError, TypeError, AttributeError) as e:
        raise ArcError(f"{path} is not an .npz of arrays ({type(e).__name__})", hint=hint) from None
    except Exception as e:  # zipfile and zlib have a dozen more for damaged files
        raise ArcError(f"{path} is damaged ({type(e).__name__}: {e})", hint=hint) from None


# --- results -------------------------------------------------------------------------------------


def _write(engine: Engine, result: Output, to: tuple[Path | None, Path | None, Path | None],
           used: Any) -> None:
    import arcompile
    from arcompile.runtime.image import save

    out, tokens, acceptance = to
    if tokens is not None:
        _save_tokens(result, tokens)
    if acceptance is not None:
        _map(engine, result, acceptance)
    if out is not None and result.images is not None:
        save(result.images, out, {"Software": f"arcompile {arcompile.__version__}",
                                  "parameters": json.dumps(used)})


def _map(engine: Engine, result: Output, path: Path) -> None:
    from arcompile.runtime.acceptance import accepted, picture, side
    from arcompile.runtime.image import save

    assert result.rounds is not None  # `side` refuses the engines that have none
    save(picture(accepted(result.rounds), side(engine.program))[None], path)


def _drawn(result: Output) -> Array:
    """The tokens, or the latents of a family that draws those; little-endian."""
    if result.tokens.size or result.latents is None:
        return result.tokens.astype("<i8")
    return result.latents.astype("<f4")


def _save_tokens(result: Output, path: Path) -> None:
    import numpy as np

    made = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with made.open("wb") as f:
            np.save(f, _drawn(result))
        made.replace(path)
    except OSError as e:
        raise ArcError(f"cannot write {path}: {e.strerror or e}") from None
    finally:
        made.unlink(missing_ok=True)


def _print(told: dict[str, Any]) -> None:
    t, count = told["timings"], told["images"]
    side = "x".join(map(str, told["pixels"])) if told["pixels"] else ""
    what = f"{count} {'image' if count == 1 else 'images'}" + (f" of {side}" if side else "")
    print(f"drew {what} into {told['path'] or told['tokens_path']}")
    step = t["loop"] / max(1, len(t["steps"]))
    given = {k: told[k] for k in ("seed", "guidance", "guidance_interval", "temperature", "top_k",
                                  "top_p") if told[k] is not None}
    print(facts({
        "cond": ", ".join(map(str, told["cond"])) if isinstance(told["cond"], list) else
                str(told["cond"]),
        "settings": ", ".join(f"{k} {v:g}" if k != "seed" else f"{k} {v}"
                              for k, v in given.items()),
        "tokens": f"sha256 {told['tokens_sha256']}",
        "drafts": f"{told['forwards']:g} forwards an image, {told['committed']:g} positions each"
                  if "forwards" in told else "",
        "acceptance": told.get("acceptance_path", ""),
        "time": f"{t['total']:.2f} s ({len(t['steps'])} steps of {step * 1e3:.1f} ms, pixels "
                f"{t['finish']:.2f} s), opened in {t['open']:.2f} s",
    }))
