"""Noise: the published Philox vectors, the stated bounds, and independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile.errors import ArcError
from arcompile.program import Draw
from arcompile.runtime import rng

# Random123 1.14, tests/kat_vectors, philox4x32 10
VECTORS = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexes(text: str):
    return np.array([int(w, 16) for w in text.split()], np.uint64)


@pytest.mark.parametrize(("counter", "key", "want"), VECTORS)
def test_philox_known_answers(counter, key, want):
    assert (rng.philox(hexes(counter), hexes(key)) == hexes(want)).all()
    many = rng.philox(np.tile(hexes(counter), (2, 3, 1)), np.tile(hexes(key), (2, 3, 1)))
    assert (many == hexes(want)).all()


SEEDS = np.array([3, 1 << 63, 2**64 - 1], np.uint64)


def draw(kind: str, width: int = 1, *, seeds=SEEDS, images=(0, 0, 5), positions=range(6), index=0,
         turn=0):
    return rng.draw(Draw("n", kind, width), index, np.asarray(seeds, np.uint64), np.array(images),
                    np.array(positions), turn)


def test_words_are_laid_out_as_said():
    """Counter (image, position, draw, block), key (low seed, high seed), halves low word first."""
    seed, image, position, which = 0x0123456789ABCDEF, 7, 11, 13
    seeds = np.array([seed], np.uint64)
    found = rng.words(seeds, np.array([image]), np.array([position]), which, 5)
    for j in range(5):
        counter = np.array([image, position, which, j // 2], np.uint64)
        out = rng.philox(counter, np.array([0x89ABCDEF, 0x01234567], np.uint64)).tolist()
        lo, hi = out[2 * (j % 2) : 2 * (j % 2) + 2]
        assert int(found[0, 0, j]) == lo | hi << 32


def test_uniform_bounds():
    ends = rng.uniform(np.array([0, 2**64 - 1, 1 << 41], np.uint64))
    assert ends.tolist() == [0.0, 1 - 2.0**-23, 2.0**-23]
    u = draw("uniform", 500)
    assert u.shape == (3, 6, 500)
    assert u.dtype == np.float32
    steps = u.astype(np.float64) * 2**23
    assert (steps == np.floor(steps)).all()
    assert 0 <= u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size)


def test_normal_moments():
    z = draw("normal", 2000).astype(np.float64)
    assert np.isfinite(z).all()
    n = z.size
    for power, want, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - want) < 4 * np.sqrt(spread / n)
    pairs = z.reshape(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean()) < 4 / np.sqrt(n / 2)


def test_normal_ends_are_finite():
    ends = rng.normal(np.array([0, 0, 2**64 - 1, 2**64 - 1], np.uint64))
    assert np.isfinite(ends).all()


def test_odd_widths_are_prefixes():
    for kind in ("uniform", "normal"):
        assert (draw(kind, 5) == draw(kind, 8)[..., :5]).all()


@pytest.mark.parametrize("kind", ["uniform", "normal", "order"])
def test_noise_does_not_know_the_batch(kind):
    whole = draw(kind, 3)
    for i in range(3):
        assert (draw(kind, 3, seeds=SEEDS[i : i + 1], images=[(0, 0, 5)[i]]) == whole[i]).all()
    back = draw(kind, 3, seeds=SEEDS[::-1], images=(5, 0, 0))
    assert (back == whole[::-1]).all()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_noise_does_not_know_the_order_of_positions(kind):
    whole = draw(kind, 3)
    assert (draw(kind, 3, positions=[4, 1]) == whole[:, [4, 1]]).all()


def test_every_coordinate_matters():
    base = draw("uniform", 4)
    others = [draw("uniform", 4, seeds=SEEDS + np.uint64(1)), draw("uniform", 4, images=(1, 1, 6)),
              draw("uniform", 4, positions=range(6, 12)), draw("uniform", 4, index=1),
              draw("uniform", 4, turn=1)]
    assert all((base != o).mean() > 0.99 for o in others)
    high = SEEDS ^ np.uint64(1 << 40)
    assert (draw("uniform", 4, seeds=high) != base).mean() > 0.99


def test_order_is_a_permutation():
    order = draw("order", positions=range(256))
    assert order.dtype == np.int64
    assert (np.sort(order, -1) == np.arange(256)).all()
    assert len({tuple(row) for row in order.tolist()}) == 3


def test_turns_are_bounded():
    with pytest.raises(ArcError, match="too long"):
        draw("uniform", turn=1 << 20)
