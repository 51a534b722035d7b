"""Find the first rewrite, or program pass, that breaks a check."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from arcompile import debug
from arcompile.pipeline import Pass, run
from arcompile.program import Program


def bisect(p: Program, passes: Sequence[Pass], good: Callable[[Program], bool]) -> str | None:
    """The name of the first guilty rewrite, or None when the whole pipeline is good.

    A pipeline that raises is as bad as one whose program is not good; what it raised comes along.
    """
    raised: dict[int | None, str] = {}

    def fine(limit: int | None) -> bool:
        debug.fired.clear()
        was = os.environ.pop("ARC_OPT_LIMIT", None)
        if limit is not None:
            os.environ["ARC_OPT_LIMIT"] = str(limit)
        try:
            return good(run(p, passes))
        except Exception as e:  # of whatever kind: it is what we look for
            raised[limit] = f", and then {type(e).__name__}: {e}"
            return False
        finally:
            os.environ.pop("ARC_OPT_LIMIT", None)
            if was is not None:
                os.environ["ARC_OPT_LIMIT"] = was

    if fine(None):
        return None
    names, lo, hi = list(debug.fired), 0, len(debug.fired)
    if not fine(0):
        return "the input program, before any rewrite" + raised.get(0, "")
    while hi - lo > 1:
        mid = (lo + hi) // 2
        lo, hi = (mid, hi) if fine(mid) else (lo, mid)
    then = raised.get(None if hi == len(names) else hi, "")
    return f"rewrite {hi} of {len(names)}: {names[hi - 1]}{then}"
