"""Many timings as a few honest numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

SAME = "no difference seen"
INSIDE = 0.9  # how often another run's figure is in the interval that one run prints
LEAST = 1e-4  # of a figure: what its four digits tell


def summary(seconds: Sequence[float], unit: float = 1e3) -> dict[str, Any]:
    """n, median, min, p10, p90; in milliseconds unless told otherwise."""
    x = np.asarray(seconds, float) * unit
    if not len(x):
        return {"n": 0, "median": None, "min": None, "p10": None, "p90": None}
    p10, median, p90 = np.percentile(x, (10, 50, 90))
    return {"n": len(x), "median": figure(median), "min": figure(x.min()), "p10": figure(p10),
            "p90": figure(p90)}


def compare(slower: Sequence[float], faster: Sequence[float]) -> dict[str, Any]:
    """slower / faster, pair by pair; each pair was measured side by side.

    `verdict` says which is quicker, or that the spread towards 1 is wider than the difference.
    """
    ratios = np.asarray(slower, float) / np.asarray(faster, float)
    found = summary(list(ratios), 1.0)
    if len(ratios) < 2:
        return {**found, "verdict": "measured once"}
    low, high = found["p10"], found["p90"]
    verdict = SAME if low <= 1 <= high else "faster" if low > 1 else "slower"
    return {**found, "verdict": verdict}


def figure(x: float, digits: int = 4) -> float:
    """Four digits: more would be noise."""
    return float(f"{x:.{digits}g}")


# --- what another run will say -------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A variance of logarithms, known as well as from `freedom` + 1 visits."""

    variance: float
    freedom: float


def own(runs: Sequence[Sequence[float]]) -> Known:
    """Of one figure: within each of its runs, visits around the mean of that run."""
    free = [len(v) - 1 for v in runs if len(v) > 1]
    squares = sum((len(v) - 1) * _variance(v) for v in runs if len(v) > 1)
    return Known(squares / sum(free), float(sum(free))) if free else Known(LEAST**2, 0.0)


def shared(figures: Sequence[Known]) -> Known:
    """What the variances of many figures tell about one of which few visits are known.

    Each figure's own is a draw of a scaled F law, whose two parameters are those of the greatest
    likelihood (the prior of Smyth, Linear models and empirical Bayes methods, 2004).
    """
    found = [f for f in figures if f.freedom]
    if not found:
        return Known(LEAST**2, 0.0)
    seen, degrees = (np.array(x) for x in zip(*((f.variance, f.freedom) for f in found),
                                              strict=True))
    scales = np.exp(np.linspace(-4, 4, 81) + math.log(float(np.median(seen))))
    best = max((likely, float(scales[i]), float(free)) for free in np.exp2(np.arange(-1, 6.5, 0.5))
               for i, likely in enumerate(_likelihood(seen, degrees, scales, free)))
    return Known(best[1], best[2])


def _likelihood(seen: Any, degrees: Any, scales: Any, free: float) -> list[float]:
    """For each scale, the logarithm of the density of seen / scale ~ F(degrees, free)."""
    alike, which = np.unique(degrees, return_inverse=True)
    gamma = np.array([math.lgamma((d + free) / 2) - math.lgamma(d / 2) for d in alike])[which]
    ratio = degrees * seen / (free * scales[:, None])
    each = (gamma - math.lgamma(free / 2) + degrees / 2 * np.log(ratio)
            - (degrees + free) / 2 * np.log1p(ratio))
    return [float(x) for x in each.sum(1)]


def joined(one: Known, prior: Known) -> Known:
    """A figure's own variance and the shared one by their degrees of freedom."""
    freedom = one.freedom + prior.freedom
    return Known((one.freedom * one.variance + prior.freedom * prior.variance) / freedom, freedom)


def drift(pairs: Iterable[tuple[Sequence[float], Sequence[float], Known]]) -> float:
    """The variance of the runs' drift, in variances of a visit: by moments, of the visits of a
    figure in one run and in the next; 0 where means differ by no more than visits explain."""
    beyond = noise = 0.0
    for one, two, known in pairs:
        apart = float(np.log(one).mean() - np.log(two).mean())
        beyond += apart**2 - known.variance * (1 / len(one) + 1 / len(two))
        noise += 2 * known.variance
    return max(0.0, beyond / noise) if noise else 0.0


def interval(visits: Sequence[float], known: Known,
             drift: float = 0.0) -> tuple[float, float, float]:
    """The figure of a run, and where a visit in another run falls INSIDE of the times.

    The model, in logarithms: visit = figure + drift of its run + noise of the visit. What moves a
    figure from visit to visit moves it from run to run too, so its drift's variance is `drift`
    times that of its noise, one factor for all figures. The mean of n visits and one of another
    run are then apart by 1 + 1/n + 2 drift variances of a visit, of Student's law.

    One run alone knows no drift (0). Another run's figure is a mean of several visits and nearer
    than one of them by their noise: that is what is left for a drift not seen yet.
    """
    logs = np.log(np.asarray(visits, float))
    half = student(known.freedom) * math.sqrt(known.variance * (1 + 1 / len(logs) + 2 * drift))
    centre = float(logs.mean())
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def _variance(visits: Sequence[float]) -> float:
    return max(LEAST**2, float(np.log(np.asarray(visits, float)).var(ddof=1)))


@cache
def student(freedom: float, inside: float = INSIDE) -> float:
    """t with so much of Student's law between -t and t: of t = sqrt(freedom) tan(a) the density is
    cos(a)^(freedom - 1)."""
    n = 20_000
    angles = (np.arange(n) + 0.5) / n * math.pi / 2
    mass = np.cumsum(np.cos(angles) ** (freedom - 1))
    at = float(np.interp(inside * mass[-1], mass, angles + math.pi / 4 / n))
    return math.sqrt(freedom) * math.tan(at)
