from tiny import of, same

from arcompile.passes.cse import Cse
from arcompile.pipeline import run


def test_equal_nodes_become_one(golden):
    p = of("""graph g(%x: f32[b,4], %y: f32[b,4]) {
  @w : f32[4,4]
  %0 = transpose(@w) {perm=(1, 0)} : f32[4,4]
  %1 = matmul(%x, %0) : f32[b,4]
  %2 = transpose(@w) {perm=(1, 0)} : f32[4,4]
  %3 = matmul(%x, %2) : f32[b,4]
  %4 = add(%1, %y) : f32[b,4]
  %5 = add(%y, %3) : f32[b,4]
  %6, %7 = split(%4) {axis=1, sizes=(2, 2)} : f32[b,2], f32[b,2]
  %8, %9 = split(%5) {axis=1, sizes=(2, 2)} : f32[b,2], f32[b,2]
  %10 = mul(%6, %9) : f32[b,2]
  return y=%10, z=%8
}""")
    new = run(p, [Cse()])
    same(p, new)
    assert str(new.graph("g")) == golden


def test_order_and_attributes_count():
    p = of("""graph g(%x: f32[b,4], %y: f32[b,4]) {
  %0 = sub(%x, %y) : f32[b,4]
  %1 = sub(%y, %x) : f32[b,4]
  %2 = softmax(%0) {axis=1} : f32[b,4]
  %3 = softmax(%0) {axis=0} : f32[b,4]
  %4 = const() {dtype='f32', value=1.0} : f32[]
  %5 = const() {dtype='i64', value=1} : i64[]
  return a=%1, b=%2, c=%3, d=%4, e=%5
}""")
    assert run(p, [Cse()]) is p
