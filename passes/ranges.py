"""What `arcompile calibrate` saw: the file that passes take as their option `ranges`."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import numpy as np

from arcompile.checkpoint import open_checkpoint
from arcompile.errors import ArcError
from arcompile.program import Program
from arcompile.weights import Array, used

INPUT, NORM = ".input_max", ".input_norm"  # of a product, f32[k]
CONV = ".conv_range"  # of a convolution, f32[4]
HEADS = ".head_spread"  # of an attention over a cache, by its number: f32[h]
SELECTIVITY = ".selectivity"  # of the same: f32[steps]
LOOKED = (HEADS, SELECTIVITY)
HINT = "make the file with arcompile calibrate, of the same checkpoint"


def read(path: str) -> dict[str, Array]:
    """Name of a weight without its @, or number of an attention, and the kind -> what was seen.
    Raises ArcError."""
    try:
        s = Path(path).stat()
    except OSError as e:
        raise ArcError(f"cannot read ranges {path}: {e.strerror}", hint=HINT) from None
    return _read(path, s.st_mtime_ns, s.st_size)


def mark(path: str) -> tuple[str, ...]:
    """What tells such a file from others, for Pass.reads; of no file, nothing."""
    if not path:
        return ()
    read(path)  # which says what is wrong with it
    return (hashlib.sha256(Path(path).read_bytes()).hexdigest(),)


@lru_cache(4)
def _read(path: str, time: int, size: int) -> dict[str, Array]:
    held = open_checkpoint(path).weights("")
    found = {k: held.load(k) for k in held if k.endswith((INPUT, NORM, CONV, *LOOKED))}
    bad = [k for k, a in found.items() if a.ndim != 1 or not np.isfinite(a).all()]
    if bad or not found:
        raise ArcError(f"{path} holds no ranges" + (f": {bad[0]} is broken" if bad else ""),
                       hint=HINT)
    return found


def of_model(path: str, p: Program) -> dict[str, Array]:
    """The same, checked to be of this model: some of its weights, in their sizes."""
    found, have = read(path), used(p.graphs)
    fits = 0
    for key, a in found.items():
        if key.endswith(LOOKED):
            continue
        name, _, kind = key.rpartition(".")
        w = have.get(f"@{name}")
        if w is None:
            continue
        want = 4 if f".{kind}" == CONV else w.type.shape[0]
        if a.shape != (want,):
            raise ArcError(f"{path} is of another model: {key} has {a.size} numbers, and @{name} "
                           f"is {w.type}", hint=HINT)
        fits += 1
    if not fits:
        raise ArcError(f"{path} is of another model: it knows none of the weights here", hint=HINT)
    return found


def spread(path: str, heads: list[int]) -> list[list[float]]:
    """How much the attention of each head of each layer differs from query to query."""
    found = {k: a for k, a in read(path).items() if k.endswith(HEADS)}
    have = [len(found.get(f"layer.{i}{HEADS}", ())) for i in range(len(heads))]
    if len(found) != len(heads) or have != heads:
        raise ArcError(f"{path} knows the heads of {len(found)} attentions, not of these "
                       f"{len(heads)}", hint=HINT)
    return [found[f"layer.{i}{HEADS}"].astype(float).tolist() for i in range(len(heads))]


def selectivity(path: str, layers: int, steps: int) -> list[list[float]]:
    """How much the attention of each layer keeps to the scale that is drawn and to few slots before
    it, step by step."""
    found = {k: a for k, a in read(path).items() if k.endswith(SELECTIVITY)}
    have = [len(found.get(f"layer.{i}{SELECTIVITY}", ())) for i in range(layers)]
    if len(found) != layers or have != [steps] * layers:
        raise ArcError(f"{path} knows {len(found)} attentions in {max(have, default=0)} steps, not "
                       f"{layers} in {steps}", hint=HINT)
    return [found[f"layer.{i}{SELECTIVITY}"].astype(float).tolist() for i in range(layers)]
