"""Target onnx-loop: one ONNX file draws what an engine draws, from the same noise."""

from __future__ import annotations

import engines
import numpy as np
import pytest
import toy

import arcompile
from arcompile.errors import ArcError
from arcompile.runtime import rng
from arcompile.weights import of_arrays

pytestmark = pytest.mark.ort
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

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
    p = engines.turns()
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
