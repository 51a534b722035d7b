"""Checkpoints: upstream's containers open, and nothing in a file can do worse than an ArcError."""
from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import sys
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from arcompile.checkpoint import check_finite, match, open_checkpoint
from arcompile.digest import digest
from arcompile.errors import ArcError

torch = pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[1]
GOLDENS = Path(os.environ.get("ARC_GOLDENS") or ROOT.parent / "shared" / "goldens")
CONTAINERS = ("", "model_ema", "model", "vae")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ARC_CACHE", str(folder))
    return folder


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


# ---- goldens ------------------------------------------------------------------------------------

FILES = {
    "flexvar": ("FlexVAE_tiny.pth", "FlexVAR_tiny.pth"),
    "infinity": ("infinity_tiny.pth", "infinity_vae_d16_tiny.pth"),
    "llamagen-c2i": ("c2i_tiny.pt", "vq_ds16_c2i_tiny.pt"),
    "llamagen-t2i": ("t2i_tiny.pt", "vq_ds16_t2i_tiny.pt"),
    "mar": ("checkpoint-last.pth", "kl16.ckpt"),
    "nar": ("nar_tiny.pt",),
    "var": ("var_tiny.pth", "vae_tiny.pth"),
}


@pytest.mark.parametrize("file", [f"{d}/{f}" for d, files in FILES.items() for f in files])
def test_golden_torch_file(file: str) -> None:
    if not GOLDENS.is_dir():
        pytest.skip(f"no goldens at {GOLDENS}; set ARC_GOLDENS")
    raw = torch.load(GOLDENS / file, weights_only=True, map_location="cpu")
    inner = next((raw[c] for c in CONTAINERS if c in raw), raw)
    weights = open_checkpoint(GOLDENS / file).weights(*CONTAINERS)
    assert list(weights) == list(inner)
    for name in list(inner)[:: max(1, len(inner) // 5)]:
        assert weights.shape(name) == tuple(inner[name].shape)
        np.testing.assert_array_equal(weights.load(name), inner[name].numpy())


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_golden_hugging_face_folder(inside: str) -> None:
    if not GOLDENS.is_dir():
        pytest.skip(f"no goldens at {GOLDENS}; set ARC_GOLDENS")
    numpy = pytest.importorskip("safetensors.numpy")
    truth = numpy.load_file(GOLDENS / "janus" / "model.safetensors")
    opened = open_checkpoint(GOLDENS / "janus" / inside)
    weights = opened.weights()
    assert opened.metadata == {"format": "pt"}
    assert set(weights) == set(truth)
    for name in list(truth)[::40]:
        np.testing.assert_array_equal(weights.load(name), truth[name].astype(np.float32))


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_values_and_types(tmp_path: Path, kind: str) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    held = {
        "f32": base,
        "f16": base.half(),
        "bf16": torch.tensor([1.0, -3.140625, 1e-40, 3.3895314e38, float("inf")]).bfloat16(),
        "f64": base.double() / 3,
        "i64": torch.tensor([-(2**40), 7]),
        "u8": torch.tensor([0, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
    }
    if kind == "safetensors":
        save = pytest.importorskip("safetensors.torch").save_file
        save(held, path := tmp_path / "x.safetensors", metadata={"made": "here"})
    else:
        path = saved(tmp_path / "x.pt", held, _use_new_zipfile_serialization=kind == "zip")
    weights = open_checkpoint(path).weights()
    assert len(weights) == len(held)
    for name, truth in held.items():
        got = weights.load(name)
        assert got.dtype == (np.float32 if truth.is_floating_point() else truth.numpy().dtype)
        assert got.flags.c_contiguous
        assert got.flags.writeable
        np.testing.assert_array_equal(got, truth.float().numpy() if got.dtype == "f4" else truth)
        assert weights.dtype(name) == ("f32" if name in ("scalar", "empty") else name)


def test_every_bf16_is_exact(tmp_path: Path) -> None:
    bits = np.arange(1 << 16, dtype="<u2")
    path = safe(tmp_path / "x.safetensors", {"x": tensor("BF16", [256, 256], 0, 131072)},
                bits.tobytes())
    got = open_checkpoint(path).weights().load("x").ravel()
    truth = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(got.view(np.uint32), truth.view(np.uint32))


def test_tied_strided_and_changed_tensors(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    held = {"a": base, "tied": base, "turned": base.T, "part": base[1:, ::2], "wide":
            torch.ones(1, 1).expand(5, 3), "p": torch.nn.Parameter(base)}
    weights = open_checkpoint(saved(tmp_path / "x.pt", held)).weights()
    weights.load("a")[:] = -1  # the caller's own copy: not the file's pages, not the tied one
    for name, truth in held.items():
        np.testing.assert_array_equal(weights.load(name), truth.detach().numpy())


# ---- containers ---------------------------------------------------------------------------------


def test_containers_in_order(tmp_path: Path) -> None:
    one, two = {"w": torch.ones(2)}, {"w": torch.zeros(2)}
    held = {"epoch": 3, "args": argparse.Namespace(lr=1), "model": one, "ema": two,
            "trainer": {"var_wo_ddp": two, "cfg": {}}, "w": torch.ones(1)}
    opened = open_checkpoint(saved(tmp_path / "x.pth", held))
    assert opened.weights("", "ema", "model").load("w").sum() == 0  # "" has one tensor among six
    assert opened.weights("module", "model").load("w").sum() == 2
    assert opened.weights("trainer.var_wo_ddp").source.endswith("[trainer.var_wo_ddp]")
    assert opened.names("model") == ("w",)
    complaint = why(tmp_path / "x.pth", "", "module", "trainer.gpt")
    assert "no weights in the file itself or 'module' or 'trainer.gpt'" in complaint
    assert "'model' (1 tensors; keys 'w'" in complaint
    assert "'epoch' (not a tensor)" in complaint


def test_dicts_that_hold_themselves(tmp_path: Path) -> None:
    held: dict[str, object] = {"w": torch.ones(2)}
    held["me"] = held
    held["again"] = {"deep": held}
    saved(tmp_path / "x.pt", {"top": held})
    opened = open_checkpoint(tmp_path / "x.pt")
    with pytest.raises(ArcError, match="no weights"):
        opened.weights("top.again.deep.me")


def test_drop_strip_and_unknown_names(tmp_path: Path) -> None:
    names = ("_orig_mod.head.weight", "_orig_mod.head_nm.bias", "freqs_cis", "loss.a", "loss.b")
    opened = open_checkpoint(saved(tmp_path / "x.pt", {n: torch.ones(2) for n in names}))
    weights = opened.weights().strip(prefix="_orig_mod.")
    weights = weights.drop("freqs_cis", "loss.", "head")
    assert sorted(weights) == ["head.weight", "head_nm.bias"]
    with pytest.raises(ArcError, match=r"no tensor 'head\.wieght'") as e:
        weights.load("head.wieght")
    assert "did you mean 'head.weight'" in e.value.__notes__[0]
    both = {"a.x": torch.ones(1), "x": torch.ones(1)}
    with pytest.raises(ArcError, match="collide"):
        open_checkpoint(saved(tmp_path / "y.pt", both)).weights().strip("a.")


# ---- match and check_finite ---------------------------------------------------------------------


def test_match_lists_everything(tmp_path: Path) -> None:
    one = torch.ones(1)
    held = {"layers.0.wq.weight": one.expand(2, 3), "norm": one.expand(3), "freqs_cis": one}
    weights = open_checkpoint(saved(tmp_path / "x.pt", held)).weights()
    match(weights, {"layers.0.wq.weight": (2, 3), "norm": (3,)}, ignore=["freqs*"])
    with pytest.raises(ArcError, match="0 missing, 0 misshapen, 1 unexpected"):
        match(weights, {"layers.0.wq.weight": (2, 3), "norm": (3,)})
    expected = {"layers.0.wq.weigth": (2, 3), "norm": (4,), "head": (5,)}
    with pytest.raises(ArcError) as e:
        match(weights, expected, what="LlamaGen")
    assert str(e.value).endswith("is not LlamaGen: 2 missing, 1 misshapen, 2 unexpected of 3")
    notes = e.value.details
    assert "missing 'layers.0.wq.weigth' (2, 3), near 'layers.0.wq.weight'" in notes
    assert "misshapen 'norm': (3,), expected (4,)" in notes
    assert "missing 'head' (5,)" in notes
    assert "unexpected 'freqs_cis' (1,)" in notes


def test_check_finite() -> None:
    check_finite("x", np.array([1, 2]))
    check_finite("x", np.zeros(3, np.float32))
    with pytest.raises(ArcError, match="'head' has 1 NaN and 2 inf of 4"):
        check_finite("head", np.array([np.nan, np.inf, -np.inf, 0]))


# ---- safetensors that lie -----------------------------------------------------------------------

GOOD = {"a": tensor("F32", [2], 0, 8), "b": tensor("F16", [2], 8, 12)}
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


# ---- other files and folders --------------------------------------------------------------------


def test_strangers(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as t:
        t.addfile(tarfile.TarInfo("storages"))
    strangers = {
        b"\x89PNG\r\n\x1a\n" + bytes(99): "a PNG picture",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n": "git lfs pull",
        b"<!DOCTYPE html><html>": "a web page",
        b"": "empty",
        b"hello": "b'hello'",
        tar.getvalue(): "a tar file",
        pickle.dumps({"a": 1}): "a plain pickle (it asks for nothing",
    }
    for content, complaint in strangers.items():
        for name in ("x.pt", "x.ckpt", "x.safetensors"):
            (tmp_path / name).write_bytes(content)
            said = why(tmp_path / name)
            assert complaint in said or (name == "x.safetensors" and content == b"hello")
            assert "hint: " in said


def test_what_is_not_a_readable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in why(tmp_path / "none.pt")
    assert "holds no weights" in why(tmp_path)
    os.mkfifo(tmp_path / "pipe.pt")
    assert "not a regular file" in why(tmp_path / "pipe.pt")
    assert "holds a Tensor" in why(saved(tmp_path / "x.pt", torch.ones(2)))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root
    assert "cannot read" in why(tmp_path / "x.pt")
    assert "Permission denied" in why(tmp_path / "x.pt")


def sharded(folder: Path, weight_map: object, kind: str = "safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    name = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / f"{name}.index.json").write_text(index)
    for i, key in enumerate("ab"):
        if kind == "safetensors":
            data = np.full(2, i, "<f4").tobytes()
            safe(folder / f"s{i}.safetensors", {key: tensor("F32", [2], 0, 8)}, data)
        else:
            saved(folder / f"s{i}.bin", {key: torch.full((2,), float(i))})
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path: Path, kind: str) -> None:
    weights = read_all(sharded(tmp_path, {"a": f"s0.{kind}", "b": f"s1.{kind}"}, kind))
    assert {k: v.tolist() for k, v in weights.items()} == {"a": [0, 0], "b": [1, 1]}


@pytest.mark.parametrize(
    ("weight_map", "complaint"),
    [
        ({"a": "../s0.safetensors"}, "no file of this folder"),
        ({"a": "/etc/passwd"}, "no file of this folder"),
        ({"a": "x\\..\\s0.safetensors"}, "no file of this folder"),
        ({"a": ".."}, "no file of this folder"),
        ({"a": ""}, "no file of this folder"),
        ({"a": "s\0"}, "embedded null"),
        ({"a": "."}, "no file of this folder"),
        ({"a": "sub"}, "no file of this folder"),
        ({"a": 3}, "weight_map"),
        (["a"], "weight_map"),
        ({"a": "s7.safetensors"}, "No such file"),
        ({"a": "s0.safetensors", "b": "s0.safetensors"}, "1 tensors of the index are not in"),
    ],
)
def test_index_that_lies(tmp_path: Path, weight_map: object, complaint: str) -> None:
    sharded(tmp_path / "real", {})
    safe(tmp_path / "s0.safetensors", {"a": tensor("F32", [2], 0, 8)}, bytes(8))
    (tmp_path / "model" / "sub").mkdir(parents=True)
    assert complaint in why(sharded(tmp_path / "model", weight_map))


def test_several_files_without_index(tmp_path: Path) -> None:
    sharded(tmp_path, {"a": "s0.safetensors"})
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "'s0.safetensors', 's1.safetensors'" in why(tmp_path)


def test_links(tmp_path: Path) -> None:
    """Hugging Face's cache links snapshots/<revision>/x to blobs/<sha>; nothing else may leave."""
    snapshot, blobs = tmp_path / "repo" / "snapshots" / "abc", tmp_path / "repo" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    outside = safe(tmp_path / "secret", {"a": tensor("F32", [2], 0, 8)}, bytes(8))
    blob = safe(blobs / "123", {"a": tensor("F32", [2], 0, 8)}, bytes(8))
    link = snapshot / "model.safetensors"
    link.symlink_to(blob)
    assert list(read_all(snapshot)) == ["a"]
    assert digest(snapshot)
    link.unlink()
    link.symlink_to(outside)
    assert "outside its folder" in why(snapshot)
    with pytest.raises(ArcError, match="outside its folder"):
        digest(snapshot)
    link.unlink()
    link.symlink_to(link)
    assert "model.safetensors" in why(snapshot)


# ---- digests ------------------------------------------------------------------------------------

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, "abc"


def test_digest_is_remembered(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert digest(path) == ABC
    key = next(iter(json.loads((cache / "digests.json").read_text())))
    (cache / "digests.json").write_text(json.dumps({key: "f" * 64}))
    assert digest(path) == "f" * 64  # it was not read again
    (cache / "digests.json").write_text(json.dumps({key: "f" * 63}))
    assert digest(path) == ABC
    os.utime(path, ns=(1, 1))
    assert digest(path) == ABC
    monkeypatch.setenv("ARC_CACHE", str(path / "not a folder"))
    assert digest(path) == ABC
    assert not list(cache.glob("tmp*"))


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff", b"[]", b'{"a": 1}', b"[" * 100_000])
def test_digest_with_corrupt_cache(tmp_path: Path, cache: Path, junk: bytes) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    (cache / "digests.json").write_bytes(junk)
    assert digest(tmp_path / "x") == ABC
    assert ABC in (cache / "digests.json").read_text()


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


def test_only_torch_files_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "x.pt", {"a": torch.ones(1)})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(read_all(safe(tmp_path / "x.safetensors", GOOD, bytes(12)))) == 2
    assert "pip install" in why(tmp_path / "x.pt")
