"""Five knobs. They change what you see, never what you get (except ARC_OPT_LIMIT).

ARC_DEBUG=1 a line per pass, 2 + the IR after each change, 3 + each rewrite, 4 + each near miss.
ARC_DUMP=dir numbered IR files. ARC_VERIFY=2 heavier checks after every pass.
ARC_OPT_LIMIT=n stops after n rewrites: what `arcompile bisect` searches over.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

fired: list[str] = []


def level() -> int:
    return int(os.getenv("ARC_DEBUG", "0") or 0)


def paranoid() -> bool:
    return os.getenv("ARC_VERIFY", "1") == "2"


def log(at: int, text: str) -> None:
    if level() >= at:
        print(text, file=sys.stderr)


def allow(what: str) -> bool:
    """Count one rewrite; refuse past ARC_OPT_LIMIT."""
    limit = os.getenv("ARC_OPT_LIMIT")
    if limit is not None and len(fired) >= int(limit):
        return False
    fired.append(what)
    log(3, f"[{len(fired)}] {what}")
    return True


def dump(number: int, name: str, text: str) -> None:
    """Write `NNN_name.arc` under ARC_DUMP, when it is set."""
    if folder := os.getenv("ARC_DUMP"):
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{number:03d}_{name}.arc").write_text(text + "\n")
