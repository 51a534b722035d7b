"""What each call of a torch plan takes: by CUDA events on a GPU, by the clock on the CPU."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from arcompile.target import Event


@dataclass
class Notes:
    """Marks before and after every call, read once all have run."""

    t: Any
    device: str
    marks: list[tuple[str, str, str, Any, Any]] = field(default_factory=list)
    first: tuple[float, Any] | None = None  # when marks began: seconds since the epoch, and a mark

    def mark(self) -> Any:
        if self.device == "cpu":
            return time.time()
        event = self.t.cuda.Event(enable_timing=True)
        event.record()
        if self.first is None:
            self.t.cuda.synchronize()
            self.first = (time.time(), event)
        return event

    def add(self, graph: str, name: str, kind: str, before: Any) -> None:
        self.marks.append((graph, name, kind, before, self.mark()))

    def events(self) -> list[Event]:
        if self.device != "cpu":
            self.t.cuda.synchronize()
        return [Event(g, name, kind, self._at(a), self._between(a, b))
                for g, name, kind, a, b in self.marks]

    def _at(self, mark: Any) -> float:
        if self.device == "cpu":
            return float(mark)
        assert self.first is not None
        began, first = self.first
        return began + self._between(first, mark)

    def _between(self, a: Any, b: Any) -> float:
        """Seconds. CUDA events tell milliseconds."""
        return float(b - a) if self.device == "cpu" else float(a.elapsed_time(b)) / 1e3


