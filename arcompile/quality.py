"""What lossy passes cost: an engine against the one without them, on the same noise and tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.cost import figure
from arcompile.errors import ArcError
from arcompile.pipeline import Pass, run
from arcompile.program import Program
from arcompile.runtime import request
from arcompile.runtime.engine import Engine, to_uint8
from arcompile.runtime.loop import Array
from arcompile.target import TARGETS
from arcompile.walk import guided_rows
from arcompile.weights import Store, Weights, used

Judge = Callable[[Array, Array], Mapping[str, Any]]  # pictures, their classes -> score
IMAGES = 2  # that are compared; the judge sees more
AT_ONCE = 60  # pictures drawn together for the judge
SHOWN = 6  # names of weights in a line
LOSSY = ("bound", "quality")  # what a pass keeps when it needs measuring


@dataclass(frozen=True)
class Wanted:
    """What a build shall keep to, and measure: see `compile.build`."""

    memory: int | None = None
    batch: int = 1
    report: bool = False
    pictures: int = 0
    judge: Judge | None = None


WHATEVER = Wanted()


def measure(plain: Program, weights: Weights, passes: Sequence[Pass], facts: Mapping[str, Any],
            folder: Path, wanted: Wanted) -> dict[str, Any]:
    """What the lossy ones of `passes` cost, each alone and together: see `report`.

    plain: the program before any pass; folder: where it lies lowered with all of them; facts: of
    its manifest. Engines with fewer passes are lowered beside it for as long as it takes.
    """
    lossy = [p for p in passes if p.keeps in LOSSY]
    parts = {"": [], **({str(p): [p] for p in lossy} if len(lossy) > 1 else {})}
    target, engines = TARGETS[facts["target"]], dict[str, Engine]()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        for i, (name, some) in enumerate(parts.items()):
            p = run(plain, [x for x in passes if x not in lossy or x in some])
            where = Path(scratch) / str(i)
            where.mkdir()
            target.lower(p, Store(weights, p.fold), where, lambda stage, share: None)
            engines[name] = Engine(where, facts, p, (), 0)
        whole = run(plain, passes)
        engines[" + ".join(map(str, lossy))] = Engine(folder, facts, whole, (), 0)
        base = engines.pop("")
        found = report(base, engines, wanted.judge, wanted.pictures)
    for name, line in found.get("passes", {}).items():
        line |= sizes(engines[name])
    p = plain
    for each in passes:
        if str(each) in found.get("passes", {}) and (left := each.left(p)):
            found["passes"][str(each)]["left"] = dict(left)
        p = run(p, [each])
    return {**found, "base": {**found.get("base", {}), **sizes(base)}}


def sizes(e: Engine) -> dict[str, int]:
    """Bytes of the weights, and of what a guided image carries from step to step."""
    weights = sum(w.type.nbytes() for w in used(e.program.graphs).values())
    known = e.program.sizes(1, guided_rows(e.program))
    return {"weights": weights, "state": sum(t.nbytes(known) for _, t in e.program.state)}


@dataclass(frozen=True)
class Drawn:
    """What an engine made of one request, and its logits on the tokens of another engine."""

    tokens: Array
    pixels: Array | None
    forced_pixels: Array | None = None
    logits: Array | None = None
    seconds: float = 0.0


def report(base: Engine, others: Mapping[str, Engine], judge: Judge | None = None,
           pictures: int = 0) -> dict[str, Any]:
    """Figures for each of `others`, by name; {"not measured": why} where a request cannot be made.

    kl: of the next token's law from that of `base`, nats a token, both fed the tokens that `base`
    drew. agreement: share of those whose likeliest token is the same. psnr: of pictures drawn with
    the same noise; decoder_psnr: of those drawn from the same tokens, in dB (peak to peak is 2).
    score, interval, n: the judge's, with its 95 % interval, over `pictures` pictures; difference:
    `paired` with those of `base`, in points. seconds: of drawing the IMAGES compared, on this
    machine as it was.
    """
    try:
        cond = condition(base)
    except ArcError as e:
        return {"not measured": e.what}
    first = _draw(base, cond, None)
    first = _draw(base, cond, first.tokens)
    found: dict[str, Any] = {"images": IMAGES, "passes": {}}
    for name, other in others.items():
        found["passes"][name] = compare(first, _draw(other, cond, first.tokens))
    found["base"] = {"seconds": round(first.seconds, 4)}
    if judge is not None and pictures:
        was = judged(base, judge, pictures)
        found["base"] |= score(was)
        for name, other in others.items():
            now = judged(other, judge, pictures)
            difference = paired(was["right"], now["right"])
            found["passes"][name] |= {**score(now), "difference": difference["points"]}
    return found


def condition(e: Engine, first: int = 0, count: int = IMAGES) -> Any:
    """Some condition for each of `count` images. Raises ArcError when none can be made up."""
    wanted, info = dict(e.program.inputs), e.manifest["info"]
    if set(wanted) == {"cond"}:
        return [(1 + 7 * i) % info["classes"] for i in range(first, first + count)]
    if "features" in wanted and "caption" in info:
        shape = (count, *info["caption"])
        return {"features": np.random.default_rng(first).standard_normal(shape, np.float32)}
    raise ArcError(f"a request of {', '.join(wanted)} cannot be made up")


def settings(e: Engine) -> dict[str, Any]:
    """The engine's own, as generate takes them."""
    found = {k: e.defaults[k] for k in ("guidance", "temperature", "top_k", "top_p")}
    return {**found, "top_k": int(found["top_k"])}


