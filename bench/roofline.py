"""The roofline of a profile: attained flop/s over arithmetic intensity, under the two ceilings.

Williams, Waterman and Patterson, https://doi.org/10.1145/1498765.1498785
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arcompile.bench.attribute import Group

ROOF, DOT = "#777777", "#1f5fa8"
LEAST = 0.01  # share of the time from which a group is named


def draw(groups: Sequence[Group], flops: float, read: float, title: str, path: Path) -> None:
    """A PNG. flops, read: the machine's ceilings in flop/s and bytes/s; area tells the time."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    ax = picture.subplots()
    dots = [g for g in groups if g.cost.flops and g.cost.bytes and g.seconds]
    total = sum(g.seconds for g in groups) or 1.0
    _roof(ax, dots, flops, read)
    for g in dots:
        x, y = g.cost.flops / g.cost.bytes, g.cost.flops / g.seconds
        ax.scatter(x, y, s=30 + 1500 * g.seconds / total, color=DOT, alpha=0.45, lw=0)
        if g.seconds >= LEAST * total:
            ax.annotate(f"{g.name} {100 * g.seconds / total:.0f} %", (x, y), fontsize=8,
                        xytext=(5, 4), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel="flop / byte", ylabel="flop/s", title=title)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right")
    picture.savefig(path)


def _roof(ax: Any, dots: Sequence[Group], flops: float, read: float) -> None:
    ridge = flops / read
    seen = [g.cost.flops / g.cost.bytes for g in dots]
    low, high = min([*seen, ridge / 100]) / 2, max([*seen, ridge * 10]) * 2
    ax.plot([low, ridge, high], [low * read, flops, flops], color=ROOF, lw=1.5,
            label=f"{read / 1e9:.3g} GB/s, {flops / 1e9:.3g} GFLOP/s (f32 GEMM), both measured")
