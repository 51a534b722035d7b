"""Published checkpoints, opened without trusting them.

A torch file, a safetensors file or a Hugging Face folder becomes a Checkpoint: names, shapes and
dtypes at once, values one tensor at a time. Nothing a file says is executed, and whatever is wrong
with it is one ArcError.
"""
from __future__ import annotations

import difflib
import fnmatch
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import MACHINE, ArcError

AGAIN = "download it again and compare its size or sha256 with the publisher's"
HEADER_LIMIT = 100_000_000  # bytes of JSON; the limit of the safetensors package
# safetensors' name of a dtype -> ours, and how numpy reads the bytes
SAFE_DTYPES = {
    "F64": ("f64", "<f8"), "F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2"),
    "I64": ("i64", "<i8"), "I32": ("i32", "<i4"), "I16": ("i16", "<i2"), "I8": ("i8", "|i1"),
    "U64": ("u64", "<u8"), "U32": ("u32", "<u4"), "U16": ("u16", "<u2"), "U8": ("u8", "|u1"),
    "BOOL": ("bool", "|u1"),
}
STRANGERS = {
    b"version https://git-lfs": "a git-lfs pointer (run `git lfs pull`)", b"<": "a web page",
    b"\x89PNG": "a PNG picture", b"\xff\xd8": "a JPEG picture", b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip file", b"{": "a JSON file",
}
# What a folder is searched for, in this order: one file, or an index of several.
FOLDER = ("model.safetensors", "*.safetensors.index.json", "*.safetensors",
          "pytorch_model.bin", "*.bin.index.json", "pytorch_model*.bin")


class Bad(Exception):
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
        near = ", ".join(map(quote, difflib.get_close_matches(name, self)))
        hint = near and f"did you mean {near}?"
        raise ArcError(f"{self.source} has no tensor {quote(name)}", hint=hint)

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name].shape

    def dtype(self, name: str) -> str:
        return self[name].dtype

    def load(self, name: str) -> np.ndarray:
        """Floats as float32, C-contiguous, owned by the caller."""
        entry = self[name]
        with outside(f"{self.source}: {quote(name)}"):
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
            raise ArcError(f"{self.source}: names collide without the prefix {quote(prefix)}")
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
        asked = " or ".join(quote(c) if c else "the file itself" for c in containers or ("",))
        held = "; ".join(_describe(k, v) for k, v in list(self.tree.items())[:20]) or "nothing"
        raise ArcError(f"{self.path} has no weights in {asked}", hint=f"it holds {held}")


