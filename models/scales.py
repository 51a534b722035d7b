"""Next-scale schedules: a list of grid sides, coarse to fine, and the steps they make."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import isqrt
from typing import Any

import numpy as np

from arcompile.checkpoint import Weights
from arcompile.errors import ArcError

# https://arxiv.org/abs/2404.02905: 256, 512 and 1024 px
PUBLISHED = (
    (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
)
MOST = 256  # cells on a side


def sides(value: Any, name: str = "patch_nums") -> tuple[int, ...]:
    """Grid sides from an option: a list of integers, or text such as 1,2,3 or 1_2_3."""
    if isinstance(value, str):
        value = value.replace("_", ",").split(",")
    try:
        found = tuple(int(v) for v in value)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(0 < n <= MOST for n in found):
        raise ArcError(f"option {name} must list grid sides from 1 to {MOST}, got {value!r}",
                       hint=f"for example {name}=1,2,3,4,5,6,8,10,13,16")
    if any(a > b for a, b in pairwise(found)):
        raise ArcError(f"option {name} must not shrink, got {','.join(map(str, found))}",
                       hint="list the sides from coarse to fine")
    return found


def starts(patch_nums: Sequence[int]) -> list[int]:
    """The first position of each scale, and the number of positions."""
    return [0, *accumulate(n * n for n in patch_nums)]


def from_tables(t: Weights, given: Any) -> tuple[int, ...]:
    """The schedule of a checkpoint with a position table `pos_1LC` and a level table.

    As given by an option, else as the buffer `lvl_1L` says, else the published one that fits.
    Raises ArcError when the schedule does not cover the tables.
    """
    total, levels = t.shape("pos_1LC")[1], t.shape("lvl_embed.weight")[0]
    if given is not None:
        found = sides(given)
    elif "lvl_1L" in t:
        counts = np.bincount(np.clip(t.load("lvl_1L").ravel(), 0, levels), minlength=levels)
        found = tuple(isqrt(int(n)) for n in counts)
    else:
        fits = [p for p in PUBLISHED if (len(p), starts(p)[-1]) == (levels, total)]
        if not fits:
            raise ArcError(f"no published schedule has {levels} scales and {total} positions",
                           hint="give --option patch_nums=1,2,3,...")
        found = fits[0]
    if (len(found), starts(found)[-1]) != (levels, total):
        raise ArcError(
            f"patch_nums {','.join(map(str, found))} makes {len(found)} scales and "
            f"{starts(found)[-1]} positions, but the checkpoint has {levels} and {total}",
            hint="leave patch_nums out to take the checkpoint's own")
    return found
