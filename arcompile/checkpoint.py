"""Published checkpoints, opened without trusting them.

A torch file, a safetensors file or a Hugging Face folder becomes a Checkpoint: names, shapes and
dtypes at once, values one tensor at a time. Nothing a file says is executed, and whatever is wrong
with it is one ArcError.
"""
from __future__ import annotations

import argparse
import difflib
import fnmatch
import hashlib
import io
import json
import math
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import ArcError

AGAIN = "download it again and compare its size or sha256 with the publisher's"
HEADER_LIMIT = 100_000_000  # bytes of JSON; the limit of the safetensors package
PICKLE_LIMIT = 1 << 25  # bytes; 340 tensors need 56 kB
EXPAND_LIMIT = 1 << 28  # bytes a stride-0 tensor may take beyond the size of its file
TUPLE_LIMIT = 32  # torch's own pickles nest tuples three deep
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6 starts so
# safetensors' name of a dtype -> ours, and how numpy reads the bytes
SAFE_DTYPES = {
    "F64": ("f64", "<f8"), "F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2"),
    "I64": ("i64", "<i8"), "I32": ("i32", "<i4"), "I16": ("i16", "<i2"), "I8": ("i8", "|i1"),
    "U64": ("u64", "<u8"), "U32": ("u32", "<u4"), "U16": ("u16", "<u2"), "U8": ("u8", "|u1"),
    "BOOL": ("bool", "|u1"),
}  # fmt: skip
STORAGE_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2,
                 "Char": 1, "Byte": 1, "Bool": 1, "Untyped": 1, "ComplexFloat": 8}  # fmt: skip
STRANGERS = {b"version https://git-lfs": "a git-lfs pointer (run `git lfs pull`)", b"<": "a web page",
             b"\x89PNG": "a PNG picture", b"\xff\xd8": "a JPEG picture", b"GGUF": "a GGUF file",
             b"\x1f\x8b": "a gzip file", b"{": "a JSON file"}  # fmt: skip
# What a folder is searched for, in this order: one file, or an index of several.
FOLDER = ("model.safetensors", "*.safetensors.index.json", "*.safetensors",
          "pytorch_model.bin", "*.bin.index.json", "pytorch_model*.bin")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, not yet read."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclass(frozen=True, eq=False)
