"""Graphs print, and read back as they print; bad text is refused with its line, nothing else."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcompile.errors import IRError
from arcompile.ir import Builder, verify
from arcompile.text import literal, parse_attrs, parse_graph, show_graph, split

GOLDEN = Path(__file__).parents[1] / "golden"
GRAPHS = [(p, m[0]) for p in sorted(GOLDEN.rglob("*.txt"))
          for m in re.finditer(r"(?ms)^graph .*?^\}$", p.read_text())]

MLP = """\
graph step(%x: f32[b,4], %past: i32[b]) {
  @w1 : f32[4,8]
  @w2 : f32[8,4]
  %0 = matmul(%x, @w1) : f32[b,8]
  %1 = gelu(%0) {approximate=False} : f32[b,8]
  %2, %3 = split(%1) {axis=1, sizes=(4, 4)} : f32[b,4], f32[b,4]
  %4 = matmul(%1, @w2) : f32[b,4]
  %5 = concat(%2, %4) {axis=-1} : f32[b,8]
  %6 = const() {dtype='f32', value=-1e999} : f32[]
  %7 = maximum(%5, %6) : f32[b,8]
  return y=%7, past=%past
}"""


def test_round_trip():
    g = parse_graph(MLP)
    verify(g)
    assert str(g) == MLP


def test_origins_are_shown_when_asked_for_and_read_back():
    g = parse_graph(MLP)
    came = ("block.fc@models/parts.py:7 > swiglu", "", "a # b = c : d\nand more")
    each = (*came, "", "", "", "")
    nodes = tuple(replace(n, origin=o) for n, o in zip(g.nodes, each, strict=True))
    text = show_graph(replace(g, nodes=nodes), origins=True)
    again = parse_graph(text)
    assert [n.origin for n in again.nodes][:3] == [came[0], "", "a # b = c : d and more"]
    assert str(again) == MLP
    assert show_graph(again, origins=True) == text


@pytest.mark.parametrize("text", [t for _, t in GRAPHS], ids=[p.stem for p, _ in GRAPHS])
def test_round_trip_of_goldens(text):
    assert str(parse_graph(text)) == text


@st.composite
def graphs(draw):
    """A few random nodes over one parameter, a weight and a literal."""
    b = Builder("g")
    values = [b.param("x", "f32[b,s,4]"), b.weight("w", "f32[4]"), b.const(dtype="f32", value=0.5)]
    for _ in range(draw(st.integers(0, 8))):
        v, w = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["add", "mul", "silu", "mean", "clip", "concat"]))
        if kind in ("add", "mul"):
            with suppress(IRError):  # shapes that do not broadcast
                values.append(b.emit(kind, v, w)[0])
        elif kind == "mean":
            axes = tuple(range(draw(st.integers(0, v.type.rank))))
            values.append(b.mean(v, axes=axes, keepdims=draw(st.booleans())))
        elif kind == "clip":
            values.append(b.clip(v, lo=draw(st.floats(allow_nan=False)), hi=None))
        elif kind == "concat" and v.type.rank and v.type == w.type:
            values.append(b.concat(v, w, axis=draw(st.integers(-v.type.rank, v.type.rank - 1))))
        else:
            values.append(b.silu(v))
    return b.graph(**{f"r{i}": v for i, v in enumerate(draw(st.lists(st.sampled_from(values))))})


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_round_trip_of_random_graphs(g):
    verify(g)
    again = parse_graph(str(g))
    verify(again)
    assert str(again) == str(g)


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda x: st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple),
    max_leaves=6,
)


@given(st.lists(LITERALS, max_size=3))
@settings(deadline=None)
def test_attributes_of_any_kind_survive(values):
    text = ", ".join(f"k{i}={literal(v)}" for i, v in enumerate(values))
    assert list(parse_attrs(text).values()) == values


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_text_raises_only_IRError(data):
    """Cut, paste or replace anywhere: a graph, or an IRError that names a line."""
    lo, hi = sorted(data.draw(st.tuples(*[st.integers(0, len(MLP))] * 2)))
    hi = min(hi, lo + data.draw(st.integers(0, 12)))
    junk = st.sampled_from(["(", "{", "}", "%", "@", ",", "=", "'", "\\", "0", "²", "9" * 5000, "#",
                            "{[]: 1}", "-", "shape=", "\n", "step", "\x00", "heads"])
    new = "".join(data.draw(st.lists(junk | st.text(max_size=2), max_size=3)))
    failed = None
    try:
        verify(parse_graph(MLP[:lo] + new + MLP[hi:]))
    except IRError as e:
        failed = e
    if failed:  # the parser names the line, the verifier shows the graph
        assert re.match(r"line \d+: ", failed.what) or failed.details


@pytest.mark.parametrize(("old", "new", "message"), [
    ("graph step", "grph step", "line 1: expected `graph name(params) {`"),
    ("%x: f32", "%x f32", "line 1: not a parameter"),
    ("@w1 : f32[4,8]", "@w1 : f99[4,8]", "line 2: not a type"),
    ("%x, @w1", "%z, @w1", "line 4: %z is not defined"),
    ("%1 = gelu(%0)", "%0 = gelu(%0)", "line 5: %0 is defined twice"),
    ("approximate=False", "approximate=os.exit()", "line 5: not an attribute"),
    ("approximate=False", "a={[]: 1}", "line 5: not an attribute"),
    ("%2, %3 =", "%2 =", "line 6: 1 results but 2 types"),
    ("%4 = matmul(%1, @w2)", "%4 := matmul(%1, @w2)", "line 7: not a node"),
    ("y=%7", "y", "line 11: not a result"),
    ("y=%7", "y=%8", "line 11: %8 is not defined"),
])
def test_the_line_is_named(old, new, message):
    with pytest.raises(IRError, match=re.escape(message)):
        parse_graph(MLP.replace(old, new, 1))


def test_comments_and_blank_lines_count_as_lines():
    text = "\n# a comment\n" + MLP.replace("@w2)", "@w9)")
    with pytest.raises(IRError, match="line 9: @w9 is not defined"):
        parse_graph(text)


def test_split():
    assert split("a, f(b, c), 'x, y', [1, {2, 3}]") == ["a", "f(b, c)", "'x, y'", "[1, {2, 3}]"]
    assert split(r"'it\'s, ok', 2") == [r"'it\'s, ok'", "2"]
    assert split("  ") == []
