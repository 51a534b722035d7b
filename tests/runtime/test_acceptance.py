import numpy as np
import pytest
from toy import Toy

from arcompile.errors import ArcError
from arcompile.passes.scd import SCD
from arcompile.passes.zipar import ZipAR
from arcompile.passes.zipar_adaptive import ZipARAdaptive
from arcompile.pipeline import run
from arcompile.runtime.acceptance import accepted, picture, side


def test_by_hand():
    """One image commits 1 and 3 positions, the other 2, 1 and 1."""
    share = accepted(np.array([[1, 2], [3, 1], [0, 1]]))
    assert share.tolist() == [0.5, 0.5, 0.5, 0.0]


def test_picture():
    made = picture(np.array([0.0, 1.0, 0.5, 0.0]), 2, cell=2)
    assert made.shape == (4, 4, 3)
    assert made[::2, ::2, 0].tolist() == [[0, 255], [127, 0]]


def test_a_map_is_as_wide_as_the_image():
    assert side(run(Toy(n=9).program, [SCD(window=4)])) == 3


@pytest.mark.parametrize(("n", "passes", "why"), [
    (9, [], "no window of drafts that moves over the image"),
    (9, [ZipAR(window=1)], "no window of drafts"),
    (9, [ZipARAdaptive(window=1)], "no window of drafts"),  # its rounds are of rows
    (8, [SCD(window=4)], "8 positions make no square")],
    ids=["plain", "zipar", "zipar-adaptive", "no square"])
def test_no_map(n, passes, why):
    with pytest.raises(ArcError, match=why):
        side(run(Toy(n=n).program, passes))
