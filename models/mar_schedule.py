"""How MAR fills an image: its steps, and how many tokens and denoising steps each takes."""

from __future__ import annotations

import math
from typing import Any

from arcompile.errors import ArcError
from arcompile.family import Options, Source, positive
from arcompile.models.diffusion import ANNEALING, TRAINED
from arcompile.models.parts import told

SCHEDULES = ("linear", "constant")


def unknown(n: int, iterations: int) -> list[int]:
    """How many of n tokens each step leaves: a cosine, and at least one less than before."""
    left, found = n, []
    for i in range(iterations):
        share = math.cos(math.pi / 2 * (i + 1) / iterations)
        left = max(1, min(left - 1, math.floor(n * share)))
        found.append(left)
    return found


def sampling(source: Source, options: Options, positions: int) -> dict[str, Any]:
    """How many steps, and how guidance grows: not in the tensors, and free to choose."""
    usual = told(source, "num_iter") or min(64, positions)
    iterations = positive(options, "num_iter", usual, "the number of steps")
    if iterations > positions:
        raise ArcError(f"num_iter={iterations} is more than the {positions} tokens of an image",
                       hint="each step draws a token or more")
    usual = told(source, "diffusion_steps") or 100
    steps = positive(options, "diffusion_steps", usual, "the number of denoising steps")
    if not 2 <= steps <= TRAINED:
        raise ArcError(f"diffusion_steps={steps} is not between 2 and {TRAINED}",
                       hint=f"{TRAINED} is what the network was trained for")
    schedule = options.get("cfg_schedule", "linear")
    if schedule not in SCHEDULES:
        raise ArcError(f"no cfg_schedule {schedule!r}", hint=f"known: {', '.join(SCHEDULES)}")
    return {"iterations": iterations, "steps": steps, "schedule": schedule,
            **falling(options, "diffusion", steps)}


def falling(options: Options, what: str, steps: int) -> dict[str, Any]:
    """How the steps of a diffusion head fall from `steps` while the image fills (DiSA)."""
    least = positive(options, f"{what}_least", steps, f"the least {what} steps")
    if not 2 <= least <= steps and least != steps:
        raise ArcError(f"{what}_least={least} is not between 2 and {what}_steps={steps}")
    annealing = options.get("annealing", "linear")
    if annealing not in ANNEALING:
        raise ArcError(f"no annealing {annealing!r}", hint=f"known: {', '.join(ANNEALING)}")
    return {"least": least, "annealing": annealing}
