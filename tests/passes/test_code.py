"""Two models of next-scale prediction draw one image: the same model twice is that model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engines import signed, write
from toy import with_graph

from arcompile import partner, safetensors
from arcompile.errors import ArcError
from arcompile.ir import Builder, merge
from arcompile.ops.tensor import NUMPY
from arcompile.passes import code
from arcompile.passes.code import CoDe
from arcompile.passes.fuse_sampling import FuseSampling
from arcompile.pipeline import run
from arcompile.plan import Memory, plan
from arcompile.program_text import parse_program
from arcompile.runtime.loop import Loop, Request
from arcompile.targets.reference import models
from arcompile.weights import Store, of_arrays, used

pytest.importorskip("torch")
B = 3


@pytest.fixture(scope="module")
def var():
    """VAR of two layers and 1 + 4 + 9 tokens: (program, its weights)."""
    from arcompile.compile import exported
    from arcompile.models.var import Var

    model = Var().model(Var().random("tiny"), {})
    held = {k: model.weights[k] for k in model.weights.load}
    return exported(model), held


@pytest.fixture(scope="module")
def large(var, tmp_path_factory):
    """Folders of engines by name: `same` has the same weights, `other` another transformer."""
    p, held = var
    rng = np.random.default_rng(5)
    other = {k: x + 0.3 * rng.standard_normal(x.shape).astype(NUMPY["f32"])
             if k.startswith("@gpt.blocks") else x for k, x in held.items()}
    odd = {k: x + 1 if k == "@vae.quantize.embedding.weight" else x for k, x in held.items()}
    root = tmp_path_factory.mktemp("large")
    return {name: engine(root / name, p, arrays)
            for name, arrays in (("same", held), ("other", other), ("odd", odd))}


def engine(folder, p, arrays):
    write(folder, p, of_arrays(arrays), target="reference")
    (folder / "program.arc").write_text(f"{p}\n")
    types = {k: v.type for k, v in used(p.graphs).items()}
    safetensors.write(folder / "weights.safetensors", types, arrays.__getitem__)
    signed(folder)
    return str(folder)


def drawn(p, source, at=(0, 1, 2), scale=2.0):
    """Images `at` of three, each of its own class and seed; scale: of guidance, or one each."""
    at, b = list(at), len(at)
    q = Request({"cond": np.arange(B)[at]}, np.arange(B, dtype=np.uint64)[at], np.zeros(b, int),
                np.broadcast_to(np.float64(scale), B)[at], np.ones(b, np.float32),
                np.zeros(b, int), np.ones(b, np.float32))
    loop = Loop(p, models(p, Store(source, p.fold)).runner(), q, 32)
    out = loop.run()
    return out.tokens, loop.runner.numpy(out.env["pixels"]), loop.env


def joined(var, way, *before):
    p, held = var
    source = of_arrays(held).plus(way.brings().load)
    q = run(p, [*before, way], source)
    assert str(parse_program(str(q))) == str(q)
    return q, source


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_the_same_model_twice_is_that_model(var, large, scales):
    p, held = var
    tokens, pixels, _ = drawn(p, of_arrays(held))
    q, source = joined(var, CoDe(engine=large["same"], scales=scales))
    again, others, _ = drawn(q, source)
    assert (tokens == again).all()
    np.testing.assert_allclose(pixels, others, atol=1e-4)


def test_another_model_draws_the_first_scales(var, large):
    """What it draws is what it draws alone; then the small one goes on, which it would not."""
    p, held = var
    alone, *_ = drawn(p, of_arrays(held))
    whole, source = joined(var, CoDe(engine=large["other"], scales=3))
    theirs, *_ = drawn(whole, source)
    both, source = joined(var, CoDe(engine=large["other"], scales=2))
    tokens, _, env = drawn(both, source)
    assert (tokens[:, :5] == theirs[:, :5]).all()
    assert (tokens[:, 5:] != theirs[:, 5:]).any()
    assert (tokens != alone).any()
    assert "large_k0" not in env  # caches are let go of where their model ends


def test_all_scales_of_another_model_are_that_model(var, large):
    theirs = drawn(partner.program(large["other"]), partner.weights(large["other"]))
    q, source = joined(var, CoDe(engine=large["other"], scales=3))
    tokens, pixels, _ = drawn(q, source)
    assert (tokens == theirs[0]).all()
    np.testing.assert_allclose(pixels, theirs[1], atol=1e-4)


def test_a_batch_draws_what_each_image_draws_alone(var, large):
    q, source = joined(var, CoDe(engine=large["other"], scales=2))
    scale = (1.0, 3.0, 2.0)
    whole, *_ = drawn(q, source, scale=scale)
    assert len(np.unique(whole, axis=0)) == B
    for at in ([0], [1], [2], [2, 0], [1, 2, 0]):
        tokens, *_ = drawn(q, source, at, scale)
        assert (tokens == whole[at]).all()


def test_no_scales_is_the_model_alone(var):
    assert run(var[0], [CoDe(scales=0)]) is var[0]


def test_caches_are_not_there_at_once(var, large):
    """The plan counts what lives at the same time: one model's caches, not both; and the large
    one's hold 5 of 14 positions."""
    p, _ = var
    both, _ = joined(var, CoDe(engine=large["same"], scales=2))
    one, two = (plan(x, Memory()).state for x in (p, both))
    assert two == one
    caches = {k: t.shape[2] for k, t in both.state if t.rank == 4}
    assert (caches["k0"], caches["large_k0"]) == (14, 5)


@pytest.mark.parametrize(("way", "change", "why"), [
    ({"scales": 4}, lambda p: p, "cannot split 3 scales after 4"),
    ({"engine": ""}, lambda p: p, "takes a second model"),
    ({"engine": "odd"}, lambda p: p, "their codebooks differ"),
    ({}, lambda p: replace(p, accept="confident"), "needs a program of scales"),
    ({}, lambda p: replace(p, inputs=(*p.inputs, ("more", p.inputs[0][1]))), "the same inputs"),
])
def test_refuses(var, large, way, change, why):
    options = {"engine": "same", "scales": 2, **way}
    options["engine"] = large.get(options["engine"], "")
    p, held = var
    with pytest.raises(ArcError, match=why):
        run(change(p), [CoDe(**options)], of_arrays(held))


def test_refuses_an_engine_of_another_target(var, large):
    with pytest.raises(ArcError, match="needs two engines of one target"):
        joined(var, CoDe(engine=large["same"], scales=2), FuseSampling())


def shorter(p):
    """The last scale of one token less."""
    return replace(p, steps=(*p.steps[:-1], replace(p.steps[-1], commit=p.steps[-1].commit[:-1])))


def narrower(p):
    """A codebook of one code less."""
    b, t = Builder("cut"), p.graph("step").result("logits").type
    cut = b.slice(b.param("logits", t), axis=2, start=0, stop=int(t.shape[2]) - 1)
    return with_graph(p, "step", lambda g: merge(g, b.graph(logits=cut)))


@pytest.mark.parametrize(("change", "why"), [
    (shorter, "two models of one grid, not scales of 1 4 9 and 1 4 8 tokens"),
    (narrower, "two models of one codebook, not 32 and 31")])
def test_refuses_another_grid_and_codebook(var, change, why):
    with pytest.raises(ArcError, match=f"pass code needs {why}"):
        code._check(var[0], change(var[0]), 2, "code")
