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
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcompile.errors import MACHINE, ArcError

AGAIN = "download it again and compare its size or sha256 with the publisher's"
HEADER_LIMIT = 100_000_000  # bytes of JSON; the limit of the safetensors package
PICKLE_LIMIT = 1 << 25  # bytes; 340 tensors need 56 kB
RECORD_LIMIT = 1 << 20  # records of a torch zip; one per storage
TUPLE_LIMIT = 1 << 12  # items of a tuple and the tuples in it; torch's own have a dozen
EXPAND_LIMIT = 1 << 28  # bytes a stride-0 tensor may take beyond the size of its file
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
STRANGERS = {
    b"version https://git-lfs": "a git-lfs pointer (run `git lfs pull`)", b"<": "a web page",
    b"\x89PNG": "a PNG picture", b"\xff\xd8": "a JPEG picture", b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip file", b"{": "a JSON file",
}  # fmt: skip
# What a folder is searched for, in this order: one file, or an index of several.
FOLDER = ("model.safetensors", "*.safetensors.index.json", "*.safetensors",
          "pytorch_model.bin", "*.bin.index.json", "pytorch_model*.bin")  # fmt: skip


class _Bad(Exception):
    """What a file says cannot be."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, not yet read."""

    shape: tuple[int, ...]
    dtype: str  # as stored: f32, bf16, i64, ...
    read: Callable[[], np.ndarray]


class Weights(dict[str, Entry]):
    """Named tensors of one container; only `load` reads one."""

    def __init__(self, source: str, entries: Mapping[str, Entry]) -> None:
        super().__init__(entries)
        self.source = source

    def __missing__(self, name: str) -> Entry:
        near = ", ".join(map(_quote, difflib.get_close_matches(name, self)))
        hint = near and f"did you mean {near}?"
        raise ArcError(f"{self.source} has no tensor {_quote(name)}", hint=hint)

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def dtype(self, name: str) -> str:
        return self[name].dtype

    def load(self, name: str) -> np.ndarray:
        """Floats as float32, C-contiguous, owned by the caller."""
        entry = self[name]
        with _outside(f"{self.source}: {_quote(name)}"):
            return entry.read()

    def drop(self, *names: str) -> Weights:
        """Without these names; one that ends in `.` stands for all that start with it."""
        dots = tuple(n for n in names if n.endswith("."))
        kept = {k: e for k, e in self.items() if k not in names and not k.startswith(dots)}
        return Weights(self.source, kept)

    def strip(self, prefix: str) -> Weights:
        """`_orig_mod.x` -> `x`; names without the prefix stay as they are."""
        out = Weights(self.source, {k.removeprefix(prefix): e for k, e in self.items()})
        if len(out) != len(self):
            raise ArcError(f"{self.source}: names collide without the prefix {_quote(prefix)}")
        return out


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
        asked = " or ".join(_quote(c) if c else "the file itself" for c in containers or ("",))
        held = "; ".join(_describe(k, v) for k, v in list(self.tree.items())[:20]) or "nothing"
        raise ArcError(f"{self.path} has no weights in {asked}", hint=f"it holds {held}")


def _describe(key: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{_quote(key)} ({'a tensor' if value else 'not a tensor'})"
    count = sum(isinstance(e, Entry) for e in value.values())
    return f"{_quote(key)} ({count} tensors; keys {', '.join(map(_quote, list(value)[:4]))}, ...)"


def _quote(name: object) -> str:
    """A text that a file chose, safe to print: one line, no control characters, bounded."""
    text = repr(name)
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def _outside(source: object) -> Iterator[None]:
    """Makes an ArcError of whatever a broken or hostile file provokes in the code that reads it.

    Every exception: zipfile and torch raise a dozen types on flipped bytes.
    """
    try:
        yield
    except ArcError:
        raise
    except _Bad as e:
        raise ArcError(f"{source}: {e}", hint=AGAIN) from None
    except OSError as e:
        hint = "check the path and its permissions"
        raise ArcError(f"cannot read {source}: {e.strerror or e}", hint=hint) from e
    except Exception as e:
        if wanted := re.search(r"GLOBAL (\S+)", str(e)):
            hint = "take a .safetensors version of it, or convert it where you trust its author"
            what = f"asks for {_quote(wanted[1])}, which could run code; nothing was executed"
            raise ArcError(f"{source} {what}", hint=hint) from e
        # torch adds the advice to set weights_only=False; that is not passed on
        said = str(e).split("WeightsUnpickler error:")[-1].split("In PyTorch 2.6")[0].strip()
        why = f"{type(e).__name__}: {_quote(said.partition(chr(10))[0])}"
        raise ArcError(f"{source} is damaged or not a checkpoint ({why})", hint=AGAIN) from e


# ---- files and folders ---------------------------------------------------------------------------


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens .pt .pth .ckpt .bin (torch), .safetensors, or a Hugging Face folder, by content."""
    path = Path(path)
    with _outside(path):
        if path.is_dir():
            return _open_folder(path)
        if path.exists() and not path.is_file():
            raise _Bad("not a regular file")  # opening a pipe would block
        with path.open("rb") as f:
            head = f.read(512)
        if not head:
            raise _Bad("the file is empty")
        if head.startswith((b"PK\3\4", LEGACY)):
            return Checkpoint(path, _torch(path, is_zip=head.startswith(b"PK")), {})
        if head[8:9] == b"{" or (path.suffix == ".safetensors" and not _stranger(head)):
            return _safetensors(path)
        raise _Bad(f"not a checkpoint, {_stranger(head) or f'it starts with {_quote(head[:8])}'}")


def _stranger(head: bytes) -> str:
    """What a file that is no checkpoint may be."""
    if head[257:262] == b"ustar":
        return "a tar file (torch before 0.2; save it again with a newer one)"
    if head.startswith(b"\x80"):
        scan = _Scan(io.BytesIO(head))
        with suppress(Exception):  # 512 bytes may end early; the names are what is wanted
            scan.load()
        names = ", ".join(map(_quote, scan.names)) or "nothing"
        return f"a plain pickle (it asks for {names}; nothing was executed)"
    return next((what for magic, what in STRANGERS.items() if head.startswith(magic)), "")


def _open_folder(folder: Path) -> Checkpoint:
    found = next(filter(None, (fnmatch.filter(os.listdir(folder), p) for p in FOLDER)), [])
    if len(found) != 1:
        why = f"several weight files: {_quote(sorted(found))}" if found else "no weights"
        hint = "name one file, or a folder with an index"
        raise ArcError(f"{folder} holds {why}", hint=hint)
    if not found[0].endswith(".json"):
        only = open_checkpoint(_member(folder, found[0]))
        return Checkpoint(folder, only.weights(), only.metadata)
    where = _json_object(_member(folder, found[0]).read_bytes()).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise _Bad(f"{found[0]} has no weight_map of names to files")
    shards = {file: open_checkpoint(_member(folder, file)) for file in sorted({*where.values()})}
    parts = {file: shard.weights() for file, shard in shards.items()}
    lost = [name for name, file in where.items() if name not in parts[file]]
    if lost:
        raise _Bad(f"{len(lost)} tensors of the index are not in their files, as {_quote(lost[0])}")
    metadata = {k: v for shard in shards.values() for k, v in shard.metadata.items()}
    return Checkpoint(folder, {name: parts[file][name] for name, file in where.items()}, metadata)


def _member(folder: Path, name: str) -> Path:
    if not name or name != Path(name).name or "\\" in name or (folder / name).is_dir():
        raise _Bad(f"{_quote(name)} is no file of this folder")
    return _contained(folder / name, folder.resolve())


def _contained(member: Path, home: Path) -> Path:
    """`member`, if it is in `home` or a link into Hugging Face's snapshots/../blobs."""
    real = member.resolve(strict=True)
    blobs = (home.parent.parent if home.parent.name == "snapshots" else home.parent) / "blobs"
    if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
        hint = "links may end in the folder itself or in the `blobs` of a Hugging Face cache"
        raise ArcError(f"{member} links to {real}, outside its folder", hint=hint)
    return member


def _json_object(text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, times in Counter(key for key, _ in pairs).items():
            if times > 1:
                raise _Bad(f"key {_quote(key)} appears {times} times")
        return dict(pairs)

    if len(text) > HEADER_LIMIT:
        raise _Bad(f"{len(text)} bytes of JSON, the limit is {HEADER_LIMIT}")
    value = json.loads(text.decode(), object_pairs_hook=unique)
    if not isinstance(value, dict):
        raise _Bad("its JSON is not an object")
    return value


def _safetensors(path: Path) -> Checkpoint:
    """Format: github.com/huggingface/safetensors#format."""
    with path.open("rb") as f:
        size, length = os.fstat(f.fileno()).st_size, int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise _Bad(f"a header of {length} bytes in a file of {size} (truncated?)")
        text = f.read(length)
    if not text.startswith(b"{"):
        raise _Bad(f"the header starts with {_quote(text[:8])}")
    header = _json_object(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Bad("__metadata__ is not a dict of strings")
    entries, spans = {}, []
    for name, said in header.items():
        entries[name], begin, end = _safe_entry(path, name, said, 8 + length)
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise _Bad(f"{_quote(name)} at bytes [{begin}, {end}] {what}")
        at = end
    if 8 + length + at != size:
        raise _Bad(f"the header describes {8 + length + at} bytes, the file has {size}")
    return Checkpoint(path, entries, metadata)


def _safe_entry(path: Path, name: str, said: Any, base: int) -> tuple[Entry, int, int]:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Bad(f"{_quote(name)} is not described by dtype, shape and data_offsets")
    kind, shape, span = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(kind, str) or kind not in SAFE_DTYPES:
        raise _Bad(f"{_quote(name)} has dtype {_quote(kind)}, known: {', '.join(SAFE_DTYPES)}")
    # numpy stops at 64 axes and, even when one is 0, at 2**63 bytes
    if not _sizes(shape) or len(shape) > 32 or math.prod(d or 1 for d in shape) > 1 << 48:
        raise _Bad(f"{_quote(name)} has shape {_quote(shape)}")
    if not _sizes(span) or len(span) != 2:
        raise _Bad(f"{_quote(name)} has data_offsets {_quote(span)}")
    dtype, stored = SAFE_DTYPES[kind]
    (begin, end), count = span, math.prod(shape)
    if count * np.dtype(stored).itemsize != end - begin:
        raise _Bad(f"{_quote(name)} is {kind} {_quote(shape)} in {end - begin} bytes")

    def read() -> np.ndarray:  # not a memmap: a file that shrinks meanwhile would be a SIGBUS
        raw = np.fromfile(path, stored, count, offset=base + begin)
        if raw.size != count:
            raise _Bad("the file became shorter since it was opened")
        return _decode(raw.reshape(shape), dtype)

    return Entry(tuple(shape), dtype, read), begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "bool":
        return raw != 0
    with np.errstate(all="ignore"):  # an f64 may become inf; check_finite tells
        wide: np.dtype[Any] = np.dtype(np.float32) if raw.dtype.kind == "f" else raw.dtype.newbyteorder("=")
        return raw.astype(wide, copy=False)


def match(
    weights: Weights,
    expected: Mapping[str, tuple[int, ...]],
    *,
    ignore: Iterable[str] = (),
    what: str = "this model",
) -> None:
    """One ArcError for all that is missing, misshapen, or there and not in `ignore` (fnmatch)."""
    missing = [n for n in expected if n not in weights]
    bent = [n for n in expected if n in weights and weights.shape(n) != tuple(expected[n])]
    known = {*expected, *(n for p in ignore for n in fnmatch.filter(weights, p))}
    extra = [n for n in weights if n not in known]
    if not (missing or bent or extra):
        return
    lines = [f"misshapen {_quote(n)}: {weights.shape(n)}, expected {expected[n]}" for n in bent]
    for i, n in enumerate(missing):  # difflib takes 40 ms a name among 1000
        near = difflib.get_close_matches(n, extra or weights) if i < 50 else []
        tail = f", near {', '.join(map(_quote, near))}" if near else ""
        lines.append(f"missing {_quote(n)} {expected[n]}{tail}")
    lines += [f"unexpected {_quote(n)} {weights.shape(n)}" for n in extra]
    counts = f"{len(missing)} missing, {len(bent)} misshapen, {len(extra)} unexpected"
    wrong = f"{weights.source} is not {what}: {counts} of {len(expected)}"
    hint = "is it the right file, family and container?"
    raise ArcError(wrong, hint=hint, details="\n".join(lines))


def check_finite(name: str, array: np.ndarray) -> None:
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        raise ArcError(f"{_quote(name)} has {nan} NaN and {inf} inf of {array.size}", hint=AGAIN)


# ---- torch files ---------------------------------------------------------------------------------


def _torch(path: Path, *, is_zip: bool) -> dict[str, Any]:
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
        raise _Bad(f"holds a {type(held).__name__}, not a dict of tensors")
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
            raise _Bad(f"shape {_quote(tuple(plain.shape))} is more than the file can hold")
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
        raise _Bad(f"truncated or damaged: it starts as a torch zip, but {e}") from None
    with archive:
        found, at = sorted(archive.infolist(), key=lambda r: r.header_offset), 0
        for r in found:
            if r.compress_type or r.flag_bits & 1 or r.file_size != r.compress_size:
                raise _Bad(f"record {_quote(r.filename)} is compressed, encrypted or mis-sized")
            if r.header_offset < at:
                raise _Bad(f"record {_quote(r.filename)} overlaps the one before it")
            at = r.header_offset + 30 + len(r.filename.encode()) + r.file_size
        records = {r.filename.partition("/")[2]: r for r in found}
        if at > size or len(records) != len(found) or len(found) > RECORD_LIMIT:
            raise _Bad(f"{len(found)} records end at byte {at} of {size}, or share names")
        if "constants.pkl" in records or "data.pkl" not in records:
            raise _Bad("a TorchScript archive or other zip, not a state dict")
        scan = _Scan(io.BytesIO(archive.read(records["data.pkl"])))
    scan.load()
    for key, length in scan.storages.items():
        real = records[f"data/{key}"].file_size if f"data/{key}" in records else -1
        if not length <= real < length + 16:  # storages of views may have a ragged end
            raise _Bad(f"storage {_quote(key)} claims {length} bytes, its record has {real}")


def _check_legacy(path: Path, size: int) -> None:
    with path.open("rb") as f:
        scan = _Scan(io.BytesIO(f.read(PICKLE_LIMIT)))
    for _ in range(4):  # magic, protocol, system, and the object
        scan.load()
    claimed = sum(scan.storages.values())
    if claimed > size:
        raise _Bad(f"storages claim {claimed} bytes in a file of {size} (truncated?)")


class _Inert:
    """Stands in for every global a pickle names; it takes what it is given and does nothing."""

    name = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...


def _bounded(load_tuple: Callable[[Any], None]) -> Callable[[Any], None]:
    def checked(scan: _Scan) -> None:
        load_tuple(scan)
        made = scan.stack[-1]
        size = len(made) + sum(scan.sizes[id(x)] for x in made if type(x) is tuple and x)
        if size > TUPLE_LIMIT:
            raise _Bad(f"nests tuples of {size} items, the limit is {TUPLE_LIMIT}")
        scan.sizes[id(made)] = size

    return checked


class _Scan(pickle._Unpickler):
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
            raise _Bad(f"storage {_quote(key)} has {_quote(count)} elements")
        self.storages[str(key)] = max(self.storages.get(str(key), 0), count * unit)
        return _Inert()


# ---- digests -------------------------------------------------------------------------------------


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, or of a folder's sorted names and digests (dot files left out).

    Remembered by real path, size, mtime and inode in `$ARC_CACHE` or the user's cache folder.
    """
    path, memo = Path(path), _remembered()
    known = dict(memo)
    with _outside(path):
        if path.is_dir():
            all_ = sorted((f.relative_to(path).as_posix(), _sha256(f, memo)) for f in _files(path))
            text = "".join(f"{name}\0{sha}\n" for name, sha in all_)
            result = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
        else:
            result = _sha256(path, memo)
    if memo != known:
        _remember(memo)
    return result


def _files(folder: Path, home: Path | None = None) -> Iterator[Path]:
    home = home or folder.resolve()
    for member in folder.iterdir():
        if member.name.startswith("."):
            continue
        _contained(member, home)
        if member.is_dir() and member.is_symlink():
            raise ArcError(f"{member} links to a folder", hint="name that folder itself")
        if member.is_dir():
            yield from _files(member, home)
        else:
            yield member


def _sha256(path: Path, memo: dict[str, str]) -> str:
    s = path.stat()
    if not path.is_file():
        raise _Bad("not a regular file")
    key = f"{os.path.realpath(path)}|{s.st_size}|{s.st_mtime_ns}|{s.st_ino}"
    if key not in memo:
        with path.open("rb", buffering=0) as f:
            memo[key] = hashlib.file_digest(f, "sha256").hexdigest()
    return memo[key]


def _cache() -> Path:
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("ARC_CACHE") or Path(user, "arcompile"), "digests.json")


def _remembered() -> dict[str, str]:
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        items = json.loads(_cache().read_text()).items()
        return {k: v for k, v in items if re.fullmatch("[0-9a-f]{64}", str(v))}
    return {}


def _remember(memo: dict[str, str]) -> None:
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        file = _cache()
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as f:
            json.dump(dict(list(memo.items())[-4096:]), f)
        os.replace(f.name, file)