class Weights(Mapping[str, np.ndarray]):
    """Named tensors, read one at a time: floats as float32, C-contiguous, owned by the caller."""

    source: str
    entries: Mapping[str, Entry]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries  # Mapping's own would read the tensor

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """As stored: `f32`, `bf16`, `i64`, ..."""
        return self._entry(name).dtype

    def load(self, name: str) -> np.ndarray:
        return self._entry(name).read()

    def drop(self, *names: str) -> Weights:
        """Without these names; one that ends in `.` stands for all that start with it."""
        dots = tuple(n for n in names if n.endswith("."))
        kept = {k: e for k, e in self.entries.items() if k not in names and not k.startswith(dots)}
        return Weights(self.source, kept)

    def strip(self, prefix: str) -> Weights:
        """`_orig_mod.x` -> `x`; names without the prefix stay as they are."""
        out = {k.removeprefix(prefix): e for k, e in self.entries.items()}
        if len(out) != len(self.entries):
            raise ArcError(f"{self.source}: names collide without the prefix {quote(prefix)}")
        return Weights(self.source, out)

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            near = ", ".join(map(quote, difflib.get_close_matches(name, self.entries)))
            hint = near and f"did you mean {near}?"
            raise ArcError(f"{self.source} has no tensor {quote(name)}", hint=hint)
        return self.entries[name]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened file or folder: dicts of dicts with an Entry, or None for the rest, as leaves."""

    path: Path
    tree: Mapping[str, Any]
    metadata: Mapping[str, str]

    def names(self, *containers: str) -> tuple[str, ...]:
        return tuple(self.weights(*containers))

    def weights(self, *containers: str) -> Weights:
        """The first of `containers` ("a.b" nests, "" is the file itself) that is mostly tensors."""
        for where in containers or ("",):
            node: Any = self.tree
            for key in where.split(".") if where else ():
                node = node.get(key) if isinstance(node, Mapping) else None
            found = {k: e for k, e in (node or {}).items() if isinstance(e, Entry)}
            if found and 2 * len(found) > len(node):
                return Weights(f"{self.path}" + (f" [{where}]" if where else ""), found)
        asked = " or ".join(quote(c) for c in containers) or "the file itself"
        held = "; ".join(_inventory(self.tree))[:2000] or "nothing that could be weights"
        raise ArcError(f"{self.path} has no weights in {asked}", hint=f"it holds {held}")


def _inventory(tree: Mapping[str, Any]) -> Iterator[str]:
    """Each dict and what is in it, once: a pickle may nest dicts in circles."""
    todo, seen = [("the file itself", tree)], {id(tree)}
    for where, node in todo:
        keys = ", ".join(quote(k) for k in list(node)[:6]) + (", ..." if len(node) > 6 else "")
        count = sum(isinstance(e, Entry) for e in node.values())
        yield f"{where}: {len(node)} keys, {count} of them tensors ({keys})"
        for key, child in node.items():
            if isinstance(child, Mapping) and id(child) not in seen:
                seen.add(id(child))
                todo.append((quote(key) if node is tree else f"{where}.{quote(key)}", child))


def quote(name: object) -> str:
    """A name that a file chose, safe to print: one line, no control characters, bounded."""
    text = repr(name)
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def _outside(path: Path) -> Iterator[None]:
    """Makes an ArcError of whatever a hostile or broken file provokes in the code that reads it.

    Every exception, because zipfile and torch were seen to raise a dozen types on flipped bytes.
    """
    try:
        yield
    except ArcError:
        raise
    except OSError as e:
        hint = "check the path and its permissions"
        raise ArcError(f"cannot read {path}: {e.strerror or e}", hint=hint) from e
    except Exception as e:
        # torch goes on to advise weights_only=False; that advice is not passed on
        said = str(e).split("WeightsUnpickler error:")[-1].split("In PyTorch 2.6")[0].strip()
        wanted = re.search(r"GLOBAL (\S+)", said)
        if wanted:
            hint = "take a .safetensors version of it, or convert it where you trust its author"
            what = f"{path} asks for {quote(wanted[1])}, which could run code; nothing was executed"
            raise ArcError(what, hint=hint) from e
        why = f"{type(e).__name__}: {quote(said.splitlines()[0] if said else '')}"
        raise ArcError(f"{path} is damaged or is not a checkpoint ({why})", hint=AGAIN) from e


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens .pt .pth .ckpt .bin (torch), .safetensors, or a Hugging Face folder; by content."""
    path = Path(path)
    with _outside(path):
        if path.is_dir():
            return _open_folder(path)
        if path.exists() and not path.is_file():
            raise ArcError(f"{path} is not a regular file")  # a pipe would block for ever
        with path.open("rb") as f:
            head = f.read(512)
        return _open_file(path, head)


