"""The verifier refuses what is not a graph, with a caret under the guilty node."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile.errors import IRError
from arcompile.ir import Builder, Graph, Node, Type, Value, bind, dce, evaluate, merge, verify
from arcompile.text import parse_graph


def graph(*nodes: str, returns: str = "y=%0") -> Graph:
    body = "\n".join(f"  {n}" for n in nodes)
    return parse_graph(f"graph g(%x: f32[b,4], %i: i64[b]) {{\n{body}\n  return {returns}\n}}")


def caret(e: IRError) -> str:
    """The line above the caret."""
    lines = e.details.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  ^"))
    assert lines[at] == f"  ^ {e.what}"
    return lines[at - 1].strip()


BAD = {
    "type": ("%0 = silu(%x) : f32[b,5]", "%0 is f32[b,5] but silu infers f32[b,4]"),
    "dtype": ("%0 = add(%x, %i) : f32[b,4]", "dtypes differ: f32[b,4] and i64[b]"),
    "floats": ("%0 = silu(%i) : i64[b]", "expected a floating type, got i64[b]"),
    "unknown": ("%0 = sillu(%x) : f32[b,4]", "unknown op 'sillu'"),
    "count": ("%0 = topk(%x) {k=2} : f32[b,2]", "topk has 2 results, not 1"),
    "operands": ("%0 = silu(%x, %x) : f32[b,4]", "silu does not take these operands"),
    "attribute": ("%0 = gelu(%x) {aproximate=True} : f32[b,4]", "unknown attribute 'aproximate'"),
    "missing": ("%0 = clip() : f32[b,4]", "clip does not take these operands"),
    "axis": ("%0 = softmax(%x) : f32[b,4]", "lacks axis"),
    "heads": ("%0 = attention(%9, %9, %9) {heads=1, kv_heads=0, scale=1.0} : f32[b,1,4]",
              "attention does not take these operands"),
    "step": ("%0 = slice(%x) {axis=1, start=0, step=0} : f32[b,4]", "slice does not take"),
    "shape": ("%0 = reshape(%x) {shape=(1.5,)} : f32[b,4]", "reshape does not take"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_one_bad_node(name):
    line, message = BAD[name]
    g = graph("%9 = reshape(%x) {shape=('b', 1, 4)} : f32[b,1,4]", line)
    with pytest.raises(IRError) as e:
        verify(g)
    assert e.value.what.startswith(message)
    assert caret(e.value) == line


def test_did_you_mean():
    with pytest.raises(IRError) as e:
        verify(graph(BAD["unknown"][0]))
    assert e.value.hint == "did you mean 'silu'?"
    with pytest.raises(IRError) as e:
        Builder("g").sillu()
    assert e.value.hint == "did you mean 'silu'?"
    with pytest.raises(IRError) as e:
        verify(graph(BAD["attribute"][0]))
    assert e.value.hint == "did you mean 'approximate'?"


X = Value("x", Type("f32", (2,)))
A, B = Value("0", X.type), Value("1", X.type)


def test_use_before_definition():
    g = Graph("g", (X,), (Node("neg", (B,), (A,)), Node("neg", (X,), (B,))), (("y", A),))
    with pytest.raises(IRError, match="%1 is used before it is defined") as e:
        verify(g)
    assert caret(e.value) == "%0 = neg(%1) : f32[2]"


def test_duplicate_names():
    twin = Value("0", X.type)
    with pytest.raises(IRError, match="%0 is defined twice") as e:
        verify(Graph("g", (X,), (Node("neg", (X,), (A,)), Node("exp", (X,), (twin,))), ()))
    assert caret(e.value) == "%0 = exp(%x) : f32[2]"
    with pytest.raises(IRError, match="%x is declared twice"):
        verify(Graph("g", (X, Value("x", X.type)), (), ()))
    with pytest.raises(IRError, match="two results share a name"):
        verify(Graph("g", (X,), (), (("y", X), ("y", X))))


def test_results_and_state():
    with pytest.raises(IRError, match="result y=%0 is never defined"):
        verify(Graph("g", (X,), (), (("y", A),)))
    with pytest.raises(IRError, match=r"state i is i64\[b\] but its next value %0 is f32"):
        verify(graph("%0 = neg(%x) : f32[b,4]", returns="i=%0"))
    verify(graph("%0 = concat(%i, %i) {axis=0} : i64[2*b]", returns="i=%0"))  # sizes may change


def test_bind_reads_sizes_off_shapes():
    types = [("x", Type.parse("f32[b,past+s]")), ("y", Type.parse("f32[b,4]"))]
    assert bind(types, {"x": (2, 9), "y": (2, 4)}) == {"b": 2}
    for bad in ({"x": (2, 9), "y": (3, 4)}, {"x": (2, 9), "y": (2, 5)}, {"x": (2,), "y": (2, 4)}):
        with pytest.raises(IRError):
            bind(types, bad)


def test_evaluate_names_missing_inputs():
    with pytest.raises(IRError, match="g lacks inputs: i"):
        evaluate(graph("%0 = neg(%x) : f32[b,4]"), {"x": np.ones((1, 4), np.float32)})


def test_dce_drops_dead_nodes_and_weights():
    text = ("graph g(%x: f32[4]) {\n  @w : f32[4]\n  @u : f32[4]\n  %0 = add(%x, @w) : f32[4]\n"
            "  %1 = add(%x, @u) : f32[4]\n  return y=%0\n}")
    small = dce(parse_graph(text))
    assert [n.op for n in small.nodes] == ["add"]
    assert [w.name for w in small.weights] == ["@w"]
    assert dce(small) is small


def test_merge_joins_equal_names():
    one = graph("%0 = neg(%x) : f32[b,4]", returns="h=%0")
    two = parse_graph("graph two(%h: f32[b,4], %z: f32[b,4]) {\n  %0 = mul(%h, %z) : f32[b,4]\n"
                      "  return y=%0\n}")
    both = merge(one, two)
    verify(both)
    assert [p.name for p in both.params] == ["x", "i", "z"]
    x = np.full((2, 4), 3, np.float32)
    out = evaluate(both, {"x": x, "i": np.zeros(2, np.int64), "z": x})
    assert (out["h"] == -3).all()
    assert (out["y"] == -9).all()


def test_merge_keeps_names_apart():
    """A parameter of the second that is called as an inner value of the first."""
    one = parse_graph("graph a(%x: f32[4]) {\n  %z = neg(%x) : f32[4]\n  return h=%z\n}")
    two = parse_graph("graph b(%h: f32[4], %z: f32[4]) {\n  %0 = sub(%h, %z) : f32[4]\n"
                      "  return y=%0\n}")
    both = merge(one, two)
    verify(both)
    out = evaluate(both, {"x": np.ones(4, np.float32), "z": np.full(4, 5, np.float32)})
    assert (out["y"] == -6).all()
