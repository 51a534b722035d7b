"""Memory of a run in blocks of pages of its own."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from arcompile.errors import ArcError
from arcompile.ir import Type
from arcompile.runtime import pages
from arcompile.runtime.pages import BLOCK, SMALL, Pages

CACHE = Type("f32", ("r", 2, "N", 8))
SIZES = {"r": 2, "N": 4096}  # half a MiB


def test_tensors_of_a_block_lie_apart_and_begin_at_zero():
    made, held = Pages(), []
    for i in range(270):  # more than two blocks
        held.append(made.zeros(CACHE, SIZES))
        assert held[-1].shape == (2, 2, 4096, 8)
        assert not held[-1].any()
        assert held[-1].ctypes.data % 64 == 0
        held[-1][...] = i + 1
    assert [x.min() for x in held] == [x.max() for x in held] == [*range(1, 271)]


def test_a_block_goes_with_its_last_tensor(monkeypatch):
    gone = []

    class Block(pages.mmap.mmap):
        def __del__(self):
            gone.append(len(self))

    monkeypatch.setattr(pages.mmap, "mmap", Block)
    made = Pages()
    first, second = made.zeros(CACHE, SIZES), made.zeros(CACHE, SIZES)
    large = made.zeros(CACHE, {**SIZES, "r": 8 * BLOCK // (1 << 20)})  # a block of its own
    assert large.nbytes > BLOCK
    del first
    assert not gone
    del second
    assert gone == [BLOCK]


def test_small_ones_lie_in_the_heap():
    made = Pages()
    assert made.zeros(CACHE, {"r": 1, "N": 1}).nbytes < SMALL
    assert made.block is None


def test_copies_are_equal():
    x = np.arange(1 << 18, dtype=np.int64).reshape(4, -1)
    assert (Pages().copy(x[1:]) == x[1:]).all()
    assert (Pages().copy(x[:, :3]) == x[:, :3]).all()


@pytest.mark.parametrize("sizes", [{"r": -1, "N": 4}, {"r": 1 << 40, "N": 1 << 20}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ArcError, match="state"):
        Pages().zeros(CACHE, sizes)


def test_a_runner_lets_go_of_its_last_block() -> None:
    pytest.importorskip("onnxruntime")
    from arcompile.targets.ort import Runner

    runner = Runner(None)  # type: ignore[arg-type]  # what it keeps needs no models
    held = runner.pages.like((SMALL,), np.dtype(np.float32))
    block = weakref.ref(runner.pages.block)
    runner.keep(set())
    assert block() is not None  # a tensor lies in it
    del held
    assert block() is None
