"""What libarcompile refuses, and that it says so in the words of the Python runtime."""

from __future__ import annotations

import json
import shutil
import subprocess

import engines
import numpy as np
import pytest

import arcompile
from arcompile.errors import MACHINE, ArcError

pytestmark = pytest.mark.ort


def refusal(run, *args, **kw):
    with pytest.raises(ArcError) as e:
        run(*args, **kw)
    return e.value


ASKS = [([], {}), ([3], {}), ([-1], {}), (["cat"], {}), (["7"], {}),
        ([0], {"n": 0}), ([0], {"n": 5000}), ([0, 1], {"seed": [1, 2, 3]}),
        ([0], {"guidance": -1.0}), ([0, 1], {"guidance": [1.0, 2.0, 3.0]}),
        ([0], {"temperature": float("nan")}), ([0], {"top_p": 0.0}), ([0], {"top_k": -3}),
        ([0], {"interval": -2}), ([0], {"given": {"nois": np.zeros((1, 8, 2), np.float32)}}),
        ([0], {"given": {"noise": np.zeros((1, 8, 3), np.float32)}}),
        ({"cnd": np.zeros(1, int)}, {}), ({"cond": np.zeros((1, 2), int)}, {})]


@pytest.mark.parametrize("i", range(len(ASKS)))
def test_requests_are_refused_in_the_same_words(pair, i):
    both, (cond, ask) = pair(""), ASKS[i]
    mine = refusal(both.cpp.generate, cond, **ask)
    given, interval = ask.get("given", {}), ask.get("interval")
    plain = {k: v for k, v in ask.items() if k not in ("given", "interval")}
    theirs = refusal(both.py.generate, cond, guidance_interval=interval, **given, **plain)
    assert (mine.what, mine.hint) == (theirs.what, theirs.hint)


MIXED_ASKS = [{"cond": np.zeros(2, int)}, {"cond": np.zeros(2, int), "extr": np.ones((2, 2))},
              {"cond": np.zeros(2, int), "extra": np.ones((3, 2), np.float32)},
              {"cond": np.zeros(1, int), "extra": np.full((1, 2), np.nan, np.float32)},
              {"cond": np.full(1, 9), "extra": np.ones((1, 2), np.float32)}]


@pytest.mark.parametrize("i", range(len(MIXED_ASKS)))
def test_arrays_are_refused_in_the_same_words(pair, i):
    both = pair("mixed")
    mine = refusal(both.cpp.generate, MIXED_ASKS[i])
    theirs = refusal(both.py.generate, MIXED_ASKS[i])
    assert (mine.what, mine.hint) == (theirs.what, theirs.hint)


def _manifest(folder, **changed):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def _flip(folder):
    path = folder / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _run(folder, **changed):
    steps = json.loads((folder / "program.json").read_text())["steps"]
    engines.resigned(folder, steps=[{**steps[0], **changed}, *steps[1:]])


