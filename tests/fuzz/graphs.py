"""A random graph of ops from the table, whose results are all that nobody reads, and some more."""

from __future__ import annotations

from random import Random

from fuzz import recipes_model
from fuzz.grow import Grow, Reject
from fuzz.recipes import RECIPES

from arcompile.ir import Graph, Type, dce, verify

assert recipes_model  # fills the table
TRIES = 8  # for a node, before another op is taken


def graph(random: Random, nodes: int = 0, ops=()) -> Graph:
    """A graph of about so many nodes (0: 1 to 24), verified; of `ops` alone, if they are given."""
    g = Grow(random, f"g{random.randrange(1 << 30)}")
    for name, t in (("x", "f32[b,s,16]"), ("y", "f32[r,s,8]"), ("n", "i64[b,c]")):
        if random.random() < 0.6 or name == "x":
            g.leaf(Type.parse(t), name, weight=False)
    pool = sorted(ops or RECIPES)
    for _ in range(nodes or random.choice((1, 2, 3, 5, 8, 12, 16, 24))):
        _some(g, random, pool)
    return _closed(g, random)


def _some(g: Grow, random: Random, pool) -> None:
    for _ in range(TRIES):
        op = random.choice(pool)
        try:
            RECIPES[op](g, op)
        except Reject:
            continue
        return


def _closed(g: Grow, random: Random) -> Graph:
    read = {a for n in g.b.nodes for a in n.args}
    made = [v for n in g.b.nodes for v in n.outs]
    ends = [v for v in made if v not in read or random.random() < 0.1] or list(g.env)[:1]
    found = g.b.graph(**{f"out{i}": v for i, v in enumerate(ends)})
    found = dce(found)
    verify(found)
    return found
