"""Passes over caches, drafts of a second model, two models in one: they need nothing of a runtime,
and both draw the same. Small programs; test_cpp_families.py has the demos under every pass.
"""

from __future__ import annotations

import ctypes as c
from dataclasses import replace

import engines
import native
import numpy as np
import pytest
import tiny
from cells import WEIGHTS, walk
from tiny import painted
from tiny_scales import NORMAL, rows, scales

from arcompile import partner
from arcompile.passes.glance import Glance, written
from arcompile.pipeline import parse_pipeline, run
from arcompile.weights import Store, of_arrays

pytestmark = pytest.mark.ort
ASKED = ({"seed": 3, "guidance": 2.0}, {"seed": [3, 4], "guidance": [2.0, 1.0]},
         {"seed": [5, 6, 7], "guidance": 1.5, "temperature": [0.0, 1.0, 0.5], "top_k": [0, 3, 0]},
         {"seed": 8, "n": 2, "guidance": 1.0})


def raster():
    return tiny.llama(2)


def engine(folder, p, source, passes="", **more):
    return engines.write(folder, p, source, 16, passes=passes, info={"classes": 3}, **more)


def agree(lib, folder):
    pytest.importorskip("onnx")
    both = native.Pair(lib, folder)
    for asked in ASKED:
        seeds = asked["seed"]
        both.same([0, 1, 2][: len(seeds) if isinstance(seeds, list) else 1], **asked)


@pytest.mark.parametrize(("program", "passes"), [
    (scales, "kv-hack{ratio=0.5}"), (scales, "kv-h2o{ratio=0.6}, kv-int8"),
    (scales, "kv-scale{ratio=0.5}"), (scales, "kv-pyramid{ratio=0.5}, kv-int4"),
    (rows, "kv-rows{anchors=0,latest=1,ratio=0.2}"), (rows, "kv-streaming{ratio=0.3}, kv-int8"),
    (rows, "kv-snap{ratio=0.4}"), (rows, "kv-int4{window=4}")])
def test_caches(lib, tmp_path, program, passes):
    p = replace(program(), finish=())  # tokens are what is compared
    agree(lib, engine(tmp_path / "engine", p, tiny.weights(p), f"{NORMAL}, {passes}"))


@pytest.mark.parametrize("passes", [
    "draft{window=3,by='shallow{layers=1}'}", "draft{window=2,by='int8{least=1,bound=9.0}'}",
    "draft{window=3,by='kv-int8'}",
    "shallow{layers=1}", "guidance{first=1,last=3}", "shallow{layers=1}, scd{window=3}",
    "zipar-adaptive{window=1}"])
def test_drafts(lib, tmp_path, passes):
    p = replace(raster(), finish=())
    agree(lib, engine(tmp_path / "engine", p, tiny.weights(p), passes))


@pytest.mark.parametrize("window", [1, 2])
def test_drafts_of_cells(lib, tmp_path, window):
    source = of_arrays(WEIGHTS)
    agree(lib, engine(tmp_path / "engine", walk(3), source, f"cspd{{window={window},by=''}}"))


@pytest.mark.parametrize("passes", ["", f"{NORMAL}, fuse-sampling"])  # the latter turns weights
def test_an_engine_drafts(lib, tmp_path, passes):
    p, other = raster(), tiny.llama(1)
    small = engine(tmp_path / "small", other, tiny.weights(other), passes)
    made = run(other, parse_pipeline(passes), tiny.weights(other))
    (small / "program.arc").write_text(f"{made}\n")
    engines.signed(small)
    held, stored = Store(tiny.weights(other), made.fold), partner.weights(str(small))
    assert all(np.array_equal(stored[k], held[k]) for k in stored.load)
    way = f"draft{{window=3,engine='{small}'}}"
    agree(lib, engine(tmp_path / "engine", replace(p, finish=()), *_joined(p, way), way))


def _joined(p, way):
    own = tiny.weights(p)
    brought = parse_pipeline(way)[0].brings().load
    return (of_arrays({k: np.asarray(own[k]) for k in own.load}).plus(brought),)


def test_previews_by_a_map(lib, tmp_path):
    """Cheap previews are the same bits, and the picture does not depend on them."""
    from arcompile.runtime.image import to_uint8

    p = painted()
    made = np.random.default_rng(0).normal(size=(5, 3))
    way = Glance(side=1, map=written(made))
    source = tiny.weights(p).plus(way.brings().load)
    folder = engine(tmp_path / "engine", p, source, str(way))
    both, seen, said = native.Pair(lib, folder), [], []

    def look(progress):
        out = native.Tensor()
        both.cpp.lib.must("arc_progress_preview", progress, c.byref(out))
        seen.append(native.taken(out))

    plain = both.same([0, 1], seed=3, guidance=2.0)
    looked = both.cpp.generate([0, 1], seed=3, guidance=2.0, on_step=look)
    both.py.generate([0, 1], seed=3, guidance=2.0,
                     on_step=lambda s: said.append(to_uint8(s.pixels())))
    assert (looked.pixels == plain.pixels).all()
    assert (seen[-1] == plain.images).all()
    assert len(seen) == len(said) == 4
    assert all((x == y).all() for x, y in zip(seen, said, strict=True))
