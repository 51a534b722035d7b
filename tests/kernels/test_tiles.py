"""Channels-last convolutions and 8-bit linear layers: each instruction set's tiles, the kernels
against the meanings of the ops, and the standard ops they stand for."""

from __future__ import annotations

import ctypes

import numpy as np
import onnxruntime
import pytest

from arcompile.ir import OPS, Builder, Graph, evaluate
from arcompile.kernels import cpu
from arcompile.ops.channels_last import PER, of_bf16, to_bf16
from arcompile.safetensors import layout, write
from arcompile.targets.onnx_emit import WEIGHTS, emit

RNG = np.random.default_rng(0)
P, I64, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SUM = ctypes.CFUNCTYPE(None, P, P, I64, I64, I64, I64, P, I64, P, ctypes.c_bool)
PACK = ctypes.CFUNCTYPE(None, P, P, P, ctypes.c_bool, I64, I64, F, F, P)


class Tiles(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("sum", SUM * 3), ("pack", PACK * 3),
                ("moments", ctypes.CFUNCTYPE(None, P, P, I64, I64, P, P, P, P)), ("scale", P),
                ("round_row", P), ("tail", P)]


@pytest.fixture(scope="module")
def library():
    if not cpu.compiler():
        pytest.skip("no C++ compiler on this machine")
    return cpu.build()


@pytest.fixture(params=["bf16", "vnni", "avx512", "avx2", "plain"])
def tiles(library, request):
    ask = ctypes.CDLL(str(library)).arcompile_ops_tiles
    ask.restype = ctypes.POINTER(Tiles)
    found = ask(request.param.encode())
    if not found:
        pytest.skip(f"this processor has no {request.param}")
    assert found.contents.name == request.param.encode()
    return found.contents


def words(form, shape):
    """(operand as stored, its values): four bytes a word."""
    per = (1, 2, 4)[form]
    x = RNG.standard_normal((*shape, per)).astype(np.float32)
    if form == 0:
        return x, x
    if form == 1:
        return to_bf16(x), of_bf16(to_bf16(x))
    q = np.clip(np.rint(x * 40), -128, 127).astype(np.int8)
    return q, q.astype(np.float32)


