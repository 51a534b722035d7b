"""arcompile list, doctor, bench; help, errors, exit codes, and what importing costs."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shell import refused

from arcompile import cli
from arcompile.cli.terminal import Bars

ROOT = Path(__file__).resolve().parents[2]




def test_list(run: Any) -> None:
    pytest.importorskip("torch")
    passes = {p["name"]: p for p in run("list", "passes", "--json").json}
    assert passes["qkv"]["options"] == {"gate": False}
    assert passes["swiglu"]["keeps"] == "values"
    assert passes["swiglu"]["about"] == "Fuse the gated activation of a transformer's MLP."
    models = {m["name"]: m for m in run("list", "models", "--json").json}
    assert "n_head" in models["llamagen"]["options"]
    assert "ort-cpu  ONNX Runtime on the CPU." in run("list", "targets").out
    text = run("list", "passes").out
    assert "qkv  Query, key and value" in text
    assert "options  gate=False" in text
    assert run("list", "kernels").code == 0
    refused(run("list", "modles"), "nothing to list named 'modles'", "did you mean 'models'?")


def test_list_models_needs_torch(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    from arcompile import family

    def absent() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(family.FAMILIES, "all", absent)
    refused(run("list", "models"), "needs torch", "pip install 'arcompile[build]'", code=2)


def test_doctor(run: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    told = run("doctor", "--json").json
    assert told["targets"]["reference"]["reason"] == ""
    assert told["packages"]["numpy"]
    assert told["cpu"]["cores"] >= 1
    assert told["cache"]["folder"] == str(cache)
    from arcompile import doctor
    from arcompile.targets.ort import OrtCpu

    assert {*told["peers"]} == {"openvino", "nncf", "onnxruntime-genai", "transformers"}
    have = {"openvino": "2025.9"}
    monkeypatch.setattr(doctor, "packages",
                        lambda names=doctor.PACKAGES: {n: have.get(n, "") for n in names})
    monkeypatch.setattr(OrtCpu, "available", lambda self: "onnxruntime is not installed")
    text = run("doctor").out
    assert "no: onnxruntime is not installed" in text
    assert "pip install onnxruntime onnx\n" in text
    assert "building (torch, onnx, safetensors, networkx): pip install 'arcompile[build]'" in text
    assert re.search("^peers +openvino 2025.9$", text, re.MULTILINE)
    assert ("peers of the bench (nncf, onnxruntime-genai, transformers): pip install "
            "'arcompile[peers]'") in text


def test_bench_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    from arcompile import bench

    monkeypatch.setattr(bench, "run", lambda what, **kw: print(what, kw) or 2, raising=False)
    ran = run("bench", "decode", "--quick", "-o", "x.jsonl")
    assert (ran.code, ran.out.split()[0]) == (2, "decode")
    assert "'quick': True, 'as_json': False, 'out': PosixPath('x.jsonl')" in ran.out
    monkeypatch.delattr(bench, "run")
    refused(run("bench"), "no benchmarks")


# --- the frame -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_has_an_example(command: str, run: Any) -> None:
    ran = run(command, "--help")
    assert ran.code == 0
    assert f"Example: arcompile {command}" in " ".join(ran.out.split())


def test_start(run: Any) -> None:
    assert run("--version").out == "arcompile 0.1.0\n"
    assert "Commands:" in run().out
    for args, word in ((["bild"], "bild"), (["build"], "missing argument"), (["--x"], "--x"),
                       (["show", "a", "b"], "b")):
        refused(run(*args), word, "--help")


def test_json_errors_go_to_stdout(run: Any, tmp_path: Path) -> None:
    ran = run("generate", tmp_path, "--json")
    assert (ran.code, ran.err) == (1, "")
    assert ran.json["error"].startswith("no engine manifest")
    assert ran.json["hint"]
    assert ran.json["code"] == 1
    assert "command" in run("bild", "--json").json["error"]


def _raises(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kw: Any) -> Any:
        raise error

    return fail


def test_debug_raises(tmp_path: Path) -> None:
    for args in (["--debug", "generate", str(tmp_path)], ["generate", str(tmp_path), "--debug"]):
        with pytest.raises(Exception, match="no engine manifest"):
            cli.run(args)


@pytest.mark.parametrize(("error", "code", "words"), [
    (KeyboardInterrupt(), 130, ["interrupted"]),
    (MemoryError(), 2, ["error: out of memory", "hint: "]),
    (PermissionError(13, "Permission denied", "/x"), 1, ["error: /x: Permission denied"]),
    (ZeroDivisionError("two\nlines"), 1, ["error: internal error: ZeroDivisionError: two\n",
                                          "hint: run again with --debug"]),
])
def test_exceptions(error: BaseException, code: int, words: list[str],
                    monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setattr("arcompile.doctor.examine", _raises(error))
    ran = run("doctor")
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.err.splitlines()) <= 2
    assert all(w in ran.err for w in words)


def test_importing_the_command_line_is_light() -> None:
    heavy = ["numpy", "torch", "onnx", "onnxruntime", "rich", "networkx", "PIL"]
    code = f"import sys, arcompile.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_a_closed_pipe_is_no_error(arc: Path) -> None:
    done = subprocess.run(f"'{sys.executable}' -m arcompile show '{arc}' --graph step | head -n 1",
                          shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("graph step(")
    assert done.stderr == ""


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Bars() as bars:
        for share in (0.0, 0.5, 1.0):
            bars("weights", share)
    assert "weights" in screen.getvalue()
