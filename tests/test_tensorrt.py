"""Target `tensorrt` where no GPU is: plans are built, and what cannot be is refused by reason.

test_tensorrt_run.py rehearses running them.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import llama, of, weights

from arcompile import compile, safetensors
from arcompile.compile import exported
from arcompile.errors import MACHINE, ArcError
from arcompile.family import FAMILIES
from arcompile.ir import evaluate
from arcompile.pipeline import parse_pipeline, run
from arcompile.target import TARGETS
from arcompile.targets import cuda, onnx_standard, tensorrt, trt_build
from arcompile.targets.cuda import Device
from arcompile.targets.onnx_emit import WEIGHTS, emit, few_integers
from arcompile.weights import Store, used

OPTIONS = {"infinity": {"scales": [[1, 1], [2, 2], [3, 4]]}}
PASSES = f"{TARGETS['tensorrt'].passes}, half"


def rtx():
    return pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx here")


@pytest.mark.ort
@pytest.mark.parametrize("family", sorted(FAMILIES.all()))
def test_every_family_builds(family, tmp_path):
    """Every graph of a tiny engine has a plan, or a reason that we gave and not the builder."""
    trt, made = rtx(), FAMILIES[family]
    model = made.model(made.random("tiny"), OPTIONS.get(family, {}))
    p = run(exported(model), parse_pipeline(PASSES))
    types, store = {k: v.type for k, v in used(p.graphs).items()}, Store(model.weights, p.fold)
    safetensors.write(tmp_path / WEIGHTS, types, store.__getitem__)
    _, spans = safetensors.layout(types)
    held = {k: store[k] for k in few_integers(types)}
    shapes, planned = trt_build.ranges(p, 2), 0
    tokenizer = {c.graph for c in p.finish} if family not in ("llamagen", "mar") else set()
    for g in p.graphs:
        if g.name in tokenizer or g.name == "encode":
            continue  # image tokenizers are shared
        if why := tensorrt.reasons(g):
            assert all(tensorrt.SORTS in r for r in why), (g.name, why)
            continue
        path = tmp_path / f"{g.name}.onnx"
        path.write_bytes(emit(g, spans, values=held, table=onnx_standard.table()))
        built = trt_build.build(path, g, [shapes[g.name]], trt)
        assert not built.reasons, (g.name, built.reasons)
        assert len(built.plan) > 1000
        planned += 1
    assert planned >= 2


def test_reasons_are_by_op():
    p = run(llama(), parse_pipeline("fuse-sampling"))
    assert any(r.startswith("draw: it sorts") for r in tensorrt.reasons(p.graph("step")))
    plain = run(llama(), parse_pipeline(PASSES))
    assert tensorrt.reasons(plain.graph("step")) == []
    told = of("graph g(%k: f16[b,2,p,4], %x: f16[b,s,8], %past: i32[b]) {\n"
              "  %0 = cache_append(%k, %x, %past) : f16[b,2,p,4]\n  return k=%0\n}")
    why, = tensorrt.reasons(told.graphs[0])
    assert why == "cache_append: the length of its cache, p, is not known when the plan is built"


def test_shapes_come_from_the_program():
    """Rows of one image with and without its twin, up to those of three."""
    found = trt_build.ranges(llama(), 3)
    x = found["step"]["x"]
    assert (x.least, x.usual, x.most) == ((1, 1, 8), (2, 1, 8), (6, 1, 8))
    assert found["encode"]["pixels"].most == (1, 4, 4)


@pytest.mark.ort
def test_what_the_builder_refuses_is_told(tmp_path):
    trt = rtx()
    p = of("graph g(%x: f16[b,8]) {\n  %0 = topk(%x) {k=2} : f16[b,2], i64[b,2]\n"
           "  return y=%0\n}".replace("%0 = topk", "%0, %1 = topk"))
    path = tmp_path / "g.onnx"
    path.write_bytes(b"not a model")
    built = trt_build.build(path, p.graphs[0], [{}], trt)
    assert built.plan == b""
    assert built.reasons
    with pytest.raises(ArcError, match="builds for no SM99"):
        trt_build._capable(trt, trt.Builder(trt.Logger()).create_builder_config(), ["SM99"])


@pytest.mark.ort
def test_groups_of_four_bits(tmp_path):
    """Signed integers in the file say what the groups meant."""
    onnxruntime = pytest.importorskip("onnxruntime")
    g = of("graph g(%x: f32[b,64]) {\n  @w : f32[64,32]\n  %0 = matmul(%x, @w) : f32[b,32]\n"
           "  return y=%0\n}")
    p = run(g, parse_pipeline("int4{block=32,least=0}"), weights(g))
    graph, store = p.graphs[0], Store(weights(g), p.fold)
    types = {k: v.type for k, v in used(p.graphs).items()}
    flip = onnx_standard.offset(p.graphs)
    assert flip
    safetensors.write(tmp_path / WEIGHTS, types, lambda k: store[k] ^ np.uint8(0x88)
                      if k in flip else store[k])
    path = tmp_path / "g.onnx"
    path.write_bytes(emit(graph, safetensors.layout(types)[1], table=onnx_standard.table()))
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    out, = onnxruntime.InferenceSession(str(path), options).run(None, {"x": x})
    q, scale = (next(store[k] for k in types if (k in flip) is want) for want in (True, False))
    from arcompile.ops.quant import unpack

    assert np.allclose(out, x @ unpack(q, scale, 4), atol=1e-4)


@pytest.mark.ort
def test_tables_of_eight_bits(tmp_path):
    """Rows that are looked up: a plan, and ONNX Runtime's values are those of numpy."""
    onnxruntime, trt = pytest.importorskip("onnxruntime"), rtx()
    g = of("graph g(%i: i64[b]) {\n  @w : f32[64,32]\n  %0 = gather(@w, %i) {axis=0} : f32[b,32]\n"
           "  return y=%0\n}")
    p = run(g, parse_pipeline("int4{least=0}"), weights(g))
    graph, store = p.graphs[0], Store(weights(g), p.fold)
    types = {k: v.type for k, v in used(p.graphs).items()}
    safetensors.write(tmp_path / WEIGHTS, types, store.__getitem__)
    path, i = tmp_path / "g.onnx", np.array([3, 63])
    path.write_bytes(emit(graph, safetensors.layout(types)[1], table=onnx_standard.table()))
    out, = onnxruntime.InferenceSession(str(path)).run(None, {"i": i})
    want = evaluate(graph, {"i": i}, {k: store[k] for k in types})["y"]
    assert (out == want).all()
    assert trt_build.build(path, graph, [trt_build.ranges(p, 2)["g"]], trt).reasons == []


