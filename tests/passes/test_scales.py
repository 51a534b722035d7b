"""What next-scale programs may leave out: last scales, and guidance in some."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import llama
from toy import Toy

from arcompile.errors import ArcError
from arcompile.passes.guidance import Guidance
from arcompile.passes.trim import Trim
from arcompile.pipeline import run
from arcompile.runtime.loop import Loop, Request
from arcompile.targets.reference import models
from arcompile.weights import Store, of_arrays

pytest.importorskip("torch")
B = 3


@pytest.fixture(scope="module")
def var():
    """VAR of 1 + 4 + 9 tokens: (program, its weights)."""
    from arcompile.compile import exported
    from arcompile.models.var import Var

    model = Var().model(Var().random("tiny"), {})
    return exported(model), of_arrays({k: model.weights[k] for k in model.weights.load})


def loop(p, source, guidance=3.0, at=(0, 1, 2)):
    """Images `at` of three, each of its own class and seed; guidance may be one each."""
    at, b = list(at), len(at)
    q = Request({"cond": np.arange(B)[at]}, np.arange(B, dtype=np.uint64)[at], np.zeros(b, int),
                np.broadcast_to(np.float64(guidance), B)[at], np.ones(b, np.float32),
                np.zeros(b, int), np.ones(b, np.float32))
    return Loop(p, models(p, Store(source, p.fold)).runner(), q, 32)


def test_a_trimmed_program_is_one_that_was_stopped(var):
    """Which is also what a predicate does, given as on_step."""
    p, source = var
    q = run(p, [Trim(scales=1)])
    assert q.positions == 5
    assert "feed2" not in {g.name for g in q.graphs}
    short, stopped = loop(q, source).run(), loop(p, source).run(lambda at: at.step < 2)
    assert (short.tokens == stopped.tokens[:, :5]).all()
    assert (stopped.tokens[:, 5:] == -1).all()
    np.testing.assert_array_equal(short.env["pixels"], stopped.env["pixels"])


def test_the_same_picture_with_previews(var):
    p, source = var
    seen, plain = [], loop(p, source).run()
    looked = loop(p, source).run(lambda at: seen.append(at.pixels()))
    assert (plain.tokens == looked.tokens).all()
    assert (plain.env["pixels"] == looked.env["pixels"]).all()
    assert (seen[-1] == plain.env["pixels"]).all()
    assert len({x.tobytes() for x in seen}) == len(p.steps)


@pytest.mark.parametrize("way", [Guidance(last=2), Guidance(first=1), Trim(scales=1)], ids=str)
def test_a_batch_draws_what_each_image_draws_alone(var, way):
    p, source = var
    q, scale = run(p, [way]), (1.0, 3.0, 2.0)
    whole = loop(q, source, scale).run().tokens
    assert len(np.unique(whole, axis=0)) == B
    for at in ([0], [1], [2], [2, 0], [1, 2, 0]):
        assert (loop(q, source, scale, at).run().tokens == whole[at]).all()


def test_twins_leave_when_no_step_guides_any_more(var):
    """The same tokens as with the twins kept, by half the rows."""
    p, source = var
    q = run(p, [Guidance(last=2)])
    rows = []

    def drawn(keep):
        one = loop(q, source)
        if keep:
            one._dismiss = lambda done: None
        call = one.runner.run

        def watched(g, env):
            rows.append((g, len(env.get("image", ()))))
            return call(g, env)

        one.runner.run = watched
        out = one.run()
        return out.tokens, out.env["pixels"]

    (tokens, pixels), (same, others) = drawn(False), drawn(True)
    assert rows[:len(rows) // 2].count(("step", B)) == 1
    assert ("step", B) not in rows[len(rows) // 2:]
    assert (tokens == same).all()
    np.testing.assert_allclose(pixels, others, atol=1e-5)
    whole = loop(p, source).run().tokens
    assert (tokens[:, :5] == whole[:, :5]).all()
    assert (tokens[:, 5:] != whole[:, 5:]).any()


def test_twins_leave_a_raster_too():
    """The interval of a request: guided to the second token, the rest without."""
    toy = Toy()
    q = toy.request(4, guidance=2.0, interval=0)
    rows, one = [], Loop(toy.program, models(toy.program, toy.weights).runner(), q, toy.v)
    call = one.runner.run
    one.runner.run = lambda g, env: (rows.append(len(env["past"])), call(g, env))[1]
    tokens = one.run().tokens
    assert set(rows) == {8, 4}
    kept = Loop(toy.program, models(toy.program, toy.weights).runner(), q, toy.v)
    kept._dismiss = lambda done: None
    assert (kept.run().tokens == tokens).all()


def test_neutral(var):
    for way in (Trim(), Guidance(), Guidance(last=3)):
        assert run(var[0], [way]) is var[0]


@pytest.mark.parametrize(("way", "why"), [
    (Trim(scales=3), "cannot leave out 3 of 3 scales"),
    (Guidance(first=2, last=2), "cannot guide var by steps 2 to 2"),
    (Guidance(last=4), "steps 0 to 4")])
def test_refuses(var, way, why):
    with pytest.raises(ArcError, match=why):
        run(var[0], [way])


def test_a_raster_has_no_scales():
    with pytest.raises(ArcError, match="tiny is none"):
        run(llama(1), [Trim(scales=1)])
