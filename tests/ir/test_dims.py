"""Symbolic sizes obey the laws of a ring, checked by putting numbers in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcompile import dims
from arcompile.errors import IRError
from arcompile.ir import Type

SIZES = {"b": 3, "past": 7, "s": 5}
FACTORS = st.lists(st.sampled_from([*SIZES, "2", "3", "11"]), min_size=1, max_size=3)
TERMS = st.tuples(st.sampled_from("+-"), FACTORS).map(lambda t: t[0] + "*".join(t[1]))
DIMS = st.lists(TERMS, min_size=1, max_size=4).map(lambda ts: dims.parse_dim("".join(ts)))


FEW = settings(max_examples=40, deadline=None)


def number(d: dims.Dim) -> int:
    return dims.value(d, SIZES)


@FEW
@given(DIMS, DIMS, DIMS)
def test_ring_laws(a, b, c):
    assert dims.add(a, b) == dims.add(b, a)
    assert dims.mul(a, b) == dims.mul(b, a)
    assert dims.add(a, dims.add(b, c)) == dims.add(dims.add(a, b), c)
    assert dims.mul(a, dims.mul(b, c)) == dims.mul(dims.mul(a, b), c)
    assert dims.mul(a, dims.add(b, c)) == dims.add(dims.mul(a, b), dims.mul(a, c))
    assert dims.add(a, 0) == a == dims.mul(a, 1)
    assert dims.add(a, a, -1) == 0 == dims.mul(a, 0)


@FEW
@given(DIMS, DIMS)
def test_agrees_with_integers(a, b):
    assert number(dims.add(a, b)) == number(a) + number(b)
    assert number(dims.add(a, b, -1)) == number(a) - number(b)
    assert number(dims.mul(a, b)) == number(a) * number(b)
    assert number(dims.product([a, b, a])) == number(a) ** 2 * number(b)


@FEW
@given(DIMS)
def test_text_is_canonical(a):
    assert dims.parse_dim(str(a)) == a
    assert dims.symbols(a) <= set(SIZES)


@FEW
@given(DIMS, FACTORS.map("*".join).map(dims.parse_dim))
def test_divide_undoes_mul(a, m):
    assert dims.divide(dims.mul(a, m), m) == a
    q = dims.divide(a, m)
    assert q is None or dims.mul(q, m) == a


@pytest.mark.parametrize(("text", "canonical"), [
    ("4", 4), ("-3", -3), ("b*2", "2*b"), ("s+past", "past+s"), ("1+b", "b+1"), ("b-b", 0),
    ("2*b-3*b", "-b"), ("s*past*2+0", "2*past*s"),
])
def test_forms(text, canonical):
    assert dims.parse_dim(text) == canonical


BAD = ["", "b+", "+", "a b", "b**2", "b/2", "2b", "²", "1.5", "b*", "(b)", "9" * 5000]


@pytest.mark.parametrize("text", BAD, ids=lambda t: t[:5] or "empty")
def test_refuses(text):
    with pytest.raises(IRError, match="not a size"):
        dims.parse_dim(text)


def test_unbound_symbol_is_named():
    with pytest.raises(IRError, match="'s' is not bound"):
        dims.value("past+s", {"past": 1})


def test_types():
    t = Type.parse("f16[b,s+past,4]")
    assert str(t) == "f16[b,past+s,4]"
    assert t.nbytes(SIZES) == 2 * 3 * 12 * 4
    assert Type.parse("i64[]").shape == ()
    for bad in ("f16", "f17[b]", "f32[b", "f32[b,,4]", "f32[,]", "f32[[4]]"):
        with pytest.raises(IRError):
            Type.parse(bad)
