"""Adaptive windows: what is exact by counts, how many rounds rows take, and the neutral setting."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from engines import write
from tiny import llama
from toy import Toy, chi_square, two_sample

from arcompile.errors import ArcError
from arcompile.ir import Graph
from arcompile.passes.jacobi import Jacobi
from arcompile.passes.rotary_attention import RotaryAttention
from arcompile.passes.zipar import ZipAR
from arcompile.passes.zipar_adaptive import ZipARAdaptive, zipped
from arcompile.pipeline import run
from arcompile.program_text import parse_program
from arcompile.runtime.engine import load
from arcompile.runtime.loop import Loop
from arcompile.targets.reference import models
from arcompile.weights import of_arrays


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("h", "w"), [(2, 3), (3, 2), (1, 6)])
def test_as_wide_as_a_row_is_plain_decoding(temperature, h, w):
    """One pass further than the identity: an order by rows, by the account of a graph."""
    toy = Toy(n=6)
    if h > 1:
        assert run(toy.program, [ZipARAdaptive(window=w, width=w)]) is toy.program
    p = zipped(toy.program, h, w, w, "zipar-adaptive")
    p.verify()
    how = {"temperature": temperature, "guidance": 1.5}
    found = toy.sample(p, 40, **how)
    assert (found.tokens == toy.sample(toy.program, 40, **how).tokens).all()
    assert ((found.rounds > 0).sum(0) == 6).all()


@pytest.mark.parametrize("how", [{}, {"guidance": 1.8}, {"temperature": 0.7, "top_k": 2}])
def test_one_column_less_keeps_the_law(how):
    """A first token is tested once, with all of the row above: the law of plain decoding."""
    toy = Toy(n=6)
    p = run(toy.program, [ZipARAdaptive(window=2, width=3)])
    _, law = toy.law(**how)
    counts = toy.counts(toy.sample(p, 12000, **how).tokens)
    assert chi_square(counts, law) > 1e-3
    plain = toy.counts(toy.sample(toy.program, 12000, seed=8, **how).tokens)
    assert two_sample(counts, plain) > 1e-3


def bent(p):
    """The same, with residuals that are drawn from the new law instead: wrong."""
    def graph(g: Graph) -> Graph:
        if g.name != "window":
            return g
        rest = next(n for n in g.nodes if n.op == "draw_from")
        law = next(n for n in g.nodes if n.op == "where" and n.outs[0] is rest.args[0]).args[2]
        return g.with_nodes(replace(n, args=(law, *n.args[1:])) if n is rest else n
                            for n in g.nodes)
    return replace(p, graphs=tuple(map(graph, p.graphs)))


def test_the_count_sees_what_is_wrong():
    toy = Toy(n=6)
    _, law = toy.law()
    p = bent(run(toy.program, [ZipARAdaptive(window=2, width=3)]))
    assert chi_square(toy.counts(toy.sample(p, 12000).tokens), law) < 1e-6
    p = run(toy.program, [ZipAR(window=2, width=3)])  # and that of a window that stays as it is
    assert chi_square(toy.counts(toy.sample(p, 12000).tokens), law) < 1e-6


def test_nearer_to_the_law_than_fixed_windows():
    toy = Toy(n=6)
    _, law = toy.law()

    def off(way):
        counts = toy.counts(toy.sample(run(toy.program, [way]), 12000).tokens)
        return np.abs(counts / counts.sum() - law).sum() / 2

    assert off(ZipARAdaptive(window=1, width=3)) < off(ZipAR(window=1, width=3)) - 0.02


@pytest.mark.parametrize(("h", "w", "window"), [(3, 4, 1), (3, 4, 2), (4, 3, 1), (2, 6, 3)])
def test_the_number_of_rounds(h, w, window):
    """A row's width, and the lag of each further row: `window`, one for each test it waited for,
    or a whole row."""
    toy, b = Toy(n=h * w), 60
    p = run(toy.program, [ZipARAdaptive(window=window, width=w)])
    loop = Loop(p, models(p, toy.weights).runner(), toy.request(b), toy.v)
    found = loop.run()
    lags = np.minimum(window + loop.env["next_waits"][:, 1:], w)
    assert ((found.rounds > 0).sum(0) == w + lags.sum(1)).all()
    assert (lags > window).all()
    assert lags.min() < w
    assert (found.tokens == loop.env["next_board"][:, :-1])[:, 1:].all()


@pytest.mark.ort
def test_caches_and_accounts_may_be_updated_in_place(tmp_path):
    """A runtime writes a state where it was: nothing may be read after its next value is there."""
    pytest.importorskip("onnx")
    toy, how = Toy(n=12), {"seed": list(range(200)), "guidance": 1.5}
    folder = write(tmp_path / "e", toy.program, of_arrays(toy.weights), toy.v,
                   passes="zipar-adaptive{window=1,width=4}", info={"classes": 2})
    p = run(toy.program, [ZipARAdaptive(window=1, width=4)])
    request = toy.request(200, guidance=1.5)
    request = replace(request, seeds=np.arange(200, dtype=np.uint64), copies=np.zeros(200, int))
    found = load(folder).generate([1] * 200, **how)
    assert (found.tokens == toy.run(p, request).tokens).all()


def test_a_batch_is_its_images():
    toy = Toy(n=12)
    p = run(toy.program, [ZipARAdaptive(window=1, width=4)])
    assert (toy.sample(p, 5).tokens[:2] == toy.sample(p, 2).tokens).all()


def test_it_takes_fused_attention():
    toy = Toy(n=8)
    way = ZipARAdaptive(window=1, width=4)
    plain, fused = run(toy.program, [way]), run(toy.program, [RotaryAttention(), way])
    assert (toy.sample(plain, 40).tokens == toy.sample(fused, 40).tokens).all()


def test_program(golden):
    p = run(llama(1), [ZipARAdaptive(window=1)])
    assert str(parse_program(str(p))) == str(p)
    assert str(p).split("\ngraph ")[0] == golden


@pytest.mark.parametrize(("way", "why"), [
    (ZipARAdaptive(window=3), "rows of 2 of 4 tokens cannot be 3 apart"),
    (ZipARAdaptive(window=1, width=3), "rows of 3 of 4 tokens"),
    (ZipARAdaptive(window=1, width=1), "rows of 1 of 4 tokens"),
    (ZipARAdaptive(window=0), "cannot be 0 apart")])
def test_refuses(way, why):
    with pytest.raises(ArcError, match=re.escape(why)):
        run(llama(1), [way])


def test_it_does_not_go_with_drafts():
    with pytest.raises(ArcError, match="pass zipar-adaptive needs a plain program"):
        run(llama(1), [Jacobi(window=2), ZipARAdaptive(window=1)])
    with pytest.raises(ArcError, match="tiny is drafted already"):
        run(llama(1), [ZipARAdaptive(window=1), Jacobi(window=2)])
