import numpy as np
import pytest
from tiny import of, ops, weights

from arcompile.ir import evaluate
from arcompile.passes.int8 import Int8
from arcompile.passes.int8_tiles import Int8Tiles
from arcompile.pipeline import run
from arcompile.weights import Store

G = """graph g(%x: f32[r,20,64], %gain: f32[r,1,64]) {
  @a : f32[64,96]
  @b : f32[96]
  @c : f32[96,64]
  @d : f32[64]
  @e : f32[64,80]
  %0 = matmul(%x, @a) : f32[r,20,96]
  %1 = add(%0, @b) : f32[r,20,96]
  %2 = gelu(%1) {approximate=True} : f32[r,20,96]
  %3 = matmul(%2, @c) : f32[r,20,64]
  %4 = add(%3, @d) : f32[r,20,64]
  %5 = mul(%4, %gain) : f32[r,20,64]
  %6 = add(%x, %5) : f32[r,20,64]
  %7 = matmul(%6, @e) : f32[r,20,80]
  return y=%7, x=%6
}"""


def test_a_block(golden):
    p = of(G)
    eight = run(p, [Int8()])
    new = run(eight, [Int8Tiles()])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert ops(new.graph("g")).count("linear_int8") == 3
    source, rng = weights(p), np.random.default_rng(0)
    feed = {"x": rng.standard_normal((2, 20, 64)).astype(np.float32),
            "gain": rng.standard_normal((2, 1, 64)).astype(np.float32)}
    was, now = (evaluate(q.graphs[0], feed, Store(source, q.fold)) for q in (eight, new))
    for key in was:
        assert np.allclose(now[key], was[key], rtol=1e-5, atol=1e-5 * np.abs(was[key]).max())
    assert run(new, [Int8Tiles()]) is new


@pytest.mark.parametrize("few", [40, 1000])
def test_few_rows_stay(few, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = run(of(G), [Int8()])
    assert run(p, [Int8Tiles(few=few)]) is p
    assert f"rows, and few={few}" in capsys.readouterr().err


def test_nothing_to_do():
    p = of(G)
    assert run(p, [Int8Tiles()]) is p
