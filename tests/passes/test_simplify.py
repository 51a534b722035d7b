from tiny import of, ops, same

from arcompile.passes.simplify import Simplify
from arcompile.passes.swiglu import Fuse
from arcompile.pipeline import run
from arcompile.rewrite import rewrite


def test_chains_of_shape_ops(golden):
    p = of("""graph g(%x: f32[b,6]) {
  %0 = reshape(%x) {shape=('b', 6)} : f32[b,6]
  %1 = reshape(%0) {shape=('b', 2, 3)} : f32[b,2,3]
  %2 = transpose(%1) {perm=(2, 0, 1)} : f32[3,b,2]
  %3 = transpose(%2) {perm=(1, 2, 0)} : f32[b,2,3]
  %4 = reshape(%3) {shape=('b', 3, 2)} : f32[b,3,2]
  %5 = transpose(%4) {perm=(1, 0, 2)} : f32[3,b,2]
  %6 = transpose(%5) {perm=(2, 1, 0)} : f32[2,b,3]
  %7 = cast(%6) {dtype='f32'} : f32[2,b,3]
  %8 = slice(%7) {axis=0, start=0, stop=2, step=1} : f32[2,b,3]
  %9 = expand(%8) {shape=(1, 2, 'b', 3)} : f32[1,2,b,3]
  %10 = expand(%9) {shape=(5, 2, 'b', 3)} : f32[5,2,b,3]
  %11 = expand(%10) {shape=(5, 2, 'b', 3)} : f32[5,2,b,3]
  return y=%11, z=%4
}""")
    new = run(p, [Simplify()])
    same(p, new)
    assert str(new.graph("g")) == golden


BUSY = """graph g(%x: f32[b,6]) {
  %0 = reshape(%x) {shape=('b', 2, 3)} : f32[b,2,3]
  %1 = slice(%0) {axis=1, start=-1, step=-1} : f32[b,2,3]
  %2 = transpose(%1) {perm=(0, 2, 1)} : f32[b,3,2]
  return y=%2
}"""


def test_refuses_what_changes_something(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of(BUSY)
    assert run(p, [Simplify()]) is p
    told = capsys.readouterr().err
    assert "miss Nothing at %0: reshape makes f32[b,2,3] of f32[b,6]" in told
    assert "miss Nothing at %1: the slice runs backwards" in told
    assert "miss Identity at %2: perm (0, 2, 1) moves axes" in told


def test_what_a_rule_removed_no_longer_reads():
    """The reshape in between is gone, so the silu has one reader and may fuse in the same walk."""
    p = of("""graph g(%x: f32[b,4], %y: f32[b,4]) {
  %0 = silu(%x) : f32[b,4]
  %1 = reshape(%0) {shape=('b', 4)} : f32[b,4]
  %2 = mul(%1, %y) : f32[b,4]
  return y=%2
}""")
    assert ops(rewrite(p.graph("g"), (*Simplify.rules, Fuse()))) == ["swiglu"]
