"""Plans of real shapes, built on a machine without a GPU: random weights of published sizes.

Together about 90 CPU seconds and 2.2 GB, so ARC_TEST_TENSORRT=1 asks for it, or names one of them;
.ci/run does.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest

from arcompile.bench import built
from arcompile.bench.suites import SUITES
from arcompile.program_text import parse_program
from arcompile.targets import tensorrt

ASKED = os.environ.get("ARC_TEST_TENSORRT", "")


@pytest.mark.ort
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llamagen-B", "var-d16", "mar-base"])
def test_real_shapes(name, tmp_path, own_cache):
    """Every graph but sampling has a plan, which holds its weights."""
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx here")
    if ASKED not in ("1", name):
        pytest.skip("ARC_TEST_TENSORRT=1 builds plans of real shapes")
    folder = tmp_path / "engine"
    built.build(replace(SUITES[name], target="tensorrt", dtype="f16"), folder)
    told = json.loads((folder / tensorrt.FACTS).read_text())["graphs"]
    p = parse_program((folder / "program.arc").read_text())
    for g in p.graphs:
        if why := told[g.name].get("reasons"):
            assert all(tensorrt.SORTS in r for r in why), (g.name, why)
            continue
        size = (folder / told[g.name]["plan"]).stat().st_size
        assert size > 0.9 * sum(w.type.nbytes() for w in g.weights), g.name
    assert {"plan"} == told["step"].keys()
    shutil.rmtree(folder)
    shutil.rmtree(own_cache)
