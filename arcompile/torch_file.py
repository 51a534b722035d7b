"""Torch files: scanned without unpickling, then read with weights_only, never with less.

torch.load alone is not enough: it believes storage sizes, and crashes on deeply nested keys.
"""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcompile.checkpoint import Bad, Entry, quote
from arcompile.errors import MACHINE, ArcError

PICKLE_LIMIT = 1 << 25  # bytes; 340 tensors need 56 kB
RECORD_LIMIT = 1 << 20  # records of a torch zip; one per storage
TUPLE_LIMIT = 1 << 12  # items of a tuple and the tuples in it; torch's own have a dozen
EXPAND_LIMIT = 1 << 28  # bytes a stride-0 tensor may take beyond the size of its file
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 starts so
STORAGE_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2,
                 "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1, "ComplexFloat": 8}


def read_torch(path: Path, *, is_zip: bool) -> dict[str, Any]:
    """The dicts of a torch file; weights_only, without exception."""
    (_check_zip if is_zip else _check_legacy)(path, path.stat().st_size)
    try:
        import torch
    except ImportError as e:
        hint = 'pip install "arcompile[build]"'
        raise ArcError(f"{path} needs torch", hint=hint, code=MACHINE) from e
    # MAR keeps its command line, an argparse.Namespace, in the file: plain data
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    with warnings.catch_warnings(), allowed:
        warnings.simplefilter("ignore")
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(held, dict):
        raise Bad(f"holds a {type(held).__name__}, not a dict of tensors")
    limit, seen = path.stat().st_size + EXPAND_LIMIT, dict[int, dict[str, Any]]()

    def tree(node: dict[Any, Any]) -> dict[str, Any]:
        if id(node) not in seen:  # one dict may be held twice, or hold itself
            out = seen[id(node)] = {}
            for k, v in node.items():
                if isinstance(k, str):
                    out[k] = tree(v) if isinstance(v, dict) else _torch_entry(v, limit)
        return seen[id(node)]

    return tree(held)


def _torch_entry(value: Any, limit: int) -> Entry | None:
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    # a plain tensor: a pickle may have hung attributes on a Parameter that shadow its methods
    plain = torch.Tensor.detach(value)
    dtype = str(plain.dtype).removeprefix("torch.")
    for long, short in (("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c")):
        dtype = dtype.replace(long, short)

    def read() -> np.ndarray:
        if 4 * plain.numel() > limit:  # one element and stride 0 can claim terabytes
            raise Bad(f"shape {quote(tuple(plain.shape))} is more than the file can hold")
        wide = torch.float32 if plain.is_floating_point() else plain.dtype
        owned = plain.to(wide, copy=True, memory_format=torch.contiguous_format)
        out: np.ndarray = owned.resolve_conj().resolve_neg().numpy()
        return out

    return Entry(tuple(plain.shape), dtype, read)


def _check_zip(path: Path, size: int) -> None:
    """Records are stored, apart, inside the file, and as long as the pickle says."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as e:
        raise Bad(f"truncated or damaged: it starts as a torch zip, but {e}") from None
    with archive:
        found, at = sorted(archive.infolist(), key=lambda r: r.header_offset), 0
        for r in found:
            if r.compress_type or r.flag_bits & 1 or r.file_size != r.compress_size:
                raise Bad(f"record {quote(r.filename)} is compressed, encrypted or mis-sized")
            if r.header_offset < at:
                raise Bad(f"record {quote(r.filename)} overlaps the one before it")
            at = r.header_offset + 30 + len(r.filename.encode()) + r.file_size
        records = {r.filename.partition("/")[2]: r for r in found}
        if at > size or len(records) != len(found) or len(found) > RECORD_LIMIT:
            raise Bad(f"{len(found)} records end at byte {at} of {size}, or share names")
        if "constants.pkl" in records or "data.pkl" not in records:
            raise Bad("a TorchScript archive or other zip, not a state dict")
        scan = Scan(io.BytesIO(archive.read(records["data.pkl"])))
    scan.load()
    for key, length in scan.storages.items():
        real = records[f"data/{key}"].file_size if f"data/{key}" in records else -1
        if not length <= real < length + 16:  # storages of views may have a ragged end
            raise Bad(f"storage {quote(key)} claims {length} bytes, its record has {real}")


def _check_legacy(path: Path, size: int) -> None:
    with path.open("rb") as f:
        scan = Scan(io.BytesIO(f.read(PICKLE_LIMIT)))
    for _ in range(4):  # magic, protocol, system, and the object
        scan.load()
    claimed = sum(scan.storages.values())
    if claimed > size:
        raise Bad(f"storages claim {claimed} bytes in a file of {size} (truncated?)")


class _Inert:
    """Stands in for every global a pickle names; it takes what it is given and does nothing."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


def _bounded(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    def checked(scan: Scan) -> None:
        load_tuple(scan)
        made = scan.stack[-1]
        size = len(made) + sum(scan.sizes[id(x)] for x in made if type(x) is tuple and x)
        if size > TUPLE_LIMIT:
            raise Bad(f"nests tuples of {size} items, the limit is {TUPLE_LIMIT}")
        scan.sizes[id(made)] = size

    return checked


class Scan(pickle._Unpickler):
    """Walks a pickle among inert globals, for two things torch.load (2.13) lets pass.

    Its mmap mode believes the length a pickle states for a storage, so tensors may overlap; and a
    dict key of a million nested tuples overflows the C stack in hash(). In Python, because the
    memo of the C unpickler is an array as long as the file demands; without BYTEARRAY8, which
    allocates before it reads.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        op: _bounded(load) if op in b"t\x85\x86\x87" else load
        for op, load in pickle._Unpickler.dispatch.items()
        if op != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.names: list[str] = []
        self.storages: dict[str, int] = {}
        self.sizes: dict[int, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        self.names.append(f"{module}.{name}")
        return type("Inert", (_Inert,), {"name": name})

    def persistent_load(self, pid: Any) -> Any:
        kind, key, _, count = pid[1:5]
        unit = STORAGE_BYTES[kind.name.removesuffix("Storage")]
        if type(count) is not int or count < 0:
            raise Bad(f"storage {quote(key)} has {quote(count)} elements")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), count * unit)
        return _Inert()
