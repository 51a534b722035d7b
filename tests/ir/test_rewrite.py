"""Rules: what they find, what they refuse and why, and that the driver stays linear and stops."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile import rewrite as driver
from arcompile.errors import PassError
from arcompile.ir import Builder, evaluate, verify
from arcompile.rewrite import Miss, Rule, rewrite
from arcompile.text import parse_graph


@pytest.fixture(autouse=True)
def _no_limit(monkeypatch):
    for knob in ("ARC_OPT_LIMIT", "ARC_DEBUG", "ARC_DUMP", "ARC_VERIFY"):
        monkeypatch.delenv(knob, raising=False)


class Fuse(Rule):
    def pattern(self, op, gate, x):
        return op.mul(op.silu(gate), x)

    def replace(self, op, gate, x):
        return op.swiglu(gate, x)


def graph(body: str, returns: str):
    return parse_graph(f"graph g(%x: f32[4], %y: f32[4]) {{\n{body}\n  return {returns}\n}}")


def ops(g) -> list[str]:
    return [n.op for n in g.nodes]


SILU = "  %0 = silu(%x) : f32[4]\n"


def test_fires():
    g = graph(SILU + "  %1 = mul(%0, %y) : f32[4]", "y=%1")
    assert str(rewrite(g, [Fuse()])) == (
        "graph g(%x: f32[4], %y: f32[4]) {\n  %2 = swiglu(%x, %y) : f32[4]\n  return y=%2\n}"
    )


def test_commuting_operands_need_no_second_rule():
    assert ops(rewrite(graph(SILU + "  %1 = mul(%y, %0) : f32[4]", "y=%1"), [Fuse()])) == ["swiglu"]
    g = graph(SILU + "  %1 = div(%y, %0) : f32[4]", "y=%1")
    assert rewrite(g, [Fuse()]) is g


def test_both_orders_are_tried_with_their_bindings():
    """The first order binds `a` before it fails; the second must not see that."""

    class Square(Rule):
        def pattern(self, op, a):
            return op.add(op.mul(a, a), op.neg(a))

        def replace(self, op, a):
            return op.relu(a)

    body = "  %0 = neg(%x) : f32[4]\n  %1 = mul(%x, %x) : f32[4]\n  %2 = add(%0, %1) : f32[4]"
    assert ops(rewrite(graph(body, "y=%2"), [Square()])) == ["relu"]
    apart = graph(body.replace("mul(%x, %x)", "mul(%x, %y)"), "y=%2")
    assert rewrite(apart, [Square()]) is apart


def test_untouched_lines_keep_their_names():
    g = graph(SILU + "  %1 = mul(%0, %y) : f32[4]\n  %7 = exp(%1) : f32[4]", "y=%7")
    assert "%7 = exp(%2) : f32[4]" in str(rewrite(g, [Fuse()]))


class Attr(Rule):
    """Attributes are literals to equal, or holes to bind; check may bind more."""

    def pattern(self, op, x, axis):
        return op.softmax(op.clip(x, lo=0.0, hi=None), axis=axis)

    def check(self, x, axis):
        if axis != 0:
            raise Miss(f"axis is {axis}, not 0")
        return {"twice": 2.0}

    def replace(self, op, x, twice, node):
        assert node.op == "softmax"
        return op.clip(x, lo=twice)


CLIP = "  %0 = clip(%x) {hi=None, lo=0.0} : f32[4]\n  %1 = softmax(%0) {axis=0} : f32[4]"


def test_attributes_and_check():
    out = rewrite(graph(CLIP, "y=%1"), [Attr()])
    assert [(n.op, n.attrs) for n in out.nodes] == [("clip", {"lo": 2.0})]
    other = graph(CLIP.replace("lo=0.0", "lo=1.0"), "y=%1")
    assert rewrite(other, [Attr()]) is other


def test_a_miss_gives_its_reason(monkeypatch, capsys):
    g = graph(CLIP.replace("axis=0", "axis=-1"), "y=%1")
    assert rewrite(g, [Attr()]) is g
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("ARC_DEBUG", "4")
    assert rewrite(g, [Attr()]) is g
    assert capsys.readouterr().err == "miss Attr at %1: axis is -1, not 0\n"


def test_inner_values_with_other_users_block(monkeypatch, capsys):
    monkeypatch.setenv("ARC_DEBUG", "4")
    g = graph(SILU + "  %1 = mul(%0, %y) : f32[4]", "y=%1, kept=%0")
    assert rewrite(g, [Fuse()]) is g
    assert "inner values have users" in capsys.readouterr().err

    class Shared(Fuse):
        shares = True

    assert ops(rewrite(g, [Shared()])) == ["silu", "swiglu"]


class Twice(Rule):
    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def replace(self, op, x):
        return x


def test_rules_feed_each_other():
    """neg(neg(silu)) goes first; only then is mul(silu, y) there to be seen."""
    body = SILU + "  %1 = neg(%0) : f32[4]\n  %2 = neg(%1) : f32[4]\n  %3 = mul(%2, %y) : f32[4]"
    assert ops(rewrite(graph(body, "y=%3"), [Fuse(), Twice()])) == ["swiglu"]


def test_an_even_chain_vanishes():
    b = Builder("g")
    v = x = b.param("x", "f32[4]")
    for _ in range(10):
        v = b.neg(v)
    out = rewrite(b.graph(y=v), [Twice()])
    assert out.results == (("y", x),)
    assert not out.nodes


class Again(Rule):
    def pattern(self, op, x):
        return op.silu(x)

    def replace(self, op, x):
        return op.silu(x)


def test_fuel_stops_a_rule_that_feeds_itself():
    with pytest.raises(PassError, match="rules keep firing on their own output"):
        rewrite(graph(SILU, "y=%0"), [Again()])


class Split(Rule):
    """A root with two results."""

    def pattern(self, op, x):
        return op.topk(x, k=2, axis=0)

    def replace(self, op, x):
        return op.topk(op.neg(x), k=2, axis=0)[::1]

    def check(self, x):
        if x.name != "x":
            raise Miss("done")


def test_several_results():
    body = "  %0, %1 = topk(%x) {axis=0, k=2} : f32[2], i64[2]"
    out = rewrite(graph(body, "v=%0, i=%1"), [Split()])
    verify(out)
    got = evaluate(out, {"x": np.arange(4, dtype=np.float32), "y": np.zeros(4, np.float32)})
    assert got["i"].tolist() == [0, 1]


def test_weights_may_be_added():
    class Weigh(Rule):
        def pattern(self, op, x):
            return op.silu(x)

        def replace(self, op, x):
            return op.mul(x, op.weight("w", "f32[4]"))

    out = rewrite(graph(SILU, "y=%0"), [Weigh()])
    verify(out)
    assert [str(w) for w in out.weights] == ["@w"]


def test_origin_names_the_pass():
    g = graph(SILU + "  %1 = mul(%0, %y) : f32[4]", "y=%1")
    assert rewrite(g, [Fuse()], "swiglu").nodes[0].origin == " > swiglu"


def test_ten_thousand_nodes_are_walked_once(monkeypatch):
    """480 rewrites in 10,080 nodes: every node is looked at once, every emitted one once more."""
    b = Builder("g")
    v = b.param("x", "f32[4]")
    for i in range(5040):
        v = b.mul(b.silu(v), v) if i % 21 < 2 else b.exp(b.exp(v))
    g = b.graph(y=v)
    seen = 0
    look = driver._fire

    def count(*args):
        nonlocal seen
        seen += 1
        return look(*args)

    monkeypatch.setattr(driver, "_fire", count)
    out = rewrite(g, [Fuse()])
    assert len(g.nodes) == 10080
    assert ops(out).count("swiglu") == 480
    assert len(out.nodes) == 10080 - 480
    assert seen == 10080 + 480
    verify(out)
