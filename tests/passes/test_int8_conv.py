import numpy as np
import pytest
from tiny import of, ops, ranges_file, weights

from arcompile.errors import ArcError
from arcompile.ir import OPS, evaluate
from arcompile.passes.int8_conv import Int8Conv
from arcompile.pipeline import run
from arcompile.weights import Store

G = """graph g(%x: f32[b,16,6,6]) {
  @w : f32[32,16,3,3]
  @bias : f32[32]
  @last : f32[3,32,1,1]
  %0 = conv2d(%x, @w, @bias) {pads=(1, 1, 1, 1)} : f32[b,32,6,6]
  %1 = relu(%0) : f32[b,32,6,6]
  %2 = conv2d(%1, @last) : f32[b,3,6,6]
  return y=%2, mid=%0
}"""
X = np.random.default_rng(0).standard_normal((2, 16, 6, 6)).astype(np.float32)


@pytest.fixture
def ranges(tmp_path):
    return ranges_file(tmp_path / "r.safetensors", {"w.conv_range": np.array([4.0, 4, 60, 60]),
                                              "last.conv_range": np.array([0.0, 60, 99, 99])})


def test_convolutions_of_many_channels(golden, ranges):
    p = of(G)
    new = run(p, [Int8Conv(ranges=ranges)])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert run(new, [Int8Conv(ranges=ranges, skip="last")]) is new
    source = weights(p)
    was, now = (evaluate(q.graphs[0], {"x": X}, Store(source, q.fold)) for q in (p, new))
    for key in was:
        off = np.linalg.norm(now[key] - was[key]) / np.linalg.norm(was[key])
        assert 0 < off < 0.02, key


def test_neutral_without_ranges():
    p = of(G)
    assert run(p, [Int8Conv()]) is p


@pytest.mark.parametrize(("options", "why"), [
    ({"skip": "w l*"}, "@w is to be skipped"),
    ({}, "@last is f32[3,32,1,1]: fewer than 16 channels"),
    ({"least": 1, "skip": "w"}, ""),
])
def test_leaves(options, why, ranges, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    new = run(of(G), [Int8Conv(ranges=ranges, **options)])
    assert why in capsys.readouterr().err
    assert ops(new.graph("g")).count("conv2d_int8") == (2 - len(options.get("skip", "").split())
                                                        - ("least" not in options
                                                           and "skip" not in options))


def test_needs_ranges_of_this_model(tmp_path):
    path = ranges_file(tmp_path / "r.safetensors", {"w.conv_range": np.ones(3)})
    with pytest.raises(ArcError, match=r"of another model: w\.conv_range has 3 numbers"):
        run(of(G), [Int8Conv(ranges=path)])


def test_what_is_beyond_the_ranges_is_cut():
    w, scale = OPS["quantize_channels"].eval(np.eye(16, dtype=np.float32)[..., None, None], axis=0)
    (y,) = OPS["conv2d_int8"].eval(X, w, scale, ranges=(-1.0, 1.0, -0.5, 0.5))
    assert abs(y.max() - 0.5) < 0.01
    assert abs(y.min() + 0.5) < 0.01
    inside = np.abs(X) < 0.49
    assert np.abs(y - X)[inside].max() < 0.01


@pytest.mark.ort
@pytest.mark.parametrize("stride", [1, 2])
def test_onnxruntime_means_the_same(stride):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from arcompile.ir import Builder, Type
    from arcompile.targets.onnx_emit import emit

    rng = np.random.default_rng(1)
    w, scale = OPS["quantize_channels"].eval(
        rng.standard_normal((24, 16, 3, 3)).astype(np.float32), axis=0)
    held = {"w": w, "s": scale, "bias": rng.standard_normal(24).astype(np.float32)}
    b = Builder("g")
    x = b.param("x", "f32[b,16,6,6]")
    parts = [b.param(k, Type("i8" if k == "w" else "f32", a.shape)) for k, a in held.items()]
    g = b.graph(y=b.conv2d_int8(x, *parts, ranges=(-4.0, 4.0, -40.0, 45.0), stride=stride,
                                pads=(1, 1, 1, 1)))
    want = evaluate(g, {"x": X, **held})["y"]
    model = onnx.load_from_string(emit(g, {}))
    for name, a in held.items():
        model.graph.input.remove(next(i for i in model.graph.input if i.name == name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(a, name))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": X})
    step = 85 / 255
    assert np.abs(found - want).max() < 1.01 * step  # a tie may fall to either side
    assert (np.abs(found - want) > 0.01 * step).mean() < 0.01
