"""sha256 of checkpoints, remembered, so that a second build need not read gigabytes again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from arcompile.checkpoint import Bad, contained, outside
from arcompile.errors import ArcError


def digest(path: str | os.PathLike[str]) -> str:
    """sha256 of a file, or of a folder's sorted names and digests (dot files left out).

    Remembered by real path, size, mtime and inode in `$ARC_CACHE` or the user's cache folder.
    """
    path, memo = Path(path), _remembered()
    known = dict(memo)
    with outside(path):
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
        contained(member, home)
        if member.is_dir() and member.is_symlink():
            raise ArcError(f"{member} links to a folder", hint="name that folder itself")
        if member.is_dir():
            yield from _files(member, home)
        else:
            yield member


def _sha256(path: Path, memo: dict[str, str]) -> str:
    s = path.stat()
    if not path.is_file():
        raise Bad("not a regular file")
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
