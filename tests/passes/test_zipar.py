"""ZipAR against a plain transcription on a toy of one layer, its order, and its neutral setting."""

import re

import numpy as np
import pytest
from tiny import llama
from toy import Toy, same_in_any_batch

from arcompile.errors import ArcError
from arcompile.passes.jacobi import Jacobi
from arcompile.passes.rotary_attention import RotaryAttention
from arcompile.passes.zipar import ZipAR, wave
from arcompile.pipeline import run

SIZES = [(32, 32, 8), (48, 48, 16), (8, 8, 1), (8, 8, 3), (4, 6, 2), (5, 3, 3), (1, 7, 2)]


@pytest.mark.parametrize(("h", "w", "window"), SIZES)
def test_the_number_of_forwards(h, w, window):
    assert len(wave(h, w, window)) == w + (h - 1) * window


@pytest.mark.parametrize(("h", "w", "window"), SIZES)
def test_what_a_token_needs_is_there(h, w, window):
    """Each position once; the row above is ahead by the window, or has ended."""
    done = set()
    for turn in wave(h, w, window):
        for p in turn.drawn:
            i, j = divmod(p, w)
            assert not i or {(i - 1) * w + c for c in range(min(j + window, w))} <= done
        assert done.isdisjoint(turn.drawn)
        done |= set(turn.drawn)
    assert done == set(range(h * w))


def rotated(x, angle):
    a, b, c, s = x[::2], x[1::2], np.cos(angle), np.sin(angle)
    return np.stack((a * c - b * s, a * s + b * c), -1).ravel()


def transcribed(toy, h, w, window, label):
    """Greedy tokens: each drawn from every cell that is drawn, left and above, by plain loops.

    Slot i is what is read to draw token i: the prompt, then token i - 1, or its stand-in.
    """
    m = toy.weights
    angle = np.arange(toy.n)[:, None] * np.array([1.0, 0.4])
    tokens, done, stands = np.full(h * w, -1), [0] * h, {}

    def read(slot):
        if slot == 0:
            return m["@classes"][label]
        known = tokens[slot - 1]
        return m["@tokens"][known if known >= 0 else stands[slot]]

    while (tokens < 0).any():
        drawn = {}
        for i in range(h):
            if done[i] == w or (i and done[i - 1] < min(done[i] + window, w)):
                continue
            slot = i * w + done[i]
            if i and not done[i]:
                stands[slot] = tokens[(i - 1) * w + done[i - 1] - 1]
            seen = [s for s in range(slot + 1) if s == 0 or tokens[s - 1] >= 0 or s in stands]
            x = read(slot)
            q = rotated(x @ m["@q"], angle[slot])
            p = np.exp([q @ rotated(read(s), angle[s]) for s in seen])
            value = sum(a * read(s) for a, s in zip(p / p.sum(), seen, strict=True))
            drawn[slot] = ((x + value) @ m["@w"]).argmax()
        for slot, token in drawn.items():
            tokens[slot] = token
            done[slot // w] += 1
    return tokens


@pytest.mark.parametrize(("h", "w", "window"), [(3, 4, 3), (2, 5, 2), (2, 4, 1), (4, 3, 1)])
def test_against_a_transcription(h, w, window):
    for seed in range(3):
        toy = Toy(n=h * w, seed=seed)
        p = run(toy.program, [ZipAR(window=window, width=w)])
        found = toy.sample(p, 1, temperature=0.0)
        assert len(p.steps) == w + (h - 1) * window
        assert found.tokens[0].tolist() == transcribed(toy, h, w, window, 1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_as_wide_as_a_row_is_plain_decoding(temperature):
    """One pass further than the identity: an order by rows, on caches by the order of reading."""
    toy = Toy(n=6)
    p = run(toy.program, [ZipAR(window=3, width=3)])
    assert p is toy.program
    from arcompile.passes import zipar

    zipped = zipar._zipped(toy.program, 2, 3, 3)
    zipped.verify()
    how = {"temperature": temperature, "guidance": 1.5}
    assert (toy.sample(zipped, 40, **how).tokens == toy.sample(toy.program, 40, **how).tokens).all()


def test_a_batch_draws_what_each_image_draws_alone():
    toy = Toy(n=12)
    same_in_any_batch(toy, run(toy.program, [ZipAR(window=2, width=4)]))


def test_it_takes_fused_attention():
    toy = Toy(n=8)
    way = ZipAR(window=1, width=4)
    plain, fused = run(toy.program, [way]), run(toy.program, [RotaryAttention(), way])
    assert (toy.sample(plain, 40).tokens == toy.sample(fused, 40).tokens).all()


def test_steps(golden):
    assert str(run(llama(1), [ZipAR(window=1)])).split("\ngraph ")[0] == golden


@pytest.mark.parametrize(("way", "why"), [
    (ZipAR(window=3), "rows of 2 of 4 tokens cannot be 3 apart"),
    (ZipAR(window=1, width=3), "rows of 3 of 4 tokens"),
    (ZipAR(window=0), "cannot be 0 apart")])
def test_refuses(way, why):
    with pytest.raises(ArcError, match=re.escape(why)):
        run(llama(1), [way])


def test_it_does_not_go_with_drafts():
    with pytest.raises(ArcError, match="pass zipar needs a plain program"):
        run(llama(1), [Jacobi(window=2), ZipAR(window=1)])
    with pytest.raises(ArcError, match="step 0 of tiny has constants"):
        run(llama(1), [ZipAR(window=1), Jacobi(window=2)])
