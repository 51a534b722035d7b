"""Programs: every order covers every position, text and JSON read back, and nonsense is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcompile.errors import ArcError, IRError
from arcompile.ir import Type
from arcompile.program import (
    Call,
    Draw,
    Program,
    Step,
    blocks,
    diagonals,
    groups,
    masked,
    raster,
    scales,
)
from arcompile.program_text import FOLD, from_data, parse_program, to_data
from arcompile.text import parse_graph

STEP = parse_graph(
    "graph step(%x: f32[r,s,4], %noise: f32[b,c,2], %past: i32[r]) {\n  @w : f32[4,4]\n"
    "  %0 = matmul(%x, @w) : f32[r,s,4]\n  return logits=%0\n}"
)
PROMPT = parse_graph("graph prompt(%cond: f32[r,1,4]) {\n  return x=%cond\n}")
ORDERS = {
    "raster": (9, raster(9)),
    "scales": (14, scales((1, 2, 3), guide=(0.0, 0.5))),
    "diagonals": (6, diagonals(2, 3)),
    "masked": (8, masked(8, (1, 3, 4), set=(("t", 0.5), ("grid", (2, 4))))),
    "blocks": (8, blocks(8, 4, 2)),
    "groups": (7, groups((3, 4), calls=(Call("step", loop="time"), Call("step", each=True)))),
}


def program(order: str, **kw) -> Program:
    n, steps = ORDERS[order]
    return Program(order, n, steps, graphs=(STEP, PROMPT), prompt=(Call("prompt"),),
                   inputs=(("cond", Type.parse("f32[r,1,4]")),),
                   state=(("k", Type.parse("f32[r,2,9,4]")),),
                   draws=(Draw("noise", "uniform", 2), Draw("order", "order", when="start")),
                   tables={"time": {"t": (0.0, 0.5), "n": (1.0, float("inf"))}}, **kw)


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_order(order, golden):
    p = program(order)
    p.verify()
    assert sorted(i for s in p.steps for i in s.commit) == list(range(p.positions))
    assert str(p) == golden


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_reads_back(order):
    fold = parse_graph(f"graph {FOLD}() {{\n  @w : f32[4,4]\n  return v=@w\n}}")
    p = program(order, fold=fold, mask="none", accept="all", cache="window(4)")
    again = parse_program(str(p))
    assert str(again) == str(p)
    assert (again.steps, again.state, again.draws, again.tables) == (
        p.steps, p.state, p.draws, p.tables)
    assert again.fold is not None
    data = json.loads(json.dumps(to_data(p)))
    assert from_data(data).steps == p.steps
    assert to_data(from_data(data)) == to_data(p)


COMMITS = st.lists(st.integers(0, 3), min_size=1, max_size=6)


@given(COMMITS, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=40, deadline=None)
def test_any_steps_read_back(counts, random, shuffled):
    n = sum(counts)
    order = list(range(n))
    if shuffled:
        random.shuffle(order)
    steps, at = [], 0
    for c in counts:
        commit = tuple(order[at : at + c])
        query = commit if random.random() < 0.5 else tuple(sorted(order[at:]))
        steps.append(Step(query, commit, append=random.choice((0, c))))
        at += c
    p = Program("any", n, tuple(steps), graphs=(STEP,))
    assert parse_program(str(p)).steps == p.steps
    assert from_data(json.loads(json.dumps(to_data(p)))).steps == p.steps


def bad(**kw) -> Program:
    return replace(program("raster"), **kw)


LOOP = Call("step", loop="tmie")
REFUSED = {
    "twice": (bad(steps=(*raster(9)[:8], Step((7, 8), (7, 8)))), "step 8 commits a position"),
    "in one step": (bad(steps=(*raster(8), Step((8, 8), (8, 8)))), "step 8 commits a position"),
    "never": (bad(steps=raster(7)), "2 of 9 positions are never committed"),
    "outside": (bad(steps=raster(10)), "steps commit positions outside the 9"),
    "not queried": (bad(steps=(*raster(8), Step((), (8,)))), "step 8 commits positions it does"),
    "no graph": (bad(graphs=(PROMPT,)), "no graph named 'step'"),
    "two graphs": (bad(graphs=(STEP, PROMPT, STEP)), None),
    "unfed": (bad(draws=()), "graph step reads noise, which nothing provides"),
    "late": (bad(prompt=(Call("step"),)), "graph step reads x, which nothing provides"),
    "dtype": (bad(inputs=(("cond", Type.parse("i64[r,1,4]")),)), "graph prompt reads cond as f32"),
    "no table": (bad(finish=(LOOP,)), "call step*tmie loops over 'tmie', which is not a table"),
    "ragged": (bad(tables={"t": {"a": (1.0,), "b": ()}}), "the columns of table t differ"),
    "empty": (bad(tables={"t": {}}), "the columns of table t differ"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_verify_refuses(name):
    p, message = REFUSED[name]
    if message is None:  # the same graph twice is harmless, another one of its name is not
        p.verify()
        p, message = replace(p, graphs=(*p.graphs, parse_graph(str(STEP)))), "two graphs are named"
    with pytest.raises(ArcError) as e:
        p.verify()
    assert e.value.what.startswith(message)


def test_hints():
    with pytest.raises(ArcError) as e:
        bad(finish=(LOOP,)).verify()
    assert e.value.hint == "did you mean 'time'?"
    with pytest.raises(ArcError) as e:
        program("raster").graph("stp")
    assert e.value.hint == "did you mean 'step'?"


def test_prefixes_may_repeat_positions():
    steps = (Step((0, 1, 2), (0, 1, 2)), *raster(9))
    p = replace(program("raster"), steps=steps, accept="prefix")
    p.verify()
    with pytest.raises(ArcError, match="commits a position twice"):
        replace(p, accept="all").verify()


@pytest.mark.parametrize("text", ["step", "step*time", "step/each", "step*time/each"])
def test_call_text(text):
    assert str(Call.parse(text)) == text


def test_on_graphs_keeps_what_does_not_change():
    p = program("raster")
    assert p.on_graphs(lambda g: g) is p
    assert p.on_graphs(lambda g: replace(g)) is not p


TEXT = str(program("blocks"))


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_mutated_text_raises_only_ArcError(data):
    """Whatever is done to the head of a program, it reads, or an ArcError says why not."""
    head = TEXT.index("graph ")
    lo = data.draw(st.integers(0, head))
    hi = min(head, lo + data.draw(st.integers(0, 10)))
    junk = st.sampled_from(["(", "[", "x", " x ", ">", ";", "=", "1e999", "9" * 5000, "[]", "{}",
                            "-1", "1.5", "\n", "steps", "table", "draw", "guide="])
    new = "".join(data.draw(st.lists(junk | st.text(max_size=2), max_size=3)))
    failed = None
    try:
        parse_program(TEXT[:lo] + new + TEXT[hi:]).verify()
    except ArcError as e:
        failed = e
    assert failed is None or failed.what


@pytest.mark.parametrize(("old", "new", "message"), [
    ("program blocks", "progam blocks", "line 1: expected `program"),
    ("  cache full", "  cash full", "line 2: not a program line"),
    ("1 x 4>2", "1 y 4>2", "line 10: not steps"),
    ("matmul(%x, @w)", "matmul(%y, @w)", "line 16: %y is not defined"),
])
def test_the_line_is_named(old, new, message):
    with pytest.raises(IRError) as e:
        parse_program(TEXT.replace(old, new, 1))
    assert e.value.what.startswith(message)


@pytest.mark.parametrize(("key", "value"), [
    ("format", 99), ("positions", 1 << 30), ("positions", "9"), ("steps", [{}]), ("steps", 3),
    ("draws", [{"nam": "x"}]), ("inputs", {"x": "f99[]"}), ("prompt", [1]),
    ("steps", [{"times": 1 << 20, "query": 1 << 20, "commit": 0, "calls": [], "guide": [0, 1],
                "append": 0, "set": {}}]),
    ("steps", [{"times": 1, "query": [float("inf")], "commit": 0, "calls": [], "guide": [0, 1],
                "append": 0, "set": {}}]),
])
def test_hostile_json_is_refused(key, value):
    data = {**to_data(program("raster")), key: value}
    with pytest.raises(ArcError):
        from_data(data)
    with pytest.raises(ArcError):
        from_data({k: v for k, v in data.items() if k != key})


CARRY = """graph step(%x: f32[r,1,4], %noise: f32[b,c,2], %past: i32[r], %k: f32[r,1,4]) {{
  %0 = add(%k, %x) : f32[r,1,4]
  %1 = mul({reads}, %x) : f32[r,1,4]
  return logits=%1, k={after}
}}"""


def carrying(reads: str, after: str) -> Program:
    return replace(program("raster"), state=(("k", Type.parse("f32[r,1,4]")),),
                   graphs=(parse_graph(CARRY.format(reads=reads, after=after)), PROMPT))


def test_a_state_is_read_by_what_makes_its_next_value():
    for after in ("%0", "%1"):  # %1 is made by way of %0
        p = carrying("%0", after)
        p.verify()
        assert "k" in dict(p.graph("step").results)


@pytest.mark.parametrize(("after", "message"), [
    ("%0", "mul of graph step reads k, which add may have"),
    ("%1", "add of graph step reads k, which mul may have")])
def test_nothing_else_reads_a_state(after, message):
    """ONNX Runtime writes the next value where the state lies, and picks an order of its own."""
    with pytest.raises(ArcError, match=message):
        carrying("%k", after).verify()
