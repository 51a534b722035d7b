"""PNG plots of a measurement, where matplotlib is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
ENGINE, EAGER, FLOOR = "#1f5fa8", "#c8743c", "#777777"


def draw(row: Row, folder: Path) -> list[Path]:
    """The plots of one row, named after its suite; none without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    made = []
    paints = {"steps": _steps, "bars": _bars, **({"quality": _quality} if _lossy(row) else {})}
    for name, paint in paints.items():
        picture = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        paint(picture.subplots(), row)
        path = folder / f"{row['host']}-{row['suite']}-{name}.png"
        picture.savefig(path)
        made.append(path)
    return made


def _steps(ax: Any, row: Row) -> None:
    """Latency of a step over its position."""
    s = row["series"]
    ax.plot(s["step"], s["engine_ms"], ".", ms=3, color=ENGINE, label="engine")
    if s["eager_ms"]:
        ax.plot(s["step"], s["eager_ms"], ".", ms=3, color=EAGER, label="eager torch")
    floor = row["greedy"]["floor"]["ms"]
    ax.axhline(floor, color=FLOOR, lw=1, label=f"reading the weights once: {floor:g} ms")
    ax.set(xlabel="step", ylabel="ms", ylim=(0, None), title=_title(row))
    ax.legend()


def _bars(ax: Any, row: Row) -> None:
    """Medians with p10 to p90."""
    kinds = ("greedy", "sampled")
    for i, (side, colour) in enumerate((("engine", ENGINE), ("eager", EAGER))):
        shown = [(j, row[k][side]) for j, k in enumerate(kinds) if side in row[k]]
        x = [j + (i - 0.5) * 0.36 for j, _ in shown]
        y = [s["median"] for _, s in shown]
        reach = [[s["median"] - s["p10"] for _, s in shown],
                 [s["p90"] - s["median"] for _, s in shown]]
        bars = ax.bar(x, y, 0.34, yerr=reach, capsize=3, color=colour, label=side)
        ax.bar_label(bars, fmt="%.3g", padding=3)
    floor = row["greedy"]["floor"]["ms"]
    ax.axhline(floor, color=FLOOR, lw=1, label=f"reading the weights once: {floor:g} ms")
    ax.set_xticks(range(len(kinds)), ["greedy", f"top-k {row['sampled']['top_k']}"])
    ax.set(ylabel="ms per step (median, p10 to p90)", title=_title(row))
    ax.legend()


def _lossy(row: Row) -> Mapping[str, Any]:
    """Lines of the engine's quality report, by the passes they are of."""
    told = row.get("quality") or {}
    return {"none": told.get("base", {}), **told["passes"]} if told.get("passes") else {}


def _quality(ax: Any, row: Row) -> None:
    """Score over memory, or where no judge was PSNR; the size of a mark is the time."""
    lines = _lossy(row)
    key = "score" if any("score" in x for x in lines.values()) else "psnr"
    slowest = max((x.get("seconds", 0) for x in lines.values()), default=0) or 1
    for name, x in lines.items():
        if key not in x or "weights" not in x:
            continue
        memory = (x["weights"] + x.get("state", 0)) / 1e6
        low, high = x.get("interval", (x[key], x[key]))
        reach = [[max(x[key] - low, 0)], [max(high - x[key], 0)]]
        ax.errorbar([memory], [x[key]], yerr=reach, fmt="none", ecolor=FLOOR, capsize=3)
        seconds = x.get("seconds", 0)
        ax.scatter([memory], [x[key]], s=20 + 120 * seconds / slowest, color=ENGINE, alpha=0.7)
        ax.annotate(f"{name}\n{seconds:.3g} s", (memory, x[key]), fontsize=7,
                    xytext=(6, 4), textcoords="offset points")
    ax.set(xlabel="MB of weights and caches", xlim=(0, None), title=_title(row),
           ylabel="judged right (95 %)" if key == "score" else "PSNR with the same noise, dB")


def _title(row: Row) -> str:
    return (f"{row['suite']}, {row['dtype']}, batch {row['batch']} with guidance "
            f"{row['guidance']:g}, {row['machine']['threads']} threads")
