import numpy as np
import pytest
from tiny import llama

from arcompile import safetensors
from arcompile.check import Check
from arcompile.compile import exported
from arcompile.family import FAMILIES
from arcompile.ir import evaluate
from arcompile.passes.static_cache import StaticCache
from arcompile.pipeline import run
from arcompile.program_text import parse_program
from arcompile.targets import onnx_standard, trt_build
from arcompile.targets.onnx_emit import WEIGHTS, emit
from arcompile.weights import Store, used

TEXT = """program asked positions=4 mask=causal accept=all
  cache full
  input ids: i64[b,p]
  state k: f32[r,1,p+4,4]
  prompt prompt
  steps 1 x 1 : step ; append='p'
  steps 3 x 1 : step ; append=1
graph prompt(%ids: i64[b,p], %image: i64[r]) {
  @words : f32[9,4]
  %0 = gather(%ids, %image) {axis=0} : i64[r,p]
  %1 = gather(@words, %0) {axis=0} : f32[r,p,4]
  %2 = full() {dtype='bool', shape=('r', 'p+4'), value=1} : bool[r,p+4]
  return x=%1, keep=%2
}
graph step(%x: f32[r,s,4], %past: i32[r], %keep: bool[r,t], %k: f32[r,1,t,4]) {
  @cos : f32[9,2]
  @sin : f32[9,2]
  %0 = rope(%x, @cos, @sin, %past) {heads=1, interleaved=False} : f32[r,s,4]
  %1 = cache_append(%k, %0, %past) : f32[r,1,t,4]
  %2 = attention(%0, %1, %1, %past, %keep) {extra=('past', 'keep'), heads=1, kv_heads=1, \
mask='causal', scale=0.5} : f32[r,s,4]
  return x=%2, k=%1
}
"""


def test_as_many_slots_as_angles(golden):
    new = run(parse_program(TEXT), [StaticCache()])
    assert str(new) == golden
    assert str(parse_program(str(new))) == str(new)
    assert run(new, [StaticCache()]) is new
    assert new.longest()["p"] == 5
    assert new.sizes()["p"] == 5  # and not what nobody told


def test_identity_where_lengths_are_known():
    p = llama()
    assert run(p, [StaticCache()]) is p


@pytest.mark.parametrize(("old", "new", "why"), [
    ("rope(%x, @cos, @sin, %past) {heads=1, interleaved=False}", "neg(%x)", "no rotary embedding"),
    ("  prompt prompt\n", "  input keep: bool[b,p+4]\n", "keep comes from outside"),
    ("%past, %keep) {extra=('past', 'keep')", "%keep) {extra=('keep',)", "sees every slot"),
    ("  prompt", "  state v: f32[r,1,p+5,4]\n  prompt", "caches have lengths of p+4, p+5"),
    ("return x=%2", "%3 = concat(%keep, %keep) {axis=1} : bool[r,2*t]\n  return y=%3, x=%2",
     "of graph step is bool[r,2*t]"),
])
def test_refuses(old, new, why, capsys, monkeypatch):
    assert old in TEXT
    monkeypatch.setenv("ARC_DEBUG", "4")
    monkeypatch.setattr("arcompile.program.Program.check", lambda self: None)
    p = parse_program(TEXT.replace(old, new, 1))
    assert StaticCache()(p) is p
    assert why in capsys.readouterr().err


@pytest.fixture(scope="module")
def janus():
    family = FAMILIES["janus"]
    model = family.model(family.random("tiny"), {})
    return model, exported(model)


def test_values_stay(janus):
    _, p = janus
    new = run(p, [StaticCache()])
    assert max(Check(p).errors(new).values()) == 0


def test_plans_take_any_prompt(janus):
    """From one id to as many as there are angles left for."""
    new = run(janus[1], [StaticCache()])
    found = trt_build.ranges(new, 1)
    assert [getattr(found["prompt"]["input_ids"], k)[1] for k in ("least", "most")] == [1, 20]
    assert [getattr(found["step"]["x"], k)[1] for k in ("least", "usual", "most")] == [1, 1, 20]


@pytest.mark.ort
def test_standard_ops_mean_the_same(janus, tmp_path):
    """With padding on the left: a mask over slots, causal, in a cache longer than the request."""
    ort = pytest.importorskip("onnxruntime")
    model, p = janus
    new = run(p, [StaticCache()])
    g, store = new.graph("step"), Store(model.weights, new.fold)
    types = {k: v.type for k, v in used([g]).items()}
    held = {k: store[k] for k in types}
    safetensors.write(tmp_path / WEIGHTS, types, held.__getitem__)
    path, rng = tmp_path / "step.onnx", np.random.default_rng(0)
    path.write_bytes(emit(g, safetensors.layout(types)[1], table=onnx_standard.table()))
    caches = {v.name: rng.standard_normal((2, *v.type.shape[1:])).astype(np.float32)
              for v in g.params if v.type.rank == 4}
    keep = np.ones((2, 36), bool)
    keep[1, :3] = False
    session = ort.InferenceSession(str(path))
    for slots, past in ((5, 0), (1, 7)):
        feed = {"x": rng.standard_normal((2, slots, 64)).astype(np.float32), "keep": keep,
                "past": np.full(2, past, np.int32), "noise": np.zeros((1, 1, 2), np.float32),
                **caches}
        want = evaluate(g, feed, held)
        for name, y in zip(want, session.run([f"out.{k}" for k in want], feed), strict=True):
            assert np.allclose(y, want[name], atol=1e-4), name
