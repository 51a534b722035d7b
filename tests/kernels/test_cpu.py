"""The CPU kernels against the meanings of the ops, each instruction set by itself."""

from __future__ import annotations

import ctypes

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from arcompile.errors import ArcError
from arcompile.kernels import cpu
from arcompile.ops.attention import attention, decode_attention
from arcompile.ops.nn import group_norm, group_norm_silu, residual_norm, swiglu
from arcompile.ops.sampling import draw, filter_logits
from arcompile.targets.onnx_attention import MASKS

RNG = np.random.default_rng(0)
F32, I32 = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int32)
I64 = ctypes.c_int64
DTYPES = {"f": T.FLOAT, "i": T.INT32, "l": T.INT64}


class Lanes(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("swiglu", ctypes.CFUNCTYPE(None, F32, F32, F32, I64)),
        ("attend", ctypes.CFUNCTYPE(None, F32, I64, I64, F32, F32, I64, I64, I32, ctypes.c_float,
                                    F32, F32, I64)),
        ("residual_norm", ctypes.CFUNCTYPE(None, F32, F32, F32, F32, F32, I64, ctypes.c_float)),
        ("group_norm", ctypes.CFUNCTYPE(None, F32, F32, F32, F32, I64, I64, ctypes.c_float,
                                        ctypes.c_bool)),
        ("masses", ctypes.CFUNCTYPE(ctypes.c_float, F32, F32, I64, ctypes.c_float)),
        ("guide", ctypes.CFUNCTYPE(None, F32, F32, ctypes.c_float, ctypes.c_float, F32, I64)),
        ("excess", ctypes.CFUNCTYPE(ctypes.c_float, F32, F32, F32, I64)),
        ("total", ctypes.CFUNCTYPE(ctypes.c_float, F32, I64)),
        ("peak", ctypes.CFUNCTYPE(ctypes.c_float, F32, I64)),
    ]


@pytest.fixture(scope="module")
def library():
    if not cpu.compiler():
        pytest.skip("no C++ compiler on this machine")
    return cpu.build()


@pytest.fixture(params=["avx512", "avx2", "plain"])
def lanes(library, request):
    ask = ctypes.CDLL(str(library)).arcompile_ops_lanes
    ask.restype = ctypes.POINTER(Lanes)
    found = ask(request.param.encode())
    if not found:
        pytest.skip(f"this processor has no {request.param}")
    assert found.contents.name == request.param.encode()
    return found.contents


def at(x):
    return x.ctypes.data_as(F32)


def test_swiglu(lanes):
    gate = np.linspace(-120, 120, 5003, dtype=np.float32)
    x, y = RNG.standard_normal(5003, np.float32), np.empty(5003, np.float32)
    lanes.swiglu(at(gate), at(x), at(y), len(y))
    assert np.allclose(y, swiglu(gate.astype(np.float64), x), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(("queries", "width", "n"), [
    (1, 64, 1), (1, 64, 37), (1, 40, 16), (1, 7, 21), (16, 64, 37), (5, 48, 9), (3, 7, 8),
    (4, 64, 50), (8, 32, 37), (2, 16, 16), (7, 24, 40), (9, 64, 33)])
def test_attend(lanes, queries, width, n):
    q, out = RNG.standard_normal((2, queries, 2 * width), np.float32)  # rows of two heads
    k, v = RNG.standard_normal((2, n, width), np.float32)
    ends = np.sort(RNG.integers(1, n + 1, 16)).astype(np.int32)
    ends[queries - 1] = n
    before, scratch = out.copy(), np.empty(16 * (n + width + 1), np.float32)
    lanes.attend(at(q), 2 * width, queries, at(k), at(v), width, n,
                 ends.ctypes.data_as(I32), 0.3, at(scratch), at(out), 2 * width)
    scores = q[:, :width].astype(np.float64) @ k.T * 0.3
    p = np.where(np.arange(n) < ends[:queries, None], np.exp(scores), 0)
    assert np.allclose(out[:, :width], p @ v / p.sum(-1, keepdims=True), atol=2e-6)
    assert (out[:, width:] == before[:, width:]).all()  # the other head's


def test_residual_norm(lanes):
    x, y, weight = RNG.standard_normal((3, 777), np.float32)
    norm, total = np.empty((2, 777), np.float32)
    lanes.residual_norm(at(x), at(y), at(weight), at(norm), at(total), 777, 1e-5)
    wants = residual_norm(x.astype(np.float64), y, weight, eps=1e-5)
    for got, want in zip((norm, total), wants, strict=True):
        assert np.allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("silu", "meaning"), [(False, group_norm), (True, group_norm_silu)])
