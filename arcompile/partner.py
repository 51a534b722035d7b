"""A second model for a pass: an engine folder read as a program and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.checkpoint import open_checkpoint
from arcompile.errors import ArcError
from arcompile.program import Program
from arcompile.program_text import parse_program
from arcompile.raster import codebook
from arcompile.runtime import bundle
from arcompile.weights import TURNED, Array, Store, Weights, used

TEXT, WEIGHTS = "program.arc", "weights.safetensors"


def digest(folder: str) -> str:
    """Tells whether an engine is the same one. Raises ArcError."""
    return hashlib.sha256(repr(_manifest(folder)["files"]).encode()).hexdigest()


def program(folder: str) -> Program:
    """What the engine runs, graphs included; its folded weights are weights like any other."""
    return _read(str(Path(folder).resolve()), digest(folder))


@lru_cache(4)
def _read(folder: str, mark: str) -> Program:
    manifest, path = _manifest(folder), Path(folder)
    if not {TEXT, WEIGHTS} <= manifest["files"].keys():
        raise ArcError(f"{folder} has no {TEXT} with weights beside it",
                       hint="build it with this version")
    bundle.verify(path, manifest)
    p = replace(parse_program((path / TEXT).read_text()), fold=None)
    p.verify()
    return p


def weights(folder: str) -> Weights:
    """By name, each loaded when it is asked for. Raises ArcError."""
    _manifest(folder)
    file = open_checkpoint(Path(folder) / WEIGHTS)
    held = file.weights("")
    try:
        turned = {str(k) for k in json.loads(file.metadata.get(TURNED, "[]"))}
    except (ValueError, TypeError, RecursionError):
        raise ArcError(f"the weights of {folder} do not say which of them are turned",
                       hint="rebuild the engine") from None
    return Weights({k: partial(_load, held, k, k in turned) for k in held})


def brought(folder: str, own: Callable[[str], str]) -> Weights:
    """Its weights by names of their own, for a program that has the other model's too."""
    return Weights({own(k): load for k, load in weights(folder).load.items()})


def _load(held: Any, name: str, turned: bool) -> Array:
    found: Array = held.load(name)
    return found.T if turned else found


def _manifest(folder: str) -> dict[str, Any]:
    if not (Path(folder) / bundle.MANIFEST).is_file():
        raise ArcError(f"{folder!r} is no engine",
                       hint="build the second model first: arcompile build CKPT -o DIR")
    return bundle.read_manifest(Path(folder))


def same_codes(p: Program, source: Weights, other: Program, theirs: Weights, name: str) -> None:
    """Raise ArcError when both can decode tokens to pixels, and mean different ones by them."""
    if not p.finish or not other.finish:
        return
    a, b = (_codes(x, w, name) for x, w in ((p, source), (other, theirs)))
    if a.shape != b.shape or not np.allclose(a, b, atol=1e-5):
        raise ArcError(f"pass {name} needs two models of one image tokenizer, and their codebooks "
                       f"differ", hint="give a model that was trained on the same tokens")


def _codes(p: Program, source: Weights, name: str) -> Array:
    """The vectors that the decoder looks tokens up in."""
    from arcompile.ir import evaluate

    g, v = codebook(p, name)
    nodes = []
    fixed = set(g.weights)
    for n in g.nodes:
        if set(n.args) <= fixed and n.args:
            fixed.update(n.outs)
            nodes.append(n)
    only = replace(g, params=(), nodes=tuple(nodes), results=(("codes", v),))
    store = Store(source, p.fold)
    return np.asarray(evaluate(only, {}, {w: store[w] for w in used([only])})["codes"])
