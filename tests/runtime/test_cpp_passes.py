"""Passes over caches, drafts of a second model, two models in one: they need nothing of a runtime,
and both draw the same. Small programs; test_cpp_families.py has the demos under every pass.
"""

from __future__ import annotations

from dataclasses import replace

import engines
import native
import numpy as np
import pytest
import tiny
from tiny_scales import NORMAL, rows, scales

from arcompile import partner
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
    "shallow{layers=1}", "guidance{first=1,last=3}", "shallow{layers=1}, scd{window=3}"])
def test_drafts(lib, tmp_path, passes):
    p = replace(raster(), finish=())
    agree(lib, engine(tmp_path / "engine", p, tiny.weights(p), passes))


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
