"""Infinity's schedules: grid heights and widths by aspect ratio. https://arxiv.org/abs/2412.04431

The sizes are part of the trained model. Smaller pictures take the first so many scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from arcompile.errors import ArcError, did_you_mean

Scales = tuple[tuple[int, int], ...]
COUNT = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}  # pixels -> scales
MOST = 256  # cells on a side

# height / width -> (height, width) of each scale, in cells of 16 pixels; wide ones are transposed
_TALL: Mapping[float, Scales] = {
    1.0: ((1, 1), (2, 2), (4, 4), (6, 6), (8, 8), (12, 12), (16, 16), (20, 20), (24, 24),
          (32, 32), (40, 40), (48, 48), (64, 64)),
    1.25: ((1, 1), (2, 2), (3, 3), (5, 4), (10, 8), (15, 12), (20, 16), (25, 20), (30, 24),
           (35, 28), (45, 36), (55, 44), (70, 56)),
    1.333: ((1, 1), (2, 2), (4, 3), (8, 6), (12, 9), (16, 12), (20, 15), (24, 18), (28, 21),
            (36, 27), (48, 36), (60, 45), (72, 54)),
    1.5: ((1, 1), (2, 2), (3, 2), (6, 4), (9, 6), (15, 10), (21, 14), (27, 18), (33, 22),
          (39, 26), (48, 32), (63, 42), (78, 52)),
    1.75: ((1, 1), (2, 2), (3, 3), (7, 4), (11, 6), (14, 8), (21, 12), (28, 16), (35, 20),
           (42, 24), (56, 32), (70, 40), (84, 48)),
    2.0: ((1, 1), (2, 2), (4, 2), (6, 3), (10, 5), (16, 8), (22, 11), (30, 15), (38, 19),
          (46, 23), (60, 30), (74, 37), (90, 45)),
    2.5: ((1, 1), (2, 2), (5, 2), (10, 4), (15, 6), (20, 8), (25, 10), (30, 12), (40, 16),
          (50, 20), (65, 26), (80, 32), (100, 40)),
    3.0: ((1, 1), (2, 2), (6, 2), (9, 3), (15, 5), (21, 7), (27, 9), (36, 12), (45, 15),
          (54, 18), (72, 24), (90, 30), (111, 37)),
}
PUBLISHED: Mapping[float, Scales] = {
    **_TALL,
    **{int(1000 / r) / 1000: tuple((w, h) for h, w in s) for r, s in _TALL.items() if r != 1.0},
}


def schedule(options: Mapping[str, Any]) -> Scales:
    """As option `scales` lists them, else the published ones of `h_div_w` and `pn`."""
    if "scales" in options:
        return _given(options["scales"])
    ratio, pn = options.get("h_div_w", 1.0), str(options.get("pn", "1M"))
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 100:
        raise ArcError(f"option h_div_w must be a height by width, got {ratio!r}",
                       hint="for example 1.0, 1.333 or 0.75")
    if pn not in COUNT:
        raise ArcError(f"option pn must be one of {', '.join(COUNT)}, got {pn!r}",
                       hint=did_you_mean(pn, COUNT))
    low, high = min(PUBLISHED), max(PUBLISHED)
    if not low <= ratio <= high:
        raise ArcError(f"there is no schedule for h_div_w={ratio}",
                       hint=f"published ones go from {low} to {high}; option scales takes any")
    return PUBLISHED[nearest(ratio)][: COUNT[pn]]


def nearest(ratio: float) -> float:
    return min(PUBLISHED, key=lambda r: abs(r - ratio))


def _given(value: Any) -> Scales:
    """Rows [t,h,w] or [h,w]; t is 1, these are pictures."""
    try:
        rows = [tuple(int(n) for n in row) for row in value]
    except (TypeError, ValueError):
        rows = []
    fine = all(len(r) in (2, 3) and (len(r) == 2 or r[0] == 1) for r in rows)
    if not rows or not fine or not all(0 < n <= MOST for r in rows for n in r):
        raise ArcError(f"option scales must list [height, width] of each scale, got {value!r}",
                       hint="for example [[1,1],[2,2],[4,4]]")
    found = tuple((r[-2], r[-1]) for r in rows)
    shrinks = any(a > c or b > d for (a, b), (c, d) in pairwise(found))
    if found[0] != (1, 1) or shrinks:
        raise ArcError(f"option scales must grow from [1, 1], got {value!r}",
                       hint="list [height, width] from coarse to fine")
    return found


def full_grid(scales: Scales) -> tuple[int, int]:
    """The 1M grid that positions are normalised by: of the schedule this begins, or the nearest."""
    for rows in PUBLISHED.values():
        if rows[: len(scales)] == scales and len(scales) > 3:
            return rows[-1]
    return PUBLISHED[nearest(scales[-1][0] / scales[-1][1])][-1]


def rope(scales: Scales, head: int, base: float = 10000.0) -> dict[str, np.ndarray]:
    """{"cos", "sin"} f32 [cells of all scales, head/2]: rows, then columns, of the full grid."""
    half, full = head // 2, full_grid(scales)
    freq = 1.0 / base ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    angles = []
    for h, w in scales:
        row, col = (np.round(np.arange(n, dtype=np.float32) * np.float32(m / n))
                    for n, m in zip((h, w), full, strict=True))
        parts = ((row[:, None] * freq).repeat(w, 0), np.tile(col[:, None] * freq, (h, 1)))
        angles.append(np.concatenate(parts, -1))
    angle = np.concatenate(angles).astype(np.float32)
    return {"cos": np.cos(angle), "sin": np.sin(angle)}
