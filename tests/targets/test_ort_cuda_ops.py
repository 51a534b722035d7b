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


# --- attention over caches ---------------------------------------------------------------------

TOLERANCE = {"f32": 2e-5, "f16": 4e-3, "bf16": 3e-2}  # of the largest value


def cached(dtype, mask, heads, kv_heads, size, packed=True, queries="s"):
    """decode_attention over caches of 70 slots, from one product or from three."""
    b = Builder("g")
    width, kv = heads * size, kv_heads * size
    if packed:
        whole = b.param("x", f"{dtype}[r,{queries},{width + 2 * kv}]")
        q, k, v = b.split(whole, axis=2, sizes=(width, kv, kv))
    else:
        q, k, v = (b.param(n, f"{dtype}[r,{queries},{w}]")
                   for n, w in (("q", width), ("k", kv), ("v", kv)))
    caches = [b.param(n, f"{dtype}[r,{kv_heads},70,{size}]") for n in ("kc", "vc")]
    rest = [b.param("past", "i32[r]"), *(b.param(n, f"{dtype}[70,{size // 2}]")
                                         for n in ("cos", "sin"))]
    out = b.decode_attention(q, k, v, *caches, *rest, heads=heads, kv_heads=kv_heads,
                             scale=size**-0.5, mask=mask, interleaved=heads != kv_heads)
    return b.graph(y=out[0], kc=out[1], vc=out[2])


def cached_inputs(g, s, past):
    sizes = {"r": 2, "s": s}
    feed = {p.name: RNG.standard_normal([sizes.get(d, d) for d in p.type.shape], np.float32)
            for p in g.params}
    feed["past"] = np.array(past, np.int32)
    return feed


def compared(g, feed, library, kind, dtype, plain=True):
    """By the kernel, and by the function where it is not, against numpy."""
    model = emit(g, {}, table=onnx_cuda.table())
    assert kinds(model) == {kind}
    if dtype == "f16":
        feed = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in feed.items()}
    elif dtype == "bf16":
        feed = {k: round_bf16(v) if v.dtype == np.float32 else v for k, v in feed.items()}
        model = cast_ends(model)
    exact = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in feed.items()}
    want = evaluate(g, exact)
    made, started = ran(model, feed, library)
    assert started == 1
    close(made, want, dtype)
    if plain and dtype != "bf16":
        made, _ = ran(model, feed)
        for name in {"kc", "vc"} & want.keys():  # GroupQueryAttention leaves what is not filled
            for row, filled in enumerate(feed["past"]):
                made[f"out.{name}"][row, :, filled + 1:] = want[name][row, :, filled + 1:]
        close(made, want, dtype)


def close(made, want, dtype):
    for name, x in want.items():
        off = np.abs(made[f"out.{name}"].astype(np.float32) - x).max()
        assert off <= TOLERANCE[dtype] * np.abs(x).max(), name


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("mask", "heads", "kv_heads", "size", "packed", "s", "past"), [
    ("causal", 2, 2, 16, True, 1, (0, 69)), ("causal", 4, 2, 8, False, 1, (5, 40)),
    ("causal", 2, 1, 16, True, 5, (0, 0)), ("causal", 2, 2, 40, True, 5, (3, 60)),
    ("prefix", 2, 2, 16, True, 7, (0, 12)), ("full", 1, 1, 8, True, 9, (2, 30))])
def test_decoding_is_one_kernel(library, dtype, mask, heads, kv_heads, size, packed, s, past):
    """Rotary, append and attention; a token a row, or several after an unequal past. What of it
    ONNX Runtime's own kernels take on the CPU is compared too."""
    g = cached(dtype, mask, heads, kv_heads, size, packed)
    plain = dtype == "f32" or (mask == "causal" and size % 16 == 0 and (s == 1 or not any(past)))
    compared(g, cached_inputs(g, s, past), library, f"FlashDecode{onnx_cuda.SUFFIX[dtype]}", dtype,
             plain)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("mask", ["causal", "full", "prefix"])
