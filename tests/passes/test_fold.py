from tiny import of, results, same, weights

from arcompile.passes.fold import Fold
from arcompile.pipeline import run

G = """graph g(%x: f32[b,4]) {
  @w : f32[8,4]
  @v : f32[8,4]
  %0 = transpose(@w) {perm=(1, 0)} : f32[4,8]
  %1 = matmul(%x, %0) : f32[b,8]
  %2 = l2_norm(@v) {axis=1, eps=1e-12} : f32[8,4]
  %3 = transpose(%2) {perm=(1, 0)} : f32[4,8]
  %4 = matmul(%x, %3) : f32[b,8]
  %5 = add(@w, @v) : f32[8,4]
  %6 = mul(@w, @v) : f32[8,4]
  %7 = add(%5, %6) : f32[8,4]
  %8 = transpose(%7) {perm=(1, 0)} : f32[4,8]
  %9 = matmul(%x, %8) : f32[b,8]
  %10 = mul(%1, %4) : f32[b,8]
  %11 = mul(%10, %9) : f32[b,8]
  return y=%11
}"""
H = """graph h(%x: f32[b,8]) {
  @w : f32[8,4]
  @v : f32[8,4]
  %0 = transpose(@w) {perm=(1, 0)} : f32[4,8]
  %1 = sub(@w, @v) : f32[8,4]
  %2 = matmul(%x, %1) : f32[b,4]
  %3 = sub(@v, @w) : f32[8,4]
  %4 = matmul(%x, %3) : f32[b,4]
  %5 = sub(@w, %1) : f32[8,4]
  %6 = matmul(%x, %5) : f32[b,4]
  %7 = matmul(%6, %0) : f32[b,8]
  return y=%7, z=%2, t=%4
}"""


def test_names_are_shared_and_readable(golden):
    p = of(G, H)
    new = run(p, [Fold()])
    same(p, new)
    assert str(new) == golden


def test_again_from_folded_weights(golden):
    """A later fold builds on the first, and drops what only it read."""
    p = run(of(G), [Fold()])
    text = str(p.graph("g")).replace("matmul(%x, @w.T)", "matmul(%x, %20)")
    node = "  %20 = neg(@w.T) : f32[4,8]\n  %1 ="
    q = of(text.replace("  %1 =", node), str(p.fold))
    new = run(q, [Fold()])
    same(q, new)
    assert str(new.graph("g")) + "\n" + str(new.fold) == golden


def test_an_existing_name_is_not_taken():
    p = of("""graph g(%x: f32[b,4]) {
  @w : f32[4,4]
  @w.T : f32[4,4]
  %0 = transpose(@w) {perm=(1, 0)} : f32[4,4]
  %1 = matmul(%x, %0) : f32[b,4]
  %2 = matmul(%1, @w.T) : f32[b,4]
  return y=%2
}""")
    new = run(p, [Fold()])
    same(p, new)
    assert [k for k, _ in new.fold.results] == ["w.T.2"]


CONSTS = """graph g(%x: f32[b,20]) {
  %0 = const() {dtype='f32', value=[1.0, 2.0]} : f32[2]
  %1 = const() {dtype='f32', value=4.0} : f32[]
  %2 = div(%0, %1) : f32[2]
  %3 = sum(%2) {axes=(0,), keepdims=False} : f32[]
  %4 = mul(%x, %3) : f32[b,20]
  %5 = full() {dtype='f32', shape=(20,), value=3.0} : f32[20]
  %6 = neg(%5) : f32[20]
  %7 = add(%4, %6) : f32[b,20]
  return y=%7
}"""


def test_small_constants_become_consts(golden):
    p = of(CONSTS)
    new = run(p, [Fold()])
    same(p, new)
    assert new.fold is None
    assert str(new.graph("g")) == golden


def test_small_is_an_option():
    assert "neg" in str(run(of(CONSTS), [Fold()]))
    assert "neg" not in str(run(of(CONSTS), [Fold(small=20)]))


GROWS = """graph g(%x: f32[64,4]) {
  @w : f32[4]
  %0 = neg(@w) : f32[4]
  %1 = expand(%0) {shape=(64, 4)} : f32[64,4]
  %2 = mul(%x, %1) : f32[64,4]
  return y=%2
}"""


def test_a_broadcast_stays_where_it_is():
    new = run(of(GROWS), [Fold()])
    assert "expand(@w.neg)" in str(new)
    same(of(GROWS), new)
    assert run(new, [Fold()]) is new


def test_grow_is_an_option():
    assert "mul(%x, @w.expand)" in str(run(of(GROWS), [Fold(grow=64.0)]))


def test_a_symbolic_shape_and_a_result_stay():
    p = of("""graph g(%x: f32[b,4]) {
  @w : f32[4]
  %0 = expand(@w) {shape=('b', 4)} : f32[b,4]
  %1 = add(%x, %0) : f32[b,4]
  %2 = neg(@w) : f32[4]
  return y=%1, w=%2
}""")
    assert run(p, [Fold()]) is p
    assert Fold()(p) is p


def test_the_store_computes_them():
    p = of(G)
    assert set(results(run(p, [Fold()]), weights(p))["g"]) == {"y"}
