import numpy as np
import pytest
from tiny import of, ops, weights

from arcompile.ir import evaluate
from arcompile.passes.bf16_conv import Bf16Conv
from arcompile.passes.channels_last import ChannelsLast
from arcompile.passes.int8_conv import Int8Conv
from arcompile.pipeline import run
from arcompile.weights import Store

G = """graph g(%x: f32[b,16,5,7]) {
  @a : f32[48,16,3,3]
  @b : f32[16,48,3,3]
  @ab : f32[48]
  @c : f32[3,16,3,3]
  @g : f32[48]
  @h : f32[48]
  @s : f32[16,16,1,1]
  %0 = conv2d(%x, @a, @ab) {pads=(1, 1, 1, 1)} : f32[b,48,5,7]
  %1 = group_norm_silu(%0, @g, @h) {eps=1e-06, groups=4} : f32[b,48,5,7]
  %2 = conv2d(%1, @b) {pads=(1, 1, 1, 1)} : f32[b,16,5,7]
  %3 = conv2d(%x, @s) : f32[b,16,5,7]
  %4 = add(%3, %2) : f32[b,16,5,7]
  %5 = upsample(%4) {factor=2} : f32[b,16,10,14]
  %6 = conv2d(%5, @c) {pads=(1, 1, 1, 1)} : f32[b,3,10,14]
  return y=%6
}"""
X = np.random.default_rng(0).standard_normal((2, 16, 5, 7)).astype(np.float32)


def values(p):
    source = weights(of(G))
    return evaluate(p.graphs[0], {"x": X}, Store(source, p.fold))["y"]


def test_a_block(golden):
    p = of(G)
    new = run(p, [ChannelsLast()])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert np.abs(values(new) - values(p)).max() < 1e-4 * np.abs(values(p)).max()
    assert run(new, [ChannelsLast()]) is new


@pytest.mark.parametrize(("each", "most"), [(Bf16Conv(), 0.02), (Int8Conv(dynamic=True), 0.1)])
def test_narrower(each, most):
    p, new = of(G), run(of(G), [each])
    off = np.linalg.norm(values(new) - values(p)) / np.linalg.norm(values(p))
    assert 1e-5 < off < most
    assert run(new, [each]) is new


@pytest.mark.parametrize("each", [Bf16Conv, lambda **o: Int8Conv(dynamic=True, **o)])
def test_neutral_where_all_is_skipped(each):
    last = run(of(G), [ChannelsLast()])
    assert run(last, [each(skip="*")]) is last
    some = run(last, [each(skip="a s")])
    kept = [n.args[1].name for n in some.graph("g").nodes if n.op.endswith("conv_last")
            and n.args[1].type.dtype == "f32"]
    assert kept == ["@a.pack_conv", "@s.pack_conv"]


@pytest.mark.parametrize(("was", "now", "why"), [
    ("{pads=(1, 1, 1, 1)} : f32[b,48,5,7]", "{pads=(0, 0, 0, 0)} : f32[b,48,3,5]", "keep the size"),
    ("(%x, @a, @ab) {pads", "(%x, @a, @ab) {stride=1, groups=1, pads", ""),
])
def test_what_keeps_the_size(was, now, why, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    conv = "  %0 = conv2d(%x, @a, @ab) {pads=(1, 1, 1, 1)} : f32[b,48,5,7]".replace(was, now)
    text = "\n".join((*G.split("\n")[:2], "  @ab : f32[48]", conv, "  return y=%0", "}"))
    new = run(of(text), [ChannelsLast()])
    assert ("conv_last" in ops(new.graph("g"))) == (not why)
    assert why in capsys.readouterr().err


def test_channels_that_fill_no_vector(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of("""graph g(%x: f32[b,8,5,5]) {
      @w : f32[8,8,3,3]
      %0 = conv2d(%x, @w) {pads=(1, 1, 1, 1)} : f32[b,8,5,5]
      return y=%0
    }""")
    assert run(p, [ChannelsLast()]) is p
    assert "8 input channels are not a multiple of 16" in capsys.readouterr().err
