"""Random weights of real shapes, drawn when read and never stored: for speed, not for pictures."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np

from arcompile.checkpoint import Entry, Weights


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Deterministic by name: unit scales, zero shifts, and matrices that keep the variance."""
    if len(shape) <= 1:
        return (np.zeros if name.endswith("bias") else np.ones)(shape, np.float32)
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    table = "embed" in name or "codebook" in name
    scale = 1.0 if table else 1 / math.sqrt(np.prod(shape[1:]))
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """A checkpoint's weights without a file."""
    return Weights("random weights", {name: _entry(name, shape, seed)
                                      for name, shape in shapes.items()})


def _entry(name: str, shape: tuple[int, ...], seed: int) -> Entry:
    return Entry(shape, "f32", lambda: tensor(name, shape, seed))
