from tiny import of, same

from arcompile.passes.norm_silu import NormSilu
from arcompile.pipeline import run

G = """graph g(%x: f32[b,4,3,3], %w: f32[4], %u: f32[4]) {{
  %0 = group_norm(%x, %w, %u) {{eps=1e-06, groups=2}} : f32[b,4,3,3]
  %1 = silu(%0) : f32[b,4,3,3]
  return y=%1{}
}}"""


def test_fuses(golden):
    p = of(G.format(""))
    new = run(p, [NormSilu()])
    same(p, new)
    assert str(new.graph("g")) == golden
    assert run(new, [NormSilu()]) is new


def test_refuses_a_norm_that_is_read_elsewhere(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of(G.format(", z=%0"))
    assert run(p, [NormSilu()]) is p
    assert "miss Fuse at %1: inner values have users" in capsys.readouterr().err
