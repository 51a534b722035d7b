"""Check what a user asks an engine for, and spread it over the images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from arcompile.errors import ArcError, did_you_mean
from arcompile.ir import Type
from arcompile.ops.tensor import NUMPY
from arcompile.program import Draw, Program
from arcompile.runtime import prompt, text
from arcompile.runtime.loop import Array, Request

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine

MAX_IMAGES = 4096


def make(engine: Engine, cond: Any, seed: Any, n: int, guidance: Any, interval: int | None,
         temperature: Any, top_k: Any, top_p: Any, given: Mapping[str, Any]) -> Request:
    """The checked request for len(cond) * n images. Raises ArcError."""
    inputs = _inputs(engine, cond)
    b = len(next(iter(inputs.values())))
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ArcError(f"n must be a positive integer, got {n!r}",
                       hint="n is how many images each condition gets")
    if b * n > MAX_IMAGES:
        raise ArcError(f"{b * n} images in one call; at most {MAX_IMAGES}", hint="call it again")
    rows = b * int(n)
    if guidance is None:
        guidance = engine.defaults["guidance"]
    scale = _per_row("guidance", guidance, b, rows, 0.0, 1e6)
    if interval is not None and interval < -1:
        raise ArcError(f"guidance_interval must be at least -1, got {interval}",
                       hint="guidance ends after so many tokens; -1 never ends it")
    vocabulary = engine.manifest["vocabulary"]
    top = _per_row("top_k", top_k, b, rows, 0, 1 << 31)
    return Request(
        {k: v.repeat(n, 0) for k, v in inputs.items()},
        _seeds(seed, b, rows), np.tile(np.arange(n), b), scale,
        _per_row("temperature", temperature, b, rows, 0.0, 1e6).astype(np.float32),
        np.minimum(top, max(vocabulary, 1)).astype(np.int64),
        _per_row("top_p", top_p, b, rows, 1e-9, 1.0).astype(np.float32),
        -1 if interval is None else int(interval), _given(engine, given, rows),
    )


def _per_row(name: str, value: Any, b: int, rows: int, lo: float, hi: float) -> Array:
    """A number for all images, one per condition, or one per image."""
    try:
        x = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ArcError(f"{name} must be a number or one per image, got {value!r}",
                       hint=f"give {name} from {lo:g} to {hi:g}") from None
    if x.ndim == 0:
        x = np.full(rows, x)
    elif x.shape == (b,):
        x = x.repeat(rows // b)
    if x.shape != (rows,):
        raise ArcError(f"{name} has {x.size} values for {rows} images",
                       hint="give one for all, one per condition, or one per image")
    if not ((x >= lo) & (x <= hi)).all():  # also catches NaN
        bad = x[~((x >= lo) & (x <= hi))][0]
        raise ArcError(f"{name} must be between {lo:g} and {hi:g}, got {bad:g}",
                       hint="the engine's own settings are in Engine.defaults")
    return x


def _seeds(seed: Any, b: int, rows: int) -> Array:
    given = np.ravel(np.asarray(seed, object)).tolist()
    for s in given:
        if isinstance(s, bool) or not isinstance(s, int | np.integer) or not 0 <= s < 1 << 64:
            raise ArcError(f"seed must be an integer from 0 to 2**64-1, got {s!r}",
                           hint="the same seed draws the same image")
    x = np.array([int(s) for s in given], np.uint64)
    if np.ndim(seed) == 0:
        return x.repeat(rows)
    if len(x) == b:
        return x.repeat(rows // b)
    if len(x) != rows:
        raise ArcError(f"seed has {len(x)} values for {rows} images",
                       hint="give one for all, one per condition, or one per image")
    return x


def _inputs(engine: Engine, cond: Any) -> dict[str, Array]:
    want = dict(engine.program.inputs)
    if set(want) == {"cond"} and not isinstance(cond, Mapping):
        return {"cond": _classes(engine, cond)}
    if "prompt" in engine.manifest and not isinstance(cond, Mapping):
        cond = prompt.given(engine, cond)
    elif "features" in want and text.are_prompts(cond):
        cond = _features(engine, cond)
    found = _named(engine, cond, want)
    _fits(engine, found)
    if "cond" in found:
        found["cond"] = _classes(engine, found["cond"])
    if "prompt" in engine.manifest:
        prompt.check(engine, found["input_ids"], found["mask"])
    return found


def _features(engine: Engine, prompts: Any) -> dict[str, Array]:
    """The inputs that an engine with a text encoder makes of a prompt or several."""
    if not text.takes(engine):
        raise ArcError("this engine has no text encoder, so it takes features and no prompts",
                       hint="build it with --option text_encoder=FOLDER, or give "
                            "{features: ..., mask: ...}")
    rows = [prompts] if isinstance(prompts, str) else list(prompts)
    if len(rows) > MAX_IMAGES:
        raise ArcError(f"{len(rows)} prompts in one call; at most {MAX_IMAGES}",
                       hint="call it again")
    found = text.features(engine, rows)
    return {k: v for k, v in found.items() if k in dict(engine.program.inputs)}


def _named(engine: Engine, cond: Any, want: Mapping[str, Type]) -> dict[str, Array]:
    """A dict of arrays, each of its input's type, all for as many images."""
    if not isinstance(cond, Mapping):
        names = ", ".join(f"{k}: {t}" for k, t in want.items())
        raise ArcError(f"family {engine.manifest['family']} takes a dict of arrays, "
                       f"got {type(cond).__name__}", hint=f"give {{{names}}}")
    for key in cond:
        if key not in want:
            raise ArcError(f"no input named {key!r}", hint=did_you_mean(key, want))
    given = dict(cond)
    if "mask" in want and "mask" not in given and given:
        given["mask"] = np.ones(np.shape(next(iter(given.values())))[:2], bool)
    missing = [k for k in want if k not in given]
    if missing:
        raise ArcError(f"inputs are missing: {', '.join(missing)}",
                       hint="it takes " + ", ".join(f"{k}: {t}" for k, t in want.items()))
    found = {k: _array(k, given[k], t) for k, t in want.items()}
    if len({len(v) for v in found.values()}) > 1:
        raise ArcError("inputs disagree on the number of images: "
                       + ", ".join(f"{k} has {len(v)}" for k, v in found.items()),
                       hint="give each as many rows as there are images")
    return found


