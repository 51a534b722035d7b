from tiny import of, same

from arcompile.passes.swiglu import SwiGLU
from arcompile.pipeline import run

G = """graph g(%x: f32[b,4], %y: f32[b,4]) {{
  %0 = silu(%x) : f32[b,4]
  %1 = mul({}) : f32[b,4]
  return y=%1{}
}}"""


def test_fuses_either_order(golden):
    p, q = of(G.format("%0, %y", "")), of(G.format("%y, %0", ""))
    new = run(p, [SwiGLU()])
    same(p, new)
    assert str(new) == str(run(q, [SwiGLU()]))
    assert str(new.graph("g")) == golden
    assert run(new, [SwiGLU()]) is new


def test_refuses_an_activation_that_is_read_elsewhere(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of(G.format("%0, %y", ", z=%0"))
    assert run(p, [SwiGLU()]) is p
    assert "miss Fuse at %1: inner values have users" in capsys.readouterr().err


def test_refuses_to_broadcast(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of(G.format("%0, %y", "").replace("%y: f32[b,4]", "%y: f32[4]"))
    assert run(p, [SwiGLU()]) is p
    assert "gate is f32[b,4], x is f32[4]" in capsys.readouterr().err
