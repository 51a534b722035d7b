"""Caches that shrink need nothing of a runtime: both draw the same."""

from __future__ import annotations

from dataclasses import replace

import engines
import native
import pytest
import tiny
from tiny_scales import NORMAL, rows, scales

pytestmark = pytest.mark.ort


@pytest.mark.parametrize(("program", "passes"), [
    (scales, "kv-hack{ratio=0.5}"), (scales, "kv-scale{ratio=0.6}"),
    (scales, "kv-h2o{ratio=0.6}, kv-int8"),
    (rows, "kv-snap{ratio=0.4}"), (rows, "kv-int4{window=4}")])
def test_the_same_tokens(lib, tmp_path, program, passes):
    pytest.importorskip("onnx")
    p = replace(program(), finish=())  # tokens are what is compared
    folder = engines.write(tmp_path / "engine", p, tiny.weights(p), 16,
                           passes=f"{NORMAL}, {passes}", info={"classes": 3})
    native.Pair(lib, folder).same([0, 1], seed=[3, 4], guidance=2.0)