def test_profiles_of_a_larger_batch():
    """Tuned for as many as there may be; graphs that draw image by image need one profile."""
    found = trt_build.profiles(llama(), 4, 16)
    few, many = (x["x"] for x in found["step"])
    assert (few.least, few.usual, few.most) == ((1, 1, 8), (2, 1, 8), (8, 1, 8))
    assert (many.least, many.usual, many.most) == ((5, 1, 8), (32, 1, 8), (32, 1, 8))
    assert len(found["decode"]) == 1
    assert all(len(each) == 1 for each in trt_build.profiles(llama(), 4, 4).values())


@pytest.mark.ort
def test_a_plan_of_two_profiles(tmp_path):
    trt, p = rtx(), run(llama(), parse_pipeline(PASSES))
    types, store = {k: v.type for k, v in used(p.graphs).items()}, Store(weights(llama()), p.fold)
    safetensors.write(tmp_path / WEIGHTS, types, store.__getitem__)
    path = tmp_path / "step.onnx"
    path.write_bytes(emit(p.graph("step"), safetensors.layout(types)[1],
                          values={k: store[k] for k in few_integers(types)},
                          table=onnx_standard.table()))
    shapes = trt_build.profiles(p, 4, 9)["step"]
    assert len(shapes) == 2
    built = trt_build.build(path, p.graph("step"), shapes, trt, timings=tmp_path / "t")
    assert built.reasons == []
    assert not (tmp_path / "t").exists()  # TensorRT for RTX times nothing when it builds


