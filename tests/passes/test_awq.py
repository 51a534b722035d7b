"""Rows of matrices that grow with their inputs before they are rounded to few bits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from tiny import GATED as G
from tiny import generate, llama, of, ranges_file, same, weights

from arcompile.calibrate import Watch, watched
from arcompile.errors import ArcError
from arcompile.ir import evaluate
from arcompile.passes.awq import TRIED, Awq, error
from arcompile.passes.int4 import Int4
from arcompile.passes.int8 import Int8
from arcompile.passes.linears import Form
from arcompile.pipeline import parse_pipeline, run
from arcompile.weights import Store, used

WIDE = """graph g(%x: f32[b,64]) {
  @n : f32[64]
  @q : f32[64,32]
  %0 = rms_norm(%x, @n) {eps=1e-05} : f32[b,64]
  %1 = matmul(%0, @q) : f32[b,32]
  return a=%1
}"""


@pytest.fixture
def ranges(tmp_path):
    norms = np.array([1, 50, 0.5, 1, 0, 1, 2, 1])
    return ranges_file(tmp_path / "r.safetensors", {
        "q.input_norm": norms, "k.input_norm": norms, "down.input_norm": np.arange(6) + 0.5})


def test_norms_and_gates(golden, ranges):
    """A place with power 0 is left, others are scaled: the same values."""
    p = of(G)
    each = Awq(ranges=ranges, powers="down=0", alpha=0.3)
    new = run(p, [each])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    same(p, new, weights(p).plus(each.brings().load))


@pytest.mark.parametrize("alpha", TRIED[1:])
def test_keeps_values_at_any_power(alpha, ranges):
    p, each = of(G), Awq(ranges=ranges, alpha=alpha)
    same(p, run(p, [each]), weights(p).plus(each.brings().load))


def loud(path):
    """(program, weights, inputs, what calibrate would have seen): a few channels speak loudly."""
    rng = np.random.default_rng(0)
    p = of(WIDE)
    gain = np.where(np.arange(64) % 16 == 3, 30, 1).astype(np.float32)
    source = weights(p).plus({"@n": lambda: gain})
    x = rng.standard_normal((200, 64)).astype(np.float32)
    y = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5) * gain
    norm = np.sqrt(np.square(y).sum(0))
    return p, source, {"x": x}, ranges_file(path / "r.safetensors", {"q.input_norm": norm})


@pytest.mark.parametrize(("quantise", "how", "near"), [
    (Int4(least=0, block=32, bound=1.0), {"block": 32}, 1.1),
    (Int4(least=0, block=16, bound=1.0), {"block": 16}, 1.1),
    (Int8(least=0, block=32), {"bits": 8, "block": 32}, 2.0)])
def test_rounding_costs_less_after_it(quantise, how, near, tmp_path):
    """And the power found is near the best of those tried, by the products' real errors: what it
    goes by leaves out that inputs are rounded to 8 bits too, and how they go together."""
    p, source, x, path = loud(tmp_path)
    want = evaluate(p.graphs[0], x, Store(source))["a"]

    def off(passes):
        done = []
        brought = source.plus(passes[0].brings().load)
        new = run(p, passes, brought, done)
        found = evaluate(new.graphs[0], x, Store(brought, new.fold))["a"]
        return float(np.square(found - want).sum()), done

    plain, _ = off([quantise])
    chosen, done = off([Awq(ranges=path, **how), quantise])
    assert chosen < 0.8 * plain
    assert 0 < done[0].chosen()["q"] < 1
    tried = [off([Awq(ranges=path, powers=f"q={a}", **how), quantise])[0] for a in TRIED]
    assert chosen < near * min(tried)


def test_the_error_it_goes_by(tmp_path):
    """Of independent channels it is the squared error of the product."""
    rng = np.random.default_rng(1)
    w = rng.standard_normal((64, 32)).astype(np.float32)
    x = np.diag(rng.random(64) + 0.5).astype(np.float32)  # one channel at a time
    form, factor = Form(4, 32), np.sqrt(np.abs(x).sum(0))[:, None]
    rounded = form.stored(w * factor) / factor
    want = np.square(x @ rounded - x @ w).sum()
    assert np.isclose(error(form, w, np.sqrt(np.square(x).sum(0)), 0.5), want, rtol=1e-4)


def test_the_whole_program(tmp_path, monkeypatch):
    """Norms gathered step by step by calibrate's own watch; no token changes before rounding."""
    p = run(llama(), parse_pipeline("fold, simplify, cse, qkv, swiglu, residual-norm"))
    source, seen, models = weights(llama()), {}, tiny.models

    def seeing(p, store):
        runner = Watch(models(p.on_graphs(watched), store).runner(), seen)
        return SimpleNamespace(runner=lambda: runner)

    with monkeypatch.context() as patch:
        patch.setattr(tiny, "models", seeing)
        was = generate(p, source)
    path = ranges_file(tmp_path / "r.safetensors", {
        k: np.sqrt(v) for k, v in seen.items() if k.endswith("norm")})
    done = []
    new = run(p, [Awq(ranges=path, block=16)], source, done)
    assert len(done[0].chosen()) >= 2 * 2
    again = run(p, done)  # the choice is in the options
    assert str(again) == str(new)
    assert used(new.graphs).keys() - used(p.graphs).keys()
    now = generate(new, source.plus(done[0].brings().load))
    assert (was.tokens == now.tokens).all()
    assert np.allclose(was.logits, now.logits, atol=1e-4)


def test_neutral_without_ranges():
    p = llama()
    assert run(p, [Awq()], weights(p)) is p
    assert run(p, [Awq()]) is p


@pytest.mark.parametrize(("options", "why"), [
    ({"alpha": 1.5}, "powers must be from 0 to 1"), ({"powers": "q=2"}, "powers must be from 0"),
    ({"powers": "q"}, "powers are not matrix=number"), ({"bits": 5}, "5 bits"),
    ({"bits": 4, "block": 0}, "4 bits with block=0")])
def test_bad_options(options, why, ranges):
    with pytest.raises(ArcError, match=why):
        run(of(G), [Awq(ranges=ranges, **options)])


def test_needs_norms(tmp_path):
    path = ranges_file(tmp_path / "r.safetensors", {"q.input_max": np.ones(8)})
    with pytest.raises(ArcError, match="does not hold what pass awq reads") as e:
        run(of(G), [Awq(ranges=path)])
    assert "arcompile calibrate" in e.value.hint
