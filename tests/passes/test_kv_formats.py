"""Caches in few bits: what the ops mean, and programs that store them so."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import generate, weights
from tiny_scales import NORMAL, close, logits, rows, scales, shrink

from arcompile.errors import ArcError, IRError
from arcompile.ir import OPS, Builder, evaluate
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program
from arcompile.targets.onnx_emit import emit

RNG = np.random.default_rng(0)


def quantise(x, **how):
    return OPS["kv_quantise"].eval(x, **how)


def restored(parts, bits):
    return OPS["kv_dequantise"].eval(*parts, bits=bits)[0]


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("how", [{"group": 4}, {"group": 8}, {"group": 8, "slots": 6}])
def test_numbers_come_back_within_half_a_step(bits, how):
    x = f32(2, 3, 6, 8)
    q, step, low = quantise(x, bits=bits, **how)
    assert q.shape == (2, 3, 6, 8 * bits // 8)
    y = restored((q, step, low), bits)
    wide = step.repeat(6 // step.shape[2], 2).repeat(8 // step.shape[3], 3)
    assert (np.abs(x - y) <= wide * 0.5001 + 1e-7).all()
    again = quantise(y, bits=bits, **how)  # what is rounded stays
    assert (again[0] == q).all()


@pytest.mark.parametrize("how", [{"group": 4}, {"group": 8, "slots": 6}])
def test_equal_numbers_have_a_step_of_nothing(how):
    x = np.full((1, 2, 6, 8), 0.3, np.float32)
    q, step, low = quantise(x, bits=4, **how)
    assert not step.any()
    assert (restored((q, step, low), 4) == x).all()


def test_a_row_does_not_know_the_others():
    """Nor a slot: a padded row changes nothing for its neighbours."""
    x = f32(2, 3, 6, 8)
    loud = x.copy()
    loud[1] *= 1000
    for how in ({"group": 4}, {"group": 8, "slots": 6}):
        a, b = (restored(quantise(y, bits=4, **how), 4) for y in (x, loud))
        assert (a[0] == b[0]).all()
    one = restored(quantise(x[:, :, :1], bits=4, group=4), 4)
    assert (restored(quantise(x, bits=4, group=4), 4)[:, :, :1] == one).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("slots", [1, 6])
def test_onnx(bits, slots):
    ort = pytest.importorskip("onnxruntime")
    b = Builder("g")
    x = b.param("x", "f32[r,3,6,8]")
    more = {"slots": slots} if slots > 1 else {}
    parts = b.emit("kv_quantise", x, bits=bits, group=4, **more)
    g = b.graph(q=parts[0], s=parts[1], low=parts[2], y=b.kv_dequantise(*parts, bits=bits))
    given = {"x": f32(2, 3, 6, 8)}
    want = evaluate(g, given)
    made = ort.InferenceSession(emit(g, {}), providers=["CPUExecutionProvider"])
    for name, found in zip(want, made.run([f"out.{k}" for k in want], given), strict=True):
        np.testing.assert_allclose(found, want[name], atol=1e-6)


def test_groups_that_do_not_divide_are_refused():
    b = Builder("g")
    with pytest.raises(IRError, match="groups of 3 do not divide"):
        b.kv_quantise(b.param("x", "f32[r,s,8]"), bits=4, group=3)


# --- programs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_scales():
    p = scales()
    return p, weights(p)


@pytest.fixture(scope="module")
def of_rows():
    p = rows()
    return p, weights(p)


def bytes_of(p):
    return sum(t.nbytes({"r": 2, "b": 1}) for k, t in p.state if k[0] in "kv")


def rounded(p, passes, source, off, tolerance):
    """The program runs, survives its text, and its logits on the same tokens are near."""
    new = shrink(p, passes)
    assert str(parse_program(str(new))) == str(new)
    tokens, was = logits(p, source)
    assert bytes_of(new) <= off * bytes_of(p)
    return close(was, logits(new, source, tokens)[1], tolerance)


@pytest.mark.parametrize(("passes", "off", "tolerance"), [
    ("kv-int8", 0.76, 0.02), ("kv-int4", 0.63, 0.4), ("kv-int4{group=4,window=0}", 0.63, 0.4)])
def test_scales(passes, off, tolerance, of_scales):
    p, source = of_scales
    assert rounded(p, passes, source, off, tolerance)


@pytest.mark.parametrize(("passes", "off", "tolerance"), [
    ("kv-int8", 0.76, 0.05), ("kv-int4{window=4}", 0.95, 0.5), ("kv-int4{window=0}", 0.63, 0.5)])
def test_rows(passes, off, tolerance, of_rows):
    p, source = of_rows
    p = run(p, parse_pipeline(NORMAL))
    assert rounded(p, passes, source, off, tolerance)


def test_a_window_that_is_never_full_is_exact(of_rows):
    """16 slots come, and nothing is rounded: the codes are never read."""
    p, source = of_rows
    exact = shrink(p, "kv-int4{window=15}")
    assert [c.graph for s in exact.steps for c in s.calls].count("round") == 1
    (t, was) = logits(p, source)
    found = logits(exact, source, t)[1]
    assert close(was[:15], found[:15])


def test_formats_go_behind_a_policy(of_scales, of_rows):
    for (p, source), passes in ((of_scales, "kv-hack{ratio=0.5}, kv-int8"),
                                (of_rows, "kv-snap{ratio=0.4}, kv-int8")):
        new = shrink(p, passes)
        assert new.cache.endswith("+kv-int8")
        assert bytes_of(new) < 0.5 * bytes_of(p)
        assert generate(new, source, finish=False).tokens.min() >= 0


@pytest.mark.parametrize(("passes", "said"), [
    ("kv-int8, kv-int4", "needs caches of f32"), ("kv-int8, kv-snap{ratio=0.5}", "whole caches"),
    ("kv-int8{group=3}", "groups of 3 do not divide"), ("kv-int4{window=-1}", "window must be"),
    ("sjd{window=3}, kv-int8", "a rejected draft"),
])
def test_refused(passes, said, of_rows):
    p = run(of_rows[0], parse_pipeline(f"{NORMAL}, fuse-sampling"))
    with pytest.raises(ArcError, match=said) as e:
        shrink(p, passes)
    assert e.value.hint
