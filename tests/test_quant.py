"""Quantised ops: how far they may be off, what they must not mix, and that ONNX Runtime agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcompile.errors import IRError
from arcompile.ir import OPS, Builder, Type, evaluate
from arcompile.ops.quant import unpack


def run(op, *arrays, **attrs):
    return OPS[op].eval(*arrays, **attrs)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


HARD = normal(64, 9)  # zeros, one value alone, a constant, an outlier
HARD[:, 0], HARD[:, 1], HARD[:, 2], HARD[3, 3] = 0, 0, -0.3, 1e4
HARD[5, 1] = 7


@given(st.integers(0, 99), st.sampled_from([0, 1]), st.sampled_from([4, 7, 8]))
@settings(max_examples=20, deadline=None)
def test_channels_are_within_half_a_step(seed, axis, bits):
    w = normal(12, 5, seed=seed)
    q, scale = run("quantize_channels", w, axis=axis, bits=bits)
    each = scale[None] if axis else scale[:, None]
    assert (np.abs(q * each - w) <= each / 2 * 1.0001).all()
    assert np.abs(q).max() == 2 ** (bits - 1) - 1


def test_channels_of_zeros_and_constants_are_exact():
    q, scale = run("quantize_channels", HARD, axis=1)
    back = q * scale
    assert np.isfinite(scale).all()
    assert (back[:, 0] == 0).all()
    assert np.allclose(back[:, 1:3], HARD[:, 1:3], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64])
def test_blocks_keep_what_they_can(bits, block):
    q, scale = run("quantize_blocks", HARD, bits=bits, block=block)
    back = unpack(q, scale, bits)
    assert q.nbytes * 8 == HARD.size * bits
    assert back.shape == HARD.shape
    assert (back[:, 0] == 0).all()
    assert np.allclose(back[:, 1:3], HARD[:, 1:3], rtol=1e-5)  # the peak of a group is exact
    each = np.abs(scale).T.repeat(block, 0)
    beside = HARD[:, 4:]  # a search over ranges may cut one value off, not make the sum worse
    assert np.linalg.norm(back[:, 4:] - beside) <= np.linalg.norm(each[:, 4:] / 2)


def test_four_bits_search_beats_the_plain_range():
    w = normal(128, 64)
    q, scale = run("quantize_blocks", w, bits=4, block=128)
    peak = np.take_along_axis(w, np.abs(w).argmax(0)[None], 0)
    plain = np.clip(np.rint(w / (peak / -8)), -8, 7) * (peak / -8)
    assert np.linalg.norm(unpack(q, scale, 4) - w) < 0.96 * np.linalg.norm(plain - w)


def test_rows_are_rounded_by_themselves():
    """What a row becomes does not depend on the others."""
    x = normal(3, 4, 32)
    x[1, 2], x[0, 0, 0] = 0, 1e4
    q, scale = run("quantize_rows", x)
    one, s = run("quantize_rows", x[2:, 1:2])
    assert (one == q[2:, 1:2]).all()
    assert (s == scale[2:, 1:2]).all()
    back = (q.astype(np.float32) - 128) * scale
    assert (np.abs(back - x) <= scale / 2 * 1.0001).all()
    assert (back[1, 2] == 0).all()


def test_integer_products_are_exact():
    x, w = normal(5, 64), HARD
    parts = [*run("quantize_rows", x), *run("quantize_channels", w, axis=1)]
    (y,) = run("matmul_int8", *parts)
    want = ((parts[0].astype(np.float64) - 128) * parts[1]) @ (parts[2] * parts[3].astype(float))
    assert np.allclose(y, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda b: b.quantize_blocks(b.param("w", "f32[60,8]"), bits=4, block=32),
         "groups of 32 do not divide the 60 rows"),
        (lambda b: b.quantize_blocks(b.param("w", "f32[64,8]"), bits=3, block=32), "3 bits"),
        (lambda b: b.quantize_channels(b.param("w", "f32[64,8]"), axis=0, bits=9), "9 bits"),
        (lambda b: b.quantize_channels(b.param("w", "i8[64,8]"), axis=0), "cannot quantise i8"),
        (lambda b: b.matmul_blocks(b.param("x", "f32[r,65]"), b.param("w", "u8[8,2,16]"),
                                   b.param("s", "f32[8,2]"), bits=4, block=32), "cannot multiply"),
        (lambda b: b.matmul_blocks(b.param("x", "f32[r,64]"), b.param("w", "u8[8,2,16]"),
                                   b.param("s", "f32[8,3]"), bits=4, block=32), "do not fit"),
        (lambda b: b.matmul_int8(b.param("x", "u8[r,4]"), b.param("s", "f32[r,2]"),
                                 b.param("w", "i8[4,5]"), b.param("ws", "f32[5]")), "do not fit"),
    ],
)
def test_refuses(build, said):
    with pytest.raises(IRError, match=said):
        build(Builder("g"))


@pytest.mark.ort
@pytest.mark.parametrize("form", ["int8", "int8-32", "int4-32", "int4-128", "table"])
def test_onnxruntime_means_the_same(form):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from arcompile.targets.onnx_emit import emit

    x, w = normal(2, 3, 128), normal(128, 24, seed=1)
    x[1, 2], w[:, 0] = 0, 0
    b = Builder("g")
    left, bits, block = b.param("x", "f32[2,3,128]"), int(form[3]) if "int" in form else 8, 0
    if "-" in form:
        block = int(form.split("-")[1])
        held = run("quantize_blocks", w, bits=bits, block=block)
    else:
        held = run("quantize_channels", w, axis=1)
    kind = ["u8" if block else "i8", "f32"]
    q, scale = (b.param(n, Type(k, a.shape))
                for n, k, a in zip(("q", "s"), kind, held, strict=True))
    if form == "table":
        y = b.mul(b.cast(b.gather(q, b.param("i", "i64[2]"), axis=0), dtype="f32"), scale)
        feed = {"i": np.array([3, 1])}
        b.params.remove(left)
    else:
        y = b.matmul_blocks(left, q, scale, bits=bits, block=block) if block else (
            b.matmul_int8(*b.quantize_rows(left), q, scale))
        feed = {"x": x}
    g = b.graph(y=y)
    want = evaluate(g, {**feed, "q": held[0], "s": held[1]})["y"]
    model = onnx.load_from_string(emit(g, {}))
    for name, a in zip(("q", "s"), held, strict=True):  # constants, as weights are
        model.graph.input.remove(next(i for i in model.graph.input if i.name == name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(a, name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, feed)[0]
    assert np.allclose(found, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