def _describe(key: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"{quote(key)} ({'a tensor' if value else 'not a tensor'})"
    count = sum(isinstance(e, Entry) for e in value.values())
    return f"{quote(key)} ({count} tensors; keys {', '.join(map(quote, list(value)[:4]))}, ...)"


def quote(name: object) -> str:
    """A text that a file chose, safe to print: one line, no control characters, bounded."""
    text = repr(name)
    return text if len(text) <= 120 else text[:117] + "..."


@contextmanager
def outside(source: object) -> Iterator[None]:
    """Makes an ArcError of whatever a broken or hostile file provokes in the code that reads it.

    Every exception: zipfile and torch raise a dozen types on flipped bytes.
    """
    try:
        yield
    except ArcError:
        raise
    except Bad as e:
        raise ArcError(f"{source}: {e}", hint=AGAIN) from None
    except OSError as e:
        hint = "check the path and its permissions"
        raise ArcError(f"cannot read {source}: {e.strerror or e}", hint=hint) from e
    except MemoryError as e:
        raise ArcError(f"cannot read {source}: not enough memory ({e})", code=MACHINE) from e
    except Exception as e:
        if wanted := re.search(r"GLOBAL (\S+)", str(e)):
            hint = "take a .safetensors version of it, or convert it where you trust its author"
            what = f"asks for {quote(wanted[1])}, which could run code; nothing was executed"
            raise ArcError(f"{source} {what}", hint=hint) from e
        # torch adds the advice to set weights_only=False; that is not passed on
        said = str(e).split("WeightsUnpickler error:")[-1].split("In PyTorch 2.6")[0].strip()
        why = f"{type(e).__name__}: {quote(said.partition(chr(10))[0])}"
        raise ArcError(f"{source} is damaged or not a checkpoint ({why})", hint=AGAIN) from e


# ---- files and folders ---------------------------------------------------------------------------


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens .pt .pth .ckpt .bin (torch), .safetensors, or a Hugging Face folder, by content."""
    path = Path(path)
    with outside(path):
        if path.is_dir():
            return _open_folder(path)
        if path.exists() and not path.is_file():
            raise Bad("not a regular file")  # opening a pipe would block
        with path.open("rb") as f:
            head = f.read(512)
        if not head:
            raise Bad("the file is empty")
        from arcompile.torch_file import LEGACY, read_torch

        if head.startswith((b"PK\3\4", LEGACY)):
            return Checkpoint(path, read_torch(path, is_zip=head.startswith(b"PK")), {})
        if head[8:9] == b"{" or (path.suffix == ".safetensors" and not _stranger(head)):
            return _safetensors(path)
        raise Bad(f"not a checkpoint, {_stranger(head) or f'it starts with {quote(head[:8])}'}")


def _stranger(head: bytes) -> str:
    """What a file that is no checkpoint may be."""
    if head[257:262] == b"ustar":
        return "a tar file (torch before 0.2; save it again with a newer one)"
    if head.startswith(b"\x80"):
        from arcompile.torch_file import Scan

        scan = Scan(io.BytesIO(head))
        with suppress(Exception):  # 512 bytes may end early; the names are what is wanted
            scan.load()
        names = ", ".join(map(quote, scan.names)) or "nothing"
        return f"a plain pickle (it asks for {names}; nothing was executed)"
    return next((what for magic, what in STRANGERS.items() if head.startswith(magic)), "")


def _open_folder(folder: Path) -> Checkpoint:
    found = next(filter(None, (fnmatch.filter(os.listdir(folder), p) for p in FOLDER)), [])
    if len(found) != 1:
        why = f"several weight files: {quote(sorted(found))}" if found else "no weights"
        hint = "name one file, or a folder with an index"
        raise ArcError(f"{folder} holds {why}", hint=hint)
    if not found[0].endswith(".json"):
        only = open_checkpoint(_member(folder, found[0]))
        return Checkpoint(folder, only.weights(), only.metadata)
    where = _json_object(_member(folder, found[0]).read_bytes()).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(v, str) for v in where.values()):
        raise Bad(f"{found[0]} has no weight_map of names to files")
    shards = {file: open_checkpoint(_member(folder, file)) for file in sorted({*where.values()})}
    parts = {file: shard.weights() for file, shard in shards.items()}
    lost = [name for name, file in where.items() if name not in parts[file]]
    if lost:
        raise Bad(f"{len(lost)} tensors of the index are not in their files, as {quote(lost[0])}")
    metadata = {k: v for shard in shards.values() for k, v in shard.metadata.items()}
    return Checkpoint(folder, {name: parts[file][name] for name, file in where.items()}, metadata)


def _member(folder: Path, name: str) -> Path:
    if not name or name != Path(name).name or "\\" in name or (folder / name).is_dir():
        raise Bad(f"{quote(name)} is no file of this folder")
    return contained(folder / name, folder.resolve())


def contained(member: Path, home: Path) -> Path:
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
                raise Bad(f"key {quote(key)} appears {times} times")
        return dict(pairs)

    if len(text) > HEADER_LIMIT:
        raise Bad(f"{len(text)} bytes of JSON, the limit is {HEADER_LIMIT}")
    value = json.loads(text.decode(), object_pairs_hook=unique)
    if not isinstance(value, dict):
        raise Bad("its JSON is not an object")
    return value


def _safetensors(path: Path) -> Checkpoint:
    """Format: github.com/huggingface/safetensors#format."""
    with path.open("rb") as f:
        size, length = os.fstat(f.fileno()).st_size, int.from_bytes(f.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise Bad(f"a header of {length} bytes in a file of {size} (truncated?)")
        text = f.read(length)
    if not text.startswith(b"{"):
        raise Bad(f"the header starts with {quote(text[:8])}")
    header = _json_object(text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Bad("__metadata__ is not a dict of strings")
    entries, spans = {}, []
    for name, said in header.items():
        entries[name], begin, end = _safe_entry(path, name, said, 8 + length)
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            raise Bad(f"{quote(name)} at bytes [{begin}, {end}] {what}")
        at = end
    if 8 + length + at != size:
        raise Bad(f"the header describes {8 + length + at} bytes, the file has {size}")
    return Checkpoint(path, entries, metadata)


def _safe_entry(path: Path, name: str, said: Any, base: int) -> tuple[Entry, int, int]:
    if not isinstance(said, dict) or said.keys() != {"dtype", "shape", "data_offsets"}:
        raise Bad(f"{quote(name)} is not described by dtype, shape and data_offsets")
    kind, shape, span = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(kind, str) or kind not in SAFE_DTYPES:
        raise Bad(f"{quote(name)} has dtype {quote(kind)}, known: {', '.join(SAFE_DTYPES)}")
    # numpy stops at 64 axes and, even when one is 0, at 2**63 bytes
    if not _sizes(shape) or len(shape) > 32 or math.prod(d or 1 for d in shape) > 1 << 48:
        raise Bad(f"{quote(name)} has shape {quote(shape)}")
    if not _sizes(span) or len(span) != 2:
        raise Bad(f"{quote(name)} has data_offsets {quote(span)}")
    dtype, stored = SAFE_DTYPES[kind]
    (begin, end), count = span, math.prod(shape)
    if count * np.dtype(stored).itemsize != end - begin:
        raise Bad(f"{quote(name)} is {kind} {quote(shape)} in {end - begin} bytes")

    def read() -> np.ndarray:  # not a memmap: a file that shrinks meanwhile would be a SIGBUS
        raw = np.fromfile(path, stored, count, offset=base + begin)
        if raw.size != count:
            raise Bad("the file became shorter since it was opened")
        return _decode(raw.reshape(shape), dtype)

    return Entry(tuple(shape), dtype, read), begin, end


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "bool":
        return raw.astype(np.bool_)
    with np.errstate(all="ignore"):  # an f64 may become inf; check_finite tells
        wide = np.dtype(np.float32) if raw.dtype.kind == "f" else raw.dtype.newbyteorder("=")
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
    lines = [f"misshapen {quote(n)}: {weights.shape(n)}, expected {expected[n]}" for n in bent]
    for i, n in enumerate(missing):  # difflib takes 40 ms a name among 1000
        near = difflib.get_close_matches(n, extra or weights) if i < 50 else []
        tail = f", near {', '.join(map(quote, near))}" if near else ""
        lines.append(f"missing {quote(n)} {expected[n]}{tail}")
    lines += [f"unexpected {quote(n)} {weights.shape(n)}" for n in extra]
    counts = f"{len(missing)} missing, {len(bent)} misshapen, {len(extra)} unexpected"
    wrong = f"{weights.source} is not {what}: {counts} of {len(expected)}"
    hint = "is it the right file, family and container?"
    raise ArcError(wrong, hint=hint, details="\n".join(lines))


def check_finite(name: str, array: np.ndarray) -> None:
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        nan, inf = int(np.isnan(array).sum()), int(np.isinf(array).sum())
        raise ArcError(f"{quote(name)} has {nan} NaN and {inf} inf of {array.size}", hint=AGAIN)
