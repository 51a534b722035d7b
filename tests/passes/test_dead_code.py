from dataclasses import replace

from tiny import llama, of, same

from arcompile.passes.dead_code import DeadCode
from arcompile.passes.fold import Fold
from arcompile.pipeline import run

G = """graph g(%x: f32[b,4], %k: f32[b,4]) {
  @w : f32[4,4]
  @dead : f32[4]
  %0 = transpose(@w) {perm=(1, 0)} : f32[4,4]
  %1 = matmul(%x, %0) : f32[b,4]
  %2 = add(%1, @dead) : f32[b,4]
  %3 = add(%1, %k) : f32[b,4]
  return k=%3
}"""
STATE = "  state k: f32[b,4]\n  state old: f32[b,4]\n"


def test_drops_what_nobody_reads(golden):
    p = of(G, state=STATE)
    new = DeadCode()(p)
    same(p, new)
    assert str(new) == golden


def test_drops_folded_weights():
    p = Fold()(of(G, state=STATE))
    gone = replace(p, graphs=of("graph g(%x: f32[b,4]) {\n  return y=%x\n}").graphs)
    assert p.fold is not None
    assert DeadCode()(gone).fold is None


def test_keeps_graphs_that_are_not_called():
    p = run(llama(1), [DeadCode()])
    assert "unread" not in str(p)
    assert p.graph("encode") is not None
    assert run(p, [DeadCode()]) is p
