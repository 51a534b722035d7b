"""Views of one small graph, checked by eye."""

from __future__ import annotations

import pytest

from arcompile.liveness import liveness, peak
from arcompile.text import parse_graph

analysis = pytest.importorskip("arcompile.analysis")

DIAMOND = parse_graph("""\
graph g(%x: f32[b,4], %z: f32[b,4]) {
  @w : f32[4,4]
  %t = transpose(@w) {perm=(1, 0)} : f32[4,4]
  %0 = neg(%x) : f32[b,4]
  %1 = exp(%0) : f32[b,4]
  %2 = matmul(%0, %t) : f32[b,4]
  %3 = add(%1, %2) : f32[b,4]
  %4 = mul(%3, %z) : f32[b,4]
  return y=%4, kept=%1
}""")
SIZES = {"b": 10}
ROW = 10 * 4 * 4  # bytes of one value


def ops(nodes) -> list[str]:
    return [n.op for n in nodes]


def test_as_networkx():
    g = analysis.as_networkx(DIAMOND)
    assert g.number_of_nodes() == 3 + 6
    assert g.number_of_edges() == sum(len(n.args) for n in DIAMOND.nodes)
    neg = DIAMOND.nodes[1]
    assert sorted(n.op for n in g.successors(neg)) == ["exp", "matmul"]
    assert {d["value"].name for _, _, d in g.out_edges(neg, data=True)} == {"0"}


def test_liveness():
    live = liveness(DIAMOND, SIZES)
    names = [{v.name for v in x.values} for x in live]
    assert names == [{"x", "z"}, {"x", "z", "0"}, {"z", "0", "1"}, {"z", "0", "1", "2"},
                     {"z", "1", "2", "3"}, {"z", "1", "3", "4"}]
    assert [x.bytes for x in live] == [len(n) * ROW for n in names]
    assert peak(DIAMOND, SIZES).node.op == "matmul"
    assert peak(parse_graph("graph e(%x: f32[4]) {\n  return y=%x\n}")) is None


def test_critical_path():
    assert ops(analysis.critical_path(DIAMOND, SIZES)) == ["neg", "matmul", "add", "mul"]
    light = analysis.critical_path(DIAMOND, weight=lambda n: 9 if n.op == "exp" else 1)
    assert ops(light) == ["neg", "exp", "add", "mul"]


def test_dominators():
    found = {n.op: d and d.op for n, d in analysis.dominators(DIAMOND).items()}
    assert found == {"neg": None, "exp": "neg", "matmul": "neg", "add": "neg", "mul": None}


def test_dot():
    text = analysis.dot(DIAMOND)
    assert text.startswith('digraph "g" {')
    assert '[label="matmul\\nf32[b,4]"]' in text
    assert "@w" not in text
    grey = analysis.dot(DIAMOND, weights=True)
    assert '[label="@w\\nf32[4,4]", color=lightgrey' in grey
    assert grey.count("->") == text.count("->") + 1
    assert text.count("->") == sum(len(n.args) for n in DIAMOND.nodes) - 1 + 2