def test_attention_over_a_cache_is_one_kernel(library, dtype, mask):
    b = Builder("g")
    q, k, v = (b.param(n, f"{dtype}[r,{x}]") for n, x in (
        ("q", "s,64"), ("k", "2,70,16"), ("v", "2,70,16")))
    g = b.graph(y=b.attention(q, k, v, b.param("past", "i32[r]"), heads=4, kv_heads=2, scale=0.25,
                              mask=mask, extra=("past",)))
    compared(g, cached_inputs(g, 6, (0, 61)), library, f"RangeAttention{onnx_cuda.SUFFIX[dtype]}",
             dtype)


def test_attention_that_stays_with_onnx_runtime():
    """Odd heads; kept slots. In f32 not GroupQueryAttention, which a GPU has in 16 bits alone."""
    for dtype, other in (("f32", "Attention"), ("f16", "Attention")):
        model = emit(cached(dtype, "causal", 2, 2, 4), {}, table=onnx_cuda.table())
        ops = {n.op_type for n in onnx.load_from_string(model).graph.node}
        assert kinds(model) == set()
        assert other in ops
        assert "GroupQueryAttention" not in ops
    model = onnx.load_from_string(emit(cached("f16", "causal", 2, 2, 16), {},
                                       table=onnx_cuda.table()))
    assert "GroupQueryAttention" in {n.op_type for f in model.functions for n in f.node}


def round_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def cast_ends(data):
    model, h = onnx.load_from_string(data), onnx.helper
    g = model.graph
    wide = [i for i in g.input if i.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16]
    for i in wide:
        i.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        g.node.insert(0, h.make_node("Cast", [i.name], [f"{i.name}.b"], to=16))
    for n in list(g.node)[len(wide):]:
        n.input[:] = [f"{x}.b" if x in {i.name for i in wide} else x for x in n.input]
        n.output[:] = [f"{x}.b" if x.startswith("out.") else x for x in n.output]
    for o in g.output:
        o.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        g.node.append(h.make_node("Cast", [f"{o.name}.b"], [o.name], to=1))
    return model.SerializeToString()


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("op", ["group_norm", "group_norm_silu"])
def test_group_norms_are_one_kernel(library, dtype, op):
    """Groups of more than a chunk, and channels far from zero."""
    b = Builder("g")
    x, w, bias = (b.param(k, f"{dtype}[{s}]") for k, s in (("x", "b,6,60,50"), ("w", 6), ("s", 6)))
    g = b.graph(y=getattr(b, op)(x, w, bias, groups=2, eps=1e-6))
    feed = {p.name: RNG.standard_normal([2 if d == "b" else d for d in p.type.shape], np.float32)
            for p in g.params}
    feed["x"] += np.arange(6, dtype=np.float32)[:, None, None]
    kind = f"GroupNorm{'Silu' if 'silu' in op else ''}{onnx_cuda.SUFFIX[dtype]}"
    compared(g, feed, library, kind, dtype, plain=dtype == "f32")


def test_what_kernels_do_not_take_stays():
    """A vocabulary beyond shared memory; rows that share a scale; norms with weights."""
    assert kinds(emit(sample_graph(60_000), {}, table=onnx_cuda.table())) == set()
    b = Builder("g")
    x, scale = b.param("x", "f32[r,s,8]"), b.param("scale", "f32[1,1,8]")
    y = b.add(b.mul(b.layer_norm(x, eps=1e-6), scale), scale)
    assert kinds(emit(b.graph(y=y), {}, table=onnx_cuda.table())) == set()


class OnCpu(CudaModels):
    """A GPU's models, on the provider that is here."""

    def more(self, graph):
        return {}

    def runner(self):
        return ort.Runner(self)


def drawn(folder, where, monkeypatch, **how):
    monkeypatch.setenv("ARC_CUDA_KERNELS", where)
    e = arcompile.load(folder, check=False)
    e.__dict__["models"] = OnCpu(e.folder, ort.CPU, 1, set())
    return e.generate([1, 2], **how).tokens


