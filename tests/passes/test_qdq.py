import numpy as np
import pytest
from tiny import generate, llama, of, ops, weights

from arcompile import safetensors
from arcompile.errors import ArcError, IRError
from arcompile.ir import Builder, Type, evaluate
from arcompile.ops.quant_static import fp8_codes, fp8_values, to_fp8
from arcompile.passes.qdq import QDQ, exact
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program

G = """graph g(%x: f32[b,32]) {
  @a : f32[32,8]
  @b : f32[32,8]
  @c : f32[8,8]
  %0 = matmul(%x, @a) : f32[b,8]
  %1 = matmul(%x, @b) : f32[b,8]
  %2 = add(%0, %1) : f32[b,8]
  %3 = matmul(%2, @c) : f32[b,8]
  return y=%3
}"""


@pytest.fixture
def ranges(tmp_path):
    """What a and b met (they read the same), and nothing of c."""
    path, most = tmp_path / "r.safetensors", np.linspace(0.1, 6.35, 32, dtype=np.float32)
    names = {"a.input_max": most, "b.input_max": most}
    safetensors.write(path, {k: Type("f32", a.shape) for k, a in names.items()}, names.get)
    return str(path)


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_weights_alone(form, golden):
    new = run(of(G), [QDQ(least=0, form=form)])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert str(parse_program(str(new))) == str(new)
    assert run(new, [QDQ(least=0, form=form)]) is new


def test_activations_of_known_ranges(ranges, golden):
    """Rounded once for both that read them; c was not seen, and its activations stay."""
    new = run(of(G), [QDQ(least=0, ranges=ranges)])
    assert f"{new.graph('g')}" == golden


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_the_whole_program(form):
    p = llama()
    source = weights(p)
    new = run(p, parse_pipeline(f"fold, simplify, cse, qkv, swiglu, qdq{{least=0,form={form}}}"),
              source)
    assert "matmul_columns" in ops(new.graph("step"))
    was, now = (generate(x, source).logits[0][0] for x in (p, new))
    assert 0 < np.linalg.norm(now - was) / np.linalg.norm(was) < 0.1


def test_neutral_is_the_identity():
    p = llama()
    assert run(p, parse_pipeline("qdq{bound=0}")) is p


def test_refusals(ranges):
    with pytest.raises(ArcError, match="pass qdq: no form 'fp4'"):
        run(of(G), [QDQ(least=0, form="fp4")])
    with pytest.raises(ArcError, match="cannot read ranges none"):
        run(of(G), [QDQ(least=0, ranges="none")])
    with pytest.raises(ArcError, match="is of another model"):
        run(of(G.replace("32", "16")), [QDQ(least=0, ranges=ranges)])
    b = Builder("g")
    x = b.param("x", "f32[r,4]")
    for op, args, attrs in (
            ("fake_quantize", (x,), {"step": 0.0, "form": "int8"}),
            ("matmul_columns", (x, b.param("w", "i8[4,3]"), b.param("s", "f32[4]")), {}),
            ("matmul_columns", (x, b.param("v", "f32[4,3]"), b.param("t", "f32[3]")), {})):
        with pytest.raises(IRError):
            b.emit(op, *args, **attrs)


def test_steps_are_exact_in_sixteen_bits():
    for step in (1e-9, 0.0123456, 1.0, 417.3):
        found = exact(step)
        assert step <= found <= max(step * (1 + 2**-7), 2.0**-14)
        assert np.float16(found) == found
        assert (np.float32(found).view(np.uint32) & 0xFFFF) == 0  # bf16 is f32's upper half


