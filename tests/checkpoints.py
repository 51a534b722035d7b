"""What the tests of checkpoints share: files made here, and the complaint about one that is bad."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from arcompile.checkpoint import open_checkpoint
from arcompile.errors import ArcError

torch = pytest.importorskip("torch")
CONTAINERS = ("", "model_ema", "model", "vae")


def why(path: Path, *containers: str) -> str:
    """The complaint about a file that must not open: what, and the notes."""
    with pytest.raises(ArcError) as e:
        read_all(path, *containers)
    assert "\n" not in str(e.value)
    return "\n".join([str(e.value), *getattr(e.value, "__notes__", ())])


def read_all(path: Path, *containers: str) -> dict[str, np.ndarray]:
    weights = open_checkpoint(path).weights(*(containers or CONTAINERS))
    return {name: weights.load(name) for name in weights}


def saved(path: Path, value: object, **options: bool) -> Path:
    torch.save(value, path, **options)
    return path


def safe(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with any header: a dict, JSON text, or bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = {"a": tensor("F32", [2], 0, 8), "b": tensor("F16", [2], 8, 12)}  # of 12 bytes
