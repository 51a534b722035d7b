"""What is said of memory before a run, and what the run takes: of a demo, whole and with HACK."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import arcompile
from arcompile.cost import program_cost
from arcompile.plan import plan
from arcompile.program_text import parse_program
from arcompile.target import TARGETS

pytestmark = pytest.mark.ort
RUN = """
import json, sys
import arcompile
engine = arcompile.load(sys.argv[1], threads=1)
for seed in (0, 1):
    engine.generate(3, seed=seed)
said = dict(x.split(":") for x in open("/proc/self/status") if ":" in x)
need = engine.plan()
print(json.dumps({"peak": 1024 * int(said["VmHWM"].split()[0]), "total": need.total,
                  "state": need.state}))
"""


@pytest.mark.parametrize("passes", ["", "kv-hack{ratio=0.7}"])
def test_plans_are_true(passes, tmp_path):
    """The plan, the cost model and the caches that a program has agree, and with what a process
    of its own really takes: the Python of another machine may differ by a few MB of a hundred."""
    pytest.importorskip("onnx")
    pytest.importorskip("torch")
    folder = tmp_path / "engine"
    arcompile.build("demo-var", passes=passes, report=False, out=folder)
    p = parse_program((folder / "program.arc").read_text())
    caches = sum(t.nbytes(p.sizes(1, 2)) for _, t in p.state)
    assert plan(p, TARGETS["ort-cpu"].memory).state == pytest.approx(caches, rel=0.05)
    assert program_cost(p).state == pytest.approx(caches, rel=0.05)
    done = subprocess.run([sys.executable, "-c", RUN, str(folder)], capture_output=True, text=True,
                          check=True)
    told = json.loads(done.stdout)
    assert told["state"] == pytest.approx(caches, rel=0.05)
    assert told["total"] == pytest.approx(told["peak"], rel=0.12)
