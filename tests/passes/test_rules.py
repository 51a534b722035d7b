"""What the rule driver promises to every pass."""

from tiny import of, ops

from arcompile.ir import verify
from arcompile.rewrite import Miss, Rule, rewrite

G = of("""graph g(%x: f32[4]) {
  @w : f32[4]
  %0 = mul(%x, @w) : f32[4]
  %1 = neg(%0) : f32[4]
  %2 = neg(%1) : f32[4]
  %3 = silu(%2) : f32[4]
  return y=%3
}""").graph("g")


class Neg(Rule):
    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def replace(self, op, x):
        return x


class Scaled(Rule):
    def pattern(self, op, x, w):
        return op.silu(op.mul(x, w))

    def check(self, node):
        if node.outs[0].type.rank != 1:
            raise Miss("not a vector")

    def replace(self, op, x):
        return op.swiglu(x, op.weight("@w", "f32[4]"))


def test_a_removed_node_reads_nothing():
    """Only then is the product unshared, and the second rule may take it in the same walk."""
    assert ops(rewrite(G, (Neg(), Scaled()))) == ["swiglu"]


def test_a_rule_may_ask_for_a_weight_the_graph_has():
    class More(Scaled):
        def replace(self, op, x, w):
            return op.swiglu(op.mul(x, w), op.weight("@w", "f32[4]"))

    new = rewrite(G, (Neg(), More()))
    verify(new)
    assert len(new.weights) == 1


def test_check_may_ask_for_the_root():
    assert "silu" not in ops(rewrite(G, (Neg(), Scaled())))
