"""The demo model drawn in windows: the tokens of plain decoding, alone and in any batch."""

from __future__ import annotations

import numpy as np
import pytest

import arcompile
from arcompile.errors import ArcError

pytestmark = [pytest.mark.ort, pytest.mark.slow]
ASK = {"seed": [5, 9, 2], "guidance": [1.3, 1.0, 2.0], "temperature": [0.8, 0.0, 1.0],
       "top_k": [0, 0, 40], "top_p": [1.0, 1.0, 0.9]}
LABELS = [3, 14, 22]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    made = {}

    def get(passes, target="ort-cpu"):
        if (key := (passes, target)) not in made:
            out = tmp_path_factory.mktemp("engine") / "e"
            made[key] = arcompile.build("demo", passes=passes, target=target, out=out)
        return made[key]

    return get


def test_jacobi_draws_what_plain_decoding_draws(engine):
    plain = engine(None).generate(LABELS, **ASK)
    found = engine("jacobi{window=8}").generate(LABELS, **ASK)
    assert (plain.tokens == found.tokens).all()
    assert np.abs(plain.pixels - found.pixels).max() < 1e-4
    assert (found.rounds > 0).sum(0).max() < 48


@pytest.mark.parametrize("passes", ["scd{window=8}", "sjd{window=12,guess='above'}",
                                    "scd{window=8,coupling='gumbel'}"])
def test_targets_and_batches_agree(engine, passes):
    both = engine(passes).generate(LABELS, **ASK)
    numpy = engine(passes, "reference").generate(LABELS, **ASK)
    assert (both.tokens == numpy.tokens).all()
    for i, label in enumerate(LABELS):
        one = engine(passes).generate(label, **{k: v[i] for k, v in ASK.items()})
        assert (one.tokens[0] == both.tokens[i]).all()
    greedy = engine(None).generate(LABELS[1], temperature=0.0, guidance=1.0)
    assert (greedy.tokens[0] == both.tokens[1]).all()
    assert (both.rounds > 0).sum(0).max() < 48


def test_drafting_engines_force_no_tokens(engine):
    e = engine("jacobi{window=8}")
    with pytest.raises(ArcError, match="has no logits step by step"):
        e.logits([3], np.zeros((1, 64), int))