@pytest.mark.parametrize("form", [0, 1, 2])
@pytest.mark.parametrize(("pixels", "width"), [(8, 32), (7, 32), (1, 16), (8, 16)])
def test_sums(tiles, form, pixels, width):
    x, values = words(form, (12, 5))  # 12 pixels of 5 words
    if form == 2:  # activations are unsigned
        x = (x.astype(np.int16) + 128).astype(np.uint8)
        values = x.astype(np.float32)
    w, wide = words(form, (2, 5, width))
    taps, sums = np.array([0, 15], np.int64), np.zeros((pixels, width), np.int32)
    call = (x.ctypes.data, taps.ctypes.data, 2, 5, 5, pixels, w.ctypes.data, width,
            sums.ctypes.data)
    want = sum(np.einsum("pkj,knj->pn", values[t : t + pixels], wide[i])
               for i, t in enumerate((0, 3)))
    for turn, more in ((1, False), (2, True)):  # the second on top of the first
        tiles.sum[form](*call, more)
        got = sums if form == 2 else sums.view(np.float32)
        assert np.allclose(got, turn * want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("silu", [False, True])
def test_pack(tiles, silu):
    x = RNG.standard_normal((3, 48)).astype(np.float32) * 20
    scale, shift = RNG.standard_normal((2, 48)).astype(np.float32)
    y = x * scale + shift
    y = (y / (1 + np.exp(-y.astype(np.float64)))).astype(np.float32) if silu else y
    for form, dtype in enumerate((np.float32, np.uint16, np.uint8)):
        got = np.empty((3, 48), dtype)
        tiles.pack[form](x.ctypes.data, scale.ctypes.data, shift.ctypes.data, silu, 48, 3, 0.5, 9,
                         got.ctypes.data)
        if form == 0:
            assert np.allclose(got, y, rtol=1e-6, atol=1e-6)
        elif form == 1:
            assert np.allclose(of_bf16(got), y, rtol=2**-8, atol=1e-6)
        else:
            assert np.abs(got - np.clip(y / 0.5 + 9, 0, 255)).max() <= 0.5001


def test_moments(tiles):
    x = RNG.standard_normal((300, 80)).astype(np.float32) * 3 + 50
    sums, squares = np.zeros((2, 80))
    least, most = np.full(80, np.inf, np.float32), np.full(80, -np.inf, np.float32)
    tiles.moments(x.ctypes.data, x[:1].ctypes.data, 80, 300, sums.ctypes.data,
                  squares.ctypes.data, least.ctypes.data, most.ctypes.data)
    off = x.astype(np.float64) - x[0]
    assert np.allclose(sums, off.sum(0), rtol=1e-5, atol=1e-2)
    assert np.allclose(squares, np.square(off).sum(0), rtol=1e-5)
    assert (least == x.min(0)).all()
    assert (most == x.max(0)).all()


def graph(size, ci, co, k, dtype, norm, twice, residual):
    h, w = size
    b = Builder("g")
    x = b.param("x", f"f32[n,{h},{w},{ci}]")
    packed = b.pack_conv(b.weight("w", f"f32[{co},{ci},{k},{k}]"), twice=twice)
    if dtype != "f32":
        packed = b.narrow_conv(packed[0], dtype=dtype)
    args = [x, b.weight("p", packed[0].type), b.weight("s", packed[1].type),
            b.weight("bias", f"f32[{co}]")]
    nodes = b.take()
    more = [b.param("r", f"f32[n,{h},{w},{co}]")] if residual else []
    if norm:
        affine = [b.weight("g", f"f32[{ci}]"), b.weight("h", f"f32[{ci}]")]
        y = b.norm_conv_last(*args, *affine, *more, groups=4, eps=1e-6)
    else:
        y = b.conv_last(*args, *more)
    held = {k: v for k, v in b.weights.items() if k != "@w"}
    g = b.graph(y=y)
    return type(g)(g.name, g.params, g.nodes, g.results, tuple(held.values())), nodes


def session(folder, model, library):
    path = folder / f"{'kernels' if library else 'plain'}.onnx"
    path.write_bytes(model)
    options = onnxruntime.SessionOptions()
    if library:
        options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


CASES = [((9, 21), 16, 40, 3, False, False), ((16, 16), 64, 32, 3, True, True),
         ((5, 6), 48, 3, 3, True, False), ((4, 9), 32, 33, 1, False, True),
         ((70, 8), 16, 16, 3, True, False)]


@pytest.mark.parametrize("dtype", PER)
@pytest.mark.parametrize(("size", "ci", "co", "k", "norm", "residual"), CASES)
def test_kernel_and_function(library, tmp_path, dtype, size, ci, co, k, norm, residual):
    _both(library, tmp_path, dtype, size, ci, co, k, norm, residual, False)


@pytest.mark.parametrize("dtype", PER)
def test_enlarged(library, tmp_path, dtype):
    _both(library, tmp_path, dtype, (6, 11), 32, 40, 3, False, False, True)


def _both(library, tmp_path, dtype, size, ci, co, k, norm, residual, twice):
    g, made = graph(size, ci, co, k, dtype, norm, twice, residual)
    w = RNG.standard_normal((co, ci, k, k)).astype(np.float32) / np.sqrt(ci * k * k)
    env = {made[0].args[0]: w}
    for n in made:
        env.update(zip(n.outs, OPS[n.op].eval(*(env[a] for a in n.args), **n.attrs), strict=True))
    packed, scale = (env[v] for v in made[-1].outs)
    weights = {"@p": packed, "@s": scale, "@bias": RNG.standard_normal(co).astype(np.float32),
               "@g": RNG.standard_normal(ci).astype(np.float32),
               "@h": RNG.standard_normal(ci).astype(np.float32)}
    feed = {p.name: RNG.standard_normal([2, *p.type.shape[1:]]).astype(np.float32)
            for p in g.params}
    want = evaluate(g, feed, weights)["y"]
    types = {v.name: v.type for v in g.weights}
    write(tmp_path / WEIGHTS, types, weights.__getitem__)
    model = emit(g, layout(types)[1], kernels=True)
    got = session(tmp_path, model, library).run(None, feed)[0]
    # one step of an 8-bit integer may round the other way; sums of bf16 round differently
    assert np.abs(got - want).max() < {"f32": 2e-5, "bf16": 2e-3, "i8": 2e-2}[dtype]
    plain = session(tmp_path, model, None).run(None, feed)[0]
    off = np.linalg.norm(plain - want) / np.linalg.norm(want)
    assert off < {"f32": 1e-5, "bf16": 1e-2, "i8": 3e-2}[dtype]
    assert (session(tmp_path, model, library).run(None, {k: v[1:] for k, v in feed.items()})[0]
            == got[1:]).all()  # whatever else is in the batch


# --- linear layers -------------------------------------------------------------------------------

ROUND = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)


