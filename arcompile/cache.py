"""The folder where arcompile keeps what it can make again: engines, kernels, benchmarks."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """$ARC_CACHE, $XDG_CACHE_HOME/arcompile or ~/.cache/arcompile."""
    if own := os.getenv("ARC_CACHE"):
        return Path(own)
    return Path(os.getenv("XDG_CACHE_HOME") or Path.home() / ".cache") / "arcompile"
