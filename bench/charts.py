"""The pictures of a whole file of results: one mark or bar for each suite, sweep or passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from arcompile.bench.plots import EAGER, ENGINE, FLOOR

Row = Mapping[str, Any]
COLOURS = (ENGINE, EAGER, "#3a8f5c", "#8a4fa8", "#b8963e", "#4a9fb0")


def charts(rows: Sequence[Row]) -> list[tuple[str, Callable[[Any], None]]]:
    """(title, painter of matplotlib axes) of every picture that these rows have figures for."""
    found: list[tuple[str, Callable[[Any], None]]] = []
    for title, pick, paint in (
        ("Roofline: one step of each suite", _steps, _roofline),
        ("Time against quality", _judged, _quality),
        ("Memory of a run", _held, _memory),
        ("Latency against batch", _of("batch"), _batch),
        ("Cost against tokens", _of("tokens"), _tokens),
    ):
        if chosen := [r for r in rows if pick(r)]:
            found.append((title, lambda ax, p=paint, c=chosen: p(ax, c)))  # type: ignore[misc]
    return found


# --- which rows ----------------------------------------------------------------------------------


def _steps(r: Row) -> bool:
    return "greedy" in r and "step_flops" in r.get("bytes", {}) and "read_gbps" in r["machine"]


def _judged(r: Row) -> bool:
    return "judge" in (r.get("quality") or {}) and "image" in r


def _held(r: Row) -> bool:
    return "run_memory" in r and "bytes" in r


def _of(axis: str) -> Callable[[Row], bool]:
    return lambda r: r.get("kind") == "sweep" and r["axis"] == axis


# --- pictures ------------------------------------------------------------------------------------


def _roofline(ax: Any, rows: Sequence[Row]) -> None:
    """Attained flop/s over flop/byte; https://doi.org/10.1145/1498765.1498785"""
    read = max(r["machine"]["read_gbps"]["best"] for r in rows) * 1e9
    gemm = max(r["machine"]["gemm_gflops"] for r in rows) * 1e9
    marks = []
    for r in rows:
        b, ms = r["bytes"], r["greedy"]["engine"]["median"]
        marks.append((b["step_flops"] / b["step_bytes"], b["step_flops"] / ms * 1e3, r["suite"]))
    low, high = min(x for x, _, _ in marks) / 2, max(*(x for x, _, _ in marks), gemm / read) * 2
    ax.plot([low, gemm / read, high], [low * read, gemm, gemm], color=FLOOR, lw=1.5,
            label=f"{read / 1e9:.3g} GB/s, {gemm / 1e9:.3g} GFLOP/s (f32), both measured")
    for x, y, name in marks:
        ax.scatter(x, y, color=ENGINE, s=30)
        ax.annotate(name, (x, y), fontsize=7, xytext=(5, 4), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel="flop / byte", ylabel="flop/s")
    ax.legend(loc="lower right")


def _quality(ax: Any, rows: Sequence[Row]) -> None:
    """What the judge says, with its interval, over the seconds of a picture."""
    for r in rows:
        q, s = r["quality"], r["image"]["s"]["min"]
        low, high = q["interval"]
        reach = [[max(q["judge"] - low, 0)], [max(high - q["judge"], 0)]]
        ax.errorbar([s], [q["judge"]], yerr=reach, fmt="o", color=ENGINE, ecolor=FLOOR, capsize=3)
        ax.annotate(r["suite"], (s, q["judge"]), fontsize=7, xytext=(6, 4),
                    textcoords="offset points")
    ax.set(xlabel="s a picture", xlim=(0, None), ylabel="judged right (95 %)")


def _memory(ax: Any, rows: Sequence[Row]) -> None:
    """What is resident at the peak, and what of it are weights and caches."""
    names, at = [r["suite"] for r in rows], [0.0] * len(rows)
    for name, colour, size in (
        ("weights", ENGINE, lambda r: r["bytes"]["run_weights"]),
        ("caches", EAGER, lambda r: r["bytes"]["state"]),
        ("the rest", FLOOR, lambda r: max(0, r["run_memory"]["peak"] - r["bytes"]["run_weights"]
                                          - r["bytes"]["state"]))):
        sizes = [size(r) / 1e6 for r in rows]
        ax.barh(names, sizes, left=at, color=colour, label=name)
        at = [a + b for a, b in zip(at, sizes, strict=True)]
    ax.set(xlabel="MB, resident at the peak of two pictures")
    ax.legend()


def _batch(ax: Any, rows: Sequence[Row]) -> None:
    for r, colour in zip(rows, COLOURS * len(rows), strict=False):
        x, y = ([p[k] for p in r["points"]] for k in ("batch", "s"))
        fit = r["line"]
        ax.plot(x, y, "o", color=colour, label=r["points"][0]["suite"])
        ax.plot(x, [fit["start_s"] + fit["each_s"] * b for b in x], lw=1, color=colour)
    ax.set(xlabel="batch", ylabel="s a batch", xscale="log", yscale="log")
    ax.legend()


def _tokens(ax: Any, rows: Sequence[Row]) -> None:
    """Seconds of the loop, and the floating-point operations it takes (dashed, right)."""
    right = ax.twinx()
    for r, colour in zip(rows, COLOURS * len(rows), strict=False):
        x = [p["tokens"] for p in r["points"]]
        ax.plot(x, [p["steps_s"] for p in r["points"]], "o-", color=colour, label=r["suite"])
        right.plot(x, [p["flops"] / 1e12 for p in r["points"]], "--", lw=1, color=colour)
    ax.set(xlabel="tokens of a picture", ylabel="s of the loop", ylim=(0, None))
    right.set(ylabel="TFLOP (dashed)", ylim=(0, None))
    ax.legend()