DAMAGE = {
    "no JSON": lambda f: (f / "manifest.json").write_text("{"),
    "no number": lambda f: _manifest(f, defaults={"guidance": float("nan")}),
    "no text": lambda f: (f / "manifest.json").write_bytes(b'{"format": "\xff"}'),
    "deep": lambda f: (f / "manifest.json").write_text("[" * 100_000),
    "no folder": shutil.rmtree,
    "no GPU": lambda f: _manifest(f, target="ort-cuda"),
    "no TensorRT": lambda f: _manifest(f, target="ort-tensorrt"),
    "weights": _flip,
    "missing": lambda f: (f / "step.onnx").unlink(),
    "short": lambda f: (f / "step.onnx").write_bytes(b"x"),
    "link": lambda f: ((f / "step.onnx").rename(f.parent / f"{f.name}.onnx"),
                       (f / "step.onnx").symlink_to(f.parent / f"{f.name}.onnx")),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "newer": lambda f: _manifest(f, format=99),
    "no key": lambda f: _manifest(f, key=3),
    "no files": lambda f: _manifest(f, files=[]),
    "list": lambda f: (f / "manifest.json").write_text("[]"),
    "unlisted": lambda f: _manifest(f, files={}),
    "outside": lambda f: _manifest(f, files={"../x": {}}),
    "newer program": lambda f: engines.resigned(f, format=2),
    "far": lambda f: engines.resigned(f, positions=1 << 30),
    "less": lambda f: engines.resigned(f, positions=7),
    "more": lambda f: engines.resigned(f, positions=9),
    "mask": lambda f: engines.resigned(f, mask="casual"),
    "accept": lambda f: engines.resigned(f, accept="most"),
    "type": lambda f: engines.resigned(f, inputs={"cond": "i65[b]"}),
    "size": lambda f: engines.resigned(f, state={"k": "f32[r,2*q]"}),
    "text": lambda f: engines.resigned(f, state={"k": "f32[r,2**q]"}),
    "draw": lambda f: engines.resigned(f, draws=[{"name": "u", "kind": "cauchy", "width": 1,
                                                  "when": "step"}]),
    "time": lambda f: engines.resigned(f, draws=[{"name": "u", "kind": "normal", "width": 1,
                                                  "when": "never"}]),
    "no steps": lambda f: engines.resigned(f, steps=[{}]),
    "twice": lambda f: _run(f, commit=[0, 0], query=[0]),
    "unasked": lambda f: _run(f, commit=[0, 1], query=[0], times=1),
    "many": lambda f: _run(f, times=1 << 21),
    "wide": lambda f: _run(f, times=1 << 20, query=1 << 20),
    "negative": lambda f: _run(f, append=-1),
    "window": lambda f: _run(f, window=1),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_engines_are_refused_in_the_same_words(lib, folders, tmp_path, name):
    folder = shutil.copytree(folders(""), tmp_path / "engine")
    DAMAGE[name](folder)
    mine, theirs = refusal(lib.open, folder), refusal(arcompile.load, folder)
    assert (mine.what, mine.hint) == (theirs.what, theirs.hint)


@pytest.mark.parametrize(("change", "said"), [
    ({"cache": 3}, "not a program: TypeError: 3 is no word"),
    ({"oracle": 1}, "the program says 'oracle', which this library does not know"),
    ({"prompt": ["prompt/twice"]}, "call prompt/twice says 'twice'"),
    ({"finish": ["step*time"]}, "call step*time loops over 'time', which is not a table"),
])
def test_what_the_library_does_not_know_is_refused_by_name(lib, folders, tmp_path, change, said):
    folder = shutil.copytree(folders(""), tmp_path / "engine")
    engines.resigned(folder, **change)
    assert refusal(lib.open, folder).what.startswith(said)
    steps = json.loads((folder / "program.json").read_text())["steps"]
    engines.resigned(shutil.copytree(folders(""), tmp_path / "other"),
                     steps=[{**steps[0], "retry": 3}, *steps[1:]])
    assert "a step says 'retry'" in refusal(lib.open, tmp_path / "other").what


def test_a_model_that_onnxruntime_refuses(lib, folders, tmp_path):
    folder = shutil.copytree(folders(""), tmp_path / "engine")
    (folder / "step.onnx").write_bytes(b"no model")
    engines.signed(folder)
    mine, theirs = (refusal(load(folder).generate, [0]) for load in (lib.open, arcompile.load))
    assert mine.what.startswith("ONNX Runtime refuses step.onnx: ")
    assert theirs.what.startswith("ONNX Runtime refuses step.onnx: ")
    assert (mine.hint, mine.code) == (theirs.hint, theirs.code) == (mine.hint, MACHINE)


def test_onnxruntime_that_is_missing_or_is_none(lib, folders, tmp_path):
    said = refusal(lib.open, folders(""), library=str(tmp_path / "none.so"))
    assert said.what.startswith("cannot load ONNX Runtime: ")
    assert (said.code, "ARC_ORT_LIBRARY" in said.hint) == (MACHINE, True)
    said = refusal(lib.open, folders(""), library="libc.so.6")
    assert said.what == "libc.so.6 is not ONNX Runtime: it has no OrtGetApiBase"
    old = tmp_path / "old.cpp"
    old.write_text('extern "C" struct { const void* (*get)(unsigned); const char* (*version)(); }\n'
                   "base = {[](unsigned) -> const void* { return nullptr; },\n"
                   '        []() -> const char* { return "1.24.1"; }};\n'
                   'extern "C" const void* OrtGetApiBase() { return &base; }\n')
    made = tmp_path / "libold.so"
    subprocess.run(["c++", "-shared", "-fPIC", old, "-o", made], check=True)
    said = refusal(lib.open, folders(""), library=str(made))
    assert said.what == ("onnxruntime 1.24.1 is too old (cached attention is wrong): >= 1.28")


def test_plans_are_pythons(lib, folders, tmp_path):
    folder = shutil.copytree(folders(""), tmp_path / "engine")
    parts = ("runtime", "weights", "state", "activations", "decoder", "pictures")
    one = {k: 1000 * i for i, k in enumerate(parts)}
    pair = [one, {k: 1500 * i for i, k in enumerate(parts)}]
    _manifest(folder, plan={"guided": pair, "plain": pair[::-1]})
    cpp, py = lib.open(folder, 1), arcompile.load(folder)
    for images, guided in ((1, True), (3, True), (1, False), (2, False)):
        want = py.plan(images, guided)
        assert cpp.plan(images, guided) == want.total
        assert {k: cpp.plan(images, guided, k) for k in parts} == want.parts()
    refused = [refusal(e.plan, 0) for e in (cpp, py)]
    assert refused[0].what == refused[1].what == "batch must be 1 or more, got 0"
    assert "'stat'" in refusal(cpp.plan, 1, True, "stat").what
    huge = [{**x, "state": 1 << 60} for x in pair]
    _manifest(folder, plan={"guided": huge, "plain": huge})
    mine, theirs = (refusal(load(folder).generate, [0]) for load in (lib.open, arcompile.load))
    assert mine.what.startswith("an image would need 1.15e+03 PB more memory, and ")
    assert mine.what[:40] == theirs.what[:40]
    assert (mine.hint, mine.code) == (theirs.hint, theirs.code)
    for load in (lib.open, arcompile.load):
        assert refusal(load(folders("")).plan, 1).what == "the engine holds no plan of its memory"