def test_timings_are_kept_and_refused_ones_forgotten(tmp_path):
    """By a TensorRT of ours, which takes the timings that begin with its name."""
    held = tmp_path / "a" / "t"
    taken = []

    class Config:
        def create_timing_cache(self, data):
            return data

        def set_timing_cache(self, data, ignore):
            taken.append(data)
            return data == b"" or data.startswith(b"mine")

    for found, begins in ((None, [b""]), (b"mine 1", [b"mine 1"]), (b"other", [b"other", b""])):
        if found is not None:
            trt_build.keep(held, found)
        taken.clear()
        trt_build._remember(Config(), held)
        assert taken == begins
    assert held.read_bytes() == b"other"


# --- what is refused -----------------------------------------------------------------------------

FACTS = {"module": "tensorrt_rtx", "version": "1.7.1.116", "system": "Linux", "machine": "x86_64",
         "capabilities": ["SM80", "SM86"]}


@pytest.mark.parametrize(("change", "said"), [
    ({"version": "9.0"}, "the plans are for version 9.0; this machine has 1.7"),
    ({"machine": "aarch64"}, "the plans are for machine aarch64; this machine has x86_64"),
    ({"capabilities": ["SM80"]}, "the plans are for capabilities SM80; this machine has SM86"),
])
def test_preflight(change, said, monkeypatch):
    fake = SimpleNamespace(__name__="tensorrt_rtx", __version__="1.7.1.116")
    monkeypatch.setattr(trt_build, "module", lambda name="": fake)
    monkeypatch.setattr(trt_build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(trt_build.platform, "machine", lambda: "x86_64")
    device = Device("made up", "SM86", 13000)
    assert tensorrt.preflight(FACTS, device) is fake
    with pytest.raises(ArcError, match=said) as e:
        tensorrt.preflight({**FACTS, **change}, device)
    assert e.value.code == MACHINE
    assert "rebuild" in e.value.hint


def test_without_tensorrt_or_a_driver(monkeypatch):
    monkeypatch.setattr(trt_build.importlib, "import_module", _missing)
    with pytest.raises(ArcError, match="TensorRT is not installed") as e:
        trt_build.module()
    assert e.value.code == MACHINE
    monkeypatch.setattr(cuda, "LIBRARIES", ("libnone.so",))
    cuda.library.cache_clear()
    with pytest.raises(ArcError, match="no NVIDIA driver") as e:
        cuda.Driver()
    assert e.value.code == MACHINE
    cuda.library.cache_clear()


def _missing(name):
    raise ImportError(name)


def test_full_tensorrt_needs_a_gpu_to_build(monkeypatch):
    monkeypatch.setattr(cuda, "Driver", _no_driver)
    with pytest.raises(ArcError, match="builds plans on a GPU only"):
        trt_build.capabilities(SimpleNamespace(__name__="tensorrt"))
    known = SimpleNamespace(__members__={"SM80": 0, "SM86": 1, "SM75": 2})
    assert trt_build.capabilities(SimpleNamespace(ComputeCapability=known)) == ["SM80", "SM86"]


def _no_driver():
    raise ArcError("no NVIDIA driver is installed", code=MACHINE)


def test_only_sixteen_bits(goldens):
    folder = goldens / "llamagen-c2i"
    with pytest.raises(ArcError, match="target tensorrt has no dtype 'f32'"):
        compile.build(folder / "c2i_tiny.pt", target="tensorrt")
