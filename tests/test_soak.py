"""One engine, many pictures and threads. Ten thousand: `PYTHONPATH=tests python -m fuzz soak`."""

from __future__ import annotations

from random import Random

import engines
import numpy as np
import pytest
import tiny
from fuzz import soak

from arcompile.runtime.engine import load

pytestmark = pytest.mark.ort


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from dataclasses import replace

    p = replace(tiny.llama(1), finish=())
    at = tmp_path_factory.mktemp("soak") / "e"
    return engines.write(at, p, tiny.weights(p), 16, info={"classes": 3},
                         passes="fold, simplify, qkv, rotary-attention, fuse-sampling, dead-code")


def test_the_same_in_any_company_and_memory_stays(folder, tmp_path):
    e = load(folder, threads=1)
    told = soak.soak(e, 1500, tmp_path / "log", Random(0), classes=3)
    assert told["pictures"] >= 1500
    assert told["again"] > 20
    assert told["differ"] == 0
    assert told["late"] - told["early"] < 8 << 20
    more = soak.soak(e, 1600, tmp_path / "log", Random(1), classes=3)  # goes on where it stopped
    assert told["pictures"] < more["pictures"] < 1800


def test_a_difference_would_be_seen(folder, tmp_path, monkeypatch):
    e = load(folder, threads=1)
    monkeypatch.setattr(soak, "drawn", lambda e, asked: [str(np.random.random()) for _ in asked])
    assert soak.soak(e, 300, tmp_path / "log", Random(0), classes=3)["differ"] > 0


def test_eight_threads_on_one_engine(folder):
    assert soak.threads(folder, classes=3) == 0


def test_any_number_of_cores(folder):
    assert soak.cores(folder, classes=3) == 0
