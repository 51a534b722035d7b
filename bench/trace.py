"""A profile as a Chrome trace, with our names: chrome://tracing or https://ui.perfetto.dev.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from typing import Any

from arcompile.bench.attribute import NAME
from arcompile.bench.profile import Profile
from arcompile.target import RUN

LOOP, KERNELS = 1, 2  # threads of the trace


def chrome(p: Profile) -> dict[str, Any]:
    """Runs of graphs as the loop saw them, and below them the kernels."""
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for tid, name in ((LOOP, "graphs"), (KERNELS, "kernels"))]
    for s in p.spans:
        events.append(_slice(LOOP, s.graph, s.start - p.start, s.seconds, {}))
    for e in p.events:
        if e.kind != RUN:
            name, args = _named(e.name)
            events.append(_slice(KERNELS, name, e.start - p.start, e.seconds,
                                 {**args, "kernel": e.kind, "graph": e.graph}))
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _named(name: str) -> tuple[str, dict[str, Any]]:
    m = NAME.match(name)
    if m is None:
        return name, {}
    written, *passes = m["origin"].split(" > ")
    module, _, line = written.partition("@")
    return f"{m['op']} {module}", {"value": f"%{m['value']}", "line": line, "passes": passes}


def _slice(tid: int, name: str, start: float, seconds: float, args: dict[str, Any]
           ) -> dict[str, Any]:
    return {"ph": "X", "pid": 1, "tid": tid, "name": name, "ts": round(start * 1e6, 1),
            "dur": round(seconds * 1e6, 1), "args": args}
