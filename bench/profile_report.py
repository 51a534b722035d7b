"""A profile for people and for machines: one row of data, the tables of it, and the files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from arcompile.bench import machine, roofline, trace
from arcompile.bench.attribute import KEYS, Group, group
from arcompile.bench.profile import Profile
from arcompile.bench.spread import figure
from arcompile.cost import figure as human

Row = dict[str, Any]
WIDTH = 130  # columns of tables that go into a file or a pipe


@dataclass(frozen=True)
class Ceilings:
    """flop/s of an f32 GEMM and bytes/s of reading memory, both measured; of a GPU those of a bf16
    GEMM and of a copy."""

    flops: float
    read: float

    @staticmethod
    def measure(device: str = "cpu") -> Ceilings:
        """Raises ArcError where a GPU's are asked for and torch sees none."""
        if device == "cuda":
            from arcompile.kernels import timing

            top = timing.ceilings()
            return Ceilings(top["flops"], top["bytes"])
        return Ceilings(machine.gemm() * 1e9, machine.Bandwidth().measure(2) * 1e9)


def row(p: Profile, top: Ceilings) -> Row:
    """Everything a profile tells, but for single kernels: those are in the trace."""
    m = p.engine.manifest
    return {
        "engine": p.engine.folder.name, "family": m["family"], "target": m["target"],
        "dtype": m["dtype"], "passes": m["passes"], "machine": machine.facts(),
        "gemm_gflops": figure(top.flops / 1e9), "read_gbps": figure(top.read / 1e9),
        "plain_s": figure(p.plain), "total_s": figure(p.total),
        "watching_costs": figure(p.total / p.plain - 1, 3),
        "parts_s": {"kernels": figure(p.kernels), "runtime": figure(p.runtime),
                    "loop": figure(p.loop)},
        "stages": _stages(p), "lost": p.lost,
        **{key: [_entry(g, p.total, top) for g in group(p.spots, by)] for key, by in KEYS.items()},
    }


def _stages(p: Profile) -> list[Row]:
    inside = {g.name: g for g in group(p.spots, lambda s: s.graph)}
    found: dict[str, list[float]] = {}
    for s in p.spans:
        found.setdefault(s.graph, []).append(s.seconds)
    return [{"graph": name, "runs": len(spent), "s": figure(sum(spent)),
             "share": figure(sum(spent) / p.total, 3),
             "kernels_s": figure(inside[name].seconds if name in inside else 0.0),
             "peak_bytes": max((x.peak for x in inside[name].spots), default=0)
             if name in inside else 0}
            for name, spent in found.items()]


def _entry(g: Group, total: float, top: Ceilings) -> Row:
    c, s = g.cost, g.seconds or 1e-12
    passes = list(dict.fromkeys(x for spot in g.spots for x in spot.passes))
    return {"name": g.name, "s": figure(g.seconds), "share": figure(g.seconds / total, 3),
            "flops": c.flops, "bytes": c.bytes, "gflops": figure(c.flops / s / 1e9),
            "gbps": figure(c.bytes / s / 1e9),
            "intensity": figure(c.flops / c.bytes) if c.bytes else 0.0,
            "of_roof": figure(g.roof(top.flops, top.read), 3), "passes": passes,
            "kernels": sorted({k for spot in g.spots for k in spot.kernels}),
            "lines": sorted({spot.line for spot in g.spots} - {""})[:4]}


# --- for people ----------------------------------------------------------------------------------


