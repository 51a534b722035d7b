"""Drafts of a diffusion head: what the test of a draft keeps, by counts, and how far it is off."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import toy
from cells import WEIGHTS, walk
from engines import mixed, write

from arcompile.errors import ArcError
from arcompile.ir import Type
from arcompile.passes import cspd
from arcompile.passes.cspd import CSpD
from arcompile.pipeline import run
from arcompile.program import Call
from arcompile.program_text import parse_program
from arcompile.runtime.engine import load
from arcompile.runtime.loop import Loop, Request
from arcompile.targets.reference import models
from arcompile.text import parse_graph
from arcompile.weights import of_arrays

IMAGES, EDGES = 20000, np.linspace(-2, 2, 9)


def drafted(p, other=True, **options):
    """By the same model, or by one of other weights; a window of 1 is not left as it is."""
    way = CSpD(alone=0.0, **options)
    small = replace(p, graphs=tuple(
        cspd.renamed(g, g.name, {}, cspd._own) for g in p.graphs)) if other else p
    q = cspd.drafted(p, small, way)
    q.verify()
    assert str(parse_program(str(q))) == str(q)
    return q


def drawn(p, images=IMAGES, seed=0, temperature=1.0):
    """(latents [b,2], the share of drafts that were kept)"""
    q = Request({"cond": np.zeros(images, int)}, np.full(images, seed, np.uint64),
                np.arange(images), np.ones(images), np.full(images, temperature, np.float32),
                np.zeros(images, int), np.ones(images, np.float32),
                given={"orders": np.tile([1, 0], (images, 1))})  # the first cell is 0
    loop, kept = Loop(p, models(p, WEIGHTS).runner(), q), []
    loop.run(lambda s: kept.append(loop.env.get("kept", np.ones(1)).mean()))
    return loop.env["latents"][..., 0], kept[-1]


def counts(latents):
    """How many pairs lie in each cell of a grid."""
    at = np.searchsorted(EDGES, latents)
    return np.bincount(at[:, 0] * (len(EDGES) + 1) + at[:, 1], minlength=(len(EDGES) + 1) ** 2)


def distance(a, b):
    """Total variation between two tables of counts."""
    return np.abs(a / a.sum() - b / b.sum()).sum() / 2


@pytest.fixture(scope="module")
def plain():
    return {turns: counts(drawn(walk(turns), seed=5)[0]) for turns in (1, 2, 3)}


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_one_turn_keeps_the_law(temperature):
    """What both models know is the same, and there is one Gaussian: that is exact."""
    p = walk()
    latents, kept = drawn(drafted(p, window=1, ease=1.0, retries=16), temperature=temperature)
    want = counts(drawn(p, seed=5, temperature=temperature)[0])
    assert 0.2 < kept < 0.8
    assert toy.two_sample(counts(latents), want) > 1e-3


@pytest.mark.parametrize(("turns", "options", "least", "most"), [
    (1, {"window": 1, "ease": 1.0, "retries": 1}, 0.1, 0.2),  # rejected ones need more tries
    (1, {"window": 1, "ease": 4.0}, 0.4, 0.6),  # drafts that should have been rejected
    (1, {"window": 2, "ease": 1.0}, 0.2, 0.3),  # the second cell does not know the first
    (2, {"window": 1, "ease": 1.0, "retries": 16}, 0.04, 0.08),  # paths of two turns
    (3, {"window": 1, "ease": 1.0, "retries": 16}, 0.08, 0.15)])  # and of three
def test_what_is_off_and_by_how_much(plain, turns, options, least, most):
    """And the count above can see it. Two counts of one law are 0.025 apart."""
    latents, _ = drawn(drafted(walk(turns), **options))
    assert toy.two_sample(counts(latents), plain[turns]) < 1e-4
    assert least < distance(counts(latents), plain[turns]) < most


@pytest.mark.parametrize("turns", [1, 3])
def test_a_draft_of_the_model_itself_is_kept(turns):
    """The same paths: the ratio is one, and latents are those of plain decoding, bit by bit."""
    p = walk(turns)
    latents, kept = drawn(drafted(p, other=False, window=1), images=500)
    assert kept == 1
    assert (latents == drawn(p, images=500)[0]).all()


@pytest.mark.ort
def test_facts_may_be_updated_in_place(tmp_path):
    """A runtime writes a next value where the last one was: nothing may be read after that."""
    pytest.importorskip("onnx")
    p = drafted(walk(3), window=2)
    folder = write(tmp_path / "e", p, of_arrays(WEIGHTS), info={"classes": 1})
    given = {"orders": np.tile([1, 0], (200, 1))}
    e = load(folder)
    q = Request({"cond": np.zeros(200, int)}, np.full(200, 0, np.uint64), np.arange(200),
                np.ones(200), np.ones(200, np.float32), np.zeros(200, int),
                np.ones(200, np.float32), given=given)
    loop = e._loop(q)
    loop.run()
    found = loop.runner.numpy(loop.env["latents"])[..., 0]
    np.testing.assert_allclose(found, drawn(p, images=200)[0], rtol=1e-4, atol=1e-5)


def test_a_window_of_one_is_the_program():
    p = walk()
    assert run(p, [CSpD(window=1)]) is p


def test_a_batch_is_its_images():
    p = drafted(walk(2), window=2)
    many = drawn(p, images=6)[0]
    assert (drawn(p, images=3)[0] == many[:3]).all()


def test_program(golden):
    q = drafted(walk(2), window=2)
    text = [str(q).split("\ngraph ")[0], *(str(q.graph(k)) for k in ("head", "more"))]
    assert "\n".join(text) == golden


def test_what_a_draft_is_tested_by(golden):
    """The verifier up to its first comparison."""
    text = str(drafted(walk(2), window=2, retries=1).graph("verify"))
    assert text[:text.index(" less(")] == golden


def other(p, i, **changes):
    return replace(p, steps=tuple(replace(s, **changes) if i == j else s
                                  for j, s in enumerate(p.steps)))


@pytest.mark.parametrize(("p", "way", "why"), [
    (walk(), {"window": 0}, "a window, ease and retries of 1 or more"),
    (walk(), {"ease": 0.5}, "a window, ease and retries of 1 or more"),
    (walk(), {"alone": 1.5}, "a share alone"),
    (walk(), {"window": 3}, "a window of 3 steps in an image of 2"),
    (mixed(), {}, "mixed is drafted already"),
    (other(walk(), 1, calls=(Call("step"), Call("place"))), {}, "step 1 of walk calls step place"),
    (replace(other(walk(), 1, calls=(Call("step"), Call("head", "few"), Call("place"))),
             tables={"turns": {"turn": (0,)}, "few": {"turn": (0,)}}), {},
     "needs one number of denoising steps, and walk has few, turns")])
def test_refuses(p, way, why):
    with pytest.raises(ArcError, match=re.escape(why)):
        run(p, [CSpD(by="swiglu", **way)])


def test_refuses_another_model():
    p = walk()
    for small, why in ((walk(2), "the same denoising steps"),
                       (other(p, 1, guide=(1.0, 0.0)), "the same guidance of steps"),
                       (replace(p, positions=3), "grids of as many cells"),
                       (replace(p, state=(("latents", Type("f32", ("b", 2, 2))),)),
                        "latents of one size")):
        with pytest.raises(ArcError, match=f"pass cspd needs two models with {why}"):
            cspd._alike(p, small, "cspd")


def test_a_window_is_refused_before_a_drafter_is_made():
    with pytest.raises(ArcError, match="a window of 3 steps in an image of 2"):
        CSpD(window=3, by="no-such-pass").prepared(walk(), of_arrays(WEIGHTS))


def test_refuses_another_autoencoder():
    paint = parse_graph("""graph paint(%latents: f32[b,2,1]) {
  @kl.bias : f32[1]
  %0 = add(%latents, @kl.bias) : f32[b,2,1]
  return pixels=%0
}""")
    p = replace(walk(), graphs=(*walk().graphs, paint), finish=(Call("paint"),))
    one, two = (of_arrays({"@kl.bias": np.full(1, x, np.float32)}) for x in (0.0, 1.0))
    cspd._same_pixels(p, one, one, "cspd")
    with pytest.raises(ArcError, match=r"two models of one autoencoder, and kl\.bias differs"):
        cspd._same_pixels(p, one, two, "cspd")


def test_refuses_a_head_without_noise():
    p = walk()
    head = p.graph("head")
    noise = next(v for n in head.nodes for v in n.args if v.name == "12")
    bare = replace(head, results=(("x", noise),))
    with pytest.raises(ArcError, match="a head that ends by adding noise to a mean"):
        cspd.last_turn(bare, "cspd")
