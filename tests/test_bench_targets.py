"""bench.targets: one program on several targets draws the same greedy tokens."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import engines
import numpy as np
import pytest
import tiny

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


def test_the_dtype_asked_for_or_the_widest():
    assert targets.width("torch-cuda", "bf16") == "bf16"
    assert targets.width("torch-cuda", "") == "f32"
    assert targets.width("ort-cpu", "bf16") == "f32"


def test_the_script_for_gpus_names_what_there_is():
    """Every kernel, every suite and every target of .ci/gpu is one of ours."""
    text = GPU.read_text()
    assert os.access(GPU, os.X_OK)
    loops = re.findall(r"for op in (.*); do", text)
    assert sorted(" ".join(loops).split()) == sorted(KERNELS.all())
    for words in re.findall(r"^targets \d+ (.*)$", text, re.M):
        suite, *names = re.sub(r"--\w+( \d+| bf16)?", "", words).split()
        assert suite in SUITES
        assert set(names) <= TARGETS.all().keys()


def test_the_script_for_gpus_goes_on_and_ends_in_time(tmp_path):
    """Where every command hangs or fails: each part is ended, the last ones are not begun, and the
    end says so."""
    hang = tmp_path / "python"
    hang.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\n'
                    'case "$*" in *flash*) sleep 60;; esac\nexit 3\n')
    hang.chmod(0o755)
    nvidia = tmp_path / "nvidia-smi"
    nvidia.write_text("#!/bin/sh\necho a GPU\n")
    nvidia.chmod(0o755)
    script = tmp_path / "repo" / ".ci" / "gpu"
    script.parent.mkdir(parents=True)
    script.write_text(GPU.read_text().replace("LEAST=15", "LEAST=2"))
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60, env={
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(hang),
        "OUT": str(tmp_path / "out"), "BUDGET": "3"})
    assert done.returncode == 1
    assert "kernel-flash_decode, code 124" in done.stdout
    assert "no time left for: sweeps" in done.stdout


def test_bytes_of_a_step(tmp_path):
    """Of a tiny decoder's step in f32: all of its layers and the head, no table of tokens."""
    p = replace(tiny.llama(), finish=())
    folder = engines.write(tmp_path / "e", p, tiny.weights(p), 16, "torch-cpu", "")
    (folder / "program.arc").write_text(str(p))
    step = next(g for g in p.graphs if g.name == "step")
    assert targets.read(folder) == sum(w.type.nbytes() for w in step.weights)


def test_the_authors_loop_in_bf16():
    """On the CPU here, for the loop's sake; without a GPU the command says so."""
    torch = pytest.importorskip("torch")
    suite = SUITES["var-tiny"]
    spent = targets.eager_times(suite, [1], 3, 2, "cpu")
    assert len(spent) == 2
    assert torch.get_default_dtype() == torch.float32
    if not torch.cuda.is_available():
        with pytest.raises(ArcError, match="wants a family that has one, and a GPU"):
            targets.eager_times(suite, [1], 3, 1)