def test_floats_of_eight_bits():
    """Every code comes back; what lies between two goes to the nearer, ties to the even one."""
    codes = np.array([c for c in range(256) if c & 127 != 127], np.uint8)
    values = fp8_values(codes)
    assert (fp8_codes(values) == codes).all()
    assert (to_fp8(values) == values).all()
    assert values.max() == 448
    assert np.isnan(fp8_values(np.array([127, 255], np.uint8))).all()
    x = np.array([17, 19, 1e9, -449, 2.0**-10, 3 * 2.0**-10, -1e-9], np.float32)
    assert to_fp8(x).tolist() == [16, 20, 448, -448, 0, 4 * 2.0**-10, 0]


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_torch_means_the_same(form):
    torch = pytest.importorskip("torch")
    from arcompile.targets.torch_quant import fake_quantize, matmul_columns

    g, feed, held = case("f32", form)
    want = evaluate(g, feed, held)
    x = fake_quantize(torch, torch.from_numpy(feed["x"]), 0.03125, form)
    assert torch.equal(x, torch.from_numpy(want["x8"]))
    y = matmul_columns(torch, x, *map(torch.from_numpy, held.values()))
    assert np.allclose(y, want["y"], rtol=1e-5, atol=1e-4)


def case(dtype, form):
    """Graph of both ops, its input and its weights."""
    from arcompile.ir import OPS

    rng, b = np.random.default_rng(0), Builder("g")
    w = rng.standard_normal((64, 24)).astype(np.float32)
    w[:, 3] = 0
    q, s = OPS["quantize_fp8"].eval(w) if form == "fp8" else (
        OPS["quantize_channels"].eval(w, axis=1, bits=8))
    kind = {"f32": np.float32, "f16": np.float16}[dtype]
    held = {"@q": q, "@s": s.astype(kind)}
    x = b.fake_quantize(b.param("x", f"{dtype}[r,64]"), step=0.03125, form=form)
    y = b.matmul_columns(x, b.weight("@q", Type("u8" if form == "fp8" else "i8", q.shape)),
                         b.weight("@s", Type(dtype, s.shape)))
    feed = {"x": (rng.standard_normal((5, 64)) * 3).astype(kind)}  # some of it beyond int8's range
    return b.graph(y=y, x8=x), feed, held


@pytest.mark.ort
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_onnxruntime_means_the_same(dtype, form, tmp_path):
    """The file that TensorRT takes, as it is, and ONNX Runtime's with its own rewriting."""
    ort = pytest.importorskip("onnxruntime")
    from arcompile.targets import onnx_standard
    from arcompile.targets.onnx_emit import LOWER, WEIGHTS, emit

    g, feed, held = case(dtype, form)
    want = evaluate(g, feed, held)
    types = {w.name: w.type for w in g.weights}
    safetensors.write(tmp_path / WEIGHTS, types, held.__getitem__)
    path = tmp_path / "g.onnx"
    for table, level in ((onnx_standard.table(), "ORT_DISABLE_ALL"), (LOWER, "ORT_ENABLE_ALL")):
        path.write_bytes(emit(g, safetensors.layout(types)[1], table=table))
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        y, x8 = ort.InferenceSession(str(path), options).run(["out.y", "out.x8"], feed)
        assert (x8 == want["x8"]).all()
        assert np.allclose(y, want["y"], rtol=1e-3, atol=(0.3 if dtype == "f16" else 1e-3))


@pytest.mark.ort
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_tensorrt_takes_it(dtype, form, tmp_path, ranges):
    trt = pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx here")
    from arcompile.targets import onnx_standard, tensorrt, trt_build
    from arcompile.targets.onnx_emit import WEIGHTS, emit
    from arcompile.weights import Store, used

    source, how = weights(of(G)), f"qdq{{least=0,form={form},ranges='{ranges}'}}"
    p = run(of(G), parse_pipeline(f"{how}, half{{dtype={dtype}}}"), source)
    types, store = {k: v.type for k, v in used(p.graphs).items()}, Store(source, p.fold)
    safetensors.write(tmp_path / WEIGHTS, types, store.__getitem__)
    path, g = tmp_path / "g.onnx", p.graph("g")
    assert ("u8" if form == "fp8" else "i8") in {t.dtype for t in types.values()}
    path.write_bytes(emit(g, safetensors.layout(types)[1], table=onnx_standard.table()))
    capable = tensorrt.able(p, ["SM80", "SM89", "SM120"])
    assert ("SM80" in capable) is (form == "int8")
    built = trt_build.build(path, g, [trt_build.ranges(p, 2)["g"]], trt, capable)
    assert built.reasons == []
    if form == "fp8":
        with pytest.raises(ArcError, match=r"need compute capability 8\.9 or later, not SM80"):
            tensorrt.able(p, ["SM80"])
