"""Target onnx-loop: one ONNX file draws what an engine draws, from the same noise."""

from __future__ import annotations

import engines
import numpy as np
import pytest
import toy

import arcompile
from arcompile.errors import ArcError
from arcompile.program_text import parse_program
from arcompile.runtime import rng
from arcompile.weights import of_arrays

pytestmark = pytest.mark.ort
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# A table within a loop of steps, several positions a step, an order, and pixels.
TURNS = """\
program turns positions=6 mask=none accept=all
  cache full
  input cond: i64[b]
  state acc: f32[b,2]
  draw kick: normal x 2 per loop
  draw place: order x 1 per start
  table time.t = [0.5, 0.25, 2.0]
  table time.n = [1, 2, 3]
  prompt begin
  steps 2 x 2 : move*time commit ; append=2 set.gain=2.0
  steps 1 x 2 : move*time commit ; append=2 set.gain=10.0
  finish paint/each
graph begin(%cond: i64[b]) {
  return seen=%cond
}
graph move(%acc: f32[b,2], %kick: f32[b,c,2], %t: f32[], %n: i64[], %seen: i64[b], %gain: f32[]) {
  %0 = slice(%kick) {axis=1, start=0, stop=1} : f32[b,1,2]
  %1 = reshape(%0) {shape=('b', 2)} : f32[b,2]
  %2 = mul(%t, %gain) : f32[]
  %3 = mul(%1, %2) : f32[b,2]
  %4 = add(%acc, %3) : f32[b,2]
  %5 = add(%seen, %n) : i64[b]
  return acc=%4, seen=%5
}
graph commit(%seen: i64[b], %place: i64[b,N], %past: i32[r]) {
  %0 = cast(%past) {dtype='i64'} : i64[r]
  %1 = reshape(%seen) {shape=('b', 1)} : i64[b,1]
  %2 = slice(%place) {axis=1, start=0, stop=2} : i64[b,2]
  %3 = add(%1, %2) : i64[b,2]
  %4 = slice(%0) {axis=0, start=0, stop=1} : i64[1]
  %5 = add(%3, %4) : i64[b,2]
  return token=%5
}
graph paint(%tokens: i64[b,6], %acc: f32[b,2]) {
  %0 = cast(%tokens) {dtype='f32'} : f32[b,6]
  %1 = const() {dtype='f32', value=0.01} : f32[]
  %2 = mul(%0, %1) : f32[b,6]
  %3 = slice(%acc) {axis=1, start=0, stop=1} : f32[b,1]
  %4 = slice(%acc) {axis=1, start=1, stop=2} : f32[b,1]
  %5 = concat(%3, %4, %2, %3, %4, %3, %4) {axis=1} : f32[b,12]
  %6 = reshape(%5) {shape=('b', 3, 2, 2)} : f32[b,3,2,2]
  return pixels=%6
}"""


def both(tmp_path, program, weights, vocabulary, **manifest):
    """The one file as a session, and the engine."""
    import onnxruntime

    one = engines.write(tmp_path / "one", program, weights, vocabulary, "onnx-loop", **manifest)
    usual = engines.write(tmp_path / "usual", program, weights, vocabulary, **manifest)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(one / "model.onnx"), options)
    return session, arcompile.load(usual, threads=1)


@pytest.mark.parametrize("asked", [{}, {"guidance": 3.0}, {"guidance": 3.0, "temperature": 0.0},
                                   {"guidance": 2.0, "top_k": 2}, {"top_p": 0.6}])
def test_a_raster(tmp_path, asked):
    t = toy.Toy(n=8)
    session, engine = both(tmp_path, t.program, of_arrays(t.weights), t.v, info={"classes": 3})
    kinds = {"top_k": np.int64}
    for seed in range(10):
        cond, b = np.array([seed % 3, 1]), 2
        noise = rng.draw(t.program.draws[0], 0, np.full(b, seed, np.uint64), np.zeros(b, int),
                         np.arange(t.n))
        given = {k: np.array(v, kinds.get(k, np.float32)) for k, v in asked.items()}
        tokens = session.run(["tokens"], {"cond": cond, "noise": noise, **given})[0]
        want = engine.generate(cond, seed=seed, **{"guidance": 1.0, **asked})
        assert (tokens == want.tokens).all()


def test_tables_orders_and_pixels(tmp_path):
    p = parse_program(TURNS)
    p.verify()
    session, engine = both(tmp_path, p, engines.none(), 0, info={"classes": 5})
    cond, seeds, copies = np.array([1, 4, 2]), np.full(3, 7, np.uint64), np.zeros(3, int)
    every = np.arange(p.positions)
    kick = np.stack([rng.draw(p.draws[0], 0, seeds, copies, every, i) for i in range(3)])
    place = rng.draw(p.draws[1], 1, seeds, copies, every)
    tokens, images = session.run(["tokens", "images"],
                                 {"cond": cond, "kick": kick, "place": place})
    want = engine.generate(cond, seed=7)
    assert (tokens == want.tokens).all()
    assert (images == want.images).all()


def test_what_has_no_place_in_one_graph(tmp_path):
    with pytest.raises(ArcError, match="accept=confident has no place in one graph"):
        engines.write(tmp_path / "a", engines.mixed(), engines.none(), target="onnx-loop")
    t = toy.Toy(n=8)
    with pytest.raises(ArcError, match="accept=prefix has no place in one graph"):
        engines.write(tmp_path / "b", t.program, of_arrays(t.weights), t.v, "onnx-loop",
                      "scd{window=3}")


def test_it_is_not_arcompiles_to_run(tmp_path):
    t = toy.Toy(n=8)
    folder = engines.write(tmp_path / "e", t.program, of_arrays(t.weights), t.v, "onnx-loop")
    with pytest.raises(ArcError, match="is not run by arcompile") as e:
        arcompile.load(folder)
    assert "model.onnx" in e.value.hint
