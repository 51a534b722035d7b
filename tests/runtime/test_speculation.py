"""Speculative decoding draws from the law of plain decoding: shown by counting, against all images
a toy model can make; and what is known to be biased is seen to be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy import Toy, chi_square, same_in_any_batch, two_sample, with_graph

from arcompile.ir import Builder, merge
from arcompile.passes.cool_sd import CoolSD
from arcompile.passes.gsd import GSD
from arcompile.passes.jacobi import Jacobi
from arcompile.passes.lantern import Lantern
from arcompile.passes.scd import SCD
from arcompile.passes.sjd import SJD
from arcompile.pipeline import run
from arcompile.speculation import Method, ratio, residual, speculate

IMAGES, SURE = 8000, 1e-4  # a true law is refused once in 10,000 times; the seeds are fixed
PLAIN = {}
WAYS = [SJD(window=2), SJD(window=4, guess="copy"), SCD(window=2), SCD(window=3, guess="copy"),
        SCD(window=4), SCD(window=3, coupling="gumbel"), SCD(window=4, coupling="gumbel")]
ASKED = [{"temperature": 0.7, "guidance": 2.0}, {"top_k": 2}, {"top_p": 0.8, "guidance": 1.5},
         {"temperature": 1.6, "top_k": 2, "top_p": 0.9}]


@pytest.fixture(scope="module")
def toy():
    return Toy()


def seen(toy, program, how, seed=7, images=IMAGES):
    return toy.counts(toy.sample(program, images, **{"seed": seed, **how}).tokens)


def check(toy, program, how):
    _, law = toy.law(**how)
    counts = seen(toy, program, how)
    assert chi_square(counts, law) > SURE
    if (key := repr(how)) not in PLAIN:
        PLAIN[key] = seen(toy, toy.program, how, seed=8)
    assert two_sample(counts, PLAIN[key]) > SURE


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_law_is_the_same(toy, way):
    check(toy, run(toy.program, [way]), {"guidance": 1.5})


@pytest.mark.parametrize("way", [WAYS[1], WAYS[4], WAYS[6]], ids=str)
@pytest.mark.parametrize("how", ASKED, ids=str)
def test_the_law_is_the_same_however_one_asks(toy, way, how):
    check(toy, run(toy.program, [way]), how)


@pytest.mark.parametrize("guess", ["repeat", "copy"])
@pytest.mark.parametrize("how", [{"guidance": 1.5}, *ASKED], ids=str)
def test_shared_noise_gives_the_tokens_of_plain_decoding(toy, how, guess):
    plain = toy.sample(toy.program, 300, **how)
    for window in (2, 4):
        found = toy.sample(run(toy.program, [Jacobi(window=window, guess=guess)]), 300, **how)
        assert (plain.tokens == found.tokens).all()
        assert (found.rounds > 0).sum(0).mean() < toy.n


def test_plain_decoding_passes_the_same_test(toy):
    _, law = toy.law(guidance=1.5)
    assert chi_square(seen(toy, toy.program, {"guidance": 1.5}), law) > SURE


# --- wrong on purpose ----------------------------------------------------------------------------


def spoilt(program, make):
    """The program whose rounds end in a graph of results that replace the right ones."""
    b = Builder("spoil")
    token, draft = b.param("token", "i64[b,c]"), b.param("draft", "i64[b,c]")
    p, q = (b.param(k, "f32[b,c,3]") for k in "pq")
    wrong = b.graph(**make(b, token, draft, p, q))
    return with_graph(program, "window", lambda g: merge(g, wrong))


def stale(b, token, draft, p, q):
    """A draft that was kept keeps the law it once was drawn from."""
    kept = b.reshape(b.equal(token, draft), shape=("b", "c", 1))
    return {"p": b.where(kept, q, p)}


def relabelled(b, token, draft, p, q):
    """After a rejection, a draft is used again if its new law is not much below the old one."""
    at = b.reshape(draft, shape=("b", "c", 1))
    new, old = (b.reshape(b.take_along(x, at, axis=2), shape=("b", "c")) for x in (p, q))
    good = b.greater(new, b.mul(b.const(dtype="f32", value=0.5), old))
    slot = b.reshape(b.arange(dtype="i64", shape=("c",)), shape=(1, "c"))
    right = b.less(slot, b.reshape(b.param("accepted", "i64[b]"), shape=("b", 1)))
    return {"token": b.where(right, token, b.where(good, draft, token))}


@pytest.mark.parametrize(("way", "wrong"), [
    (SCD(window=2), stale), (SCD(window=4), stale), (SJD(window=4), relabelled)],
    ids=["stale-2", "stale-4", "relabelled"])
def test_bias_is_seen(toy, way, wrong):
    _, law = toy.law(guidance=1.5)
    bad = spoilt(run(toy.program, [way]), wrong)
    assert chi_square(seen(toy, bad, {"guidance": 1.5}), law) < 1e-9


def test_filtering_a_residual_again_is_seen(toy):
    """The top-p of a residual is not the residual of a top-p."""
    def twice(t):
        b = t.b
        most, one = b.param("most", "i64[1]"), b.param("temperature", "f32[b]")
        keep = (b.param("top_k", "i64[b]"), b.param("top_p", "f32[b]"))
        x = b.log(b.add(residual(t), b.const(dtype="f32", value=1e-30)))
        return b.law(b.filter_logits(x, one, *keep, most), one)

    how = {"top_p": 0.8, "temperature": 2.0}
    _, law = toy.law(**how)
    bad = speculate(toy.program, "sjd", 4, Method(ratio, twice))
    assert chi_square(seen(toy, bad, how), law) < 1e-9


def test_noise_that_is_used_twice_is_seen(toy):
    """Noise of a place is not noise of a round: accepting by it twice is biased."""
    _, law = toy.law(guidance=1.5)
    p = run(toy.program, [SJD(window=4)])
    p = replace(p, draws=tuple(replace(d, when="place") for d in p.draws))
    assert chi_square(seen(toy, p, {"guidance": 1.5}, 3, 20000), law) < 1e-9


# --- neutral settings, batches, seeds ------------------------------------------------------------


@pytest.mark.parametrize("way", [SJD(window=1), SCD(window=1), Jacobi(window=1), GSD(window=1),
                                 Lantern(window=1), CoolSD(window=1)], ids=str)
def test_a_window_of_one_is_plain_decoding(toy, way):
    assert run(toy.program, [way]) is toy.program


@pytest.mark.parametrize("way", [WAYS[1], WAYS[4], WAYS[6]], ids=str)
def test_no_temperature_gives_the_tokens_of_plain_decoding(toy, way):
    plain = toy.sample(toy.program, 5, temperature=0.0, guidance=1.5)
    found = toy.sample(run(toy.program, [way]), 5, temperature=0.0, guidance=1.5)
    assert (plain.tokens == found.tokens).all()


@pytest.mark.parametrize("way", [WAYS[1], WAYS[4], WAYS[6], Jacobi(window=4)], ids=str)
def test_a_batch_draws_what_each_image_draws_alone(toy, way):
    same_in_any_batch(toy, run(toy.program, [way]))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_noise_drawn_ahead_is_that_of_each_round(toy, way, monkeypatch):
    """The counts above are of batches too large for it."""
    program = run(toy.program, [way])
    ahead = toy.sample(program, 24, guidance=1.5)
    assert (ahead.rounds > 1).any()  # rounds of other turns than the first
    monkeypatch.setattr("arcompile.runtime.window.AHEAD", 0)
    each = toy.sample(program, 24, guidance=1.5)
    assert (ahead.tokens == each.tokens).all()


@pytest.mark.parametrize("way", [*WAYS, Jacobi(window=3)], ids=str)
def test_every_round_commits(toy, way):
    """At least one position a round and image, at most the window, and all in the end."""
    rounds = toy.sample(run(toy.program, [way]), 50).rounds
    going = (rounds.cumsum(0) - rounds) < toy.n
    assert (rounds[going] >= 1).all()
    assert not rounds[~going].any()
    assert rounds.max() <= way.window
    assert (rounds.sum(0) == toy.n).all()
