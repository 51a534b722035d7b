"""The engine folder: manifest.json, program.json, graphs, weights. Checked before it is used."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arcompile.errors import ArcError

FORMAT = 1
RUN = (".arc", ".onnx")  # files that a target may take for a graph
MANIFEST = "manifest.json"
LIGHT = "light.json"  # names of graphs that get one thread: see arcompile.light
PIECE = 32 << 20  # bytes
MAX_MANIFEST = 16 << 20  # bytes of JSON we agree to parse
_FIELDS = {"format": int, "family": str, "target": str, "dtype": str, "passes": list, "key": str,
           "files": dict, "info": dict, "defaults": dict, "tools": dict,
           "vocabulary": int}


def read_json(path: Path, what: str) -> Any:
    """Parse one JSON file of the engine. Raises ArcError."""
    try:
        if path.stat().st_size > MAX_MANIFEST:
            raise ArcError(f"{what} {path} is larger than {MAX_MANIFEST} bytes")
        return json.loads(path.read_bytes().decode("utf-8-sig"), parse_constant=_no_number)
    except FileNotFoundError:
        hint = "give an engine folder, as written by arcompile build"
        raise ArcError(f"no {what} at {path}", hint=hint) from None
    except OSError as e:
        raise ArcError(f"cannot read {what} {path}: {e.strerror}") from None
    except (ValueError, RecursionError):
        raise ArcError(f"{what} {path} is not JSON", hint="rebuild the engine") from None


def words(path: Path, what: str) -> list[str]:
    """A file that is a list of words; none where there is no such file. Raises ArcError."""
    found = read_json(path, what) if path.exists() else []
    if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
        raise ArcError(f"the {what} of {path.parent} are not all words", hint="rebuild the engine")
    return found


def _no_number(word: str) -> Any:
    """NaN and infinities, which Python reads and JSON has not."""
    raise ValueError(word)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with every field of its type. Raises ArcError."""
    found = read_json(folder / MANIFEST, "engine manifest")
    if not isinstance(found, dict):
        raise ArcError(f"the manifest of {folder} is not an object", hint="rebuild the engine")
    if isinstance(found.get("format"), int) and found["format"] > FORMAT:
        raise ArcError(f"engine format {found['format']} is newer than this arcompile ({FORMAT})",
                       hint="upgrade arcompile, or rebuild the engine")
    for name, kind in _FIELDS.items():
        if not isinstance(found.get(name), kind) or isinstance(found[name], bool):
            raise ArcError(f"the manifest of {folder} has no valid {name!r}",
                           hint="rebuild the engine")
    if not 0 <= found["vocabulary"] < 1 << 31:
        raise ArcError(f"the manifest of {folder} has a vocabulary of {found['vocabulary']}",
                       hint="rebuild the engine")
    return found


def verify(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Every listed file is there, plain, and byte for byte what was written, and nothing beside
    them is what a target would run. Raises ArcError."""
    intact(folder, manifest["files"])
    listed = {*manifest["files"], MANIFEST}
    if "program.json" not in listed:
        raise ArcError(f"the manifest of {folder} does not list program.json")
    strange = sorted(p.name for p in folder.iterdir() if p.suffix in RUN and p.name not in listed)
    if strange:
        raise ArcError(f"{strange[0]} is in {folder}, but its manifest does not list it",
                       hint="somebody put it there: take it out, or build the engine again")


def intact(folder: Path, files: Mapping[str, Any]) -> None:
    """These of the listed files are there, plain, and what was written. Raises ArcError."""
    for name, said in files.items():
        if not isinstance(said, dict) or not _plain(name):
            raise ArcError(f"the manifest of {folder} lists an impossible file {name!r}")
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ArcError(f"engine file {name} is missing from {folder}",
                           hint="rebuild the engine")
        if path.stat().st_size != said.get("bytes"):
            raise ArcError(f"engine file {name} has {path.stat().st_size} bytes, "
                           f"expected {said.get('bytes')}", hint="rebuild the engine")
        if not _intact(path, said):
            raise ArcError(f"engine file {name} is not what was built: its sha256 differs",
                           hint="rebuild the engine, or copy it again")


def _plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and Path(name).name == name and "\0" not in name


def sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def pieces(path: Path) -> list[str]:
    """sha256 of each PIECE bytes: hashed by all cores at once, since one digest takes one core."""

    size = path.stat().st_size
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)  # no copies: page faults would cost more than the digest

        def digest(at: int) -> str:
            with view[at : at + PIECE] as piece:
                return hashlib.sha256(piece).hexdigest()

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = list(pool.map(digest, range(0, size, PIECE)))
        view.release()
    return found


def entry(path: Path) -> dict[str, Any]:
    """What the manifest says of one file."""
    said: dict[str, Any] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return said | ({"pieces": pieces(path)} if said["bytes"] > PIECE else {})


def _intact(path: Path, said: Mapping[str, Any]) -> bool:
    if said["bytes"] > PIECE and isinstance(said.get("pieces"), list):
        return pieces(path) == said["pieces"]
    return sha256(path) == said.get("sha256")


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `out` when the block ends well, and vanishes otherwise.

    An engine that is already there stays until the new one is whole. Raises ArcError when `out` is
    something else than an engine, or when it cannot be written.
    """
    if out.exists() and not (out / MANIFEST).is_file() and (out.is_file() or any(out.iterdir())):
        raise ArcError(f"{out} exists and is not an engine", hint="choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sweep(out)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", dir=out.parent))
    except OSError as e:
        raise ArcError(f"cannot write next to {out}: {e.strerror}",
                       hint="choose another folder with -o") from None
    try:
        yield made
        made.chmod(0o755)
        _swap(made, out)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ArcError(f"no space left on the disk of {out}", hint="free some space") from None
        raise ArcError(f"cannot write {out}: {e.strerror or e}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep(out: Path) -> None:
    """Remove what killed builds of this folder left."""
    for old in out.parent.glob(f".{out.name}.*.*"):
        pid = old.name[len(out.name) + 2 :].split(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(old, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _swap(made: Path, out: Path) -> None:
    """Put `made` in the place of `out`; in one step where the system can exchange two names."""
    if not out.exists():
        made.rename(out)
        return
    if _exchange(made, out):
        return  # the earlier engine now has the temporary name, which the caller removes
    old = made.with_name(made.name + ".old")
    out.rename(old)
    made.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    with suppress(OSError, AttributeError):
        call: Callable[..., int] = ctypes.CDLL(None, use_errno=True).renameat2
        at_cwd, exchange = -100, 2
        return call(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0
    return False
