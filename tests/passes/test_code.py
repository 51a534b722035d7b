"""Two models of next-scale prediction draw one image: the same model twice is that model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engines import signed, write

from arcompile import safetensors
from arcompile.errors import ArcError
from arcompile.ops.tensor import NUMPY
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


def drawn(p, source):
    q = Request({"cond": np.arange(B)}, np.arange(B, dtype=np.uint64), np.zeros(B, int),
                np.full(B, 2.0), np.ones(B, np.float32), np.zeros(B, int), np.ones(B, np.float32))
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