def _draw(e: Engine, cond: Any, forced: Array | None) -> Drawn:
    """With `forced` tokens also what the engine makes of those."""
    s, seeds = settings(e), list(range(IMAGES))
    out = e.generate(cond, seed=seeds, **s)
    drawn = Drawn(out.tokens, out.pixels, seconds=float(out.timings["total"]))
    if forced is None or not forced.size or e.program.accept != "all":
        return drawn
    q = request.make(e, cond, seeds, 1, s["guidance"], None, s["temperature"], s["top_k"],
                     s["top_p"], {})
    loop = e._loop(replace(q, forced=forced))
    loop.keep_logits = True
    made = loop.run()
    pairs = [c for c, _ in made.logits]
    logits = np.concatenate(pairs, 1) if pairs else None
    return replace(drawn, forced_pixels=made.env.get("pixels"), logits=logits)


def compare(was: Drawn, now: Drawn) -> dict[str, float]:
    """The figures that can be told from both."""
    found = {}
    if was.logits is not None and now.logits is not None and was.logits.shape == now.logits.shape:
        found["kl"] = divergence(was.logits, now.logits)
        same = was.logits.argmax(-1) == now.logits.argmax(-1)
        found["agreement"] = float(same.mean())
    if was.pixels is not None and now.pixels is not None:
        found["psnr"] = psnr(was.pixels, now.pixels)
    if was.forced_pixels is not None and now.forced_pixels is not None:
        found["decoder_psnr"] = psnr(was.forced_pixels, now.forced_pixels)
    if now.seconds:
        found["seconds"] = now.seconds
    return {k: round(v, 6) for k, v in found.items()}


def divergence(p: Array, q: Array) -> float:
    """Mean KL(softmax p || softmax q) over all but the last axis, in nats."""
    a, b = _log_softmax(p), _log_softmax(q)
    return float((np.exp(a) * (a - b)).sum(-1).mean())


def _log_softmax(x: Array) -> Array:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    found: Array = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return found


def psnr(x: Array, y: Array) -> float:
    """Of pixels in [-1,1], in dB; 99 for equal ones."""
    off = float(np.square(np.clip(x, -1, 1).astype(float) - np.clip(y, -1, 1)).mean())
    return min(99.0, 10 * float(np.log10(4 / off))) if off > 0 else 99.0


def judged(e: Engine, judge: Judge, pictures: int) -> Mapping[str, Any]:
    """Of pictures of all classes in turn, with a seed each, at the engine's settings."""
    classes = np.arange(pictures) % e.manifest["info"]["classes"]
    seeds, made = np.arange(pictures), []
    s = settings(e)
    for at in range(0, pictures, AT_ONCE):
        part = slice(at, at + AT_ONCE)
        out = e.generate(classes[part].tolist(), seed=seeds[part].tolist(), **s)
        assert out.pixels is not None
        made.append(to_uint8(out.pixels))
    return judge(np.concatenate(made), classes)


def score(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a report keeps of a judge's word."""
    return {"score": round(said["both"], 4), "interval": [round(x, 4) for x in said["ci"]],
            "n": said["n"]}


def paired(was: Array, now: Array) -> dict[str, Any]:
    """By how much the share of `now` [n] bool lies above that of `was`, picture by picture.

    points: the difference and its 95 % interval, in points of a hundred; won, lost: pictures that
    only one of the two has right. Pictures of one class and seed are compared, so what both get
    wrong does not count. Wald's interval: Agresti, Categorical Data Analysis, section 11.1.
    """
    won, lost, n = int((now & ~was).sum()), int((was & ~now).sum()), len(was)
    middle = (won - lost) / n
    half = 1.96 * float(np.sqrt(max(won + lost - n * middle**2, 0.0))) / n
    return {"points": [round(100 * x, 2) for x in (middle, middle - half, middle + half)],
            "won": won, "lost": lost}


# --- for people ----------------------------------------------------------------------------------

TITLES = {"kl": "KL, nats", "agreement": "agree", "psnr": "PSNR, dB", "decoder_psnr": "decoder, dB",
          "score": "judge", "interval": "95 %", "difference": "points", "n": "pictures",
          "weights": "weights",
          "state": "carried", "seconds": "seconds"}


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each pass, under a row of titles; nothing when nothing was measured."""
    lines = {"none": found.get("base", {}), **found.get("passes", {})}
    shown = [k for k in TITLES if any(k in line for line in lines.values())]
    table = [("lossy passes", *(TITLES[k] for k in shown))]
    table += [(name, *(_text(k, line.get(k)) for k in shown)) for name, line in lines.items()]
    return table if "passes" in found else []


def notes(found: Mapping[str, Any]) -> list[str]:
    """A line for each reason why a pass left matrices as they are."""
    lines = []
    for name, line in found.get("passes", {}).items():
        why: dict[str, list[str]] = {}
        for weight, reason in line.get("left", {}).items():
            why.setdefault(reason, []).append(weight.lstrip("@"))
        for reason, some in why.items():
            more = f" and {len(some) - SHOWN} more" if len(some) > SHOWN else ""
            lines.append(f"{name} leaves {', '.join(some[:SHOWN])}{more} as it is: {reason}")
    return lines


def _text(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("weights", "state"):
        return figure(value, "B")
    if key == "difference":
        return "{:+.1f} ({:+.1f} to {:+.1f})".format(*value)
    return "-".join(f"{x:.3g}" for x in value) if key == "interval" else f"{value:.4g}"