HOW = ({"temperature": 0}, {"seed": [3, 4], "guidance": [2.0, 1.0], "top_k": 5})


def test_an_engine_draws_the_same_tokens(library, tmp_path, monkeypatch):
    """ort-cuda's graphs with the emulated kernels, on the provider that is here."""
    p = replace(tiny.llama(), finish=())
    folder = engines.write(tmp_path / "e", p, tiny.weights(p), 16, "ort-cuda",
                           TARGETS["ort-cuda"].passes, info={"classes": 3})
    assert kinds((folder / "step.onnx").read_bytes()) == {"LogitsChain"}
    started = ctypes.CDLL(str(library)).arcompile_cuda_launches
    before = started()
    for how in HOW:
        with_kernels = drawn(folder, str(library), monkeypatch, **how)
        assert np.array_equal(with_kernels, drawn(folder, "off", monkeypatch, **how))
    assert started() > before


@pytest.mark.parametrize(("name", "target", "found"), [
    ("llamagen", "ort-cuda", {"FlashDecode", "LogitsChain", "GroupNorm",
                              "GroupNormSilu"}),
    ("llamagen", "ort-cuda-graphs", {"FlashDecode", "LogitsChain", "GroupNorm", "GroupNormSilu"}),
    ("var", "ort-cuda", {"AdaNorm", "RangeAttention", "LogitsChain", "GroupNorm",
                         "GroupNormSilu"})])
def test_families_draw_the_same_tokens(library, tmp_path, monkeypatch, name, target, found):
    """Attention over their caches too, and the tokens of ort-cpu."""
    pytest.importorskip("torch")
    from arcompile.compile import write
    from arcompile.family import FAMILIES
    from arcompile.pipeline import parse_pipeline

    family = FAMILIES[name]
    model = family.model(family.random("tiny"), {})
    for t in (target, "ort-cpu"):
        (tmp_path / t).mkdir()
        write(tmp_path / t, name, model, t, "f32", parse_pipeline(TARGETS[t].passes))
    graphs = [onnx.load(f, load_external_data=False) for f in (tmp_path / target).glob("*.onnx")]
    assert {n.op_type for g in graphs for n in g.graph.node if n.domain == DOMAIN} == found
    for how in HOW:
        want = arcompile.load(tmp_path / "ort-cpu", check=False).generate([1, 2], **how).tokens
        for where in (str(library), "off"):
            assert np.array_equal(drawn(tmp_path / target, where, monkeypatch, **how), want)


def test_the_cpp_runtime_runs_them(library, tmp_path):
    """An ort-cuda engine's graphs, their caches bound in place, opened as for the provider that is
    here; which file a provider's kernels are in is tests/parts.cpp's business."""
    import json

    import native

    pytest.importorskip("torch")
    from arcompile.compile import write
    from arcompile.family import FAMILIES
    from arcompile.pipeline import parse_pipeline
    from arcompile.runtime import bundle

    model = FAMILIES["llamagen"].model(FAMILIES["llamagen"].random("tiny"), {})
    for t in ("ort-cuda", "ort-cpu"):
        (tmp_path / t).mkdir()
        write(tmp_path / t, "llamagen", model, t, "f32", parse_pipeline(TARGETS[t].passes))
    manifest = tmp_path / "ort-cuda" / bundle.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "target": "ort-cpu"}))
    started = ctypes.CDLL(str(library)).arcompile_cuda_launches
    before, lib = started(), native.Library(native.library())
    e = lib.open(tmp_path / "ort-cuda", 1, kernels=library)
    for how in HOW:
        want = arcompile.load(tmp_path / "ort-cpu", check=False).generate([1, 2], **how)
        assert np.array_equal(e.generate([1, 2], **how).tokens, want.tokens)
    assert started() - before > len(HOW) * want.tokens.shape[1]


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
