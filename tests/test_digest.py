"""Digests of files and folders, remembered by what the system says of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from arcompile.digest import digest
from arcompile.errors import ArcError

pytestmark = pytest.mark.usefixtures("own_cache")

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, "abc"


def test_digest_is_remembered(tmp_path: Path, own_cache: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert digest(path) == ABC
    key = next(iter(json.loads((own_cache / "digests.json").read_text())))
    (own_cache / "digests.json").write_text(json.dumps({key: "f" * 64}))
    assert digest(path) == "f" * 64  # it was not read again
    (own_cache / "digests.json").write_text(json.dumps({key: "f" * 63}))
    assert digest(path) == ABC
    os.utime(path, ns=(1, 1))
    assert digest(path) == ABC
    monkeypatch.setenv("ARC_CACHE", str(path / "not a folder"))
    assert digest(path) == ABC
    assert not list(own_cache.glob("tmp*"))


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff", b"[]", b'{"a": 1}', b"[" * 100_000])
def test_digest_with_corrupt_cache(tmp_path: Path, own_cache: Path, junk: bytes) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (own_cache / "digests.json").write_bytes(junk)
    assert digest(tmp_path / "x") == ABC
    assert ABC in (own_cache / "digests.json").read_text()


def test_digest_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "m" / "sub").mkdir(parents=True)
    for name in ("b", "a", "sub/c", ".hidden"):
        (tmp_path / "m" / name).write_text(name)
    first = digest(tmp_path / "m")
    (tmp_path / "m" / ".hidden").write_text("other")
    assert digest(tmp_path / "m") == first
    (tmp_path / "m" / "b").rename(tmp_path / "m" / "d")
    assert digest(tmp_path / "m") != first
    (tmp_path / "m" / "loop").symlink_to(tmp_path / "m")
    with pytest.raises(ArcError, match="links to a folder"):
        digest(tmp_path / "m")
    with pytest.raises(ArcError, match="No such file"):
        digest(tmp_path / "none")
