"""What may be asked of an engine: noise in place of draws, and refusals that help."""

import ast
from pathlib import Path

import engines
import numpy as np
import pytest

import arcompile
from arcompile.errors import ArcError
from arcompile.program import Draw
from arcompile.runtime import rng

RUNTIME = Path(arcompile.__file__).parent / "runtime"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("requests") / "engine"
    engines.write(folder, engines.mixed(), engines.none(), vocabulary=100, target="reference",
                  info={"classes": 9})
    return arcompile.load(folder)


COND = {"cond": np.array([3, 5]), "extra": np.ones((2, 2), np.float32)}


def kicks(seed, turns=3):
    """What the loop itself draws for `kick`: [B,N,turns,width]."""
    draw, where = Draw("kick", "normal", 2, "loop"), np.arange(6)
    each = [rng.draw(draw, 2, np.full(2, seed, np.uint64), np.zeros(2, int), where, turn)
            for turn in range(turns)]
    return np.stack(each, 2)


def test_noise_that_a_loop_draws_can_be_given(mixed):
    """The engine's own numbers change nothing; no kicks at all do."""
    drawn = mixed.generate(COND, seed=7)
    same = mixed.generate(COND, seed=7, kick=kicks(7))
    assert (same.tokens == drawn.tokens).all()
    assert (same.pixels == drawn.pixels).all()
    still = mixed.generate(COND, seed=7, kick=np.zeros((2, 6, 3, 2)))
    assert (still.pixels != drawn.pixels).any()


def test_each_turn_and_position_reads_its_own(mixed):
    """The last step draws position 0 first, and adds up the kicks of its three turns."""
    noise = np.zeros((2, 6, 3, 2), np.float32)
    base = mixed.generate(COND, seed=7, kick=noise)
    for turn in range(3):
        moved = noise.copy()
        moved[0, 0, turn] = 5.0
        out = mixed.generate(COND, seed=7, kick=moved)
        assert (out.pixels[0] != base.pixels[0]).any()
        assert (out.pixels[1] == base.pixels[1]).all()


@pytest.mark.parametrize(("said", "given"), [
    ("expected [2, 6, 3, 2]", {"kick": np.zeros((2, 6, 2))}),
    ("expected [2, 6, 3, 2]", {"kick": np.zeros((1, 6, 3, 2))}),
    ("not finite", {"kick": np.full((2, 6, 3, 2), np.nan)}),
    ("not an array of numbers", {"kick": "loud"}),
    ("expected [2, 6]", {"where": np.zeros((2, 5), int)}),
    ("permutation of 0..5", {"where": np.zeros((2, 6), int)}),
    ("no argument 'kik'", {"kik": np.zeros((2, 6, 3, 2))}),
])
def test_noise_that_does_not_fit(mixed, said, given):
    with pytest.raises(ArcError) as e:
        mixed.generate(COND, **given)
    assert said in e.value.what
    assert e.value.hint


@pytest.mark.parametrize("name", ["request", "prompt", "text", "engine"])
def test_every_refusal_of_a_request_has_a_hint(name):
    tree = ast.parse((RUNTIME / f"{name}.py").read_text())
    bare = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Raise)
            and isinstance(n.exc, ast.Call) and getattr(n.exc.func, "id", "") == "ArcError"
            and "hint" not in {k.arg for k in n.exc.keywords}]
    assert not bare
