"""What drafting saves: the rounds of an engine whose steps have windows, on a few pictures."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from typing import Any

from arcompile.errors import ArcError
from arcompile.quality import IMAGES, condition, settings
from arcompile.runtime.acceptance import accepted, spent
from arcompile.runtime.engine import Engine

TITLES = {"forwards": "forwards an image", "positions": "positions",
          "committed": "committed a forward", "held": "drafts that held"}


def measure(engine: Engine) -> dict[str, Any]:
    """Of IMAGES pictures at the engine's own settings, means; {"not measured": why} where a request
    cannot be made. held: the share of positions whose draft was kept, see `accepted`."""
    cut = copy(engine)
    cut.program = replace(engine.program, finish=())
    try:
        out = cut.generate(condition(cut), seed=list(range(IMAGES)), **settings(cut))
    except ArcError as e:
        return {"not measured": e.what}
    if out.rounds is None:
        return {"not measured": "no step has a window"}
    forwards, committed = spent(out.rounds)
    return {"images": IMAGES, "forwards": forwards, "positions": out.tokens.shape[1],
            "committed": round(committed, 3),
            "held": round(float(accepted(out.rounds).mean()), 4)}


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Titles and one row; nothing when nothing was measured."""
    if "forwards" not in found:
        return []
    return [tuple(TITLES.values()), tuple(f"{found[k]:.4g}" for k in TITLES)]
