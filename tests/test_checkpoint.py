"""Checkpoints: upstream's containers open, and folders and files that are none are told apart."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import CONTAINERS, GOOD, read_all, safe, saved, tensor, torch, why

from arcompile.checkpoint import check_finite, match, open_checkpoint
from arcompile.digest import digest
from arcompile.errors import ArcError

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).resolve().parents[1]
GOLDENS = Path(os.environ.get("ARC_GOLDENS") or ROOT.parent / "shared" / "goldens")


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


def test_only_torch_files_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "x.pt", {"a": torch.ones(1)})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert len(read_all(safe(tmp_path / "x.safetensors", GOOD, bytes(12)))) == 2
    assert "pip install" in why(tmp_path / "x.pt")
