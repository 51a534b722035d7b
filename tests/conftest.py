"""Goldens: `assert str(x) == golden`; refresh with `pytest --accept`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import traces

traces.install()
HERE = Path(__file__).parent
MAX_LINES = 60  # longer goldens are not read by anybody


def pytest_addoption(parser):
    parser.addoption("--accept", action="store_true", help="rewrite goldens with the actual text")
    parser.addoption("--nightly", action="store_true", help="fuzz for long: 1,000 graphs and more")


@pytest.fixture
def golden_at(request):
    """A golden by its path below tests/golden."""
    accept = request.config.getoption("--accept")
    return lambda *path: Golden(HERE.joinpath("golden", *path), accept)


@pytest.fixture
def golden(request, golden_at):
    """The golden of this test."""
    name = request.node.name.replace("/", "_")
    return golden_at(Path(request.fspath).stem, f"{name}.txt")


class Golden:
    def __init__(self, path: Path, accept: bool):
        self.path, self.accept = path, accept

    def __eq__(self, actual: object) -> bool:
        text = f"{actual}\n"
        if self.accept:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(text)
        return self.path.exists() and self.path.read_text() == text

    def __repr__(self) -> str:
        if not self.path.exists():
            return f"<no golden at {self.path}; run pytest --accept>"
        return self.path.read_text()


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of upstream checkpoints and what upstream computes from them."""
    path = Path(os.environ.get("ARC_GOLDENS", HERE.parent.parent / "shared" / "goldens"))
    if not path.is_dir():
        pytest.skip(f"no golden data at {path}; set ARC_GOLDENS")
    return path


@pytest.fixture(scope="session", autouse=True)
def _traces(tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    traces.Once.folder = shared / "traces"


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ARC_CACHE", str(folder))
    return folder
