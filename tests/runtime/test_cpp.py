"""libarcompile against the Python runtime: the same tokens, pixels, refusals; bit for bit.

The library is built once, under build/cpp. Engines here are hand-written programs that need no
torch; every family's own engines are compared where `slow` tests run.
"""

from __future__ import annotations

import ctypes as c
import json
import os
import shutil
import subprocess
import threading

import engines
import native
import numpy as np
import pytest
import toy

import arcompile
from arcompile.errors import MACHINE, ArcError
from arcompile.weights import of_arrays

pytestmark = pytest.mark.ort
CANCELLED = 3
SAMPLING = {"seed": [3, 2**63 + 9], "guidance": [3.0, 1.0], "temperature": [1.0, 0.5],
            "top_k": [0, 2], "top_p": [0.9, 1.0]}
WINDOWS = ("scd{window=3}", "sjd{window=3}", "jacobi{window=3}", "gsd{window=3}")


@pytest.fixture(scope="session")
def lib():
    pytest.importorskip("onnxruntime")
    os.environ.setdefault("ARC_KERNELS", "off")  # the same for both
    return native.Library(native.library())


class Pair:
    """One engine in both runtimes, with one thread each."""

    def __init__(self, lib, folder):
        self.folder = folder
        self.cpp, self.py = lib.open(folder, 1), arcompile.load(folder, threads=1)

    def same(self, cond, **ask):
        given = ask.pop("given", {})
        interval = ask.pop("interval", None)
        a = self.cpp.generate(cond, interval=interval, given=given, **ask)
        b = self.py.generate(cond, guidance_interval=interval, **given, **ask)
        for name in ("tokens", "pixels", "images", "latents", "rounds"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x is None) == (y is None), name
            if x is not None:
                assert (x.shape, x.dtype) == (y.shape, y.dtype), name
                assert x.tobytes() == np.ascontiguousarray(y).tobytes(), name
        return a


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    pytest.importorskip("onnx")
    root, made = tmp_path_factory.mktemp("cpp"), {}

    def get(name):
        if name not in made and name == "mixed":
            made[name] = engines.write(root / name, engines.mixed(), engines.none(),
                                       info={"classes": 5}, defaults={"guidance": 2.0})
        elif name not in made:
            t = toy.Toy(n=8)
            made[name] = engines.write(root / f"toy{len(made)}", t.program, of_arrays(t.weights),
                                       t.v, passes=name, info={"classes": 3})
        return made[name]

    return get


@pytest.fixture(scope="session")
def pair(lib, folders):
    made = {}

    def get(name):
        if name not in made:
            made[name] = Pair(lib, folders(name))
        return made[name]

    return get


# --- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("passes", ["", *WINDOWS])
def test_a_raster_and_its_windows(pair, passes):
    both = pair(passes)
    for seed in range(20):
        both.same([seed % 3], seed=seed)
    both.same([0, 1], **SAMPLING)
    both.same([2, 0], n=2, seed=[1, 2, 3, 2**64 - 1], guidance=[1, 2, 4, 1.5], temperature=0.0)
    both.same([2, 0], seed=4, guidance=3.0, interval=1)


def test_everything_else_a_program_may_say(pair):
    both = pair("mixed")
    rng_ = np.random.default_rng(0)
    for seed in range(20):
        b = seed % 3 + 1
        cond = {"cond": np.arange(b) % 5,
                "extra": rng_.normal(size=(b, 1 + seed % 4)).astype(np.float32)}
        both.same(cond, seed=list(range(seed, seed + b)), guidance=rng_.uniform(0, 5, b).tolist(),
                  temperature=rng_.uniform(0, 2, b).tolist(), n=1 + seed % 2,
                  interval=(None, 0, 2)[seed % 3])


def test_given_noise_replaces_draws(pair):
    both, r = pair("mixed"), np.random.default_rng(1)
    cond = {"cond": np.array([1, 4]), "extra": np.ones((2, 2), np.float32)}
    given = {"noise": r.uniform(size=(2, 6, 2)).astype(np.float32),
             "first": r.normal(size=(2, 6, 3)).astype(np.float32),
             "bump": r.normal(size=(2, 6, 1)).astype(np.float32),
             "where": np.stack([r.permutation(6) for _ in range(2)])}
    drawn = both.same(cond)
    assert (both.same(cond, given=given).tokens != drawn.tokens).any()
    window = pair(WINDOWS[0])
    noise = {"noise": r.uniform(size=(2, 8, 2)).astype(np.float32)}
    pair("").same([0, 1], given=noise)
    for d in window.py.program.draws:
        if d.when == "place":
            window.same([0, 1], given={d.name: r.uniform(size=(2, 8, d.width)).astype(np.float32)})


