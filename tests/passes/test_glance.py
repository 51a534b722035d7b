"""A preview by a linear map: its graph, how it is fitted, and that nothing drawn depends on it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import tiny

from arcompile.auto import Bench
from arcompile.errors import ArcError
from arcompile.glance import _means, fitted
from arcompile.ir import evaluate
from arcompile.passes.glance import COLOURS, Glance, written
from arcompile.pipeline import run
from arcompile.program import Call
from arcompile.program_text import from_data, parse_program, to_data
from arcompile.runtime.loop import Loop, Request
from arcompile.targets.reference import models
from arcompile.weights import Store, of_arrays

WIDTH = 4  # of the codes of tiny.llama


def arrays(p):
    source = tiny.weights(p)
    return {k: source[k] for k in source.load}


def loop(p):
    q = Request({"cond": np.array([1, 2])}, np.arange(2, dtype=np.uint64), np.zeros(2, int),
                np.full(2, 2.0), np.ones(2, np.float32), np.zeros(2, int), np.ones(2, np.float32))
    held = {**arrays(p), COLOURS: way().colours()}
    return Loop(p, models(p, Store(of_arrays(held), p.fold)).runner(), q, 16)


def way(seed=0, side=1):
    made = np.random.default_rng(seed).normal(size=(WIDTH + 1, 3 * side**2))
    return Glance(side=side, map=written(made))


def test_program(golden):
    p = run(tiny.painted(), [way()])
    assert "\n".join([str(p).split("\ngraph ")[0], str(p.graph("glance"))]) == golden


def test_text_and_data_read_back():
    p = run(tiny.painted(), [way()])
    assert str(parse_program(str(p))) == str(p)
    assert from_data(to_data(p)).preview == (Call("glance"),)
    assert "preview" not in to_data(tiny.painted())  # older runtimes read what has none


def test_a_map_is_read_back():
    made = np.random.default_rng(0).normal(size=(WIDTH + 1, 12)).astype(np.float16)
    g = Glance(map=written(made))
    assert (g.colours() == made).all()
    assert (g.brings()[COLOURS] == made).all()
    assert not Glance().brings().load


@pytest.mark.parametrize("side", [1, 2])
def test_each_cell_is_its_vector_times_the_map(side):
    p = tiny.painted()
    g = run(p, [way(side=side)]).graph("glance")
    held = {w.name: np.random.default_rng(1).normal(size=w.type.shape).astype(np.float32)
            for w in g.weights}
    held[COLOURS] = way(side=side).colours()
    tokens = np.array([[3, 1, 4, 1]])
    codes = next(v for k, v in held.items() if k != COLOURS)
    codes = codes / np.linalg.norm(codes, axis=1, keepdims=True)
    x = np.concatenate((codes[tokens[0]], np.ones((4, 1))), 1) @ held[COLOURS]
    want = x.reshape(2, 2, side, side, 3)
    pixels = evaluate(g, {"tokens": tokens}, held)["pixels"]
    size = pixels.shape[-1]
    assert pixels.shape == (1, 3, size, size)
    if size == 2 * side:
        cells = want.transpose(4, 0, 2, 1, 3).reshape(3, size, size)
        np.testing.assert_allclose(pixels[0], cells, rtol=1e-5)
    else:  # corners of a smoothed picture are the corner cells'
        np.testing.assert_allclose(pixels[0, :, 0, 0], want[0, 0, 0, 0], rtol=1e-5)
        np.testing.assert_allclose(pixels[0, :, -1, -1], want[1, 1, -1, -1], rtol=1e-5)


def test_the_same_picture_and_the_last_preview_is_it():
    p, q = tiny.painted(), run(tiny.painted(), [way()])
    seen, plain = [], loop(p).run()
    looked = loop(q).run(lambda s: seen.append(s.pixels()))
    assert (plain.tokens == looked.tokens).all()
    assert (plain.env["pixels"] == looked.env["pixels"]).all()
    assert (seen[-1] == plain.env["pixels"]).all()
    early = []
    loop(p).run(lambda s: early.append(s.pixels()))
    assert all((a != b).any() for a, b in zip(seen[:-1], early[:-1], strict=True))


def test_what_is_looked_at_when_whole_is_decoded_once():
    counts = []
    for look in (True, False):
        run_ = loop(tiny.painted())
        inner, ran = run_.runner.run, []
        run_.runner.run = lambda g, env, ran=ran, inner=inner: ran.append(g) or inner(g, env)
        out = run_.run(lambda s, look=look: s.pixels() if look and s.step == s.steps else None)
        counts.append(ran.count("decode"))
        assert out.timings["finish"] > 0
    assert counts[0] == counts[1]


def bench(p, folder):
    held = arrays(p)
    held["@paint"] = np.clip(held["@paint"], -0.3, 0.3)
    return held, Bench(p, of_arrays(held), {"info": {"classes": 3}, "defaults": {},
                                            "vocabulary": 16}, folder)


@pytest.mark.ort
def test_it_is_fitted_to_what_the_decoder_paints(tmp_path):
    held, made = bench(tiny.painted(), tmp_path / "engine")
    passes = fitted([Glance(side=1, pictures=12)], made)
    found = passes[0].colours()
    np.testing.assert_allclose(found[:WIDTH], held["@paint"], atol=0.02)
    np.testing.assert_allclose(found[WIDTH], 0, atol=0.02)
    assert fitted(passes, made) == passes  # what has colours keeps them


def test_means():
    pixels = np.arange(3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4) / 100
    found = _means(pixels, 2, 2, 1)
    np.testing.assert_allclose(found[0], pixels[:, :2, :2].mean((1, 2)))
    np.testing.assert_allclose(found[3], pixels[:, 2:, 2:].mean((1, 2)))
    halves = _means(pixels, 2, 2, 2).reshape(4, 2, 2, 3)
    np.testing.assert_allclose(halves[1, 1, 0], pixels[:, 1, 2])


@pytest.mark.parametrize(("p", "g", "why"), [
    (tiny.painted(), Glance(), "needs colours, which are fitted when an engine is built"),
    (tiny.painted(), Glance(side=2, map=way().map), "is no map|is not one of tiny"),
    (tiny.painted(), Glance(map="?"), "is no map"),
    (replace(tiny.painted(), finish=()), way(), "needs an image decoder")])
def test_refuses(p, g, why):
    with pytest.raises(ArcError, match=why):
        run(p, [g])


def test_sides_must_divide_a_cell(tmp_path):
    with pytest.raises(ArcError, match=re.escape("cannot fit 7 x 7 colours a cell of 2 x 2")):
        fitted([Glance(side=7)], bench(tiny.painted(), tmp_path / "e")[1])