def _open_file(path: Path, head: bytes) -> Checkpoint:
    if head.startswith((b"PK\3\4", LEGACY)):
        return Checkpoint(path, _torch(path, is_zip=head.startswith(b"PK")), {})
    if head[8:9] == b"{" and path.suffix != ".json":
        return _safetensors(path)
    is_a = next((what for magic, what in STRANGERS.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        is_a = "a tar file (torch before 0.2 wrote such; save it again with a newer one)"
    elif head.startswith(b"\x80"):
        scan = Scan(io.BytesIO(path.read_bytes()[:PICKLE_LIMIT]))
        with suppress(Exception):
            scan.load()
        names = ", ".join(map(quote, scan.names[:8])) or "nothing"
        is_a = f"a plain pickle, not torch's (it asks for {names}; nothing was executed)"
    if path.suffix == ".safetensors" and not is_a and head:
        return _safetensors(path)  # for its more precise complaint
    is_a = is_a or (f"starts with {quote(head[:8])}" if head else "is empty")
    raise ArcError(f"{path} is not a checkpoint: {is_a}", hint=AGAIN)


# ---- folders ------------------------------------------------------------------------------------


def _open_folder(folder: Path) -> Checkpoint:
    found = next(filter(None, (fnmatch.filter(os.listdir(folder), p) for p in FOLDER)), [])
    if len(found) != 1:
        why = f"several weight files and no index: {quote(sorted(found))}" if found else "no weights"
        raise ArcError(f"{folder} holds {why}", hint="name one file, or a folder with an index")
    if not found[0].endswith(".json"):
        only = open_checkpoint(_inside(folder, found[0]))
        return Checkpoint(folder, only.weights().entries, only.metadata)
    index = _json_object(_inside(folder, found[0]).read_bytes())
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise ArcError(f"{folder / found[0]} has no weight_map of names to files")
    shards = {name: open_checkpoint(_inside(folder, name)) for name in sorted({*where.values()})}
    parts = {name: shard.weights().entries for name, shard in shards.items()}
    lost = [name for name, file in where.items() if name not in parts[file]]
    if lost:
        what = f"{len(lost)} tensors of the index are not in their files, first {quote(lost[0])}"
        raise ArcError(f"{folder}: {what}", hint=AGAIN)
    metadata = {k: v for shard in shards.values() for k, v in shard.metadata.items()}
    return Checkpoint(folder, {name: parts[file][name] for name, file in where.items()}, metadata)


def _inside(folder: Path, name: str) -> Path:
    """A member of a folder; its links may end in the folder or in Hugging Face's blobs beside it."""
    member, home = folder / name, folder.resolve()
    if name != member.name or "\\" in name:
        raise ArcError(f"{folder} names a file outside itself: {quote(name)}")
    _contain(member, home)
    return member


def _contain(member: Path, home: Path) -> None:
    real = member.resolve(strict=True)
    up = home.parent.parent if home.parent.name == "snapshots" else home.parent
    if not (real.is_relative_to(home) or real.is_relative_to(up / "blobs")):
        hint = "links may end in the folder itself or in the `blobs` folder of a Hugging Face cache"
        raise ArcError(f"{member} links to {real}, outside its folder", hint=hint)


# ---- safetensors (github.com/huggingface/safetensors, README: Format) ---------------------------


def _safetensors(path: Path) -> Checkpoint:
    with path.open("rb") as f:
        size, length = os.fstat(f.fileno()).st_size, int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        text = f.read(length)
    if not text.startswith(b"{"):
        raise ValueError(f"the header starts with {quote(text[:8])}")
    header = _json_object(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("__metadata__ is not a dict of strings")
    entries, spans = {}, []
    for name, said in header.items():
        entries[name], span = _entry(path, name, said, 8 + length)
        spans.append((*span, name))
    end = 0
    for begin, stop, name in sorted(spans):
        if begin != end:
            what = "overlaps the tensor before it" if begin < end else "leaves a hole before it"
            raise ValueError(f"{quote(name)} at bytes [{begin}, {stop}] {what}")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"the header describes {8 + length + end} bytes, the file has {size}")
    return Checkpoint(path, entries, metadata)


def _entry(path: Path, name: str, said: Any, base: int) -> tuple[Entry, tuple[int, int]]:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{quote(name)} is not described by dtype, shape and data_offsets")
    kind, shape, span = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(kind, str) or kind not in SAFE_DTYPES:
        raise ValueError(f"{quote(name)} has dtype {quote(kind)}, known are {', '.join(SAFE_DTYPES)}")
    if not (_sizes(shape) and len(shape) <= 32 and math.prod(d or 1 for d in shape) < 1 << 48):
        raise ValueError(f"{quote(name)} has shape {quote(shape)}")
    dtype, stored = SAFE_DTYPES[kind]
    if not (_sizes(span) and len(span) == 2):
        raise ValueError(f"{quote(name)} has data_offsets {quote(span)}")
    count, size = math.prod(shape), span[1] - span[0]
    if count * np.dtype(stored).itemsize != size:
        raise ValueError(f"{quote(name)} is {kind} {quote(shape)} in {size} bytes")

    def read() -> np.ndarray:
        with _outside(path):  # not a memmap: if the file shrinks meanwhile, that would be a SIGBUS
            raw = np.fromfile(path, stored, count, offset=base + span[0])
            return _decode(raw.reshape(shape), dtype)

    return Entry(tuple(shape), dtype, read), (span[0], span[1])


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "bool":
        return raw != 0
    with np.errstate(all="ignore"):  # an f64 may become inf; check_finite tells
        wide = np.float32 if raw.dtype.kind == "f" else raw.dtype.newbyteorder("=")
        return raw.astype(wide, copy=False)


# ---- torch --------------------------------------------------------------------------------------


def _torch(path: Path, *, is_zip: bool) -> dict[str, Any]:
    """The dicts of a torch file. weights_only always; see the module's first lines."""
    try:
        import torch
    except ImportError as e:
        raise ArcError(f"{path} needs torch", hint='pip install "arcompile[build]"') from e
    _check_zip(path) if is_zip else _check_legacy(path)
    # MAR keeps its command line, an argparse.Namespace, in the file: plain data
    allowed = torch.serialization.safe_globals([argparse.Namespace])
    with warnings.catch_warnings(), allowed:
        warnings.simplefilter("ignore")
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(held, dict):
        raise ArcError(f"{path} holds a {type(held).__name__}, not a dict of tensors")
    limit, seen = path.stat().st_size + EXPAND_LIMIT, dict[int, dict[str, Any]]()

    def tree(node: dict[Any, Any]) -> dict[str, Any]:
        if id(node) not in seen:
            out = seen[id(node)] = {}
            for k, v in node.items():
                is_leaf = not isinstance(v, dict)
                out[str(k)] = tree(v) if not is_leaf else _torch_entry(path, v, limit)
        return seen[id(node)]

    return tree(held)


def _torch_entry(path: Path, value: Any, limit: int) -> Entry | None:
    import torch

    if not isinstance(value, torch.Tensor):
        return None
    # a plain tensor: a pickle may have hung attributes on a Parameter that shadow its methods
    plain = torch.Tensor.detach(value)
    dtype = str(plain.dtype).removeprefix("torch.")
    for long, short in (("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c")):
        dtype = dtype.replace(long, short)

    def read() -> np.ndarray:
        with _outside(path):
            if 4 * plain.numel() > limit:  # one element and stride 0 can claim terabytes
                raise ValueError(f"a tensor {quote(tuple(plain.shape))} out of {limit} bytes")
            wide = torch.float32 if plain.is_floating_point() else plain.dtype
            owned = plain.to(wide, copy=True, memory_format=torch.contiguous_format)
            return owned.resolve_conj().resolve_neg().numpy()

    return Entry(tuple(plain.shape), dtype, read)


class Inert:
    """Stands in for every global a pickle names; it takes what it is given and does nothing."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


class Scan(pickle._Unpickler):
    """Walks a pickle among inert globals, for what torch.load (2.13) does not check.

    Its mmap mode believes the size a pickle states for a storage, and tensors then overlap; a dict
    key of a million nested tuples overflows the C stack in hash().
    In Python, because the memo of the C unpickler is an array as long as the file demands.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.names: list[str] = []
        self.storages: dict[str, int] = {}
        self.depths: dict[int, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        self.names.append(f"{module}.{name}")
        return type("Inert", (Inert,), {"name": name})

    def persistent_load(self, pid: Any) -> Any:
        kind, key, _, count = pid[1:5]
        unit = STORAGE_BYTES[kind.name.removesuffix("Storage")]
        if type(count) is not int or count < 0:
            raise ValueError(f"storage {quote(key)} has {quote(count)} elements")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), count * unit)
        return Inert()

    def load_build_tuple(self, load: Callable[[Any], None]) -> None:
        load(self)
        made = self.stack[-1]
        inner = (self.depths.get(id(x), 0) for x in made if type(x) is tuple)
        self.depths[id(made)] = 1 + max(inner, default=0)
        if self.depths[id(made)] > TUPLE_LIMIT:
            raise ValueError(f"tuples nested deeper than {TUPLE_LIMIT}")
