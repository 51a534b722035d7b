"""Checkpoints that lie: nothing in a file can do worse than an ArcError."""

from __future__ import annotations

import json
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from checkpoints import GOOD, read_all, safe, saved, tensor, torch, why

from arcompile.checkpoint import open_checkpoint
from arcompile.errors import ArcError

pytestmark = pytest.mark.usefixtures("own_cache")

# ---- safetensors that lie -----------------------------------------------------------------------

LIES: dict[str, tuple[object, str]] = {
    "overlap": ({**GOOD, "b": tensor("F32", [2], 4, 12)}, "overlaps"),
    "hole": ({"a": GOOD["a"], "b": tensor("F16", [1], 10, 12)}, "hole"),
    "tail": ({"a": GOOD["a"]}, "bytes, the file has"),
    "past the end": ({**GOOD, "c": tensor("F32", [2], 12, 20)}, "bytes, the file has"),
    "wrong size": ({"a": tensor("F32", [3], 0, 8), "b": GOOD["b"]}, "in 8 bytes"),
    "backwards": ({"a": tensor("F32", [2], 8, 0)}, "in -8 bytes"),
    "negative": ({"a": tensor("F32", [-2], 0, 8)}, "shape"),
    "negative twice": ({"a": tensor("F32", [-1, -2], 0, 8)}, "shape"),
    "huge and zero": ({"a": tensor("F32", [0, 1 << 62, 1 << 62], 0, 0)}, "shape"),
    "float shape": ({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, "shape"),
    "bool shape": ({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, "shape"),
    "dtype": ({"a": tensor("F4", [2], 0, 8)}, "dtype 'F4'"),
    "dtype list": ({"a": {"dtype": [], "shape": [2], "data_offsets": [0, 8]}}, "dtype"),
    "extra key": ({"a": {**GOOD["a"], "code": "x"}}, "not described"),
    "metadata": ({**GOOD, "__metadata__": {"n": 1}}, "strings"),
    "list": (b"[1, 2]   ", "starts with"),
    "not json": (b'{"a": ', "JSONDecodeError"),
    "not utf-8": (b'{"\xff": 1}', "UnicodeDecodeError"),
    "deep": (b'{"a":' + b"[" * 200_000, "RecursionError"),
    "twins": (json.dumps(GOOD)[:-1].encode() + b', "a": {}}', "'a' appears 2 times"),
    "inner twins": (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "'dtype' appears 2 times"),
    "terminal codes": ({"\x1b[2J\n": tensor("F4", [2], 0, 8)}, r"'\x1b[2J\n'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lying_header(tmp_path: Path, lie: str) -> None:
    header, complaint = LIES[lie]
    read_all(safe(tmp_path / "good.safetensors", GOOD, bytes(12)))
    assert complaint in why(safe(tmp_path / "x.safetensors", header, bytes(12)))


def test_header_length(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for length in (1 << 63, 100_000_001, 50):
        path.write_bytes(length.to_bytes(8, "little") + b"{}".ljust(20))
        assert f"a header of {length} bytes in a file of 28" in why(path)
    path.write_bytes(b"\1\0\0")
    assert "in a file of 3" in why(path)


def test_flipped_bytes_in_safetensors(tmp_path: Path) -> None:
    whole = safe(tmp_path / "x.safetensors", GOOD, bytes(range(12))).read_bytes()
    draw, accepted = random.Random(7), 0
    for _ in range(200):
        length = draw.choice((len(whole), len(whole), draw.randrange(len(whole))))
        broken = bytearray(whole[:length])
        for _ in range(draw.randint(1, 4)):
            if broken:
                broken[draw.randrange(len(broken))] = draw.randrange(256)
        (tmp_path / "y.safetensors").write_bytes(broken)
        with suppress(ArcError):
            read_all(tmp_path / "y.safetensors")
            accepted += 1
    assert 0 < accepted < 100  # some flips only rename a tensor or change its values


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    path = safe(tmp_path / "x.safetensors", GOOD, bytes(12))
    weights = open_checkpoint(path).weights()
    os.truncate(path, path.stat().st_size - 6)
    with pytest.raises(ArcError, match=r"'b'.*shorter"):
        weights.load("b")


# ---- torch files that lie -----------------------------------------------------------------------


class Evil:
    """Makes a file when unpickled by anything that obeys pickles."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.target}'",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "plain2", "plain4"])
def test_hostile_pickle_executes_nothing(tmp_path: Path, kind: str) -> None:
    path, proof = tmp_path / "x.pt", tmp_path / "executed"
    evil = {"w": torch.ones(2), "x": Evil(proof)} if kind in ("zip", "legacy") else Evil(proof)
    if kind.startswith("plain"):
        path.write_bytes(pickle.dumps(evil, protocol=int(kind[-1])))
    else:
        saved(path, evil, _use_new_zipfile_serialization=kind == "zip")
    complaint = why(path)
    assert "posix.system" in complaint
    assert "nothing was executed" in complaint
    assert "weights_only" not in complaint
    assert not proof.exists()
    (torch.load(path, weights_only=False) if kind[0] != "p" else pickle.loads(path.read_bytes()))
    assert proof.exists()  # so the file was armed


def rewritten(path: Path, old: bytes, new: bytes, **change: object) -> Path:
    """A torch zip with bytes of its pickle replaced; `change` sets how records are written."""
    out = path.with_suffix(".bad.pt")
    with zipfile.ZipFile(path) as z, zipfile.ZipFile(out, "w", **change) as o:  # type: ignore[call-overload]
        for r in z.infolist():
            data = z.read(r)
            if r.filename.endswith("data.pkl"):
                assert not old or data.count(old) == 1
                data = data.replace(old, new)
            o.writestr(r.filename, data)
    return out


def test_storage_sizes_that_lie(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.ones(3, 4), "b": torch.ones(5)})
    assert len(read_all(rewritten(path, b"", b""))) == 2
    # 12 elements -> 255: torch's mmap would show b and the zip's own bytes as part of a
    longer = rewritten(path, b"K\x0ct", b"K\xfft")
    assert torch.load(longer, mmap=True)["a"].untyped_storage().nbytes() > 48
    assert "storage '0' claims 1020 bytes, its record has 48" in why(longer)
    assert "claims 16 bytes" in why(rewritten(path, b"K\x0ct", b"K\x04t"))
    assert "its record has -1" in why(rewritten(path, b"X\1\0\0\x001q", b"X\1\0\0\x009q"))
    assert "resiz" in why(rewritten(path, b"K\3K\4\x86", b"K\x33K\x44\x86"))  # the tensor's shape


def test_legacy_sizes_that_lie(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.ones(3, 4)}, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    assert whole.count(b"K\x0cN") == 1
    path.write_bytes(whole.replace(b"K\x0cN", b"J\xff\xff\xff\x7fN"))
    assert f"storages claim {4 * 0x7FFFFFFF} bytes in a file of" in why(path)
    path.write_bytes(whole.replace(b"K\x0cN", b"J\xff\xff\xff\xffN"))
    assert "-1 elements" in why(path)
    path.write_bytes(whole.replace(b"K\3K\4\x86", b"K\x33K\x44\x86"))
    assert "damaged" in why(path)


def test_stride_zero_bomb(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.ones(1).expand(1 << 30, 1 << 12)})
    assert "'a': shape (1073741824, 4096) is more than the file can hold" in why(path)


def test_tuple_bombs(tmp_path: Path) -> None:
    """torch.load ends in a segmentation fault (deep) or never (wide) on these."""
    deep = b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\1s."
    wide = b"\x80\x02})" + b"q\0h\0h\0h\0h\0\x87\x86" * 200 + b"K\1s."
    for pickled in (deep, wide):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as z:
            z.writestr("x/data.pkl", pickled)
        assert "nests tuples" in why(tmp_path / "x.pt")


def test_memory_bombs_in_pickles(tmp_path: Path) -> None:
    memo = b"\x80\x02}r\xff\xff\xff\xff."  # the C unpickler's memo would take 64 GB
    array = b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"."
    for pickled, complaint in ((memo, "holds nothing"), (array, "KeyError: '150'")):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as z:
            z.writestr("x/data.pkl", pickled)
            z.writestr("x/version", "3")
        assert complaint in why(tmp_path / "x.pt")


def test_zips_that_lie(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.zeros(1 << 16)})
    assert "compressed" in why(rewritten(path, b"", b"", compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as z:
        z.writestr("y/code/x.py", "")
    assert "other zip" in why(tmp_path / "y.pt")
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as z:
        z.writestr("x/data.pkl", b"\x80\x02}.")
        z.writestr("y/data.pkl", b"\x80\x02}.")
    assert "share names" in why(tmp_path / "y.pt")
    twice = bytearray(path.read_bytes())  # a second record at the place of the first
    at = [r.header_offset for r in zipfile.ZipFile(path).infolist()]
    entry = twice.rindex(at[2].to_bytes(4, "little"), twice.index(b"PK\1\2"))
    twice[entry : entry + 4] = at[0].to_bytes(4, "little")
    (tmp_path / "y.pt").write_bytes(twice)
    assert "overlaps" in why(tmp_path / "y.pt")
    for field in (8, 10):  # the flags say encrypted, the method says deflated
        changed = bytearray(path.read_bytes())
        changed[changed.index(b"PK\1\2") + field] |= 9
        (tmp_path / "y.pt").write_bytes(changed)
        assert "record 'x/data.pkl' is compressed, encrypted" in why(tmp_path / "y.pt")


def test_torch_warnings_stay_inside(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", pickle_protocol=3)
    torch.load(tmp_path / "x.pt", weights_only=True)
    assert "pickle protocol 3" in str(recwarn.pop().message)
    assert list(read_all(tmp_path / "x.pt")) == ["a"]
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_truncated_and_flipped(tmp_path: Path, kind: str) -> None:
    held = {"model": OrderedDict((f"w{i}", torch.full((40, 4), float(i))) for i in range(6))}
    path = saved(tmp_path / "x.pt", held, _use_new_zipfile_serialization=kind == "zip")
    whole, broken, draw = path.read_bytes(), tmp_path / "y.pt", random.Random(3)
    for length in (*range(0, 40, 3), *range(40, len(whole), len(whole) // 40), len(whole) - 1):
        broken.write_bytes(whole[:length])
        complaint = why(broken)
        assert length < 4 or kind == "legacy" or "truncated" in complaint
    start = whole.index(b"\x80\x02}q")
    pickled = whole[start : whole.rindex(b".", start, start + 1200) + 1]
    if kind == "zip":
        pickled = zipfile.ZipFile(path).read("x/data.pkl")
    for _ in range(120):
        flipped = bytearray(pickled)
        for _ in range(draw.randint(1, 3)):
            flipped[draw.randrange(len(flipped))] = draw.randrange(256)
        if kind == "zip":  # written anew, so that its checksum is right
            broken = rewritten(path, pickled, bytes(flipped))
        else:
            broken.write_bytes(whole.replace(pickled, flipped))
        with suppress(ArcError):
            read_all(broken)


def test_shadowed_methods(tmp_path: Path) -> None:
    """A pickle may set attributes of a Parameter; they must not be called."""
    p = torch.nn.Parameter(torch.ones(2))
    p.detach = p.to = p.numel = "gotcha"  # type: ignore[assignment]
    weights = open_checkpoint(saved(tmp_path / "x.pt", {"p": p})).weights()
    np.testing.assert_array_equal(weights.load("p"), [1, 1])
