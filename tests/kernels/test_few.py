"""Products of few rows: each instruction set against numpy, the ops, and what fuses into them."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper as h

from arcompile.ir import Builder, Type
from arcompile.kernels import cpu
from arcompile.ops.nn import residual_norm, swiglu
from arcompile.ops.quant import ZERO, matmul_int8, quantize_channels, quantize_rows
from arcompile.targets.onnx_emit import emit
from arcompile.targets.onnx_few import turned

RNG = np.random.default_rng(0)
I64 = ctypes.c_int64
KINDS = {"f": T.FLOAT, "b": T.INT8}
SIZES = [(1, 768, 2304), (2, 64, 4096), (3, 37, 130), (5, 8, 16), (8, 7, 5), (9, 129, 1030),
         (40, 96, 600), (0, 16, 32)]


def pointer(kind):
    return ctypes.POINTER(kind)


F32, I32, I8, U8 = map(pointer, (ctypes.c_float, ctypes.c_int32, ctypes.c_int8, ctypes.c_uint8))
BLOCK, QUAD = 32, 4  # of kernels/csrc/cpu/rows.h


class Loops(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("f32", ctypes.CFUNCTYPE(None, F32, F32, F32, I64, I64, I64, I64, I64)),
        ("quantize", ctypes.CFUNCTYPE(ctypes.c_float, F32, I8, I32, I64)),
        ("int8", ctypes.CFUNCTYPE(None, I8, I32, F32, U8, F32, F32, I64, I64, I64, I64, I64)),
    ]


@pytest.fixture(scope="module")
def library():
    if not cpu.compiler():
        pytest.skip("no C++ compiler on this machine")
    return cpu.build()


@pytest.fixture(params=["vnni", "avx512", "avx2", "plain"])
def loops(library, request):
    ask = ctypes.CDLL(str(library)).arcompile_ops_rows
    ask.restype = ctypes.POINTER(Loops)
    found = ask(request.param.encode())
    if not found:
        pytest.skip(f"this processor has no {request.param}")
    assert found.contents.name == request.param.encode()
    return found.contents


def at(x, kind=F32):
    return x.ctypes.data_as(kind)


def packed(w):
    """w [n,k] as rows.h says: f32 [blocks,k,BLOCK], or u8 [blocks,k/QUAD,BLOCK,QUAD] of w + 128."""
    n, k = w.shape
    quad = QUAD if w.dtype == np.int8 else 1
    filled = np.zeros((-(-n // BLOCK) * BLOCK, -(-k // quad) * quad), w.dtype)
    filled[:n, :k] = w
    x = filled.reshape(-1, BLOCK, filled.shape[1] // quad, quad).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(x if quad == 1 else x.astype(int) + 128,
                                dtype=None if quad == 1 else np.uint8)


def by_parts(call, rows, n):
    """y[rows,n] by two calls that share the blocks of columns."""
    y = np.full((rows, n), np.nan, np.float32)
    whole = -(-n // BLOCK)
    for a, b in ((0, whole // 3), (whole // 3, whole)):
        call(at(y), n, a, b)
    return y


def floats(loops, x, w):
    (rows, k), n, w = x.shape, len(w), packed(w)
    return by_parts(lambda y, n, a, b: loops.f32(at(x), at(w), y, rows, k, n, a, b), rows, n)


@pytest.mark.parametrize("size", SIZES)
def test_floats(loops, size):
    rows, k, n = size
    x, w = RNG.standard_normal((rows, k), np.float32), RNG.standard_normal((n, k), np.float32)
    y = floats(loops, x, w)
    assert np.abs(y - x.astype(np.float64) @ w.T).max(initial=0) < 1e-6 * k
    for i in range(rows):  # whatever else is in the batch, bit for bit
        assert (floats(loops, x[i : i + 1], w) == y[i]).all()


@pytest.mark.parametrize("size", SIZES)
def test_integers(loops, size):
    """The numbers of numpy's meaning, bit for bit: sums of integers are exact."""
    rows, k, n = size
    x, w = RNG.standard_normal((rows, k), np.float32) * 3, RNG.standard_normal((k, n), np.float32)
    x[:1, :1] = 0.5 * np.abs(x[:1]).max(initial=0) / 127  # a tie
    x[1:2] = 0
    q = np.full((rows, -(-k // QUAD) * QUAD), 99, np.int8)
    sums, scale = np.zeros(rows, np.int32), np.zeros(rows, "f4")
    for r in range(rows):
        scale[r] = loops.quantize(at(x[r]), at(q[r], I8), at(sums[r : r + 1], I32), k)
    want, each = quantize_rows(x)
    assert (q[:, :k] == want.astype(int) - ZERO).all()
    assert (q[:, k:] == 0).all()
    assert (scale == each[:, 0]).all()
    assert (sums == q.sum(1, dtype=int)).all()
    w, columns = quantize_channels(w, axis=1)
    t = packed(w.T)
    y = by_parts(lambda y, n, a, b: loops.int8(at(q, I8), at(sums, I32), at(scale), at(t, U8),
                                               at(columns), y, rows, k, n, a, b), rows, n)
    assert (y == matmul_int8(want, each, w, columns)).all()


# --- the ops, and the functions that say the same in standard ones ----------------------------


def graph(op, integers, k=72, n=40):
    """x [b,3,k] through a product, and what follows it: text-free, as a pass leaves it."""
    b = Builder("g")
    x = b.param("x", Type("f32", ("b", 3, k)))

    def product(name):
        if not integers:
            return b.matmul(x, b.weight(name, Type("f32", (k, n))))
        w, s = b.weight(name, Type("i8", (k, n))), b.weight(f"{name}.s", Type("f32", (n,)))
        return b.matmul_int8(*b.quantize_rows(x), w, s)

    if op == "gated":
        return b.graph(y=b.swiglu(product("@gate"), product("@w")))
    if op == "plain":
        return b.graph(y=product("@w"))
    rest = b.param("rest", Type("f32", ("b", 3, n)))
    norm, total = b.residual_norm(rest, product("@w"), b.weight("@n", Type("f32", (n,))), eps=1e-5)
    return b.graph(y=norm, z=total)


def arrays(g):
    made = {}
    for w in g.weights:
        size = w.type.shape
        made[w.name] = (RNG.integers(-127, 128, size).astype(np.int8) if w.type.dtype == "i8"
                        else RNG.standard_normal(size, np.float32))
    return made


@pytest.mark.parametrize("integers", [False, True])
@pytest.mark.parametrize(("op", "name"), [("plain", "{}Linear"), ("gated", "Gated{}Linear"),
                                          ("normed", "{}LinearResidualNorm")])
def test_ops_and_functions(library, op, name, integers):
    g = graph(op, integers)
    held, columns = arrays(g), turned([g])
    assert columns == {w.name for w in g.weights if w.type.rank == 2}
    stored = {k: v.T.copy() if k in columns else v for k, v in held.items()}
    model = onnx.load_from_string(
        emit(g, {}, values=stored, turned=columns, kernels=True))
    assert [n.op_type for n in model.graph.node] == [name.format("Int8" if integers else "")]
    given = {"x": RNG.standard_normal((2, 3, 72), np.float32)}
    if op == "normed":
        given["rest"] = RNG.standard_normal((2, 3, 40), np.float32)
    want = meaning(op, integers, given, held)
    for kernels in (None, library):
        options = onnxruntime.SessionOptions()
        if kernels:
            options.register_custom_ops_library(str(kernels))
        found = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, given)
        for a, b in zip(found, want, strict=True):
            assert np.allclose(a, b, rtol=2e-5, atol=2e-5 * np.abs(b).max())


def meaning(op, integers, given, held):
    x = given["x"]

    def product(name):
        if integers:
            return matmul_int8(*quantize_rows(x), held[name], held[f"{name}.s"])
        return x @ held[name]

    if op == "gated":
        return [swiglu(product("@gate"), product("@w"))]
    if op == "plain":
        return [product("@w")]
    return residual_norm(given["rest"], product("@w"), held["@n"], eps=1e-5)


def linear(library, constant, **inputs):
    """A session of one Linear; w is constant, or else an input."""
    named = partial(h.make_tensor_value_info, elem_type=T.FLOAT)
    g = h.make_graph([h.make_node("Linear", ["x", "w"], ["y"], domain="arcompile")], "g",
                     [named(k, shape=v.shape) for k, v in inputs.items()],
                     [named("y", shape=None)],
                     [] if "w" in inputs else [onnx.numpy_helper.from_array(constant, "w")])
    model = h.make_model(g, opset_imports=[h.make_opsetid("", 21),
                                           h.make_opsetid("arcompile", 1)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    return onnxruntime.InferenceSession(model.SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])


def test_large_products_are_shared_between_threads(library):
    x, w = RNG.standard_normal((2, 3, 300), np.float32), RNG.standard_normal((4097, 300), "f4")
    session = linear(library, w, x=x)
    assert np.abs(session.run(None, {"x": x})[0] - x @ w.T).max() < 1e-4


def test_weights_that_are_not_constant_are_refused(library):
    x, w = np.zeros((1, 8), np.float32), np.zeros((4, 8), np.float32)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
                       match="constant weights only"):
        linear(library, w, x=x, w=w)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux's memory maps")
def test_packed_weights_leave_the_mapped_file(library, tmp_path):
    """Weights in a file stay in memory once, packed: the pages of the file go."""
    w = RNG.standard_normal((1024, 2048), np.float32)
    (tmp_path / "w.bin").write_bytes(w.tobytes())
    t = T(name="w", data_type=T.FLOAT, dims=w.shape, data_location=T.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(w.nbytes))):
        t.external_data.add(key=key, value=value)
    named = partial(h.make_tensor_value_info, elem_type=T.FLOAT)
    g = h.make_graph([h.make_node("Linear", ["x", "w"], ["y"], domain="arcompile")], "g",
                     [named("x", shape=(2, 2048))], [named("y", shape=None)], [t])
    onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", 21),
                                             h.make_opsetid("arcompile", 1)], ir_version=10),
              tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", options,
                                           providers=["CPUExecutionProvider"])
    x = RNG.standard_normal((2, 2048), np.float32)
    assert np.abs(session.run(None, {"x": x})[0] - x @ w.T).max() < 1e-3
    maps = Path("/proc/self/smaps").read_text()
    assert str(tmp_path / "w.bin") in maps
    told = maps.split(str(tmp_path / "w.bin"))[1].split("VmFlags")[0]
    resident = int(next(s for s in told.splitlines() if s.startswith("Rss:")).split()[1])
    assert resident <= 8  # kB: the pages that the weights share with others


def test_what_others_read_stays_as_it_is():
    """A product that is read twice is not drawn into a norm; a matrix read as such is not turned.
    """
    b = Builder("g")
    x, rest = (b.param(k, Type("f32", ("b", 3, 8))) for k in ("x", "rest"))
    w, e = b.weight("@w", Type("f32", (8, 8))), b.weight("@e", Type("f32", (8, 8)))
    y = b.matmul(x, w)
    norm, _ = b.residual_norm(rest, y, b.weight("@n", Type("f32", (8,))), eps=1e-5)
    g = b.graph(norm=norm, y=y, z=b.matmul(x, e), t=b.transpose(e, perm=(1, 0)))
    columns = turned([g])
    assert columns == {"@w"}
    model = onnx.load_from_string(emit(g, dict.fromkeys(("@w", "@e", "@n"), (0, 0)),
                                       turned=columns, kernels=True))
    kinds = {n.op_type for n in model.graph.node}
    assert {"Linear", "ResidualNorm", "MatMul"} <= kinds
    assert [list(t.dims) for t in model.graph.initializer if t.name == "@w"] == [[8, 8]]
