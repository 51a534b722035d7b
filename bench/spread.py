"""Many timings as a few honest numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
class Shared:
    """What the variances of many figures tell about one of which few visits are known: as if
    `freedom` more visits had shown `variance`."""

    variance: float
    freedom: float


def shared(visits: Sequence[Sequence[float]]) -> Shared:
    """From the visits of every figure of a run: each one's own variance (of logarithms) is a draw
    of a scaled F law, whose two parameters are those of the greatest likelihood (the prior of
    Smyth, Linear models and empirical Bayes methods, 2004)."""
    found = [(_variance(v), len(v) - 1) for v in visits if len(v) > 1]
    if not found:
        return Shared(LEAST**2, 0.0)
    own, degrees = (np.array(x, float) for x in zip(*found, strict=True))
    centre = math.log(float(np.median(own)))
    scales = np.exp(np.linspace(centre - 4, centre + 4, 81))
    free = np.exp2(np.arange(-1, 6.5, 0.5))
    best = max((_likelihood(own, degrees, s, f), s, f) for s in scales for f in free)
    return Shared(float(best[1]), float(best[2]))


def _likelihood(own: Any, degrees: Any, scale: float, free: float) -> float:
    """Logarithm of the density of own / scale ~ F(degrees, free), over all figures."""
    both, ratio = degrees + free, degrees * own / (free * scale)
    gamma = np.vectorize(math.lgamma, otypes=[float])
    each = (gamma(both / 2) - gamma(degrees / 2) - math.lgamma(free / 2)
            + degrees / 2 * np.log(ratio) - both / 2 * np.log1p(ratio))
    return float(each.sum())


def interval(visits: Sequence[float], prior: Shared) -> tuple[float, float, float]:
    """The figure of a run, and where one more visit to the same machine falls INSIDE of the times.

    The geometric mean of the visits, and Student's interval for another observation, with the
    figure's own variance and the shared one by their degrees of freedom. Another run's figure is a
    mean of several visits and in it more often than that, were they independent; what the machine
    does for longer than a run lasts takes that back.
    """
    logs, degrees = np.log(np.asarray(visits, float)), len(visits) - 1
    freedom = degrees + prior.freedom
    variance = (degrees * _variance(visits) + prior.freedom * prior.variance) / freedom
    half = student(freedom) * math.sqrt(variance * (1 + 1 / len(visits)))
    centre = float(logs.mean())
    return math.exp(centre), math.exp(centre - half), math.exp(centre + half)


def _variance(visits: Sequence[float]) -> float:
    return max(LEAST**2, float(np.log(np.asarray(visits, float)).var(ddof=1)))


def student(freedom: float, inside: float = INSIDE) -> float:
    """t with so much of Student's law between -t and t: of t = sqrt(freedom) tan(a) the density is
    cos(a)^(freedom - 1)."""
    n = 20_000
    angles = (np.arange(n) + 0.5) / n * math.pi / 2
    mass = np.cumsum(np.cos(angles) ** (freedom - 1))
    at = float(np.interp(inside * mass[-1], mass, angles + math.pi / 4 / n))
    return math.sqrt(freedom) * math.tan(at)
