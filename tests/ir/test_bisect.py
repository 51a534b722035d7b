"""Blame lands on the one rewrite, or the one program pass, that breaks the check."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from arcompile.bisect import bisect
from arcompile.ir import Builder
from arcompile.pipeline import Pass
from arcompile.program import Program, raster
from arcompile.rewrite import Rule


@pytest.fixture(autouse=True)
def _no_knobs(monkeypatch):
    for knob in ("ARC_OPT_LIMIT", "ARC_DEBUG", "ARC_DUMP", "ARC_VERIFY"):
        monkeypatch.delenv(knob, raising=False)


class Relu(Rule):
    """silu -> relu: wrong, but only the fifth does harm below."""

    def pattern(self, op, x):
        return op.silu(x)

    def replace(self, op, x):
        return op.relu(x)


class ReluPass(Pass):
    name = "relu"
    rules = (Relu(),)


class Cache(Pass):
    name = "cache"

    def __call__(self, p):
        return replace(p, cache="window(2)")


class Nothing(Pass):
    name = "nothing"

    def __call__(self, p):
        return p


def program() -> Program:
    b = Builder("step")
    v = b.param("x", "f32[4]")
    for _ in range(8):
        v = b.silu(v)
    return Program("p", 1, raster(1), graphs=(b.graph(x=v),), state=(("x", v.type),))


def relus(p: Program) -> int:
    return sum(n.op == "relu" for n in p.graphs[0].nodes)


PASSES = [Nothing(), ReluPass(), Cache(), Nothing()]


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
def test_a_rewrite_is_blamed(limit):
    # Nothing() is the first to be counted, so rewrite n of ReluPass is number n + 1
    found = bisect(program(), PASSES, lambda p: relus(p) < limit)
    assert found == f"rewrite {limit + 1} of 11: Relu at %{limit - 1}"


def test_a_program_pass_is_blamed():
    assert bisect(program(), PASSES, lambda p: p.cache == "full") == "rewrite 10 of 11: cache"


class Raises(Pass):
    name = "raises"

    def __call__(self, p):
        raise ValueError("three")


class Touchy(Relu):
    def check(self, x):
        raise ValueError("no silu")


class TouchyPass(Pass):
    name = "touchy"
    rules = (Touchy(),)


def test_a_pipeline_that_raises():
    found = bisect(program(), [Nothing(), ReluPass(), Raises()], lambda p: True)
    assert found == "rewrite 10 of 10: raises, and then ValueError: three"
    found = bisect(program(), [TouchyPass()], lambda p: True)
    assert found == "the input program, before any rewrite, and then ValueError: no silu"


def test_good_and_bad_from_the_start():
    assert bisect(program(), PASSES, lambda p: True) is None
    bad = bisect(program(), PASSES, lambda p: False)
    assert bad == "the input program, before any rewrite"


def test_the_search_is_logarithmic_and_leaves_no_trace(monkeypatch):
    monkeypatch.setenv("ARC_OPT_LIMIT", "3")  # of the user; the search sets its own
    builds = 0

    def good(p: Program) -> bool:
        nonlocal builds
        builds += 1
        return relus(p) < 6

    assert bisect(program(), PASSES, good) == "rewrite 7 of 11: Relu at %5"
    assert builds <= 2 + 4
    assert os.environ["ARC_OPT_LIMIT"] == "3"
