"""What the bench adds: whether the measure sees it. No timing is asserted."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile.bench import overhead

RNG = np.random.default_rng(3)


def host(pairs, extra):
    """Times of a machine of two speeds that stays at one for a while, with rare long stalls."""
    speed = np.repeat(RNG.choice([1.0, 1.8], pairs // 50 + 1), 50)[:pairs]
    noise = RNG.normal(1, 0.05, (2, pairs)) + (RNG.random((2, pairs)) < 0.02) * 3
    return speed * noise[0] * (1 + extra), speed * noise[1]


@pytest.mark.parametrize("extra", [0.0, 0.05, -0.03, 0.3])
def test_the_interval_holds_what_was_added(extra):
    told = overhead.paired(*host(2000, extra))
    assert told["pairs"] == 2000
    assert told["low"] < 1 + extra < told["high"]
    assert told["high"] - told["low"] < 0.02  # sharp enough to tell 2 % from 5
    assert told["within_limit"] == (extra <= 0)


def test_medians_of_either_side_alone_would_not_see_it():
    """Why pairs: the machine's two speeds hide 5 % in the spread of either side."""
    slow, fast = host(2000, 0.05)
    assert np.percentile(slow, 10) < np.percentile(fast, 90)


def test_few_noisy_pairs_are_not_within_the_limit():
    assert not overhead.paired([1.0, 1.1, 0.9], [1.0, 1.0, 1.0])["within_limit"]


def test_sides_take_turns_in_an_order_drawn_anew(monkeypatch):
    went, now = [], iter(range(1000))
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(now))

    def side(name, seconds):
        return lambda: went.append(name) or seconds

    told = overhead.by_turns(side("m", 2.0), side("b", 1.0), 100)
    assert told["ratio"] == 2.0
    assert told["pairs"] == len(went) / 2 > 40
    pairs = ["".join(went[i : i + 2]) for i in range(0, len(went), 2)]
    assert set(pairs) == {"mb", "bm"}


def test_what_follows_is_the_measure_of_a_turn_behind_others():
    told = overhead.against_next([[1.1, 0.5, 2.0], [2.2, 2.0, 2.0], [0.55, 0.5, 0.5]])
    assert (told["ratio"], told["pairs"]) == (1.1, 3)


def test_a_slowed_engine_is_slower_and_draws_the_same():
    class Models:
        def runner(self):
            return self

        def run(self, graph, env):
            return {graph: env}

    slow, now = overhead.Slowed(Models(), 0.01).runner(), overhead.time.perf_counter
    start = now()
    assert slow.run("g", 1) == {"g": 1}
    assert now() - start >= 0.01


@pytest.mark.parametrize(("slower", "within"), [(1.0, True), (1.1, False)])
def test_a_picture_behind_others_beside_one_behind_a_pause(monkeypatch, slower, within):
    """Others that make the next picture's steps longer are seen; the first sixteen do not count."""
    clock, warm, behind = [0.0], [1.0], [False]
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: clock[0])

    def passes(seconds):
        clock[0] += seconds
        warm[0], behind[0] = 1.0, False

    monkeypatch.setattr(overhead.time, "sleep", passes)
    monkeypatch.setattr(overhead.runner, "short", lambda engine: engine)
    c = object.__new__(overhead.Compared)
    c.engine = None

    def others():
        passes(0.5)
        warm[0], behind[0] = slower, True

    c.others = others
    c._image = lambda engine, sampled: [9.0 if behind[0] else 0.1] * 16 + [
        warm[0] * x for x in np.linspace(1, 2, 33)]
    found = c.rested(20.0)
    assert found["pause_s"] == 0.5
    assert found["ratio"] == pytest.approx(slower)
    assert found["within_limit"] is within
