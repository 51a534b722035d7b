"""Random graphs and programs through every pass and every CPU target, against numpy.

A short run by default, a long one by `pytest --nightly`, a very long one by `python -m fuzz`. What
such runs found is kept as IR text in tests/golden/fuzz.
"""

from __future__ import annotations

from random import Random

import fuzz.recipes_model  # noqa: F401  fills the table
import pytest
from conftest import HERE
from fuzz.__main__ import failure, failure_of_program, hush
from fuzz.check import Wrong, check
from fuzz.graphs import graph
from fuzz.programs import program
from fuzz.recipes import RECIPES
from fuzz.shrink import reduced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcompile.errors import IRError
from arcompile.ir import OPS, Type
from arcompile.pipeline import PASSES
from arcompile.targets.onnx_emit import LOWER, fill
from arcompile.text import parse_graph

FOUND = sorted((HERE / "golden" / "fuzz").glob("*.arc"))
SEEDS = st.integers(0, 1 << 30)

pytestmark = pytest.mark.ort
fill()


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    hush()


def run(request, few: int, many: int, test):
    """A test of a seed, over as many as the run is meant to try."""
    count = many if request.config.getoption("--nightly") else few
    how = settings(max_examples=count, deadline=None, derandomize=True, database=None,
                   suppress_health_check=list(HealthCheck))
    how(given(SEEDS)(test))()


# No graph holds these before a pass puts them there.
PASSES_ALONE = {"conv_last", "norm_conv_last", "narrow_conv", "pack_conv", "pack_linear",
                "linear_int8", "kv_attend", "kv_update", "kv_drop", "kv_watch", "kv_quantise",
                "kv_dequantise"}


def test_every_op_has_a_recipe():
    PASSES.all()  # passes may bring ops of their own
    assert {*RECIPES} == {*OPS} - PASSES_ALONE


def test_graphs(request):
    def one(seed):
        g = graph(Random(seed))
        if said := failure(g):
            pytest.fail(f"{said}\n{reduced(g, failure)}")

    run(request, 30, 1000, one)


def test_programs(request):
    def one(seed):
        p = program(Random(seed))
        if said := failure_of_program(p):
            pytest.fail(f"{said}\n{p}")

    run(request, 4, 200, one)


@pytest.mark.parametrize("path", FOUND, ids=lambda p: p.stem)
def test_found_once(path):
    check(parse_graph(path.read_text()))


@pytest.mark.parametrize(("op", "types", "attrs"), [
    ("tail", ("f32[4]", "f32[8]"), {"axis": 0}),  # numpy wrapped round, onnxruntime did not
    ("conv2d", ("f32[1,2,2,2]", "f32[1,2,3,3]"), {}),  # an image of no pixels
])
def test_refused_since(op, types, attrs):
    with pytest.raises(IRError):
        OPS[op].infer(*map(Type.parse, types), **attrs)


def test_a_wrong_lowering_is_found_and_reduced(monkeypatch):
    monkeypatch.setitem(LOWER, "sub", lambda e, n, x: e.op("Sub", *x[::-1]))
    g = parse_graph("""graph g1(%x: f32[b,4], %y: f32[b,4]) {
  %0 = exp(%x) : f32[b,4]
  %1 = sub(%0, %y) : f32[b,4]
  %2 = mul(%1, %1) : f32[b,4]
  %3 = add(%1, %2) : f32[b,4]
  return out=%3, all=%2
}""")
    with pytest.raises(Wrong, match="ort raw, no kernels"):
        check(g)
    assert [n.op for n in reduced(g, failure).nodes] == ["sub"]
