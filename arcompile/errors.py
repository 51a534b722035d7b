"""Errors say what is wrong, with the values in it, and what to do next."""

from __future__ import annotations

from typing import Any

THEIRS = 1  # the input is at fault
MACHINE = 2  # this machine cannot


class ArcError(Exception):
    """Anything a caller can put right. `what` is one lower-case line; `hint` is the next step.

    `details` holds what is too long for one line (a list of keys, a graph with a caret); `code` is
    the exit code of the command line: 1 the input is at fault, 2 this machine cannot do it.
    """

    def __init__(self, what: str, *, hint: str = "", details: str = "", code: int = THEIRS):
        super().__init__(what)
        self.what, self.hint, self.details, self.code = what, hint, details, code
        if details:
            self.add_note(details)
        if hint:
            self.add_note(f"hint: {hint}")


class IRError(ArcError):
    """The graph is malformed; the details show it with a caret at the guilty node."""

    def __init__(self, what: str, *, at: Any = None, graph: Any = None, hint: str = ""):
        details = ""
        if graph is not None:
            from arcompile.text import show_graph

            details = show_graph(graph, mark=at, why=what)
        super().__init__(what, hint=hint, details=details)


class PassError(ArcError):
    """A pass failed, or left the program invalid."""


def quoted(e: object, most: int = 200) -> str:
    """What an exception of somebody else says: its first line, bounded."""
    lines = str(e).strip().splitlines()
    return lines[0][:most] if lines else type(e).__name__


def did_you_mean(name: str, known: Any) -> str:
    """A hint that names the nearest known word, else lists the known ones."""
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
