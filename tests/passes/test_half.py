import numpy as np
import pytest
from engines import write
from tiny import generate, llama, of, weights

from arcompile.errors import ArcError
from arcompile.ops.tensor import rounded
from arcompile.passes.half import Half
from arcompile.pipeline import parse_pipeline, run
from arcompile.runtime.engine import load
from arcompile.weights import Store, used

G = """graph g(%t: f32[b,4], %k: f32[b,2,5,2], %past: i32[b]) {
  @w1 : f32[4,4]
  @w2 : f32[4,4]
  %0 = cos(%t) : f32[b,4]
  %1 = matmul(%0, @w1) : f32[b,4]
  %2 = silu(%1) : f32[b,4]
  %3 = reshape(%2) {shape=('b', 1, 4)} : f32[b,1,4]
  %4 = cache_append(%k, %3, %past) : f32[b,2,5,2]
  %5 = attention(%3, %4, %4, %past) {extra=('past',), heads=2, kv_heads=2, mask='causal', scale=1.0} : f32[b,1,4]
  %6 = matmul(%5, @w2) : f32[b,1,4]
  %7 = softmax(%6) {axis=2} : f32[b,1,4]
  return y=%7, k=%4
}"""  # noqa: E501


WORDS = """graph g(%x: f32[b,4], %w: f32[4,8], %y: f32[8,8]) {
  %0 = matmul(%x, %w) : f32[b,8]
  %1, %2 = quantize_rows(%0) : u8[b,8], f32[b,1]
  %3 = cast(%1) {dtype='f32'} : f32[b,8]
  %4 = matmul(%3, %y) : f32[b,8]
  return z=%4, s=%2
}"""


def test_between_products(golden):
    """The cosine before and the law after stay f32; so does nothing between."""
    p = of(G, state="  state k: f32[b,2,5,2]\n")
    new = run(p, [Half()])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert str(dict(new.state)["k"]) == "f16[b,2,5,2]"
    assert run(new, [Half()]) is new


def test_neutral_and_refused():
    p = llama()
    assert run(p, [Half(dtype="f32")]) is p
    with pytest.raises(ArcError, match="no dtype 'f8'"):
        run(p, [Half(dtype="f8")])
    only = of("graph g(%x: f32[b,4]) {\n  %0 = silu(%x) : f32[b,4]\n  return y=%0\n}")
    assert run(only, [Half()]) is only  # no product, nothing between two
    words = of(WORDS)
    with pytest.raises(ArcError, match="pass half: quantize_rows takes no f16") as e:
        run(words, [Half()])
    assert "for the CPU" in e.value.hint


@pytest.mark.parametrize(("dtype", "near"), [("f16", 2e-3), ("bf16", 2e-2)])
def test_logits_stay_near(dtype, near):
    """Those of the first step, before other tokens may win; and they are f32."""
    p, source = llama(), weights(llama())
    new = run(p, parse_pipeline(f"fold, swiglu, residual-norm, rotary-attention, "
                                f"half{{dtype={dtype}}}"), source)
    assert new.graph("step").result("logits").type.dtype == "f32"
    assert {t.dtype for k, t in new.state if k != "unread"} == {dtype}
    a, b = generate(p, source), generate(new, source)
    for x, y in zip(a.logits[0], b.logits[0], strict=True):
        assert y.dtype == np.float32
        assert 0 < np.linalg.norm(x - y) <= near * np.linalg.norm(x)


def test_weights_shrink():
    p = llama()
    new = run(p, parse_pipeline("fold, half"))
    old, now = (sum(v.type.nbytes() for v in used(x.graphs).values())
                for x in (run(p, parse_pipeline("fold")), new))
    tables = sum(v.type.nbytes() for v in used(new.graphs).values() if v.type.dtype == "f32")
    assert now == tables + (old - tables) // 2
    store = Store(weights(p), new.fold)
    halves = [store[k] for k, v in used(new.graphs).items() if v.type.dtype == "f16"]
    assert halves
    assert all(x.dtype == np.float16 for x in halves)


def test_bf16_rounds_to_even():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -2.5, np.inf, 1e-40, 3e38], np.float32)
    assert rounded(x).tolist()[:4] == [1.0, 1.0, 1 + 2**-6, -2.5]
    assert np.isinf(rounded(x)[4])
    assert not (rounded(x).view(np.uint32) & 0xFFFF).any()
    assert np.isnan(rounded(np.array([np.nan], np.float32))).all()


@pytest.mark.ort
def test_onnxruntime_runs_it(tmp_path):
    """Its CPU kernels widen f16: the same logits within f16's rounding."""
    pytest.importorskip("onnxruntime")
    p, source, found = llama(), weights(llama()), []
    for name, passes in (("wide", "fold"), ("half", "fold, swiglu, rotary-attention, half")):
        engine = load(write(tmp_path / name, p, source, 16, passes=passes,
                            info={"classes": 3}))
        tokens = np.array([[3, 1, 4, 1]])
        found.append(engine.logits({"cond": np.array([1])}, tokens))
    for x, y in zip(*found, strict=True):
        assert 0 < np.linalg.norm(x - y) <= 5e-3 * np.linalg.norm(x)