def test_logits(pair):
    both = pair("")
    tokens = np.random.default_rng(2).integers(0, 3, (2, 8))
    for x, y in zip(both.cpp.logits([0, 2], tokens), both.py.logits([0, 2], tokens), strict=True):
        assert (x == y).all()


def test_noise_of_many_seeds_has_the_same_bits(pair):
    """Noise is f64 until its last rounding, which hides an ulp between libm and numpy."""
    cond = {"cond": np.zeros(256, int), "extra": np.ones((256, 1), np.float32)}
    pair("mixed").same(cond, seed=list(range(256)))


def test_a_preview_is_pythons_and_changes_nothing(pair):
    both, seen, said = pair("mixed"), [], []
    cond = {"cond": np.array([1, 4]), "extra": np.ones((2, 2), np.float32)}

    def look(p):
        out = native.Tensor()
        both.cpp.lib.must("arc_progress_preview", p, c.byref(out))
        seen.append((native.taken(both.cpp.lib.c.arc_progress_tokens(p)), native.taken(out)))

    from arcompile.runtime.image import to_uint8

    plain = both.same(cond)
    looked = both.cpp.generate(cond, on_step=look)
    both.py.generate(cond, on_step=lambda p: said.append((p.tokens.copy(), to_uint8(p.pixels()))))
    assert (looked.pixels == plain.pixels).all()
    assert len(seen) == len(said) == 4
    for mine, theirs in zip(seen, said, strict=True):
        for x, y in zip(mine, theirs, strict=True):
            assert (x == y).all()


@pytest.mark.parametrize("passes", ["", WINDOWS[0]])
def test_a_run_that_has_enough(pair, passes):
    both = pair(passes)
    a = both.cpp.generate([0, 1], seed=3, on_step=lambda p: int(
        both.cpp.lib.c.arc_progress_step(p) >= 3))
    b = both.py.generate([0, 1], seed=3, on_step=lambda p: p.step < 3)
    assert (a.tokens == b.tokens).all()
    assert (a.tokens == -1).any()


# --- stopping, threads ---------------------------------------------------------------------------


def test_cancelling(pair):
    e = pair("").cpp
    with pytest.raises(ArcError) as from_callback:
        e.generate([0], on_step=lambda p: 2)
    stop = c.c_void_p(e.lib.c.arc_stop_new())
    steps = []

    def ask(p):
        steps.append(e.lib.c.arc_progress_step(p))
        if len(steps) == 2:
            e.lib.c.arc_stop_now(stop)

    with pytest.raises(ArcError) as from_stop:
        e.generate([0], on_step=ask, stop=stop)
    with pytest.raises(ArcError):  # and what begins later
        e.generate([0], stop=stop)
    e.lib.c.arc_stop_free(stop)
    assert steps == [1, 2]
    for said in (from_callback.value, from_stop.value):
        assert (said.what, said.code) == ("the run was cancelled", CANCELLED)


def test_one_engine_in_many_threads(pair, lib):
    both = pair("")
    want = [both.py.generate([i % 3], seed=i, guidance=2.0).tokens for i in range(12)]
    other = lib.open(both.folder, 1)
    found = {}

    def draw(i):
        found[i] = (other if i % 2 else both.cpp).generate([i % 3], seed=i, guidance=2.0).tokens

    crew = [threading.Thread(target=draw, args=(i,)) for i in range(12)]
    for t in crew:
        t.start()
    for t in crew:
        t.join()
    assert all((found[i] == want[i]).all() for i in range(12))


def test_plan(pair):
    both = pair("")
    rows, weights, state = both.cpp.plan(3)
    assert rows == 6
    assert weights == (both.folder / "weights.safetensors").stat().st_size
    assert state == sum(t.nbytes(both.py.program.sizes(3, 6)) for _, t in both.py.program.state)
    assert both.cpp.plan(3, guided=False)[0] == 3


# --- refusals ------------------------------------------------------------------------------------


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
    ({"cache": "windowed"}, "cache is 'windowed'"),
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
