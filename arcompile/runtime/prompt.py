"""Text prompts: from words or token ids to the padded `input_ids` and `mask` that a program reads.

An engine whose manifest has `prompt` takes them. Its entries: max (ids of a prompt), vocabulary,
pad, and for words bos, boi (the id that begins an image) and template ("{prompt}" stands for the
words); then the engine holds the `tokenizer.json` of its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.runtime.loop import Array
from arcompile.runtime.text import TOKENIZER, _checked, _tokenizer

if TYPE_CHECKING:
    from arcompile.runtime.engine import Engine


def given(engine: Engine, cond: Any) -> dict[str, Any]:
    """input_ids i64[b,p] and mask bool[b,p] of a prompt or several, padded on the left."""
    rows = [_ids(engine, c) for c in _several(cond)]
    if not rows or not all(rows):
        raise ArcError("a prompt is empty", hint="give words, or token ids")
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), engine.manifest["prompt"]["pad"], np.int64)
    mask = np.zeros(ids.shape, bool)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :], mask[i, longest - len(row) :] = row, True
    return {"input_ids": ids, "mask": mask}


def _several(cond: Any) -> list[Any]:
    """A text or a list of ids is one prompt."""
    if isinstance(cond, str):
        return [cond]
    items = list(cond) if isinstance(cond, list | tuple | np.ndarray) else [cond]
    return items if any(isinstance(i, str | list | tuple | np.ndarray) for i in items) else [items]


def _ids(engine: Engine, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return _tokens(engine, prompt)
    ids = np.asarray(prompt, object).ravel().tolist()
    if bad := [i for i in ids if isinstance(i, bool) or not isinstance(i, int | np.integer)]:
        raise ArcError(f"a prompt is a text or a list of token ids, got {bad[0]!r} in it",
                       hint="ids are whole numbers")
    count = engine.manifest["prompt"]["vocabulary"]
    if bad := [i for i in ids if not 0 <= i < count]:
        raise ArcError(f"token id {bad[0]} is out of range", hint=f"ids are 0 to {count - 1}")
    return [int(i) for i in ids]


def _tokens(engine: Engine, text: str) -> list[int]:
    """The ids of the words in their template, between the two that begin text and image."""
    how: Mapping[str, Any] = engine.manifest["prompt"]
    if TOKENIZER not in engine.manifest["files"] or None in (how.get("bos"), how.get("boi")):
        raise ArcError("this engine has no tokenizer for words", hint="give token ids, or build it "
                       "from a folder that holds a tokenizer.json")
    said = str(how["template"]).replace("{prompt}", _checked(text).strip())
    held = _tokenizer(engine.folder / TOKENIZER, engine.manifest["files"][TOKENIZER]["sha256"])
    ids: list[int] = held.encode(said, add_special_tokens=False).ids
    ids = ids if ids[:1] == [how["bos"]] else [how["bos"], *ids]
    return ids if ids[-1] == how["boi"] else [*ids, how["boi"]]


def check(engine: Engine, ids: Array, mask: Array) -> None:
    """Lengths, ids and padding are what the program was built for. Raises ArcError."""
    how = engine.manifest["prompt"]
    if ids.shape != mask.shape:
        raise ArcError(f"mask has shape {list(mask.shape)} but input_ids {list(ids.shape)}",
                       hint="give both one row for each image")
    if not 2 <= ids.shape[1] <= how["max"]:
        raise ArcError(f"a prompt of {ids.shape[1]} ids; this engine takes 2 to {how['max']}",
                       hint="shorten it, or build with --option max_prompt=N")
    if ids.min() < 0 or ids.max() >= how["vocabulary"]:
        raise ArcError("token ids are out of range", hint=f"ids are 0 to {how['vocabulary'] - 1}")
    if not mask[:, -1].all() or (mask[:, :-1] > mask[:, 1:]).any():
        raise ArcError("the mask of a prompt must be zeros, then ones",
                       hint="pad shorter prompts on the left")