@pytest.mark.parametrize("area", [9, 64, 5000])
def test_group_norm(lanes, silu, meaning, area):
    x = RNG.standard_normal((1, 3, area), np.float32) * 5 + 100
    weight, bias = RNG.standard_normal((2, 3), np.float32)
    y = np.empty_like(x)
    lanes.group_norm(at(x), at(weight), at(bias), at(y), 3, area, 1e-6, silu)
    want = meaning(x.astype(np.float64), weight, bias, groups=1, eps=1e-6)
    assert np.allclose(y, want, atol=1e-4)


def test_masses(lanes):
    x = np.linspace(-100, 0, 1027, dtype=np.float32)
    x[::7], p = -np.inf, np.full(1027, np.nan, np.float32)
    total = lanes.masses(at(x), at(p), len(x), 0.0)
    want = np.exp(x.astype(np.float64))
    assert np.allclose(p, want, rtol=3e-7, atol=1e-37)
    assert (p[::7] == 0).all()
    assert total == pytest.approx(want.sum(), rel=1e-6)


@pytest.mark.parametrize("count", [1, 15, 128, 1027])
def test_loops_of_laws(lanes, count):
    p, q = RNG.standard_normal((2, count), np.float32)
    y = np.full(count, np.nan, np.float32)
    lanes.guide(at(p), at(q), 1.5, 0.7, at(y), count)
    assert np.allclose(y, (p + 1.5 * (p - q)) / 0.7, rtol=1e-5, atol=1e-6)
    total = lanes.excess(at(p), at(q), at(y), count)
    assert (y == np.maximum(p - q, 0)).all()
    assert total == pytest.approx(y.sum(dtype=float), rel=1e-5, abs=1e-6)
    assert lanes.total(at(p), count) == pytest.approx(p.sum(dtype=float), abs=1e-4)
    assert lanes.peak(at(p), count) == p.max()


# --- through onnxruntime -------------------------------------------------------------------------


def run(library, name, *arrays, outs=1):
    """One op of domain arcompile, as an engine would call it."""
    given = {f"in{i}": a for i, a in enumerate(arrays)}
    out, made = T.INT64 if name == "Draw" else T.FLOAT, [f"out{i}" for i in range(outs)]
    graph = h.make_graph(
        [h.make_node(name, list(given), made, domain="arcompile")], "g",
        [h.make_tensor_value_info(k, DTYPES[a.dtype.char], a.shape) for k, a in given.items()],
        [h.make_tensor_value_info(k, out, None) for k in made])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21),
                                               h.make_opsetid("arcompile", 1)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    found = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, given)
    return found[0] if outs == 1 else found


@pytest.mark.parametrize(("s", "heads", "kv", "pairs"),
                         [(1, 4, 4, True), (1, 4, 2, False), (5, 4, 2, True), (20, 2, 1, False)])
