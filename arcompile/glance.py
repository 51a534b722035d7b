"""Fits the colours of `glance`: what the image decoder makes of cells of pictures the model draws.

Cells of drawn pictures and not of made-up ones: a decoder knows no others, and paints unrelated
cells in colours that no picture has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from arcompile.auto import Bench
from arcompile.errors import ArcError
from arcompile.ir import dce, evaluate
from arcompile.passes.glance import Glance, drawn, grid, preview, written
from arcompile.pipeline import Pass, parse_pipeline, run
from arcompile.quality import condition, settings
from arcompile.runtime import request
from arcompile.runtime.engine import Engine
from arcompile.target import TARGETS
from arcompile.weights import Array, Store

RIDGE = 1e-4
MAKER = "ort-cpu"  # whatever the engine is for, it is built on a CPU


def fitted(passes: Sequence[Pass], bench: Bench,
           progress: Callable[[str, float], None] = lambda stage, share: None) -> list[Pass]:
    """The passes, with colours where `glance` has none. Raises ArcError."""
    found = []
    for each in passes:
        if isinstance(each, Glance) and not each.map:
            each = replace(each, map=written(colours(each, bench, progress)))
        found.append(each)
    return found


def colours(way: Glance, bench: Bench, progress: Callable[[str, float], None]) -> Array:
    """f32 [d+1, 3 side^2], by least squares over all cells of `way.pictures` pictures."""
    held, size = drawn(bench.plain, way.name)
    h, w = grid(held)
    if way.side < 1 or way.pictures < 1 or size[0] % (h * way.side) or size[1] % (w * way.side):
        raise ArcError(f"pass glance cannot fit {way.side} x {way.side} colours a cell of {h} x "
                       f"{w} by {way.pictures} pictures of {size[0]} x {size[1]} pixels",
                       hint="give it side=1 and a picture or more")
    cells, seen = [], []
    for i, (value, pixels) in enumerate(pictures(bench, held.name, way.pictures)):
        progress("colours", i / way.pictures)
        cells.append(_vectors(bench, value))
        seen.append(_means(pixels[0], h, w, way.side))
    progress("colours", 1.0)
    x, y = np.concatenate(cells).astype(np.float64), np.concatenate(seen)
    x = np.concatenate((x, np.ones((len(x), 1))), 1)
    weight = RIDGE * np.trace(x.T @ x) / len(x.T)
    found = np.linalg.solve(x.T @ x + weight * np.eye(len(x.T)), x.T @ y)
    return found.astype(np.float32)


def pictures(bench: Bench, held: str, count: int) -> list[tuple[Array, Array]]:
    """What the decoder read, and the pixels it made, of pictures of several conditions."""
    p, target = run(bench.plain, parse_pipeline(TARGETS[MAKER].passes)), TARGETS[MAKER]
    with tempfile.TemporaryDirectory(dir=bench.folder.parent) as where:
        target.lower(p, Store(bench.source, p.fold), Path(where), lambda stage, part: None)
        e = Engine(Path(where), {**bench.facts, "target": MAKER}, p, (), 0)
        s, made = settings(e), []
        for i in range(count):
            q = request.make(e, condition(e, i, 1), [i], 1, s["guidance"], None, s["temperature"],
                             s["top_k"], s["top_p"], {})
            loop = e._loop(q)
            env = loop.run().env
            made.append((np.array(loop.runner.numpy(env[held])), np.array(env["pixels"])))
    return made


def _vectors(bench: Bench, value: Array) -> Array:
    """The vector [n,d] of each cell of what the decoder reads."""
    if value.ndim == 2:
        g = preview(bench.plain, *drawn(bench.plain, "glance"), 1, "glance")
        codes = next(n for n in g.nodes if n.op == "gather" and n.args[1] in g.params)
        only = dce(replace(g, results=(("x", codes.outs[0]),)))
        store = Store(bench.source, bench.plain.fold)
        held = {v.name: store[v.name] for v in only.weights}
        found: Array = evaluate(only, {"tokens": value}, held)["x"][0]
        return found
    return value[0] if value.ndim == 3 else value[0].reshape(len(value[0]), -1).T


def _means(pixels: Array, h: int, w: int, side: int) -> Array:
    """The mean colours [h*w, side*side*3] of parts of cells, within [-1,1]."""
    c, height, width = pixels.shape
    x = np.clip(pixels, -1, 1).reshape(c, h, side, height // h // side, w, side,
                                       width // w // side)
    return x.mean((3, 6)).transpose(1, 3, 2, 4, 0).reshape(h * w, -1)
