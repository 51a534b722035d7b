"""What every pass that keeps values gets for free: same values, same text, nothing left to do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny

from arcompile.pipeline import PASSES, parse_pipeline, run
from arcompile.program_text import parse_program

DEFAULT = ("fold, simplify, cse, qkv, swiglu, residual-norm, rotary-attention, fuse-sampling, "
           "dead-code")
FITTED = {"glance"}  # wants what only a build can fit: tests/passes/test_glance.py
VALUES = [name for name, each in PASSES.all().items()
          if each.keeps == "values" and name not in FITTED]


def check(p, passes, source=None, only=None):
    """Run the passes; values, text and a second run must hold. Returns the new program."""
    passes = parse_pipeline(passes)
    new = run(p, passes)
    if new is not p:
        tiny.same(p, new, source, only)
    assert str(parse_program(str(new))) == str(new)
    assert run(new, passes) is new
    gone = {g.name for g in p.graphs} - {g.name for g in new.graphs}
    assert not gone & {c.graph for c in new.calls()}
    return new


@pytest.fixture(scope="module")
def llama():
    p = tiny.llama()
    p.verify()
    return p


@pytest.mark.parametrize(
    "passes", [*VALUES, "qkv{gate=True}", "fold, simplify, qkv{gate=True}", DEFAULT]
)
def test_tiny(passes, llama):
    new = check(llama, passes)
    for temperature in (0.0, 1.0):
        was, now = (tiny.generate(p, temperature=temperature) for p in (llama, new))
        assert (was.tokens == now.tokens).all()
        assert np.allclose(was.env["pixels"], now.env["pixels"], atol=1e-5)
        assert np.allclose(was.logits, now.logits, atol=1e-5)


@pytest.mark.parametrize("name", VALUES)
def test_nothing_to_do(name):
    """A program without a match comes back as the same object."""
    p = tiny.of("graph g(%x: f32[b,4]) {\n  %0 = exp(%x) : f32[b,4]\n  return y=%0\n}")
    assert PASSES[name]()(p) is p


@pytest.fixture(scope="session")
def golden_c2i(goldens):
    """LlamaGen c2i from upstream's tiny checkpoint: program, weights, what upstream computes."""
    export = pytest.importorskip("arcompile.export")
    from arcompile.checkpoint import open_checkpoint
    from arcompile.family import FAMILIES, Source
    from arcompile.sampling import sample_graph

    folder = goldens / "llamagen-c2i"
    files = ("c2i_tiny.pt", "vq_ds16_c2i_tiny.pt")
    source = Source(*(open_checkpoint(str(folder / f)).weights("", "model") for f in files))
    m = FAMILIES["llamagen"].model(source, {"n_head": 4, "grid": 8})
    graphs = (*(export.call(m.module, e) for e in m.entries), sample_graph(256))
    return replace(m.program, graphs=graphs), m.weights, np.load(folder / "expected.npz")


LARGE = ("encode", "decode")  # of images: slow, and the same few ops


@pytest.mark.slow
@pytest.mark.parametrize("passes", [*VALUES, DEFAULT])
def test_llamagen(passes, golden_c2i):
    p, source, _ = golden_c2i
    only = None if passes == DEFAULT else {g.name for g in p.graphs} - {*LARGE}
    check(p, passes, source, only)


@pytest.mark.slow
def test_llamagen_draws_what_upstream_draws(golden_c2i):
    p, source, expected = golden_c2i
    new = run(p, parse_pipeline(DEFAULT))
    found = tiny.generate(new, source, cond=expected["cond"], scale=4.0, finish=False)
    assert (found.tokens == expected["greedy_tokens"]).all()