def _fits(engine: Engine, found: Mapping[str, Array]) -> None:
    """A text may be as long as the model was trained for."""
    most = engine.manifest["info"].get("caption", [0])[0]
    if "features" in found and found["features"].shape[1] > most > 0:
        raise ArcError(f"features of {found['features'].shape[1]} tokens; this engine takes {most}",
                       hint="shorten the text")


def _array(name: str, value: Any, t: Type) -> Array:
    try:
        raw = np.asarray(value)
        x = (raw != 0) if t.dtype == "bool" else raw.astype(NUMPY[t.dtype])
    except (TypeError, ValueError):
        raise ArcError(f"input {name} is not an array of numbers",
                       hint=f"give {t}") from None
    fits = x.ndim == t.rank and all(
        isinstance(d, str) or d == n for d, n in zip(t.shape, x.shape, strict=True)
    )
    if not fits or not len(x):
        raise ArcError(f"input {name} has shape {list(x.shape)}, expected {t}",
                       hint="named sizes may be any; b is the number of images, at least 1")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        raise ArcError(f"input {name} has {bad} values that are not finite",
                       hint="NaN or infinity; check what made them")
    return x


def _classes(engine: Engine, cond: Any) -> Array:
    """Class ids from ids, names, or a mixture."""
    items = list(np.ravel(np.asarray(cond, object)))
    count = engine.manifest["info"].get("classes", 0)
    if not items:
        raise ArcError("no condition given", hint="give at least one class")
    return np.array([_class(engine, c, count) for c in items], np.int64)


def _class(engine: Engine, c: Any, count: int) -> int:
    if isinstance(c, str) and not c.lstrip("-").isdigit():
        if c not in engine.labels:
            hint = did_you_mean(c, engine.labels) if engine.labels else (
                "this engine has no class names; give a number")
            raise ArcError(f"no class named {c!r}", hint=hint)
        return list(engine.labels).index(c)
    try:
        number = int(c)
    except (TypeError, ValueError):
        raise ArcError(f"a class is a number or a name, got {c!r}",
                       hint=f"classes are 0 to {count - 1}") from None
    if not 0 <= number < count or number != float(c):
        raise ArcError(f"class {c} is out of range", hint=f"classes are 0 to {count - 1}")
    return number


def _given(engine: Engine, given: Mapping[str, Any], rows: int) -> dict[str, Array]:
    """Arrays that replace random draws, as `_shape` wants them."""
    p, found = engine.program, {}
    known = {d.name: d for d in p.draws}
    for name, value in given.items():
        if name not in known:
            raise ArcError(f"generate has no argument {name!r}", hint=did_you_mean(name, known))
        shape, order = _shape(p, known[name], rows), known[name].kind == "order"
        try:
            x = np.asarray(value, np.int64 if order else np.float32)
        except (TypeError, ValueError):
            raise ArcError(f"{name} is not an array of numbers",
                           hint=f"give one of shape {list(shape)}") from None
        if x.shape != shape:
            raise ArcError(f"{name} has shape {list(x.shape)}, expected {list(shape)}",
                           hint="it replaces a random draw for every image and position")
        if order and (np.sort(x, 1) != np.arange(p.positions)).any():
            raise ArcError(f"{name} must hold a permutation of 0..{p.positions - 1} in each row",
                           hint="numpy.random.default_rng().permutation makes one")
        if not order and not np.isfinite(x).all():
            raise ArcError(f"{name} has {int((~np.isfinite(x)).sum())} values that are not finite",
                           hint=f"give f32 {list(shape)} of finite numbers")
        found[name] = x
    return found


def _shape(p: Program, d: Draw, rows: int) -> tuple[int, ...]:
    """i64 [B,N] of an order, f32 [B,N,width] of noise; of noise that a loop draws anew each turn
    [B,N,turns,width], turns being those of the longest loop."""
    if d.kind == "order":
        return rows, p.positions
    if d.when != "loop":
        return rows, p.positions, d.width
    tables = [p.tables[c.loop] for s in p.steps for c in s.calls if c.loop]
    return rows, p.positions, max((len(next(iter(t.values()))) for t in tables), default=0), d.width
