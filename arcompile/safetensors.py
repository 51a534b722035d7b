"""Write and map safetensors files: 8-byte header length, JSON header, then the tensors.

Format: https://github.com/huggingface/safetensors. Tensors are written one at a time, so a file
of any size needs the memory of its largest tensor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import ArcError, quoted
from arcompile.ir import DTYPES as WIDTH
from arcompile.ir import Type

NAMES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64", "i64": "I64", "i32": "I32",
         "i8": "I8", "u8": "U8", "bool": "BOOL"}
DTYPES = {v: k for k, v in NAMES.items()}
ALIGN = 4096  # the data starts at a page, so that a runtime can map it


def layout(types: Mapping[str, Type], notes: Mapping[str, str] | None = None
           ) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header with its length, and name -> (offset in the file, bytes). notes: its metadata."""
    spans, at, types = {}, 0, _aligned(types)
    for name, t in types.items():
        spans[name] = (at, t.nbytes())
        at += t.nbytes()
    header: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    header |= {name: {"dtype": NAMES[types[name].dtype], "shape": list(types[name].shape),
                     "data_offsets": [a, a + n]} for name, (a, n) in spans.items()}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-(len(raw) + 8) % ALIGN)
    head = len(raw).to_bytes(8, "little") + raw
    return head, {name: (len(head) + a, n) for name, (a, n) in spans.items()}


def _aligned(types: Mapping[str, Type]) -> dict[str, Type]:
    """Those whose bytes would leave the next one unaligned come last: the format allows no gaps."""
    def late(item: tuple[str, Type]) -> int:
        return 0 if item[1].nbytes() % 8 == 0 else 1 + 8 - WIDTH[item[1].dtype]

    return dict(sorted(types.items(), key=late))


def write(path: Path, types: Mapping[str, Type], load: Callable[[str], Any],
          progress: Callable[[float], None] = lambda f: None,
          notes: Mapping[str, str] | None = None) -> str:
    """Write the tensors in order; returns the file's sha256."""
    head, spans = layout(types, notes)
    total, seen = max(1, sum(n for _, n in spans.values())), 0
    digest = hashlib.sha256(head)
    with path.open("wb") as f:
        f.write(head)
        for name, t in _aligned(types).items():
            data = _stored(np.asarray(load(name), order="C"), t)  # a scalar stays one
            if data.shape != t.shape or data.nbytes != t.nbytes():
                raise ArcError(f"weight {name} is {data.dtype}{list(data.shape)}, expected {t}")
            raw: Any = data.reshape(-1).view(np.uint8)
            digest.update(raw)
            f.write(raw)
            progress((seen := seen + t.nbytes()) / total)
    return digest.hexdigest()


def _stored(data: Any, t: Type) -> Any:
    """bf16 is held as f32 with its lower half empty."""
    if t.dtype != "bf16" or data.dtype != np.float32:
        return data
    return (np.ascontiguousarray(data).view(np.uint32) >> 16).astype(np.uint16)


def mapped(path: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """name -> read-only array on the mapped file (bf16 as uint16). Raises ArcError.

    The file must not shrink while it is used.
    """
    try:
        return _mapped(path, names)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ArcError(f"{path.name} is not a weights file: {type(e).__name__}: {quoted(e)}",
                       hint="rebuild the engine, or copy it again") from None


def _mapped(path: Path, names: Iterable[str] | None) -> dict[str, Any]:
    from arcompile.ops.tensor import NUMPY

    with path.open("rb") as f:
        n = int.from_bytes(f.read(8), "little")
        if n > path.stat().st_size - 8:
            raise ValueError(f"a header of {n} bytes")
        header = json.loads(f.read(n))
    raw = np.memmap(path, np.uint8, "r", offset=8 + n) if path.stat().st_size > 8 + n else None
    found = {}
    header.pop("__metadata__", None)
    for name in header if names is None else names:
        entry = header[name]
        lo, hi = entry["data_offsets"]
        dtype = np.uint16 if entry["dtype"] == "BF16" else NUMPY[DTYPES[entry["dtype"]]]
        data: Any = raw[lo:hi].view(dtype) if hi > lo and raw is not None else np.zeros(0, dtype)
        found[name] = data.reshape(entry["shape"])
    return found