def _console() -> Console:
    """Wide where nobody looks through a window."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=WIDTH)


def show(r: Row, by: tuple[str, ...], most: int) -> None:
    out = _console()
    parts = ", ".join(f"{k} {_ms(s)}" for k, s in r["parts_s"].items())
    out.print(f"{r['engine']}: {r['family']}, {r['target']}, {r['dtype']}; {_ms(r['total_s'])} = "
              f"{parts} (not watched: {_ms(r['plain_s'])})", highlight=False, soft_wrap=True)
    if r["lost"]:
        out.print(f"the runtime's notes on {', '.join(r['lost'])} are incomplete: profile fewer "
                  "--steps", highlight=False)
    out.print(_table("graph", r["stages"], _stage))
    for key in by:
        shown = r[key][:most]
        left = len(r[key]) - len(shown)
        out.print(_table(key, shown, _line, f"and {left} more" if left else ""))
    out.print(f"roof: {r['gemm_gflops']:g} GFLOP/s of f32 GEMM and {r['read_gbps']:g} GB/s, "
              "measured; % of roof: the least time the flops and bytes of the cost model would "
              "take, over the time taken (over 100: from caches, or integer products)",
              highlight=False, soft_wrap=True)


HEADS = {"graph": ("runs", "time", "share", "in kernels", "arena at most"),
         "": ("time", "share", "GFLOP/s", "GB/s", "flop/byte", "% of roof", "passes")}


def _table(key: str, rows: list[Row], cells: Any, caption: str = "") -> Table:
    t = Table(title=f"by {key}", title_justify="left", caption=caption or None,
              caption_justify="left")
    t.add_column(key, no_wrap=True, min_width=24)
    for head in HEADS.get(key, HEADS[""]):
        t.add_column(head, justify="left" if head == "passes" else "right", no_wrap=True)
    for r in rows:
        t.add_row(*cells(r))
    return t


def _stage(r: Row) -> tuple[str, ...]:
    return (r["graph"], str(r["runs"]), _ms(r["s"]), _percent(r["share"]), _ms(r["kernels_s"]),
            human(r["peak_bytes"], "B"))


def _line(r: Row) -> tuple[str, ...]:
    return (r["name"], _ms(r["s"]), _percent(r["share"]), f"{r['gflops']:.3g}",
            f"{r['gbps']:.3g}", f"{r['intensity']:.3g}", f"{100 * r['of_roof']:.0f}",
            " ".join(r["passes"][:4]))


def _ms(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- two engines ---------------------------------------------------------------------------------


def compare(a: Row, b: Row, key: str = "op") -> Iterator[tuple[str, float, float]]:
    """(name, seconds of a, seconds of b), the largest difference first."""
    both: dict[str, list[float]] = {}
    for i, r in enumerate((a, b)):
        for e in r[key]:
            both.setdefault(e["name"], [0.0, 0.0])[i] += e["s"]
        for name in ("runtime", "loop"):
            both.setdefault(f"({name})", [0.0, 0.0])[i] += r["parts_s"][name]
    for name, (x, y) in sorted(both.items(), key=lambda e: -abs(e[1][0] - e[1][1])):
        yield name, x, y


def show_comparison(a: Row, b: Row, key: str, most: int) -> None:
    t = Table(title=f"{a['engine']} against {b['engine']}, by {key}", title_justify="left")
    t.add_column(key, overflow="fold")
    for head in (a["engine"], b["engine"], "difference", "ratio"):
        t.add_column(head, justify="right")
    lines = [("all, not watched", a["plain_s"], b["plain_s"]), *compare(a, b, key)]
    for name, x, y in lines[: most + 1]:
        ratio = f"{x / y:.2f}x" if x and y else "-"
        t.add_row(name, _ms(x), _ms(y), f"{1e3 * (y - x):+.3g} ms", ratio)
    _console().print(t)


# --- files ---------------------------------------------------------------------------------------


def write(p: Profile, r: Mapping[str, Any], top: Ceilings, folder: Path) -> list[Path]:
    """profile.json, trace.json, and roofline.png where matplotlib is installed: what was
    written."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [folder / "profile.json", folder / "trace.json"]
    made[0].write_text(json.dumps(r, indent=1) + "\n")
    made[1].write_text(json.dumps(trace.chrome(p)))
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return made
    title = f"{r['engine']}: {r['family']}, {r['target']}, {r['dtype']}"
    roofline.draw(group(p.spots, KEYS["op"]), top.flops, top.read, title, folder / "roofline.png")
    return [*made, folder / "roofline.png"]
