"""libarcompile against the Python runtime on every demo, with passes, and on every family: tokens
and pixels, bit for bit.

Building them takes minutes in all; ARC_TEST_FAMILIES=1 asks for it, or names some of them.
"""

from __future__ import annotations

import os

import native
import numpy as np
import pytest

import arcompile
from arcompile import dims

pytestmark = [pytest.mark.ort, pytest.mark.slow]
ASKED = os.environ.get("ARC_TEST_FAMILIES", "")
FAMILIES = ("flexvar", "hmar", "infinity", "janus", "llamagen", "mar", "nar", "par", "rar",
            "token-shuffle", "var", "xar")
WEIGHTS = ("int8", "int8{block=128}", "int4", "mixed", "smooth", "int8-conv{dynamic=True}",
           "bf16-conv")
CACHES = (*(f"kv-{p}{{ratio=0.5}}" for p in ("streaming", "snap", "h2o", "pyramid")),
          "kv-int8", "kv-int4", "kv-snap{ratio=0.5}, kv-int8")
DRAFTS = (*(f"{p}{{window=8}}" for p in ("jacobi", "sjd", "scd", "gsd", "lantern", "cool-sd")),
          "scd{window=8,coupling='gumbel'}", "sjd{window=12,guess='above'}",
          "draft{window=4,by='int4'}", "draft{window=3,by='shallow{layers=2}, int8'}",
          "draft{window=4,engine='PLAIN'}")
RASTER = ("shallow{layers=2}", "guidance{last=32}", "zipar", "zipar-adaptive{window=4}", "glance",
          "auto", "kv-rows{ratio=0.3}", "int8, jacobi{window=8}", "int4, scd{window=8}")
SCALES = ("kv-hack{ratio=0.5}", "kv-scale{ratio=0.5}", "trim{scales=1}", "guidance{first=1,last=4}",
          "code{engine='PLAIN',scales=3}", "int8, kv-hack{ratio=0.5}, kv-int8", "glance")
MASKED = ("int8", "int4", "bf16-conv", "cspd{window=4,by='int8'}", "glance")
DEMOS = ("demo", *(f"demo+{p}" for p in (*WEIGHTS, *CACHES, *DRAFTS, *RASTER)),
         "demo-var", *(f"demo-var+{p}" for p in (*WEIGHTS, *CACHES, *SCALES)),
         "demo-mar", *(f"demo-mar+{p}" for p in MASKED),
         "demo-shuffle", *(f"demo-shuffle+{p}" for p in ("int4", "int8, kv-int8", "glance")))
OPTIONS = {"infinity": {"scales": [[1, 1], [2, 2], [3, 4]]}}  # published schedules are long
SEEDS = 20


@pytest.fixture(scope="module")
def lib():
    return native.Library(native.library())


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """The folder of an engine by its name in the matrix, built once."""
    made = {}

    def get(name):
        if name not in made:
            family, _, passes = name.partition("+")
            out = made[name] = tmp_path_factory.mktemp("cpp") / "engine"
            if family.startswith("demo"):  # PLAIN: the same model as a second engine
                passes = passes.replace("PLAIN", str(get(family))) if "PLAIN" in passes else passes
                arcompile.build(family, passes=passes or None, out=out, report=False)
            else:
                import plain

                from arcompile.family import FAMILIES as KNOWN

                plain.engine(family, KNOWN[family].random("tiny"), out, **OPTIONS.get(family, {}))
        return made[name]

    return get


@pytest.fixture(scope="module", params=(*DEMOS, *FAMILIES))
def both(request, lib, engines):
    """(the name, the engine in C++, the engine in Python)."""
    if ASKED in ("", "0"):
        pytest.skip("ARC_TEST_FAMILIES=1 compares every family")
    if ASKED != "1" and request.param.partition("+")[0] not in ASKED.split(","):
        pytest.skip(f"ARC_TEST_FAMILIES={ASKED}")
    folder = engines(request.param)
    return request.param, lib.open(folder, 1), arcompile.load(folder, threads=1)


def condition(engine, b, rng):
    """Random inputs for b images."""
    made, p = {}, engine.program
    sizes = {s: 3 for _, t in p.inputs for d in t.shape for s in dims.symbols(d)}
    known = engine.manifest.get("prompt", {}).get("vocabulary", 0)
    for name, t in p.inputs:
        shape = [dims.value(d, {**sizes, "b": b}) for d in t.shape]
        if name == "cond":
            made[name] = rng.integers(0, engine.manifest["info"]["classes"], shape)
        elif t.dtype == "bool":
            made[name] = np.ones(shape, bool)
        elif t.dtype == "i64":
            made[name] = rng.integers(0, max(known, 1), shape)
        else:
            made[name] = rng.normal(size=shape).astype(np.float32)
    return made


def same(a, b):
    for name in ("tokens", "pixels", "images", "latents", "rounds"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert (x.shape, x.dtype) == (y.shape, y.dtype), name
            assert x.tobytes() == np.ascontiguousarray(y).tobytes(), name


def test_seeds(both):
    _, cpp, py = both
    rng = np.random.default_rng(0)
    for seed in range(SEEDS):
        cond = condition(py, 1, rng)
        same(cpp.generate(cond, seed=seed), py.generate(cond, seed=seed))


@pytest.mark.parametrize("asked", [
    {"seed": [0, 1, 2], "guidance": [1.0, 4.0, 2.0], "temperature": [1.0, 0.0, 0.7],
     "top_k": [0, 5, 0], "top_p": [0.9, 1.0, 0.5]},
    {"seed": [2**63, 1, 1], "n": 2, "guidance": 1.0},
    {"seed": [0, 1, 2], "guidance": 3.0, "temperature": 0.0},
], ids=("mixed", "copies", "greedy"))
def test_batches(both, asked):
    """Of three conditions; the demos with all the seeds, three at a time."""
    name, cpp, py = both
    rng = np.random.default_rng(1)
    for more in range(0, SEEDS if name in DEMOS else 1, 3):
        cond, seeds = condition(py, 3, rng), [s + more for s in asked["seed"]]
        same(cpp.generate(cond, **{**asked, "seed": seeds}),
             py.generate(cond, **{**asked, "seed": seeds}))


def test_guidance_that_ends(both):
    _, cpp, py = both
    cond = condition(py, 2, np.random.default_rng(2))
    same(cpp.generate(cond, guidance=3.0, interval=1),
         py.generate(cond, guidance=3.0, guidance_interval=1))


def test_logits_and_encoding(both):
    name, cpp, py = both
    cond, vocabulary = condition(py, 2, np.random.default_rng(3)), py.manifest["vocabulary"]
    if vocabulary:
        tokens = np.random.default_rng(4).integers(0, vocabulary, (2, py.program.positions))
        try:
            want = py.logits(cond, tokens)
        except arcompile.ArcError as e:
            with pytest.raises(arcompile.ArcError, match=e.what[:20]):
                cpp.logits(cond, tokens)
        else:
            for x, y in zip(cpp.logits(cond, tokens), want, strict=True):
                assert (x == y).all(), name
    if "encode" in py.manifest["graphs"] and isinstance(py.manifest["info"].get("pixels"), int):
        side = py.manifest["info"]["pixels"]
        pixels = np.random.default_rng(5).uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
        assert (cpp.encode(pixels) == py.encode(pixels)).all()
