import pytest
from tiny import llama, of, ops, same

from arcompile.passes.fold import Fold
from arcompile.passes.qkv import Qkv
from arcompile.passes.simplify import Simplify
from arcompile.pipeline import run

G = """graph g(%x: f32[b,4], %m: f32[4,6]) {
  @q : f32[4,4]
  @k : f32[4,2]
  @v : f32[4,2]
  @bq : f32[4]
  @bk : f32[2]
  @bv : f32[2]
  %0 = matmul(%x, @q) : f32[b,4]
  %1 = add(%0, @bq) : f32[b,4]
  %2 = matmul(%x, @k) : f32[b,2]
  %3 = add(@bk, %2) : f32[b,2]
  %4 = matmul(%x, @v) : f32[b,2]
  %5 = add(%4, @bv) : f32[b,2]
  %6 = concat(%1, %3, %5) {axis=1} : f32[b,8]
  return y=%6
}"""


def test_products_and_biases_join(golden):
    p = of(G)
    new = run(p, [Qkv()])
    same(p, new)
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert run(new, [Qkv()]) is new


def test_biases_of_some_stay_apart(golden):
    p = of(G.replace("  %3 = add(@bk, %2) : f32[b,2]\n", "").replace("%1, %3", "%1, %2"))
    new = run(p, [Qkv()])
    same(p, new)
    assert str(new.graph("g")) == golden


@pytest.mark.parametrize(("gate", "products"), [(False, 6), (True, 5)])
def test_gate_is_an_option(gate, products):
    p = run(llama(1), [Fold(), Simplify()])
    new = run(p, [Qkv(gate=gate)])
    same(p, new)
    assert ops(new.graph("step")).count("matmul") == products
    assert str(Qkv(gate=True)) == "qkv{gate=True}"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("%0 = matmul(%x, @q)", "%7 = neg(@q) : f32[4,4]\n  %0 = matmul(%x, %7)",
         "%7 is not a weight; run fold first"),
        ("matmul(%x, @v)", "matmul(%x, @k)", "@k is read elsewhere and would be stored twice"),
        ("%6 = concat(%1, %3, %5)", "%7 = silu(%1) : f32[b,4]\n  %6 = concat(%7, %3, %5)",
         "it is half of a gated MLP; gate=True joins those"),
    ],
)
def test_refuses(old, new, why, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    assert old in G
    p = of(G.replace(old, new))
    joined = run(p, [Qkv()])
    same(p, joined)
    told = [s for s in capsys.readouterr().err.splitlines() if s.startswith("miss qkv")]
    assert any(s.endswith(why) for s in told)
    kept = {"silu": 2, "neg": 2, "@k": 3}
    assert ops(joined.graph("g")).count("matmul") == next(n for k, n in kept.items() if k in new)


def test_different_inputs_are_no_match():
    p = of("""graph g(%x: f32[b,4], %y: f32[b,4]) {
  @q : f32[4,4]
  @k : f32[4,4]
  %0 = matmul(%x, @q) : f32[b,4]
  %1 = matmul(%y, @k) : f32[b,4]
  return a=%0, b=%1
}""")
    assert Qkv()(p) is p
