"""Passes that draw in windows: the steps they make, and what they refuse."""

import re
from dataclasses import replace

import pytest
from tiny import generate, llama

from arcompile.errors import ArcError
from arcompile.passes.cool_sd import CoolSD
from arcompile.passes.fuse_sampling import FuseSampling
from arcompile.passes.gsd import GSD
from arcompile.passes.jacobi import Jacobi
from arcompile.passes.lantern import Lantern
from arcompile.passes.scd import SCD
from arcompile.passes.sjd import SJD
from arcompile.pipeline import parse_pipeline, run
from arcompile.program import Call, Step
from arcompile.program_text import from_data, parse_program, to_data

WAYS = [SJD(window=2), SCD(window=3), SCD(window=2, coupling="gumbel"), Jacobi(window=3)]


def outline(p):
    """The program without its graphs, and the graph that makes a round's drafts."""
    return "\n".join([str(p).split("\ngraph ")[0], str(p.graph("draft"))])


def verifier(p):
    """The end of a round: what is made of the laws."""
    text = str(p.graph("window"))
    return text[text.index(" law("):].split("\n", 1)[1]


LOSSY = [GSD(window=3), CoolSD(window=3), Lantern(window=3, near=2),
         Lantern(window=3, near=2, times=3.0)]


@pytest.mark.parametrize("way", [WAYS[1], WAYS[3]], ids=lambda w: w.name)
def test_rounds(golden, way):
    assert outline(run(llama(1), [way])) == golden


@pytest.mark.parametrize("way", [*WAYS[1:3], *LOSSY], ids=lambda w: w.name)
def test_verifiers(golden, way):
    assert verifier(run(llama(1), [way])) == golden


@pytest.mark.parametrize("way", [*WAYS, *LOSSY], ids=str)
def test_greedy_tokens_are_those_of_plain_decoding(way):
    """At temperature 0 a law is one token, and no relaxation here looks at its own draft alone."""
    p = llama(1)
    new = run(p, [way])
    if way in WAYS:
        assert (generate(new).tokens == generate(p).tokens).all()
    assert generate(new, temperature=1.0).rounds.sum(0).tolist() == [4, 4]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_text_and_data_read_back(way):
    p = run(llama(1), [way])
    assert str(parse_program(str(p))) == str(p)
    assert from_data(to_data(p)).steps == p.steps


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_sampling_may_be_fused_before(way):
    p = llama(1)
    fused, plain = run(p, [FuseSampling(), way]), run(p, [way])
    a, b = (generate(x, temperature=1.0) for x in (fused, plain))
    assert (a.tokens == b.tokens).all()
    assert (generate(fused).tokens == generate(p).tokens).all()


def edit(p, i, **kw):
    return replace(p, steps=tuple(replace(s, **kw) if j == i else s
                                  for j, s in enumerate(p.steps)))


@pytest.mark.parametrize(("make", "way", "why"), [
    (lambda p: p, SJD(window=4), "a window of 4 positions in an image of 4"),
    (lambda p: p, SJD(window=0), "a window of 0 positions"),
    (lambda p: p, SJD(guess="below"), "pass sjd has no guess 'below'"),
    (lambda p: p, SCD(coupling="minimal"), "pass scd has no coupling 'minimal'"),
    (lambda p: p, GSD(group=0), "a group of 0"),
    (lambda p: p, GSD(near=-1.0), "within -1 and 0.5"),
    (lambda p: p, CoolSD(delta=0.5), "delta >= 1 and nu >= 0, not 0.5 and 0.7"),
    (lambda p: p, Lantern(times=0.5), "times 0 or >= 1, not 10, 0.1 and 0.5"),
    (lambda p: p, Lantern(near=16, window=2), "16 neighbours in a codebook of 16"),
    (lambda p: replace(p, finish=()), Lantern(window=2), "needs the codebook of an image decoder"),
    (lambda p: run(p, [SJD(window=2)]), SCD(window=2), "tiny is drafted already"),
    (lambda p: run(p, [Jacobi(window=2)]), SJD(window=2), "tiny is drafted already"),
    (lambda p: edit(p, 1, set=(("scale0", 1.0),)), SJD(window=2),
     "step 1 of tiny has constants or guidance of its own"),
    (lambda p: edit(p, 2, guide=(1.0, 0.0)), SJD(window=2), "constants or guidance of its own"),
    (lambda p: edit(p, 1, append=2), SJD(window=2), "step 1 of tiny appends 2 slots"),
    (lambda p: edit(p, 2, calls=(Call("step"), Call("feed"))), SJD(window=2),
     "step 2 of tiny calls step feed"),
    (lambda p: replace(p, steps=(Step((0, 1, 2, 3), (0, 1, 2, 3), p.steps[0].calls, append=4),)),
     SJD(window=2), "step 0 of tiny commits 4 positions of its own"),
])
def test_refuses(make, way, why):
    p = make(llama(1))
    with pytest.raises(ArcError, match=re.escape(why)):
        run(p, [way])


def test_options_as_text():
    text = "scd{window=4,coupling='gumbel'}, jacobi{guess='copy'}, sjd"
    assert ", ".join(map(str, parse_pipeline(text))) == text
