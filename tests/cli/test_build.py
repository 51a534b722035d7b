"""arcompile build: what it tells, and that a refusal is one line and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shell import MARK, SIZES, Evil, Ran, refused

from arcompile import cli, compile, safetensors

torch = pytest.importorskip("torch")


def test_build_tells_what_it_made(built: Ran) -> None:
    told = built.json
    assert built.code == 0
    assert (told["family"], told["target"], told["dtype"]) == ("llamagen", "ort-cpu", "f32")
    assert told["engine"] == str(built.folder)
    assert told["cached"] is False
    assert told["weights_bytes"] == (built.folder / "weights.safetensors").stat().st_size
    assert told["bytes"] > told["weights_bytes"]
    assert told["cache_bytes_per_row"] == 4 * 4 * 65 * 32 * 4
    assert told["next"].startswith(f"arcompile generate {built.folder} --label 0")
    assert [f.name for f in built.folder.parent.iterdir()] == ["engine"]


def test_build_again_is_a_cache_hit(built: Ran, files: tuple[Path, Path], run: Any) -> None:
    ran = run("build", files[0], "--decoder", files[1], *SIZES, "-o", built.folder)
    assert ran.code == 0
    assert ran.err == ""
    assert ran.out.startswith("llamagen for ort-cpu (f32), was built before\n")
    assert ran.out.endswith(f"next: {built.json['next']}\n")


BLOCKED = """import sys
sys.modules["torch"] = sys.modules["onnx"] = None
from arcompile import cli, compile
compile._own_digest = lambda: "tests"
sys.exit(cli.run(sys.argv[1:]))"""


def test_a_cache_hit_and_generate_need_no_torch(
    built: Ran, files: tuple[Path, Path], tmp_path: Path
) -> None:
    def sub(*args: object) -> Any:
        done = subprocess.run([sys.executable, "-c", BLOCKED, *map(str, args), "--json"],
                              capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    told = sub("build", files[0], "--decoder", files[1], *SIZES, "-o", built.folder)
    assert told["cached"] is True
    assert sub("generate", built.folder, "--seed", 5)["images"] == 1
    assert (tmp_path / "picture.png").is_file()


@pytest.fixture(scope="session")
def tokens_only(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "engine"
    compile.build(files[0], options={"n_head": 4, "grid": 8}, out=folder)
    return folder


def test_an_engine_without_decoder(tokens_only: Path, tmp_path: Path, run: Any) -> None:
    ran = run("generate", tokens_only, "--tokens", tmp_path / "t.npy", "--json")
    assert ran.json["path"] is None
    assert np.load(tmp_path / "t.npy").shape == (1, 64)
    refused(run("generate", tokens_only), "draws tokens only", "--decoder")
    refused(run("generate", tokens_only, "-o", "x.png", "--tokens", "t.npy"), "draws tokens only")
    shell = (tokens_only / "README.md").read_text()
    assert "arcompile generate . --label 0 --tokens tokens.npy" in shell


# --- build refuses, and leaves nothing -----------------------------------------------------------




def _patched(source: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    raw = torch.load(source, weights_only=True)
    change(next((raw[k] for k in ("model", "state_dict") if k in raw), raw))
    torch.save(raw, path)
    return path


def _nan(t: dict[str, Any]) -> None:
    t["norm.weight"][3] = float("nan")


def _bent(t: dict[str, Any]) -> None:
    del t["norm.weight"]
    t["output.weight"] = t["output.weight"][:, :7].clone()


def _codes(t: dict[str, Any]) -> None:
    t["quantize.embedding.weight"] = torch.cat([t["quantize.embedding.weight"]] * 2)


def _make(kind: str, path: Path, gpt: Path, goldens: Path) -> Path:
    whole = gpt.read_bytes()
    match kind:
        case "truncated":
            path.write_bytes(whole[: len(whole) // 2])
        case "empty":
            path.write_bytes(b"")
        case "picture":
            Image.new("RGB", (8, 8)).save(path, "PNG")
        case "pickle":
            path.write_bytes(pickle.dumps({"model": Evil()}))
        case "evil":
            torch.save({"model": Evil()}, path)
        case "family":
            return goldens / "flexvar" / "FlexVAE_tiny.pth"
        case "bent":
            return _patched(gpt, path, _bent)
        case "nan":
            return _patched(gpt, path, _nan)
        case "gone":
            pass
    return path


@pytest.mark.parametrize(("kind", "words"), [
    ("gone", ["cannot read", "No such file"]),
    ("truncated", ["truncated or damaged", "hint: download it again"]),
    ("empty", ["the file is empty"]),
    ("picture", ["not a checkpoint, a PNG picture"]),
    ("pickle", ["plain pickle", "nothing was executed"]),
    ("evil", ["could run code; nothing was executed", ".safetensors"]),
    ("family", ["no family recognises", "--family"]),
    ("bent", ["1 missing, 1 misshapen",
              "  misshapen 'output.weight': (256, 7), expected (256, 128)",
              "  missing 'norm.weight' (128,)"]),
    ("nan", ["'norm.weight' has 1 NaN and 0 inf of 128"]),
])
def test_build_refuses_a_file(kind: str, words: list[str], files: tuple[Path, Path], goldens: Path,
                              tmp_path: Path, run: Any) -> None:
    path = _make(kind, tmp_path / "given.pt", files[0], goldens)
    before = sorted(tmp_path.iterdir())
    refused(run("build", path, *SIZES, "-o", tmp_path / "out"), *words)
    assert sorted(tmp_path.iterdir()) == before  # no engine, no part of one
    assert not Path(MARK).exists()


@pytest.mark.parametrize(("args", "words"), [
    (["--passes", "swigul"], ["no pass named 'swigul'", "did you mean 'swiglu'?"]),
    (["--passes", "qkv{gat=True}"], ["pass qkv has no option 'gat'", "did you mean 'gate'?"]),
    (["--passes", "qkv{gate=7}"], ["option gate of pass qkv takes bool, got '7'"]),
    (["--passes", "a b"], ["not a pass list"]),
    (["--passes", "sjd, scd"], ["pass scd needs a plain program", "is drafted already"]),
    (["--passes", "scd{window=999}"], ["a window of 999 positions in an image of 64",
                                       "hint: give 1 (plain decoding) to 63"]),
    (["--option", "n_heads=4"], ["llamagen has no option 'n_heads'", "did you mean 'n_head'?"]),
    (["--option", "n_head"], ["not an option: 'n_head'", "key=value"]),
    (["--option", "n_head=None"], ["the number of heads", "--option n_head=N"]),
    (["--option", "n_head=four"], ["option n_head must be a positive integer, got 'four'"]),
    (["--option", "n_head=3"], ["n_head=3 does not divide 128"]),
    (["--target", "ort-cup"], ["no target named 'ort-cup'", "did you mean 'ort-cpu'?"]),
    (["--family", "lamagen"], ["no family named 'lamagen'", "did you mean 'llamagen'?"]),
    (["--dtype", "f8"], ["target ort-cpu has no dtype 'f8'", "it takes f32"]),
])
def test_build_refuses_arguments(args: list[str], words: list[str], files: tuple[Path, Path],
                                 tmp_path: Path, run: Any) -> None:
    given = [a for i in range(0, 4, 2) for a in SIZES[i : i + 2]]
    refused(run("build", files[0], *given, *args, "-o", tmp_path / "out"), *words)
    assert list(tmp_path.iterdir()) == []


def test_build_refuses_a_decoder_of_another_model(
    files: tuple[Path, Path], tmp_path: Path, run: Any
) -> None:
    vq = _patched(files[1], tmp_path / "vq.pt", _codes)
    ran = run("build", files[0], "--decoder", vq, *SIZES, "-o", tmp_path / "out")
    refused(ran, "codebook has 512 codes but the transformer draws from 256", "hint: give the tok")
    assert list(tmp_path.iterdir()) == [vq]


def test_build_does_not_replace_what_is_no_engine(
    files: tuple[Path, Path], tmp_path: Path, run: Any
) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        refused(run("build", files[0], *SIZES, "-o", out), "exists and is not an engine")
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_build_names_a_folder_that_is_no_checkpoint(
    built: Ran, tmp_path: Path, run: Any
) -> None:
    refused(run("build", tmp_path), "holds no weights")
    refused(run("build", built.folder), "is an engine already", "hint: arcompile generate")


def test_a_full_disk_leaves_the_old_engine(
    engine: Path, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    def full(path: Path, *rest: Any) -> str:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(safetensors, "write", full)
    before = {f.name: f.read_bytes() for f in engine.iterdir()}
    ran = run("build", files[0], *SIZES, "-o", engine)
    refused(ran, f"no space left on the disk of {engine}", "hint: free some space")
    assert {f.name: f.read_bytes() for f in engine.iterdir()} == before
    assert list(engine.parent.iterdir()) == [engine]


def test_long_details_are_cut(files: tuple[Path, Path], tmp_path: Path, run: Any) -> None:
    def shorter(t: dict[str, Any]) -> None:
        for name in [k for k in t if k.startswith("layers.1.")] + ["norm.weight"]:
            t[name] = t[name][..., :1].clone()
        t.update({f"layers.1.extra.{i}": torch.zeros(1) for i in range(9)})

    path = _patched(files[0], tmp_path / "bent.pt", shorter)
    ran = run("build", path, *SIZES, "-o", tmp_path / "out")
    refused(ran, "more; --debug shows all")
    assert len(ran.err.splitlines()) == 1 + cli.DETAILS + 1
