"""Find the first rewrite, or program pass, that breaks a check."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from arcompile import debug
from arcompile.pipeline import Pass, run
from arcompile.program import Program


def bisect(p: Program, passes: Sequence[Pass], good: Callable[[Program], bool]) -> str | None:
    """The name of the first guilty rewrite, or None when the whole pipeline is good."""

    def build(limit: int | None) -> Program:
        debug.fired.clear()
        was = os.environ.pop("ARC_OPT_LIMIT", None)
        if limit is not None:
            os.environ["ARC_OPT_LIMIT"] = str(limit)
        try:
            return run(p, passes)
        finally:
            os.environ.pop("ARC_OPT_LIMIT", None)
            if was is not None:
                os.environ["ARC_OPT_LIMIT"] = was

    if good(build(None)):
        return None
    names, lo, hi = list(debug.fired), 0, len(debug.fired)
    if not good(build(0)):
        return "the input program, before any rewrite"
    while hi - lo > 1:
        mid = (lo + hi) // 2
        lo, hi = (mid, hi) if good(build(mid)) else (lo, mid)
    return f"rewrite {hi} of {len(names)}: {names[hi - 1]}"
