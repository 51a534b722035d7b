"""What every family gets for free: each pass keeps its values, and its program is on record."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
import pytest

from arcompile import debug
from arcompile.check import Check
from arcompile.compile import exported
from arcompile.errors import ArcError
from arcompile.family import FAMILIES
from arcompile.pipeline import PASSES, Pass, parse_pipeline, run
from arcompile.program import Program
from arcompile.program_text import parse_program
from arcompile.target import TARGETS

PIPELINE = parse_pipeline(TARGETS["ort-cpu"].passes)
OPTIONS = {"infinity": {"scales": [[1, 1], [2, 2], [3, 4]]}}  # published schedules are long
SMALL = {"window": 3}  # options of passes that must fit a tiny image
# What a pass looks for: an op, and the op that makes one of its operands.
LOOKS = {"swiglu": ("mul", "silu"), "residual-norm": ("rms_norm", "add"),
         "rotary-attention": ("attention", "rope")}
MISS = re.compile(r"miss \S+ at \S+: (.*)")


class Tiny:
    """A family's smallest model, before and after each pass of the default pipeline."""

    def __init__(self, name: str, log: list[str]):
        family = FAMILIES[name]
        p = exported(family.model(family.random("tiny"), OPTIONS.get(name, {})))
        self.check = Check(p)
        self.stages: dict[str, tuple[Program, Program]] = {}
        self.misses: dict[str, list[str]] = {}
        for each in PIPELINE:
            log.clear()
            self.stages[each.name] = p, (p := run(p, [each]))
            self.misses[each.name] = [m[1] for x in log if (m := MISS.match(x))]
        self.final = p


def asked(name: str) -> Pass:
    options = {f.name for f in fields(PASSES[name])}
    return PASSES[name](**{k: v for k, v in SMALL.items() if k in options})


@pytest.fixture(scope="module", params=sorted(FAMILIES.all()))
def tiny(request) -> Tiny:
    log: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(debug, "log", lambda level, text: log.append(text))
        return Tiny(request.param, log)


def test_what_is_compared_is_finite(tiny):
    """Random weights must not drown the comparison, or leave nothing to compare."""
    assert {"logits", "latents"} & tiny.check.expected.keys()
    for name, values in tiny.check.expected.items():
        assert all(np.isfinite(x).all() for x in values), name


@pytest.mark.parametrize("name", sorted(PASSES.all()))
def test_pass(tiny, name):
    """Where it stands in the default pipeline, or behind it; `run` has verified around it."""
    was, new = tiny.stages.get(name) or (tiny.final, extra(tiny.final, name))
    assert str(parse_program(str(new))) == str(new)
    if new is not was and PASSES[name].keeps == "values":
        assert run(new, [asked(name)]) is new
        errors = tiny.check.errors(new)
        assert max(errors.values()) <= 1e-5, errors


def extra(p: Program, name: str) -> Program:
    """After a pass that the user asks for, which may refuse a program that it is not for."""
    try:
        return run(p, [asked(name)])
    except ArcError as e:
        refusal = e
    assert refusal.hint
    assert "\n" not in refusal.what
    pytest.skip(f"refused: {refusal.what}")  # pytest -rs shows who refuses what


def test_program(tiny, golden_at):
    """The loop that a target runs, what its graphs are made of, and what the default passes did
    or why not.

    Read what changes: here shows a family that lost a fusion.
    """
    p, lines = tiny.final, []
    for g in (*p.graphs, *([p.fold] if p.fold else [])):
        lines.append(f"graph {g.name}: " + counted(n.op for n in g.nodes))
    lines += [f"pass {each.name}: {deed(tiny, each.name)}" for each in PIPELINE]
    text = "\n".join([str(replace(p, graphs=(), fold=None)), *lines])
    assert text == golden_at("programs", f"{p.name}.txt")


def deed(tiny: Tiny, name: str) -> str:
    """How many nodes a pass left, or why it left all: near misses, or what is not there."""
    was, new = tiny.stages[name]
    if new is not was:
        before, after = (sum(len(g.nodes) for g in p.graphs) for p in (was, new))
        return f"{before} -> {after} nodes"
    if misses := tiny.misses.get(name):
        return "misses, " + counted(re.sub(r"[%@][\w.]+|\w+\[[^]]*]", "x", m) for m in misses)
    if name not in LOOKS:
        return "finds nothing"
    reader, maker = LOOKS[name]
    assert not any(n.op == reader and g.producer[a].op == maker for g in was.graphs
                   for n in g.nodes for a in n.args if a in g.producer)
    return f"finds no {reader} of {maker}"


def counted(words: Iterable[str]) -> str:
    return ", ".join(f"{n} {word}" for word, n in sorted(Counter(words).items()))