def test_decode_attention(library, s, heads, kv, pairs):
    """Rotary, both caches and the attention of steps that query one slot, or a prompt's."""
    r, width, slots = 2, 32, 40
    past = np.array([3, 11], np.int32)
    qkv = RNG.standard_normal((r, s, (heads + 2 * kv) * width), np.float32)
    caches = RNG.standard_normal((2, r, kv, slots, width), np.float32)
    cos, sin = RNG.standard_normal((2, slots, width // 2), np.float32)
    q, k, v = np.split(qkv, [heads * width, (heads + kv) * width], -1)
    wants = decode_attention(q, k, v, *caches, past, cos, sin, heads=heads, kv_heads=kv,
                             scale=0.2, mask="causal", interleaved=pairs)
    last = past + np.int32(s - 1)
    most = last.max(keepdims=True).reshape(())
    found = run(library, "DecodeAttention", qkv, *caches, last, most, cos, sin,
                np.array([heads, kv, int(pairs)]), np.array([0.2], np.float32), outs=3)
    assert np.allclose(found[0], wants[0], atol=1e-5)
    for got, want in zip(found[1:], wants[1:], strict=True):
        assert np.allclose(got, want, atol=1e-5)


def test_decode_attention_stays_within_its_caches(library):
    """A position beyond the last slot, of an engine that lies, writes to nobody's memory."""
    qkv, caches = np.ones((1, 1, 3 * 16), np.float32), np.zeros((2, 1, 1, 4, 16), np.float32)
    turns = np.ones((2, 4, 8), np.float32)
    for last in (-9, 9, 2**31 - 1):
        at = np.array([last], np.int32)
        found = run(library, "DecodeAttention", qkv, *caches, at, at.reshape(()), *turns,
                    np.array([1, 1, 0]), np.array([1.0], np.float32), outs=3)
        assert found[2][0, 0, 0 if last < 0 else 3].all()


def test_residual_norm_of_many_rows(library):
    x, y = RNG.standard_normal((2, 2, 300, 256), np.float32)
    weight, eps = RNG.standard_normal(256, np.float32), np.array([1e-6], np.float32)
    wants = residual_norm(x, y, weight, eps=1e-6)
    found = run(library, "ResidualNorm", x, y, weight, eps, outs=2)
    for got, want in zip(found, wants, strict=True):
        assert np.allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "meaning"),
                         [("GroupNorm", group_norm), ("GroupNormSilu", group_norm_silu)])
def test_group_norm_of_images(library, name, meaning):
    x = RNG.standard_normal((2, 8, 5, 7), np.float32)
    weight, bias = RNG.standard_normal((2, 8), np.float32)
    got = run(library, name, x, weight, bias, np.array([4]), np.array([1e-5], np.float32))
    assert np.allclose(got, meaning(x, weight, bias, groups=4, eps=1e-5), atol=1e-5)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("s", "past"), [(1, [0, 0]), (1, [5, 30]), (20, [0, 0]), (20, [12, 12])])
def test_cached_attention(library, mask, s, past):
    r, heads, kv, slots, width = 2, 4, 2, 64, 24
    q = RNG.standard_normal((r, s, heads * width), np.float32)
    k, v = RNG.standard_normal((2, r, kv, slots, width), np.float32)
    told = np.array([heads, MASKS.index(mask)]), np.array([0.2], np.float32)
    got = run(library, "CachedAttention", q, k, v, np.array(past) + s, *told)
    want = attention(q, k, v, np.array(past, np.int32), heads=heads, kv_heads=kv, scale=0.2,
                     mask=mask, extra=("past",))
    assert np.allclose(got, want, atol=2e-6)


@pytest.mark.parametrize(("top_k", "top_p"), [
    (0, 1.0), (1, 1.0), (50, 1.0), (5000, 1.0), (0, 0.9), (200, 0.5), (7, 0.0), (0, 1e-6)])
def test_filter(library, top_k, top_p):
    x = np.round(RNG.standard_normal((3, 2, 5000), np.float32) * 3, 2)  # many ties
    k, p = np.array([top_k, 0, 30]), np.array([top_p, 1, 0.8], np.float32)
    most = np.array([5000 if top_p < 1 and not top_k else max(top_k, 30)])
    args = (x, np.array([1, 0.5, 0], np.float32), k, p, most)
    got, want = run(library, "FilterLogits", *args), filter_logits(*args)
    assert ((got == want) | np.isclose(got, want, rtol=1e-6)).all()
    assert np.isneginf(want).any()
    assert (np.isneginf(got) == np.isneginf(want)).all()


