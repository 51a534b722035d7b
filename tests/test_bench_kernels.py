"""bench.kernels: what is compared, and how kernel time is added up."""

from __future__ import annotations

import os

from arcompile.bench import kernels
from arcompile.bench.attribute import OWN, Spot
from arcompile.bench.suites import SUITES
from arcompile.ir import OPS


def test_the_other_side_has_no_passes_for_our_kernels():
    suite = kernels.plain(SUITES["var-d16-int8"])
    assert suite.passes.split() == ["int8"]
    assert kernels.plain(SUITES["llamagen-B-int8"]).passes == "int8"


def test_kinds_are_of_ops_and_apart():
    every = [op for ops in kernels.KINDS.values() for op in ops]
    assert len(every) == len(set(every))
    assert set(every) <= OPS.keys()


def test_time_is_added_by_kind():
    spots = [Spot("step", "matmul", "0", "", 0.002), Spot("step", "swiglu", "1", "", 0.001),
             Spot("step", "Reorder", OWN, OWN, 0.004), Spot("decode", "conv2d", "2", "", 0.25)]
    on = kernels.by_kind(spots)
    assert on == {"products, gates and norms": 3, "the rest": 4,
                  "convolutions and their norms": 250}
    assert kernels.slower(on, {**on, "products, gates and norms": 2.9}) == [
        "products, gates and norms"]
    assert kernels.slower(on, on) == []


def test_the_variable_comes_back(monkeypatch):
    monkeypatch.setenv("ARC_KERNELS", "/mine.so")
    with kernels.kernels("off"):
        assert os.environ["ARC_KERNELS"] == "off"
    assert os.environ["ARC_KERNELS"] == "/mine.so"
    monkeypatch.delenv("ARC_KERNELS")
    with kernels.kernels("off"):
        pass
    assert "ARC_KERNELS" not in os.environ
