"""The span beside a figure: where the next run of the machine says it is, 9 times of 10."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from arcompile.bench import runs, spread

RUN, DWELL = 1400, 180  # seconds of a run; for how long memory is quick, or slow, on average
FIGURES = 60


@pytest.mark.parametrize(("freedom", "t"), [(1, 6.3138), (2, 2.9200), (3, 2.3534), (30, 1.6973)])
def test_student(freedom, t):
    """Of the tables: 95 % below."""
    assert spread.student(freedom) == pytest.approx(t, abs=1e-4)


def test_what_many_variances_share():
    draw = np.random.default_rng(0)
    sigma = 0.02 * np.sqrt(8 / draw.chisquare(8, 2000))
    found = spread.shared([spread.own([np.exp(draw.normal(0, s, 4))]) for s in sigma])
    assert found.variance == pytest.approx(0.02**2, rel=0.1)
    assert found.freedom == 8
    alike = spread.shared([spread.own([np.exp(draw.normal(0, 0.01, 4))]) for _ in range(2000)])
    assert alike.freedom >= 32  # as good as one variance for all
    assert spread.shared([spread.own([[1.0]]), spread.own([[2.0], []])]).freedom == 0


def test_own_variance_is_within_runs():
    """Runs whose means are far apart say nothing of visits."""
    found = spread.own([np.exp([0.0, 0.2]), np.exp([5.0, 5.2, 5.4]), [7.0]])
    assert (found.variance, found.freedom) == (pytest.approx((0.02 + 2 * 0.04) / 3), 3)


def test_drift_is_what_visits_do_not_explain():
    draw, known = np.random.default_rng(3), spread.Known(0.02**2, 9)

    def pairs(wander):
        return [(*(np.exp(draw.normal(0, wander * 0.02) + draw.normal(0, 0.02, 4))
                   for _ in range(2)), known) for _ in range(4000)]

    assert spread.drift(pairs(1.5)) == pytest.approx(1.5**2, rel=0.1)
    assert spread.drift(pairs(0)) < 0.02
    assert spread.drift([([1.0, 1.1], [1.05, 1.05], known)] * 3) == 0
    assert spread.drift([]) == 0


def test_interval_of_equal_laws():
    """Another visit is inside 9 times of 10, and lucky neighbours are no claim to precision."""
    draw = np.random.default_rng(1)
    seen = np.exp(draw.normal(0, 0.02, (4000, 4)))
    prior, inside = spread.shared([spread.own([x]) for x in seen[:400]]), 0
    for visits, later in zip(seen, np.exp(draw.normal(0, 0.02, 4000)), strict=True):
        _, low, high = spread.interval(visits, spread.joined(spread.own([visits]), prior))
        inside += low <= later <= high
    assert inside / 4000 == pytest.approx(0.9, abs=0.02)
    same = [1.0, 1.0, 1.0, 1.0]
    mean, low, high = spread.interval(same, spread.joined(spread.own([same]), prior))
    assert (mean, high * low) == (pytest.approx(1), pytest.approx(1))
    assert 1.02 < high < 1.05
    _, _, wider = spread.interval(same, spread.joined(spread.own([same]), prior), 2.0)
    assert np.log(wider) == pytest.approx(np.log(high) * np.sqrt(5.25 / 1.25))


# --- a host of two speeds ------------------------------------------------------------------------


def host(draw, dwell=DWELL, times=2):
    """Share of quick memory in each second of so many runs, one after the other."""
    quick, spans = draw.random() < 0.5, []
    while sum(map(len, spans)) < times * RUN:
        spans.append(np.full(int(draw.exponential(dwell)) + 1, float(quick)))
        quick = not quick
    return np.concatenate(spans)[: times * RUN]


def turns(draw, speed, at, gains, n):
    """Seconds of n turns from `at` on, five seconds each: [figures, n]. gains: how much less each
    takes when memory is quick."""
    now = speed[(at + 5 * np.arange(n)).astype(int) % len(speed)]
    return np.exp(-gains[:, None] * now + draw.normal(0, 0.01, (len(gains), n)))


def old(draw, speed, begin, gains):
    """Two turns of one visit, from p10 to p90."""
    x = turns(draw, speed, begin + 300, gains, 2)
    return np.median(x, 1), *np.percentile(x, (10, 90), axis=1)


def visits(draw, speed, begin, gains):
    """Four over the run, in each one turn: [figures, 4]."""
    return np.hstack([turns(draw, speed, begin + RUN * (v + 0.5) / 4, gains, 1) for v in range(4)])


def new(draw, speed, begin, gains):
    x = visits(draw, speed, begin, gains)
    own = [spread.own([v]) for v in x]
    prior = spread.shared(own)
    return np.array([spread.interval(v, spread.joined(o, prior))
                     for v, o in zip(x, own, strict=True)]).T


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


# --- what lasts longer than a run ----------------------------------------------------------------

LONG, LATER = 40 * 60, 4  # seconds; runs of a host


def whole(x, n, code="c"):
    """Run n of a file, of visits [figures, 4]."""
    sides = [{f"f{i}": {"step": {"median": m}} for i, m in enumerate(v)} for v in x.T]
    rows = [{"suite": "peers-s", "kind": "peers", "sides": s} for s in sides]
    told = {"run": f"2026-01-01T{n:02}:00:00", "time": f"2026-01-01T{n:02}:24:00", "host": "h",
            "quick": False, "code": code}
    return runs.Run(told, {"peers-s": rows[0]}, {"peers-s": rows[1:]})


def foretold(alone, hosts=40):
    """Of the figures of each run but a host's first two, how many lie in the span of the run
    before, which knows the runs before it or itself alone."""
    inside, draw = [], np.random.default_rng(4)
    for _ in range(hosts):
        gains = draw.uniform(0, 0.4, FIGURES) * (np.arange(FIGURES) % 3 > 0)
        speed = host(draw, LONG, LATER)
        found = [whole(visits(draw, speed, k * RUN, gains), k) for k in range(LATER)]
        for one, two in pairwise(found[1:]):
            spans = runs.figures(one, [] if alone else runs.before(one, found))
            means = runs.figures(two)
            inside += [f.has(means[key]) for key, f in spans.items() if key[1].endswith(", ms")]
    return np.mean(inside)




def test_phases_longer_than_a_run():
    assert foretold(alone=True) < 0.86
    assert foretold(alone=False) > 0.88


def test_a_run_learns_of_earlier_runs_of_its_machine_only():
    draw = np.random.default_rng(5)
    calm, wild = (np.exp(draw.normal(0, s, (FIGURES, 4))) for s in (0.01, 0.1))
    found = [whole(wild, 1), whole(calm, 2), whole(wild, 3)]
    assert runs.before(found[1], found) == found[:1]
    found[0].told["host"] = "other"
    assert runs.before(found[2], found) == found[1:2]
    key = ("peers-s", "f1, ms")
    alone, taught = (runs.figures(found[1], x)[key] for x in ([], found[:1]))
    assert (alone.mean, alone.visits) == (taught.mean, taught.visits)
    assert taught.width > 2 * alone.width


def test_a_change_of_code_is_no_drift():
    draw = np.random.default_rng(6)
    x = np.exp(draw.normal(0, 0.01, (3, FIGURES, 4)))
    x[1:] *= 0.7  # as by a quicker kernel
    key = ("peers-s", "f1, ms")
    one, two, same = whole(x[0], 1, "a"), whole(x[1], 2, "b"), whole(x[1], 2, "a")
    assert runs.figures(two, [one])[key].width < 0.03
    assert runs.figures(same, [one])[key].width > 0.3
    for told in (one.told, two.told):
        del told["code"]  # rows of before: by the clock
    assert runs.figures(two, [one])[key].width < 0.03
    one.told["time"] = "2026-01-01T01:55:00"
    assert runs.figures(two, [one])[key].width > 0.3