def test_round_row(tiles):
    for n in (1, 16, 77, 400):
        x, q = RNG.standard_normal(n).astype(np.float32), np.empty(n, np.uint8)
        step = ROUND(tiles.round_row)(x.ctypes.data, n, q.ctypes.data)
        want, scale = OPS["quantize_rows"].eval(x[None])
        assert step == pytest.approx(scale.item(), rel=1e-6)
        assert np.abs(q - want[0].astype(int)).max() <= 1
        assert (q == want[0]).mean() > 0.98
    zeros, q = np.zeros(20, np.float32), np.empty(20, np.uint8)
    assert ROUND(tiles.round_row)(zeros.ctypes.data, 20, q.ctypes.data) > 0
    assert (q == 128).all()


@pytest.mark.parametrize(("r", "s", "k", "n", "gelu", "more"), [
    (2, 9, 64, 96, False, False), (2, 37, 2304, 48, True, False), (3, 8, 60, 33, False, True),
    (1, 1, 32, 16, True, True)])
def test_linear(library, tmp_path, r, s, k, n, gelu, more):
    b = Builder("g")
    x = b.param("x", f"f32[r,s,{k}]")
    w = RNG.standard_normal((k, n)).astype(np.float32) / np.sqrt(k)
    held = OPS["pack_linear"].eval(*OPS["quantize_channels"].eval(w, axis=1))
    weights = {"@w": held[0], "@s": held[1], "@bias": RNG.standard_normal(n).astype(np.float32)}
    args = [b.weight("w", f"i8[{','.join(map(str, held[0].shape))}]"),
            b.weight("s", f"f32[2,{held[1].shape[1]}]"), b.weight("bias", f"f32[{n}]")]
    rest = [b.param("gain", f"f32[r,1,{n}]"), b.param("onto", f"f32[r,s,{n}]")] if more else []
    g: Graph = b.graph(y=b.linear_int8(x, *args, *rest, gelu=gelu))
    shapes = {"x": (r, s, k), "gain": (r, 1, n), "onto": (r, s, n)}
    feed = {p.name: RNG.standard_normal(shapes[p.name]).astype(np.float32) for p in g.params}
    want = evaluate(g, feed, weights)["y"]
    types = {v.name: v.type for v in g.weights}
    write(tmp_path / WEIGHTS, types, weights.__getitem__)
    model = emit(g, layout(types)[1], kernels=True)
    for lib in (library, None):
        got = session(tmp_path, model, lib).run(None, feed)[0]
        assert got.shape == want.shape
        assert np.abs(got - want).max(initial=0) < 0.03
        if want.size:
            assert np.linalg.norm(got - want) / np.linalg.norm(want) < 2e-3
