"""Methods that change the law: at their neutral setting they do not, and the more they are given
the more they accept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from toy import Toy, chi_square, same_in_any_batch

from arcompile import speculation
from arcompile.ir import OPS, Builder, evaluate
from arcompile.passes.cool_sd import CoolSD
from arcompile.passes.gsd import GSD
from arcompile.passes.lantern import Lantern
from arcompile.passes.scd import SCD
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
           Lantern(window=4, near=2, times=1.0), SCD(window=4, coupling="independent")]
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


@pytest.mark.parametrize("way", [row[1] for row in ROWS], ids=str)
def test_a_batch_draws_what_each_image_draws_alone(toy, way):
    p = run(toy.program, [way])
    toy.weights = Store(of_arrays({**toy.plain, "@codes": toy.codes}), p.fold)
    same_in_any_batch(toy, p)


@pytest.mark.parametrize("delta", [1.0, 1.2, 2.0])
def test_cool_sd_moves_a_token_by_no_more_than_it_says(delta):
    """The whole law of what comes of a draft, of 200 pairs of laws; a row for each draft."""
    way, v, many = CoolSD(window=4, delta=delta, nu=0.0), 24, 200
    b = Builder("one")
    laws, at = [b.param(k, f"f32[b,c,{v}]") for k in "pq"], [b.param(k, "f32[b,c]") for k in "xy"]
    t = speculation.Tested(b, *laws, b.param("draft", "i64[b,c]"), *at, b.param("done", "i64[b]"))
    g = b.graph(weight=way._weight(t), rest=way._rest(t))
    p, q = np.random.default_rng(0).dirichlet(np.ones(v), (2, many)).astype(np.float32)
    row = {k: np.broadcast_to(x, (v, many, v)) for k, x in (("p", p), ("q", q))}
    made = evaluate(g, {**row, "x": p.T, "y": q.T, "done": np.zeros(v, int),
                        "draft": np.broadcast_to(np.arange(v)[:, None], (v, many))})
    kept, rest = q * np.minimum(1, made["weight"].T), made["rest"][0]
    law = kept + (1 - kept.sum(1, keepdims=True)) * rest / rest.sum(1, keepdims=True)
    off, beyond = np.abs(law - p).sum(1) / 2, (kept - np.minimum(p, q)).sum(1)
    assert (off <= beyond + 1e-5).all()
    assert (off.mean() > 0.02) == (delta > 1)


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
