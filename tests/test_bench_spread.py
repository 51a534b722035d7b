"""The span beside a figure: where the next run of the machine says it is, 9 times of 10."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile.bench import spread

RUN, DWELL = 1400, 180  # seconds of a run; for how long memory is quick, or slow, on average
FIGURES = 60


@pytest.mark.parametrize(("freedom", "t"), [(1, 6.3138), (2, 2.9200), (3, 2.3534), (30, 1.6973)])
def test_student(freedom, t):
    """Of the tables: 95 % below."""
    assert spread.student(freedom) == pytest.approx(t, abs=1e-4)


def test_what_many_variances_share():
    draw = np.random.default_rng(0)
    sigma = 0.02 * np.sqrt(8 / draw.chisquare(8, 2000))
    found = spread.shared([np.exp(draw.normal(0, s, 4)) for s in sigma])
    assert found.variance == pytest.approx(0.02**2, rel=0.1)
    assert found.freedom == 8
    alike = spread.shared([np.exp(draw.normal(0, 0.01, 4)) for _ in range(2000)])
    assert alike.freedom >= 32  # as good as one variance for all
    assert spread.shared([[1.0], [2.0]]).freedom == 0


def test_interval_of_equal_laws():
    """Another visit is inside 9 times of 10, and lucky neighbours are no claim to precision."""
    draw = np.random.default_rng(1)
    seen = np.exp(draw.normal(0, 0.02, (4000, 4)))
    prior, inside = spread.shared(seen[:400]), 0
    for visits, later in zip(seen, np.exp(draw.normal(0, 0.02, 4000)), strict=True):
        _, low, high = spread.interval(visits, prior)
        inside += low <= later <= high
    assert inside / 4000 == pytest.approx(0.9, abs=0.02)
    mean, low, high = spread.interval([1.0, 1.0, 1.0, 1.0], prior)
    assert (mean, high * low) == (pytest.approx(1), pytest.approx(1))
    assert 1.02 < high < 1.05


# --- a host of two speeds ------------------------------------------------------------------------


def host(draw):
    """Share of quick memory in each second of two runs, one after the other."""
    quick, spans = draw.random() < 0.5, []
    while sum(map(len, spans)) < 2 * RUN:
        spans.append(np.full(int(draw.exponential(DWELL)) + 1, float(quick)))
        quick = not quick
    return np.concatenate(spans)[: 2 * RUN]


def turns(draw, speed, at, gains, n):
    """Seconds of n turns from `at` on, five seconds each: [figures, n]. gains: how much less each
    takes when memory is quick."""
    now = speed[(at + 5 * np.arange(n)).astype(int) % len(speed)]
    return np.exp(-gains[:, None] * now + draw.normal(0, 0.01, (len(gains), n)))


def old(draw, speed, begin, gains):
    """Two turns of one visit, from p10 to p90."""
    x = turns(draw, speed, begin + 300, gains, 2)
    return np.median(x, 1), *np.percentile(x, (10, 90), axis=1)


def new(draw, speed, begin, gains):
    """Four visits over the run, in each one turn."""
    x = np.hstack([turns(draw, speed, begin + RUN * (v + 0.5) / 4, gains, 1) for v in range(4)])
    prior = spread.shared(x)
    return np.array([spread.interval(v, prior) for v in x]).T


def covered(rule, pairs=40):
    """Of the figures of two runs, how many lie in the span of the other; and half a span."""
    inside, widths, draw = [], [], np.random.default_rng(2)
    for _ in range(pairs):
        gains = draw.uniform(0, 0.4, FIGURES) * (np.arange(FIGURES) % 3 > 0)
        speed = host(draw)
        one, two = (rule(draw, speed, k * RUN, gains) for k in range(2))
        for (mean, _, _), (_, low, high) in ((one, two), (two, one)):
            inside.append(((low <= mean) & (mean <= high)).mean())
            widths.append(np.median(high - low) / 2)
    return np.mean(inside), np.median(widths)


def test_two_runs_on_a_host_of_two_speeds():
    was, _ = covered(old)
    inside, width = covered(new)
    assert was < 0.4  # what made two runs disagree
    assert inside > 0.88
    assert width < 0.15  # of figures of which two in three change by up to 0.4
