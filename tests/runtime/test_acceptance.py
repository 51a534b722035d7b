import numpy as np

from arcompile.runtime.acceptance import accepted, picture


def test_by_hand():
    """One image commits 1 and 3 positions, the other 2, 1 and 1."""
    share = accepted(np.array([[1, 2], [3, 1], [0, 1]]))
    assert share.tolist() == [0.5, 0.5, 0.5, 0.0]


def test_picture():
    made = picture(np.array([0.0, 1.0, 0.5, 0.0]), 2, cell=2)
    assert made.shape == (4, 4, 3)
    assert made[::2, ::2, 0].tolist() == [[0, 255], [127, 0]]
