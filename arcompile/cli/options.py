"""Arguments that several commands take."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from arcompile.errors import ArcError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Decoder = Annotated[str | None, typer.Option("--decoder", metavar="FILE",
                                             help="The image tokenizer's checkpoint.")]
Family = Annotated[str | None, typer.Option("--family", metavar="NAME",
                                            help="Told by the tensors unless given.")]
Target = Annotated[str, typer.Option("--target", metavar="NAME",
                                     help="What to compile for; see `list targets`.")]
Passes = Annotated[str | None, typer.Option("--passes", metavar="LIST",
                                            help='Extra passes, such as "a, b{ratio=0.5}", after '
                                            "the target's own.")]
Option = Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE",
                                                  help="What tensors cannot show; see `list "
                                                  "models`. Repeatable.")]


def parse_options(given: Sequence[str] | None) -> dict[str, Any]:
    """`["n_head=4", "kind=c2i"]` -> values; Python literals, else text. Raises ArcError."""
    found: dict[str, Any] = {}
    for item in given or ():
        key, sep, raw = item.partition("=")
        if not sep or not key.strip():
            raise ArcError(f"not an option: {item[:80]!r}", hint="write --option key=value")
        try:
            found[key.strip()] = ast.literal_eval(raw.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            found[key.strip()] = raw.strip()
    return found
