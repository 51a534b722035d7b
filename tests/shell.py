"""What the tests of the command line share."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

SIZES = ("--option", "n_head=4", "--option", "grid=8")  # of the golden LlamaGen


class Ran(SimpleNamespace):
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def refused(ran: Ran, *words: str, code: int = 1) -> None:
    """One line that says `words`, and a hint; nothing on stdout."""
    assert ran.code == code, ran
    assert ran.out == ""
    first, *rest = ran.err.splitlines()
    assert first.startswith("error: ")
    assert all(s.startswith(("  ", "hint: ")) for s in rest)
    for word in words:
        assert word in ran.err


MARK = "/tmp/arcompile-was-here"


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARK}",)
