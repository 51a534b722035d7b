"""The demo's drawings and the judge that reads them: numpy only."""

import numpy as np
import pytest

from arcompile.models.demo import drawings
from arcompile.models.demo.judge import FILE, NONE, judge, score, wilson

FRESH = 987_654  # no training run draws from this seed


@pytest.fixture(scope="module")
def real() -> tuple[np.ndarray, np.ndarray]:
    return drawings.batch(720, FRESH)


def test_drawings_repeat(real):
    images, labels = real
    again, same = drawings.batch(72, FRESH)
    assert np.array_equal(images[:72], again)
    assert np.array_equal(labels[:72], same)
    assert not np.array_equal(drawings.batch(36, FRESH + 1)[0], images[:36])


def test_drawings_are_balanced_and_named(real):
    images, labels = real
    assert images.dtype == np.uint8
    assert images.shape == (720, 64, 64, 3)
    assert np.array_equal(np.bincount(labels), np.full(36, 20))
    assert drawings.CLASS_NAMES[0] == "red circle"
    assert len(set(drawings.CLASS_NAMES)) == 36


def test_judge_reads_real_drawings(real):
    got = score(*real)
    assert got["both"] >= 0.98
    assert got["n"] == 720
    assert got["ci"][0] <= got["both"] <= got["ci"][1]


def test_judge_tells_wrong_labels(real):
    images, labels = real
    assert score(images, (labels + 1) % 36)["both"] <= 0.02


def _noise(rng):
    return rng.integers(0, 256, (64, 64, 64, 3))


def _blank(rng):
    return np.broadcast_to(rng.integers(0, 256, (64, 1, 1, 3)), (64, 64, 64, 3))


def _static(rng):
    """Coarse 8x8 tiles of random colour: what a broken token stream looks like."""
    return rng.integers(0, 256, (64, 8, 8, 3)).repeat(8, 1).repeat(8, 2)


def _shuffled(rng):
    """Real drawings whose 8x8 tiles changed places."""
    tiles = drawings.batch(64, FRESH)[0].reshape(64, 8, 8, 8, 8, 3).swapaxes(2, 3)
    tiles = tiles.reshape(64, 64, 8, 8, 3)[:, rng.permutation(64)]
    return tiles.reshape(64, 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(64, 64, 64, 3)


@pytest.mark.parametrize("make", [_noise, _blank, _static, _shuffled])
def test_judge_is_not_fooled(make):
    images = make(np.random.default_rng(3)).astype(np.uint8)
    shape, _, confidence = judge(images)
    assert np.mean(shape == NONE) >= 0.97
    assert np.median(confidence) < 0.1


def test_judge_refuses_other_pictures():
    with pytest.raises(ValueError, match="uint8"):
        judge(np.zeros((1, 64, 64, 3), np.float32))
    assert len(judge(np.zeros((0, 64, 64, 3), np.uint8))[0]) == 0


def test_wilson_interval():
    low, high = wilson(95, 100)
    assert (round(low, 3), round(high, 3)) == (0.888, 0.978)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_judge_is_small():
    assert FILE.stat().st_size <= 250_000
