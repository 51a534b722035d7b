"""Our CUDA kernels as ONNX Runtime custom ops, without a GPU: built by nvcc, and with the kernels
emulated as ops of the CPU provider, so that real sessions read and write through them."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import engines
import numpy as np
import pytest
import tiny

import arcompile
from arcompile.errors import MACHINE, ArcError
from arcompile.ir import Builder, evaluate
from arcompile.kernels import cuda, ort_cuda
from arcompile.ops.tensor import NUMPY
from arcompile.sampling import sample_graph
from arcompile.target import TARGETS
from arcompile.targets import onnx_cuda, ort
from arcompile.targets.onnx_emit import DOMAIN, emit
from arcompile.targets.ort_cuda import CudaModels

onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def library():
    if not ort_cuda.compiler():
        pytest.skip("no C++ compiler")
    return ort_cuda.emulated()


def ran(model, feed, library=None):
    """(results by name, kernels started)"""
    options, started = onnxruntime.SessionOptions(), lambda: 0
    options.intra_op_num_threads = 1
    if library is not None:
        options.register_custom_ops_library(str(library))
        started = ctypes.CDLL(str(library)).arcompile_cuda_launches
    session = onnxruntime.InferenceSession(model, options)
    before = started()
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True)), started() - before


def kinds(model):
    return {n.op_type for n in onnx.load_from_string(model).graph.node if n.domain == DOMAIN}


def chain_inputs(b, c, v):
    """Images that are guided and not, filtered and not, the last at temperature 0."""
    r = np.random.default_rng(b * v)
    heat = np.full(b, 0.8, np.float32)
    heat[-1] = 0
    top_k = np.array([0, 5, v, 1][:b], np.int64)
    return {"logits": r.standard_normal((2 * b, c, v), np.float32) * 3, "row": np.arange(b),
            "null_row": b + np.arange(b), "scale": np.linspace(1, 4, b, dtype=np.float32),
            "temperature": heat, "top_k": top_k,
            "top_p": np.array([0.7, 1, 0.9, 1][:b], np.float32), "most": np.array([v]),
            "noise": r.integers(0, 1 << 23, (b, c, 2)).astype(np.float32) / (1 << 23)}


@pytest.mark.parametrize(("b", "c", "v"), [(1, 1, 16), (4, 1, 300), (3, 2, 1000)])
def test_sampling_is_one_kernel(library, b, c, v):
    """The tokens of numpy, by the kernel and by the function where it is not."""
    g, feed = sample_graph(v), chain_inputs(b, c, v)
    model, want = emit(g, {}, table=onnx_cuda.table()), evaluate(g, feed)["token"]
    assert kinds(model) == {"LogitsChain"}
    made, started = ran(model, feed, library)
    assert started == 1
    assert (made["out.token"] == want).all()
    assert (ran(model, feed)[0]["out.token"] == want).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_modulated_norms_are_one_kernel(library, dtype):
    b = Builder("g")
    x, scale, shift = (b.param(k, f"{dtype}[r,{s},96]")
                       for k, s in (("x", "s"), ("scale", 1), ("shift", 1)))
    g = b.graph(y=b.add(b.mul(b.layer_norm(x, eps=1e-6), scale), shift))
    model = emit(g, {}, table=onnx_cuda.table())
    assert kinds(model) == {f"AdaNorm{onnx_cuda.SUFFIX[dtype]}"}
    feed = {k: RNG.standard_normal((3, s, 96)).astype(NUMPY[dtype])
            for k, s in (("x", 5), ("scale", 1), ("shift", 1))}
    want = evaluate(g, feed)["y"].astype(np.float32)
    if dtype == "bf16":  # numpy has none: in and out as f32
        model = cast_ends(model)
        want = evaluate(g, {k: round_bf16(x) for k, x in feed.items()})["y"]
    made, started = ran(model, feed, library)
    assert started == 1
    bound = {"f32": 1e-5, "f16": 5e-3, "bf16": 4e-2}[dtype]
    assert np.abs(made["out.y"].astype(np.float32) - want).max() < bound
    if dtype == "f32":
        assert np.abs(ran(model, feed)[0]["out.y"] - want).max() < bound


def round_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def cast_ends(data):
    model, h = onnx.load_from_string(data), onnx.helper
    g = model.graph
    for i in g.input:
        i.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        g.node.insert(0, h.make_node("Cast", [i.name], [f"{i.name}.b"], to=16))
    for n in list(g.node)[len(g.input):]:
        n.input[:] = [f"{x}.b" if x in {i.name for i in g.input} else x for x in n.input]
        n.output[:] = [f"{x}.b" if x.startswith("out.") else x for x in n.output]
    for o in g.output:
        o.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        g.node.append(h.make_node("Cast", [f"{o.name}.b"], [o.name], to=1))
    return model.SerializeToString()


def test_what_kernels_do_not_take_stays():
    """A vocabulary beyond shared memory; rows that share a scale; norms with weights."""
    assert kinds(emit(sample_graph(60_000), {}, table=onnx_cuda.table())) == set()
    b = Builder("g")
    x, scale = b.param("x", "f32[r,s,8]"), b.param("scale", "f32[1,1,8]")
    y = b.add(b.mul(b.layer_norm(x, eps=1e-6), scale), scale)
    assert kinds(emit(b.graph(y=y), {}, table=onnx_cuda.table())) == set()


def test_an_engine_draws_the_same_tokens(library, tmp_path, monkeypatch):
    """ort-cuda's graphs with the emulated kernels, on the provider that is here."""
    p = replace(tiny.llama(), finish=())
    folder = engines.write(tmp_path / "e", p, tiny.weights(p), 16, "ort-cuda",
                           TARGETS["ort-cuda"].passes, info={"classes": 3})
    assert kinds((folder / "step.onnx").read_bytes()) == {"LogitsChain"}
    told, started = {}, ctypes.CDLL(str(library)).arcompile_cuda_launches
    before = started()
    for where in ("off", str(library)):
        monkeypatch.setenv("ARC_CUDA_KERNELS", where)
        e = arcompile.load(folder, check=False)

        class OnCpu(CudaModels):
            def more(self, graph):
                return {}

            def runner(self):
                return ort.Runner(self)

        e.__dict__["models"] = OnCpu(e.folder, ort.CPU, 1, set())
        told[where] = [e.generate([1, 2], **how).tokens for how in (
            {"temperature": 0}, {"seed": [3, 4], "guidance": [2.0, 1.0], "top_k": 5})]
    assert started() > before
    for a, b in zip(*told.values(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.skipif(not cuda.nvcc(), reason="nvcc is not installed")
def test_nvcc_builds_it(own_cache, monkeypatch):
    """For sm_80 and sm_90; without a GPU it registers nowhere, but it loads."""
    assert ort_cuda.library() is None
    made = ort_cuda.build()
    assert made == ort_cuda.library()
    assert ctypes.CDLL(str(made)).arcompile_cuda_launches() == 0
    data = made.read_bytes()
    assert all(arch in data for arch in (b"sm_80", b"sm_90"))


def test_without_nvcc_one_line_says_so(own_cache, monkeypatch):
    monkeypatch.setenv("NVCC", "")
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    with pytest.raises(ArcError, match="nvcc is not installed: no CUDA kernels") as e:
        TARGETS["ort-cuda"].prepare(lambda stage, share: None)
    assert e.value.code == MACHINE
    monkeypatch.setenv("ARC_CUDA_KERNELS", "/nowhere/lib.so")
    with pytest.raises(ArcError, match="which is not a file"):
        ort_cuda.library()
