"""Drop what nobody reads: nodes, weights, folded weights and carried state."""

from __future__ import annotations

from dataclasses import replace

from arcompile.ir import Graph, dce
from arcompile.pipeline import Pass, register
from arcompile.program import Program
from arcompile.weights import used


@register("dead-code")
class DeadCode(Pass):
    """Graphs stay, called or not: they may be entry points of their own, such as `encode`.

    Draws stay too: the place of a draw in the list is part of its random stream.
    """

    def __call__(self, p: Program) -> Program:
        new = p.on_graphs(dce)
        fold = _read(p.fold, new) if p.fold else None
        state = tuple((k, t) for k, t in p.state if any(g.param(k) for g in p.graphs))
        if fold is p.fold and len(state) == len(p.state):
            return new
        return replace(new, fold=fold, state=state)


def _read(fold: Graph, p: Program) -> Graph | None:
    """The fold, less the results that no graph reads."""
    read = used(p.graphs)
    results = tuple((k, v) for k, v in fold.results if f"@{k}" in read)
    same = len(results) == len(fold.results)
    return dce(fold if same else replace(fold, results=results)) if results else None
