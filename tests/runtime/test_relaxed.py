"""Methods that change the law: at their neutral setting they do not, and the more they are given
the more they accept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy import Toy, chi_square

from arcompile.ir import OPS
from arcompile.passes.cool_sd import CoolSD
from arcompile.passes.gsd import GSD
from arcompile.passes.lantern import Lantern
from arcompile.passes.sjd import SJD
from arcompile.pipeline import run
from arcompile.text import parse_graph
from arcompile.weights import Store, of_arrays

IMAGES = 8000
DECODE = """graph decode(%tokens: i64[b,5]) {
  @codes : f32[3,2]
  %0 = gather(@codes, %tokens) {axis=0} : f32[b,5,2]
  return pixels=%0
}"""
NEUTRAL = [GSD(window=4, group=1), GSD(window=4, distance=0.0), CoolSD(window=4, delta=1.0),
           Lantern(window=4, near=0), Lantern(window=4, near=2, most=0.0),
           Lantern(window=4, near=2, times=1.0)]
ROWS = [  # each row from strict to lax
    [GSD(window=4, group=1), GSD(window=4, distance=2.0), GSD(window=4, distance=9.0, near=1.0)],
    [CoolSD(window=4, delta=1.0), CoolSD(window=4, delta=1.5), CoolSD(window=4, delta=2.5)],
    [Lantern(window=4, near=0), Lantern(window=4, near=1, most=0.2),
     Lantern(window=4, near=2, most=0.5)],
    [Lantern(window=4, near=0), Lantern(window=4, near=1, times=2.0),
     Lantern(window=4, near=2, times=6.0)]]


@pytest.fixture(scope="module")
def toy():
    """The toy with a codebook, as the decoder of pictures has one."""
    made = Toy()
    made.codes = np.random.default_rng(5).normal(size=(3, 2)).astype(np.float32)
    made.program = replace(made.program, finish=(), graphs=(
        *made.program.graphs, parse_graph(DECODE)))
    from arcompile.program import Call

    made.program = replace(made.program, finish=(Call("decode"),))
    made.plain = dict(made.weights)
    return made


def drawn(toy, way, images=IMAGES):
    p = run(toy.program, [way])
    source = of_arrays({**toy.plain, "@codes": toy.codes})
    toy.weights = Store(source, p.fold)
    return toy.sample(p, images, guidance=1.5, seed=3)


@pytest.mark.parametrize("way", NEUTRAL, ids=str)
def test_neutral_is_sjd(toy, way):
    want, found = drawn(toy, SJD(window=4), 500), drawn(toy, way, 500)
    assert (want.tokens == found.tokens).all()
    assert (want.rounds == found.rounds).all()


@pytest.mark.parametrize("row", ROWS, ids=lambda r: str(r[-1]))
def test_laxer_takes_fewer_rounds_and_bends_the_law(toy, row):
    found = [drawn(toy, way) for way in row]
    rounds = [(f.rounds > 0).sum(0).mean() for f in found]
    assert rounds == sorted(rounds, reverse=True)
    toy.weights = Store(of_arrays({**toy.plain, "@codes": toy.codes}))
    _, law = toy.law(guidance=1.5)
    p = [chi_square(toy.counts(f.tokens), law) for f in found]
    assert p[0] > 1e-4
    assert p[-1] < 1e-9


def test_nearest_by_hand():
    (out,) = OPS["nearest"].eval(np.array([[0.0], [3.0], [1.0], [10.0]]), k=2)
    assert out.tolist() == [[2, 1], [2, 0], [0, 1], [1, 2]]


def test_nearest_in_parts(monkeypatch):
    from arcompile.ops import speculation

    x = np.random.default_rng(0).normal(size=(50, 3))
    whole = speculation.nearest(x, k=4)
    monkeypatch.setattr(speculation, "NEAREST", 7)
    assert (speculation.nearest(x, k=4) == whole).all()
    far = ((x[:, None] - x[None]) ** 2).sum(-1)
    assert (np.sort(far, 1)[:, 1:5] == np.take_along_axis(far, whole, 1)).all()
