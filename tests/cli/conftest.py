"""The golden engine, built once through the command line, and a way to run commands."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from shell import SIZES, Ran

from arcompile import cli, compile


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, one terminal-less process, and no knobs."""
    folder = tmp_path_factory.getbasetemp() / "cli-cache"
    monkeypatch.setenv("ARC_CACHE", str(folder))
    for knob in ("ARC_OPT_LIMIT", "ARC_DEBUG", "ARC_DUMP", "ARC_VERIFY"):
        monkeypatch.delenv(knob, raising=False)
    # the sources may be edited while the tests run
    monkeypatch.setattr(compile, "_own_digest", lambda: "tests")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*args: object) -> Ran:
        code = cli.run([str(a) for a in args])
        out, err = capsys.readouterr()
        if "--debug" not in args:
            assert "Traceback" not in out + err
        assert "\x1b" not in out + err
        return Ran(code=code, out=out, err=err)

    return call


@pytest.fixture(scope="session")
def files(goldens: Path) -> tuple[Path, Path]:
    """The golden checkpoint and its decoder; without what builds and runs them, a skip."""
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    folder = goldens / "llamagen-c2i"
    return folder / "c2i_tiny.pt", folder / "vq_ds16_c2i_tiny.pt"


@pytest.fixture(scope="session")
def built(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The golden engine, built once through the command line; `.folder` holds it."""
    base = tmp_path_factory.mktemp("built")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ARC_CACHE", str(tmp_path_factory.getbasetemp() / "cli-cache"))
        patch.setattr(compile, "_own_digest", lambda: "tests")
        patch.setattr(sys, "stdout", out)
        code = cli.run(["build", str(files[0]), "--decoder", str(files[1]), *SIZES, "--json",
                        "-o", str(base / "engine")])
    return Ran(code=code, out=out.getvalue(), err="", folder=base / "engine")


@pytest.fixture
def engine(built: Ran, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    assert built.code == 0
    return Path(shutil.copytree(built.folder, tmp_path / "engine"))


@pytest.fixture
def arc(tmp_path: Path) -> Path:
    """A small program as text."""
    path = tmp_path / "tiny.arc"
    path.write_text(str(tiny.llama()))
    return path
