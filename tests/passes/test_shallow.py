"""The first layers alone: of plain graphs and of fused ones."""

import pytest
from tiny import generate, llama, ops

from arcompile.errors import ArcError
from arcompile.passes.residual_norm import ResidualNorm
from arcompile.passes.rotary_attention import RotaryAttention
from arcompile.passes.shallow import Shallow
from arcompile.pipeline import run


def test_of_three_layers_one_stays(golden):
    p = run(llama(3), [Shallow(layers=1)])
    assert str(p.graph("step")) == golden
    assert [k for k, _ in p.state] == ["k0", "v0", "unread"]


@pytest.mark.parametrize("layers", [1, 2])
def test_it_is_the_smaller_model(layers):
    """The tiny models share weights: of three layers the first two are the model of two."""
    want = generate(llama(layers), temperature=1.0).tokens
    for fused in ([], [ResidualNorm(), RotaryAttention()]):
        p = run(llama(3), [*fused, Shallow(layers=layers)])
        assert (generate(p, temperature=1.0).tokens == want).all()
        assert len([o for o in ops(p.graph("step")) if "attention" in o]) == layers


def test_all_layers_is_the_identity():
    p = llama(1)
    assert run(p, [Shallow()]) is p


@pytest.mark.parametrize(("layers", "why"), [(-1, "cannot keep -1"), (3, "no more than 3 layers")])
def test_refuses(layers, why):
    with pytest.raises(ArcError, match=why):
        run(llama(3), [Shallow(layers=layers)])
