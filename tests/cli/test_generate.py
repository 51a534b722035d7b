"""arcompile generate: pictures, their settings, and engines that are not what was built."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import engines
import numpy as np
import pytest
import toy
from PIL import Image
from shell import MARK, Evil, Ran, refused

from arcompile.cli.draw import _condition
from arcompile.errors import ArcError
from arcompile.runtime import image
from arcompile.runtime.acceptance import accepted, picture
from arcompile.runtime.engine import load
from arcompile.runtime.image import save
from arcompile.runtime.preview import GREY
from arcompile.weights import of_arrays


def test_generate_writes_a_png_with_its_settings(built: Ran, tmp_path: Path, run: Any) -> None:
    out, npy = tmp_path / "new" / "p.png", tmp_path / "t.npy"
    ran = run("generate", built.folder, "--label", "1,2", "--label", 3, "-n", 2, "--seed", 2**63,
              "--guidance", 2.5, "--top-k", 50, "-o", out, "--tokens", npy, "--json")
    told, tokens = ran.json, np.load(npy)
    assert ran.code == 0
    assert tokens.shape == (6, 64)
    assert told["tokens_sha256"] == hashlib.sha256(tokens.tobytes()).hexdigest()
    assert (told["images"], told["pixels"], told["path"]) == (6, [128, 128], str(out))
    assert len(told["timings"]["steps"]) == 64
    with Image.open(out) as picture:
        assert picture.size == (3 * 130 - 2, 2 * 130 - 2)  # a contact sheet
        used = json.loads(picture.text["parameters"])
        assert picture.text["Software"].startswith("arcompile ")
    assert used["seed"] == 2**63
    assert used["cond"] == [1, 2, 3]
    assert (used["guidance"], used["top_k"], used["temperature"]) == (2.5, 50, 1.0)
    assert used["engine"]["key"] == built.json["key"]
    assert [f.name for f in out.parent.iterdir()] == ["p.png"]


def test_generate_tells_and_repeats(built: Ran, tmp_path: Path, run: Any) -> None:
    args = ("generate", built.folder, "--seed", 7, "-o", tmp_path / "p.png")
    first, second = run(*args), run(*args)
    assert first.out.startswith(f"drew 1 image of 128x128 into {tmp_path / 'p.png'}\n")
    assert "seed 7, guidance 1, temperature 1, top_k 0, top_p 1" in first.out
    sha = [s for s in first.out.splitlines() if "sha256" in s]
    assert sha == [s for s in second.out.splitlines() if "sha256" in s]
    assert first.err == ""  # no bar where there is no terminal


def test_a_map_of_where_drafts_held(tmp_path: Path, run: Any) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    made = toy.Toy(n=9)
    folder = engines.write(tmp_path / "e", made.program, of_arrays(made.weights), made.v,
                           passes="scd{window=4}", info={"classes": 2})
    out, npy = tmp_path / "new" / "map.png", tmp_path / "t.npy"
    args = ("generate", folder, "-n", 8, "--tokens", npy, "--acceptance", out)
    told, rounds = run(*args, "--json").json, load(folder).generate(0, n=8).rounds
    assert rounds is not None
    want = picture(accepted(rounds), 3)
    assert len(np.unique(want)) > 2
    with Image.open(out) as found:
        assert (np.array(found) == want).all()
    forwards = float((rounds > 0).sum(0).mean())
    assert 1 < 9 / forwards < 4
    assert (told["forwards"], told["committed"]) == (round(forwards, 2), round(9 / forwards, 2))
    assert told["acceptance_path"] == str(out)
    said = run(*args).out
    assert f"{told['forwards']:g} forwards an image, {told['committed']:g} positions each" in said
    assert str(out) in said


def test_a_preview_is_a_png_that_grows(built: Ran, tmp_path: Path, run: Any,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    frames: dict[str, list[Any]] = {"g.png": [], "p.png": []}

    def watched(images: Any, path: Path, text: Any = None) -> None:
        save(images, path, text)
        with Image.open(path) as made:
            frames[path.name].append(np.array(made))

    args = ("generate", built.folder, "--seed", 3, "-o", tmp_path / "p.png", "--json")
    plain = run(*args).json
    monkeypatch.setattr(image, "save", watched)
    shown = run(*args, "--preview", tmp_path / "g.png").json
    assert shown["tokens_sha256"] == plain["tokens_sha256"]
    grey = round((GREY + 1) * 127.5)
    left = [int((x == grey).all(2).sum()) for x in frames["g.png"]]
    assert len(left) == 16
    assert left == sorted(left, reverse=True)
    assert len(set(left)) == 16  # each has four cells more than the one before
    assert (frames["g.png"][-1] == frames["p.png"][0]).all()


def test_generate_takes_the_engines_own_settings_and_names(engine: Path, tmp_path: Path,
                                                            run: Any) -> None:
    manifest = json.loads((engine / "manifest.json").read_text())
    names = ["a", "b, of c", *map(str, range(8))]
    raw = json.dumps(names).encode()
    (engine / "labels.json").write_bytes(raw)
    sha = hashlib.sha256(raw).hexdigest()
    manifest["files"]["labels.json"] = {"bytes": len(raw), "sha256": sha}
    manifest["defaults"] = {"guidance": 3.0, "temperature": 0.5, "top_k": 9}
    (engine / "manifest.json").write_text(json.dumps(manifest))
    out = ("-o", tmp_path / "p.png", "--json")
    told = run("generate", engine, "--label", "b, of c", "--label", "a,4", *out).json
    assert told["cond"] == ["b, of c", "a", 4]
    assert (told["guidance"], told["temperature"], told["top_k"], told["top_p"]) == (3, 0.5, 9, 1)
    assert run("generate", engine, "--class-name", "b, of c", *out).json["cond"] == ["b, of c"]
    refused(run("generate", engine, "--label", "b, of"), "no class named 'b'")


@pytest.mark.parametrize(("args", "words"), [
    (["--label", "10"], ["class 10 is out of range", "classes are 0 to 9"]),
    (["--label", "-1"], ["class -1 is out of range"]),
    (["--label", "cat"], ["no class named 'cat'", "no class names"]),
    (["--seed", "-1"], ["seed must be"]),
    (["-n", "0"], ["n must be a positive integer"]),
    (["--guidance", "nan"], ["guidance must be between"]),
    (["--top-p", "0"], ["top_p must be between"]),
    (["--threads", "-1"], ["threads must be 0 or more"]),
    (["--features", "f.npz"], ["draws classes, not captions"]),
    (["-o", "p.jpg"], ["does not end in .png"]),
    (["-o", "."], ["is a folder"]),
    (["--tokens", "."], ["is a folder"]),
    (["-o", "/proc/p.png"], ["cannot write /proc/p.png"]),
    (["--acceptance", "m.jpg"], ["m.jpg does not end in .png"]),
    (["--acceptance", "m.png"], ["no window of drafts that moves", "scd{window=4}"]),
])
def test_generate_refuses(args: list[str], words: list[str], built: Ran, tmp_path: Path,
                          monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("generate", built.folder, *args), *words)
    assert list(tmp_path.iterdir()) == []


def captioned(**manifest: Any) -> Any:
    wanted = {"features": "f32[b,2,3]", "mask": "bool[b,2]"}
    manifest = {"family": "captioned", "info": {}, **manifest}
    return SimpleNamespace(program=SimpleNamespace(inputs=tuple(wanted.items())), manifest=manifest)


def why(engine: Any, labels: Any = None, prompts: Any = None, features: Any = None) -> str:
    with pytest.raises(ArcError) as e:
        _condition(engine, labels, None, prompts, features)
    return f"{e.value.what}\n{e.value.hint}"


def test_prompts_and_features(tmp_path: Path) -> None:
    good = tmp_path / "f.npz"
    np.savez(good, features=np.ones((1, 2, 3)), other=np.ones(1))
    assert set(_condition(captioned(), None, None, None, good)) == {"features"}
    words = captioned(prompt={})
    assert _condition(words, None, None, ["a cat", "a dog"], None) == ["a cat", "a dog"]
    assert "give --features F.npz with features: f32[b,2,3], mask: bool[b,2]" in why(captioned())
    assert why(words) == 'no condition given\ngive --prompt "a red apple"'
    assert "family captioned has no classes" in why(words, ["1"])
    assert "not both" in why(words, None, ["a cat"], good)


def test_damaged_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.ones((9, 2, 3)), other=np.ones(1))
    np.savez(tmp_path / "evil.npz", features=np.array([Evil()], object))
    np.savez(tmp_path / "other.npz", cond=np.ones(1))
    np.save(tmp_path / "one.npy", np.ones(3))
    whole = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:200])
    (tmp_path / "flip.npz").write_bytes(whole[:200] + b"?" + whole[201:])
    for name in ("cut.npz", "evil.npz", "one.npy", "gone.npz", "flip.npz"):
        assert name in why(captioned(), features=tmp_path / name)
    other = why(captioned(), features=tmp_path / "other.npz")
    assert "holds cond, and no features or mask" in other
    assert not Path(MARK).exists()


# --- damaged engines -----------------------------------------------------------------------------


def _flip(engine: Path) -> None:
    path = engine / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _newer(engine: Path) -> None:
    path = engine / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(("damage", "words"), [
    (_flip, ["engine file weights.safetensors is not what was built", "hint: rebuild"]),
    (lambda e: (e / "step.onnx").unlink(), ["step.onnx is missing", "hint: rebuild the engine"]),
    (lambda e: (e / "step.onnx").write_bytes(b"x"), ["step.onnx has 1 bytes, expected"]),
    (_newer, ["engine format 99 is newer", "hint: upgrade arcompile"]),
    (lambda e: (e / "manifest.json").write_text("{"), ["is not JSON", "hint: rebuild"]),
    (lambda e: (e / "manifest.json").unlink(), ["no engine manifest at", "hint: give an engine"]),
    (lambda e: shutil.rmtree(e), ["no engine manifest at"]),
])
def test_damaged_engines(damage: Any, words: list[str], engine: Path, tmp_path: Path,
                         run: Any) -> None:
    damage(engine)
    refused(run("generate", engine, "-o", tmp_path / "p.png"), *words)
    assert not (tmp_path / "p.png").exists()


def test_an_engine_this_machine_cannot_run(engine: Path, run: Any) -> None:
    path = engine / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target": "ort-cuda"}))
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine can run it")
    refused(run("generate", engine), "CUDAExecutionProvider", "hint: ", code=2)
