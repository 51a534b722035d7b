"""Where drafts held: what the rounds of a run say about each position of the image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.program import Program

Array = np.ndarray[Any, Any]


def side(p: Program) -> int:
    """Positions in a row of the map. Raises ArcError where rounds say nothing of a position."""
    if not any(0 < s.window < len(s.commit) for s in p.steps):
        raise ArcError("this engine has no window of drafts that moves over the image",
                       hint='build it with a pass that drafts: --passes "scd{window=4}"')
    found = math.isqrt(p.positions)
    if found**2 != p.positions:
        raise ArcError(f"{p.positions} positions make no square, so there is no map of them",
                       hint="--json tells forwards and what they committed")
    return found


def spent(rounds: Array) -> tuple[float, float]:
    """(forwards an image took, positions each committed), on average over images."""
    forwards = float((rounds > 0).sum(0).mean())
    return forwards, float(rounds.sum(0).mean()) / forwards


def accepted(rounds: Array) -> Array:
    """The share of images whose draft was kept at each position, f64 [N].

    rounds i64 [rounds,b]: positions that each image committed (`Output.rounds`). The last position
    of a round was drawn anew, all others were drafts that held; a window that held as a whole
    counts as if its last had not, for a round does not tell.
    """
    total = int(rounds.sum(0).max(initial=0))
    ends = rounds.cumsum(0) - 1  # the last position of each round
    kept = np.ones((rounds.shape[1], total))
    for image in range(rounds.shape[1]):
        kept[image, ends[rounds[:, image] > 0, image]] = 0
    return kept.mean(0)


def picture(share: Array, width: int, cell: int = 16) -> Array:
    """uint8 [h,w,3]: the image grid, dark where drafts failed and bright where they held."""
    grid = (share.reshape(-1, width) * 255).astype(np.uint8)
    return grid.repeat(cell, 0).repeat(cell, 1)[..., None].repeat(3, 2)
