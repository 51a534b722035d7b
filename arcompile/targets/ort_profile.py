"""What ONNX Runtime's profiler wrote, as events. Its file is a Chrome trace, times in microseconds.

https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from arcompile.target import RUN, Event

SUFFIX = "_kernel_time"
DEVICE = "Kernel"  # category of what ran on a GPU


def events(graph: str, model: Any) -> list[Event]:
    """Ends the profiling of one session, and reads and removes its file."""
    began = model.get_profiling_start_time_ns() / 1e9
    path = Path(model.end_profiling())
    told = json.loads(path.read_bytes())
    path.unlink()
    return [_event(graph, e, began) for e in told if _counts(e)]


def _counts(e: dict[str, Any]) -> bool:
    return e.get("name") == RUN or e.get("cat") == DEVICE or (
        e.get("cat") == "Node" and e["name"].endswith(SUFFIX))


def _event(graph: str, e: dict[str, Any], began: float) -> Event:
    name, args = e["name"].removesuffix(SUFFIX), e.get("args", {})
    kind = RUN if name == RUN else args.get("op_name", name)
    return Event(graph, name, kind, began + e["ts"] / 1e6, e["dur"] / 1e6,
                 int(args.get("mem_in_use_peak", 0)))
