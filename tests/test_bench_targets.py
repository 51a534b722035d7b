"""bench.targets: one program on several targets draws the same greedy tokens."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from arcompile.bench import targets
from arcompile.bench.suites import SUITES
from arcompile.errors import ArcError
from arcompile.kernel import KERNELS
from arcompile.target import TARGETS

GPU = Path(__file__).parents[1] / ".ci" / "gpu"


@pytest.mark.ort
@pytest.mark.skipif(not os.getenv("ARC_SLOW"), reason="slow; ARC_SLOW=1 runs it")
def test_the_same_tokens_on_three_targets(own_cache):
    row = targets.run(SUITES["llamagen-tiny"], ["torch-cpu", "reference"], 1)
    assert row["targets"].keys() == {"ort-cpu", "torch-cpu", "reference"}
    assert all(t["same_tokens"] == 1 and t["image_s"]["n"] == 1 for t in row["targets"].values())
    assert row["missing"] == {}


def test_what_cannot_run_here_is_told(monkeypatch):
    monkeypatch.setattr(TARGETS["ort-cuda"], "available", lambda: "no GPU is seen", raising=False)
    assert targets.here(["ort-cuda", "reference"]) == (
        ["ort-cpu", "reference"], {"ort-cuda": "no GPU is seen"})
    with pytest.raises(ArcError, match="nvidia"):
        targets.here(["nvidia"])


def test_tokens_count_up_to_the_first_that_differs():
    want = np.arange(8).reshape(2, 4)
    found = want.copy()
    found[1, 1] = 9
    assert targets.share(found, want) == 5 / 8
    assert targets.share(want[:, :0], want[:, :0]) is None


def test_the_script_for_gpus_names_what_there_is():
    """Every kernel, every suite and every target of .ci/gpu is one of ours."""
    text = GPU.read_text()
    assert os.access(GPU, os.X_OK)
    assert set(re.search(r"for op in (.*); do", text)[1].split()) == KERNELS.all().keys()
    assert set(re.search(r"for suite in (.*); do", text)[1].split()) <= SUITES.keys()
    named = re.search(r'targets "\$suite" (.*)$', text, re.M)[1].split()
    assert set(named) <= TARGETS.all().keys()
