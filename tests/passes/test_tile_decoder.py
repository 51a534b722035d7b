"""Maps of an image decoder in bands of rows: the same values, and less of them at once."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import llama, of, weights

from arcompile.errors import ArcError
from arcompile.ir import evaluate
from arcompile.passes.bf16_conv import Bf16Conv
from arcompile.passes.channels_last import ChannelsLast
from arcompile.passes.int8_conv import Int8Conv
from arcompile.passes.tile_decoder import TileDecoder
from arcompile.pipeline import run
from arcompile.plan import Memory, plan
from arcompile.program_text import parse_program
from arcompile.weights import Store

LOOP = "graph g(%i: f32[b,1]) {\n  %0 = neg(%i) : f32[b,1]\n  return j=%0\n}"
# as of the taming lineage: a block, one with a shortcut, enlargement, a block, the end
D = """graph d(%x: f32[b,16,6,7]) {
  @a : f32[32,16,3,3]
  @aa : f32[32,32,3,3]
  @s : f32[32,16,1,1]
  @up : f32[32,32,3,3]
  @bias : f32[32]
  @c : f32[32,32,3,3]
  @cc : f32[32,32,3,3]
  @o : f32[3,32,3,3]
  @n1 : f32[16]
  @m1 : f32[16]
  @n2 : f32[32]
  @m2 : f32[32]
  %0 = group_norm_silu(%x, @n1, @m1) {eps=1e-06, groups=4} : f32[b,16,6,7]
  %1 = conv2d(%0, @a, @bias) {pads=(1, 1, 1, 1)} : f32[b,32,6,7]
  %2 = group_norm_silu(%1, @n2, @m2) {eps=1e-06, groups=4} : f32[b,32,6,7]
  %3 = conv2d(%2, @aa) {pads=(1, 1, 1, 1)} : f32[b,32,6,7]
  %4 = conv2d(%x, @s) : f32[b,32,6,7]
  %5 = add(%4, %3) : f32[b,32,6,7]
  %6 = upsample(%5) {factor=2} : f32[b,32,12,14]
  %7 = conv2d(%6, @up, @bias) {pads=(1, 1, 1, 1)} : f32[b,32,12,14]
  %8 = group_norm_silu(%7, @n2, @m2) {eps=1e-06, groups=4} : f32[b,32,12,14]
  %9 = conv2d(%8, @c, @bias) {pads=(1, 1, 1, 1)} : f32[b,32,12,14]
  %10 = group_norm_silu(%9, @m2, @n2) {eps=1e-06, groups=4} : f32[b,32,12,14]
  %11 = conv2d(%10, @cc) {pads=(1, 1, 1, 1)} : f32[b,32,12,14]
  %12 = add(%7, %11) : f32[b,32,12,14]
  %13 = group_norm_silu(%12, @n2, @m2) {eps=1e-06, groups=4} : f32[b,32,12,14]
  %14 = conv2d(%13, @o) {pads=(1, 1, 1, 1)} : f32[b,3,12,14]
  return pixels=%14
}"""
X = np.random.default_rng(0).standard_normal((2, 16, 6, 7)).astype(np.float32)


@pytest.fixture(scope="module")
def last():
    return run(of(LOOP, D, steps="1 x 1 : g\n  finish d"), [ChannelsLast()])


def pixels(p):
    source = weights(of(LOOP, D, steps="1 x 1 : g\n  finish d"))
    return evaluate(p.graph("d"), {"x": X}, Store(source, p.fold))["pixels"]


@pytest.mark.parametrize("bands", [2, 3, 5, 12])
@pytest.mark.parametrize("least", [1, 12 * 14 * 32])
def test_the_same_values(bands, least, last):
    """However maps are cut, from whichever on; a band may be a single row."""
    new = run(last, [TileDecoder(bands=bands, least=least)])
    assert np.abs(pixels(new) - pixels(last)).max() < 1e-5 * np.abs(pixels(last)).max()
    assert str(parse_program(str(new))) == str(new)


def test_of_bf16(last):
    p = run(last, [Bf16Conv()])
    new = run(p, [TileDecoder(bands=3, least=1)])
    assert np.linalg.norm(pixels(new) - pixels(p)) < 2e-3 * np.linalg.norm(pixels(p))


def test_less_at_once(last):
    """Of the largest map, one and what a few bands take."""
    before, after = (plan(p, Memory(0), 1).decoder for p in (
        last, run(last, [TileDecoder(bands=12, least=12 * 14 * 32)])))
    one = 12 * 14 * 32 * 4
    assert before == 3 * one
    assert after < 2.1 * one


def test_neutral(last):
    assert run(last, [TileDecoder()]) is last
    assert run(llama(), [TileDecoder()]).steps == llama().steps


def test_refuses(last):
    for p, options, why in (
            (last, {"bands": 0}, "bands=0"), (last, {"bands": 2, "least": 0}, "least=0"),
            (last, {"bands": 2}, "finds no convolution of 2097152 numbers"),
            (llama(), {"bands": 2, "least": 1}, "finds no convolution of 1 numbers"),
            (run(last, [Int8Conv(dynamic=True)]), {"bands": 2, "least": 1}, "tions of 8 bits")):
        with pytest.raises(ArcError, match=why) as e:
            run(p, [TileDecoder(**options)])
        assert e.value.hint


def test_golden(golden):
    """A convolution with its residual and an enlargement with one, in two bands."""
    g = """graph d(%x: f32[b,16,6,7]) {
  @a : f32[16,16,3,3]
  @c : f32[3,16,3,3]
  @bias : f32[16]
  @short : f32[3]
  %0 = conv2d(%x, @a, @bias) {pads=(1, 1, 1, 1)} : f32[b,16,6,7]
  %1 = add(%x, %0) : f32[b,16,6,7]
  %2 = upsample(%1) {factor=2} : f32[b,16,12,14]
  %3 = conv2d(%2, @c, @short) {pads=(1, 1, 1, 1)} : f32[b,3,12,14]
  return pixels=%3
}"""
    p = of(LOOP, g, steps="1 x 1 : g\n  finish d")
    assert str(run(p, [ChannelsLast(), TileDecoder(bands=2, least=1)]).graph("d")) == golden
