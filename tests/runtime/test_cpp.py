"""libarcompile against the Python runtime: the same tokens, pixels, refusals; bit for bit.

The library is built once, under build/cpp. Engines here are hand-written programs that need no
torch; every family's own engines are compared where `slow` tests run.
"""

from __future__ import annotations

import ctypes as c
import threading

import native
import numpy as np
import pytest

from arcompile.errors import ArcError

pytestmark = pytest.mark.ort
CANCELLED = 3
SAMPLING = {"seed": [3, 2**63 + 9], "guidance": [3.0, 1.0], "temperature": [1.0, 0.5],
            "top_k": [0, 2], "top_p": [0.9, 1.0]}
WINDOWS = ("scd{window=3}", "sjd{window=3}", "jacobi{window=3}", "gsd{window=3}")


# --- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("passes", ["", *WINDOWS])
def test_a_raster_and_its_windows(pair, passes):
    both = pair(passes)
    for seed in range(20):
        both.same([seed % 3], seed=seed)
    both.same([0, 1], **SAMPLING)
    both.same([2, 0], n=2, seed=[1, 2, 3, 2**64 - 1], guidance=[1, 2, 4, 1.5], temperature=0.0)
    both.same([2, 0], seed=4, guidance=3.0, interval=1)


def test_everything_else_a_program_may_say(pair):
    both = pair("mixed")
    rng_ = np.random.default_rng(0)
    for seed in range(20):
        b = seed % 3 + 1
        cond = {"cond": np.arange(b) % 5,
                "extra": rng_.normal(size=(b, 1 + seed % 4)).astype(np.float32)}
        both.same(cond, seed=list(range(seed, seed + b)), guidance=rng_.uniform(0, 5, b).tolist(),
                  temperature=rng_.uniform(0, 2, b).tolist(), n=1 + seed % 2,
                  interval=(None, 0, 2)[seed % 3])


def test_given_noise_replaces_draws(pair):
    both, r = pair("mixed"), np.random.default_rng(1)
    cond = {"cond": np.array([1, 4]), "extra": np.ones((2, 2), np.float32)}
    given = {"noise": r.uniform(size=(2, 6, 2)).astype(np.float32),
             "first": r.normal(size=(2, 6, 3)).astype(np.float32),
             "bump": r.normal(size=(2, 6, 1)).astype(np.float32),
             "kick": r.normal(size=(2, 6, 3, 2)).astype(np.float32),  # of each turn of its loop
             "where": np.stack([r.permutation(6) for _ in range(2)])}
    drawn = both.same(cond)
    assert (both.same(cond, given=given).tokens != drawn.tokens).any()
    window = pair(WINDOWS[0])
    noise = {"noise": r.uniform(size=(2, 8, 2)).astype(np.float32)}
    pair("").same([0, 1], given=noise)
    for d in window.py.program.draws:
        if d.when == "place":
            window.same([0, 1], given={d.name: r.uniform(size=(2, 8, d.width)).astype(np.float32)})


def test_logits(pair):
    both = pair("")
    tokens = np.random.default_rng(2).integers(0, 3, (2, 8))
    for x, y in zip(both.cpp.logits([0, 2], tokens), both.py.logits([0, 2], tokens), strict=True):
        assert (x == y).all()


def test_noise_of_many_seeds_has_the_same_bits(pair):
    """Noise is f64 until its last rounding, which hides an ulp between libm and numpy."""
    cond = {"cond": np.zeros(256, int), "extra": np.ones((256, 1), np.float32)}
    pair("mixed").same(cond, seed=list(range(256)))


def test_a_preview_is_pythons_and_changes_nothing(pair):
    both, seen, said = pair("mixed"), [], []
    cond = {"cond": np.array([1, 4]), "extra": np.ones((2, 2), np.float32)}

    def look(p):
        out = native.Tensor()
        both.cpp.lib.must("arc_progress_preview", p, c.byref(out))
        seen.append((native.taken(both.cpp.lib.c.arc_progress_tokens(p)), native.taken(out)))

    from arcompile.runtime.image import to_uint8

    plain = both.same(cond)
    looked = both.cpp.generate(cond, on_step=look)
    both.py.generate(cond, on_step=lambda p: said.append((p.tokens.copy(), to_uint8(p.pixels()))))
    assert (looked.pixels == plain.pixels).all()
    assert len(seen) == len(said) == 4
    for mine, theirs in zip(seen, said, strict=True):
        for x, y in zip(mine, theirs, strict=True):
            assert (x == y).all()


@pytest.mark.parametrize("passes", ["", WINDOWS[0]])
def test_a_run_that_has_enough(pair, passes):
    both = pair(passes)
    a = both.cpp.generate([0, 1], seed=3, on_step=lambda p: int(
        both.cpp.lib.c.arc_progress_step(p) >= 3))
    b = both.py.generate([0, 1], seed=3, on_step=lambda p: p.step < 3)
    assert (a.tokens == b.tokens).all()
    assert (a.tokens == -1).any()


# --- stopping, threads ---------------------------------------------------------------------------


def test_cancelling(pair):
    e = pair("").cpp
    with pytest.raises(ArcError) as from_callback:
        e.generate([0], on_step=lambda p: 2)
    stop = c.c_void_p(e.lib.c.arc_stop_new())
    steps = []

    def ask(p):
        steps.append(e.lib.c.arc_progress_step(p))
        if len(steps) == 2:
            e.lib.c.arc_stop_now(stop)

    with pytest.raises(ArcError) as from_stop:
        e.generate([0], on_step=ask, stop=stop)
    with pytest.raises(ArcError):  # and what begins later
        e.generate([0], stop=stop)
    e.lib.c.arc_stop_free(stop)
    assert steps == [1, 2]
    for said in (from_callback.value, from_stop.value):
        assert (said.what, said.code) == ("the run was cancelled", CANCELLED)


def test_one_engine_in_many_threads(pair, lib):
    both = pair("")
    want = [both.py.generate([i % 3], seed=i, guidance=2.0).tokens for i in range(12)]
    other = lib.open(both.folder, 1)
    found = {}

    def draw(i):
        found[i] = (other if i % 2 else both.cpp).generate([i % 3], seed=i, guidance=2.0).tokens

    crew = [threading.Thread(target=draw, args=(i,)) for i in range(12)]
    for t in crew:
        t.start()
    for t in crew:
        t.join()
    assert all((found[i] == want[i]).all() for i in range(12))
