"""Many timings as a few honest numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SAME = "no difference seen"


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
