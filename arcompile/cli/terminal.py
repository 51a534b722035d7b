"""What commands print: JSON or aligned text on stdout, progress bars on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, default=str))


def columns(rows: Iterable[Sequence[str]], indent: int = 2) -> str:
    """Rows of words as aligned columns; numbers align right, the last column is left alone."""
    table = [list(r) for r in rows]
    if not table:
        return ""
    widths = [max(len(r[i]) for r in table) for i in range(len(table[0]))]
    right = [i < len(widths) - 1 and len(table) > 1
             and all(r[i][:1].isdigit() or not r[i] for r in table[1:])
             for i in range(len(widths))]
    lines = []
    for r in table:
        cells = [c.rjust(w) if side else c.ljust(w)
                 for c, w, side in zip(r, widths, right, strict=True)]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def facts(pairs: Mapping[str, str], indent: int = 2) -> str:
    """`name  value` lines; empty values are left out."""
    kept = [(k, v) for k, v in pairs.items() if v]
    width = max((len(k) for k, _ in kept), default=0)
    return "\n".join(f"{' ' * indent}{k.ljust(width)}  {v}" for k, v in kept)


def size(nbytes: float) -> str:
    from arcompile.cost import figure

    return figure(nbytes, "B")


def coloured_diff(text: str) -> str:
    """Red and green on a terminal, plain text elsewhere."""
    if not sys.stdout.isatty():
        return text
    marks = {"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}
    return "\n".join(f"{marks[s[0]]}{s}\x1b[0m" if s[:1] in marks else s for s in text.split("\n"))


class Bars:
    """A context with a bar for each stage, on stderr; nothing where that is not a terminal."""

    def __init__(self) -> None:
        self.live: Any = None
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Bars:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:>8}"), BarColumn(32),
                       TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn())
            self.live = Progress(*columns, console=Console(stderr=True), transient=True)
            self.live.start()
        return self

    def __call__(self, stage: str, share: float) -> None:
        if self.live is None:
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.live.add_task(stage, total=1.0)
        self.live.update(self.tasks[stage], completed=share)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self.live is not None:
            self.live.stop()
