"""Engines of hand-written programs, opened by libarcompile and by the Python runtime."""

from __future__ import annotations

import engines
import native
import pytest
import toy

from arcompile.weights import of_arrays


@pytest.fixture(scope="session")
def lib():
    """libarcompile, built once."""
    pytest.importorskip("onnxruntime")
    return native.Library(native.library())


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """An engine folder by what is in it: "mixed", or passes over a raster."""
    pytest.importorskip("onnx")
    root, made = tmp_path_factory.mktemp("cpp"), {}

    def get(name):
        if name not in made and name == "mixed":
            made[name] = engines.write(root / name, engines.mixed(), engines.none(),
                                       info={"classes": 5}, defaults={"guidance": 2.0})
        elif name not in made:
            t = toy.Toy(n=8)
            made[name] = engines.write(root / f"toy{len(made)}", t.program, of_arrays(t.weights),
                                       t.v, passes=name, info={"classes": 3})
        return made[name]

    return get


@pytest.fixture(scope="session")
def pair(lib, folders):
    """One engine in both runtimes."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = native.Pair(lib, folders(name))
        return made[name]

    return get
