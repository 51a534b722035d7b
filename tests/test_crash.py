"""Killed, starved, raced and interrupted: never half an engine, never an earlier one lost.

A few tries of each; hundreds by `PYTHONPATH=tests python -m fuzz crash --count 200`.
"""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("torch")
crash = pytest.importorskip("fuzz.crash")

pytestmark = [pytest.mark.ort, pytest.mark.slow,
              pytest.mark.filterwarnings("ignore::DeprecationWarning")]  # fork among threads


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcompile.compile._own_digest", lambda: "crash")
        yield crash.Yard(tmp_path_factory.mktemp("crash") / "yard", Random(0))


@pytest.mark.parametrize("fault", crash.FAULTS)
def test_what_is_left_is_whole(fault, yard):
    assert not crash.tries(yard, fault, 2 if fault == "kill" else 1)