@pytest.mark.parametrize("size", [2, 100, 128, 1000, 16384])
def test_draw(library, size):
    x = RNG.standard_normal((50, 20, size), np.float32) * 4
    x[RNG.random(x.shape) < 0.3] = -np.inf
    x[..., 0] = 0  # something is always possible
    noise = RNG.integers(0, 1 << 23, (50, 20, 2)).astype(np.float32) * np.float32(2.0**-23)
    temperature = np.array([0, 1] * 25, np.float32)
    assert (run(library, "Draw", x, noise, temperature) == draw(x, noise, temperature)).all()


# --- the library itself --------------------------------------------------------------------------


def test_what_arc_kernels_says(library, monkeypatch, tmp_path):
    monkeypatch.setenv("ARC_KERNELS", str(library))
    assert cpu.library() == library
    monkeypatch.setenv("ARC_KERNELS", "off")
    assert cpu.library() is None
    monkeypatch.setenv("ARC_KERNELS", str(tmp_path / "none.so"))
    with pytest.raises(ArcError, match="not a file"):
        cpu.library()


def test_a_machine_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("ARC_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(cpu, "PACKAGED", tmp_path / "none.so")
    with pytest.raises(ArcError, match=r"no C\+\+ compiler"):
        cpu.build()
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_nothing(monkeypatch, tmp_path):
    broken = tmp_path / "cxx"
    broken.write_text("#!/bin/sh\necho 'error: out of luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setattr(cpu, "PACKAGED", tmp_path / "none.so")
    with pytest.raises(ArcError, match="out of luck"):
        cpu.build()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]


def test_functions_say_what_the_kernels_do(library):
    """A model runs without the library too: the ops are functions of the model."""
    from arcompile.sampling import sample_graph
    from arcompile.targets.onnx_emit import emit

    model = onnx.load_from_string(emit(sample_graph(300), {}, kernels=True))
    assert {f.name for f in model.functions} == {"GuidedFilter", "Draw"}
    env = {"logits": RNG.standard_normal((2, 1, 300), np.float32), "row": np.array([0]),
           "null_row": np.array([1]), "scale": np.array([2], np.float32),
           "temperature": np.ones(1, np.float32), "top_k": np.array([40]),
           "top_p": np.array([0.9], np.float32), "most": np.array([40]),
           "noise": np.array([[[0.4, 0.7]]], np.float32)}
    tokens = []
    for kernels in (None, library):
        options = onnxruntime.SessionOptions()
        if kernels:
            options.register_custom_ops_library(str(kernels))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options,
                                               providers=["CPUExecutionProvider"])
        tokens.append(session.run(["out.token"], env)[0].item())
    assert tokens[0] == tokens[1]


def test_a_runtime_has_one_domain_and_gets_it_back(library, tmp_path):
    """Sessions of a runtime share the domain; it is released when the library is unloaded."""
    import _ctypes
    import shutil

    shutil.copy(library, own := tmp_path / "ops.so")  # no other test holds this one
    calls = []
    void, taken = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)

    def create(name, out):
        out[0] = 0x1000 + len(calls)
        calls.append("create")

    table = (void * 300)()
    kept = [ctypes.CFUNCTYPE(void, ctypes.c_char_p, taken)(create),
            *(ctypes.CFUNCTYPE(void, void, void)(lambda a, b, word=word: calls.append(word))
              for word in ("op", "register")),
            ctypes.CFUNCTYPE(None, void)(lambda domain: calls.append(("release", domain)))]
    for slot, function in zip((26, 27, 28, 101), kept, strict=True):
        table[slot] = ctypes.cast(function, void).value
    entry = ctypes.CFUNCTYPE(void, ctypes.c_uint32)(lambda version: ctypes.addressof(table))
    base = (void * 2)(ctypes.cast(entry, void).value, None)
    lib = ctypes.CDLL(str(own))
    for _ in range(3):
        assert not lib.RegisterCustomOps(None, base)
    assert calls.count("create") == 1
    assert calls.count("register") == 3
    _ctypes.dlclose(lib._handle)
    assert calls[-1] == ("release", 0x1000)
    assert sum(isinstance(c, tuple) for c in calls) == 1
