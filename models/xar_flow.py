"""The numbers of xAR's flow: its times, and what each turn does with a velocity."""

from __future__ import annotations

import numpy as np

# What a turn of the flow needs to know of its time.
COLUMNS = ("keep", "dt", "kick")


def times(n: int) -> np.ndarray:
    """The n times at which velocities are taken, from 1 down to 0.04."""
    return np.linspace(1, 0.04, n)


def flow(n: int) -> np.ndarray:
    """f32 [n, 3]: x += dt (keep v + x) + kick noise.

    For x_t = (1-t) x0 + t e with velocity v the score is -((1-t) v + x) / t; the drift
    v - t score = (2-t) v + x, and the noise is sqrt(2 t |dt|). The last step has none.
    """
    t = times(n)
    dt = np.append(t[1:], 0.0) - t
    kick = np.sqrt(2 * t * -dt) * (np.arange(n) < n - 1)
    return np.stack((2 - t, dt, kick), 1).astype(np.float32)
