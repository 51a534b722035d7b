"""The profiler: what it traces back, and that its parts are the whole."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import engines
import numpy as np
import pytest

from arcompile.bench import attribute, machine, profile_report, roofline, trace
from arcompile.bench.profile import Asked, Profile, measure
from arcompile.bench.profile_report import Ceilings
from arcompile.compile import write
from arcompile.cost import graph_cost
from arcompile.errors import ArcError
from arcompile.family import FAMILIES
from arcompile.pipeline import parse_pipeline
from arcompile.program_text import parse_program
from arcompile.runtime.engine import load
from arcompile.target import RUN, TARGETS, Event

TOP = Ceilings(1e11, 1e10)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    for package in ("torch", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("profiled") / "engine"
    folder.mkdir()
    family = FAMILIES["llamagen"]
    model = family.model(family.random("tiny"), {})
    write(folder, "llamagen", model, "ort-cpu", "f32", parse_pipeline(TARGETS["ort-cpu"].passes))
    return measure(load(folder), Asked([1, 2], guidance=2.0))


def test_every_run_is_noted(found):
    assert found.lost == []
    runs = Counter(s.graph for s in found.spans)
    assert runs["step"] == len(found.engine.program.steps)
    assert all(s.runs == runs[s.graph] for s in found.spots)


def test_the_parts_are_the_whole(found):
    """Three clocks: the kernels', the runtime's own, and the loop's."""
    inside = sum(e.seconds for e in found.events if e.kind == RUN)
    assert 0 < found.kernels <= inside
    assert inside <= sum(s.seconds for s in found.spans) * 1.01 <= found.total * 1.01
    row = profile_report.row(found, TOP)
    assert sum(row["parts_s"].values()) == pytest.approx(found.total, rel=0.05)
    for key in attribute.KEYS:
        assert sum(e["s"] for e in row[key]) == pytest.approx(found.kernels, rel=0.01)
    assert sum(e["s"] for e in row["stages"]) <= found.total * 1.01
    assert json.loads(json.dumps(row)) == row


def test_hot_ops_lead_back_to_code_and_passes(found):
    by = {(s.graph, s.op, s.module): s for s in found.spots}
    norm = by["step", "residual_norm", "gpt.layers.1.attention_norm"]
    assert norm.passes == ("residual-norm",)
    file, _, line = norm.line.partition(":")
    root = Path(__file__).parents[1]
    text = (root / file).read_text().splitlines()[int(line) - 1]
    assert "norm" in text
    conv = next(s for s in found.spots if s.op == "conv2d")
    assert conv.graph == "decode"
    assert conv.line.startswith("models/")
    assert "/" not in conv.line.removeprefix("models/")  # nothing of this machine


def test_costs_are_those_of_the_cost_model(found):
    """Over all nodes of the decoder: its cost, once for each of two images."""
    p = parse_program((found.engine.folder / "program.arc").read_text())
    once = graph_cost(p.graph("decode"), {"b": 1})
    seen = [s.cost for s in found.spots if s.graph == "decode"]
    assert sum(c.flops for c in seen) == pytest.approx(2 * once.flops, rel=0.01)


def test_what_the_runtime_adds_is_named():
    e = Event("g", "ReorderOutput_token_7", "ReorderOutput", 0.0, 1.0)
    p = engines.mixed()
    spot, = attribute.attribute(p, [e], {"g": 1})
    assert (spot.op, spot.origin) == ("ReorderOutput", attribute.OWN)
    assert attribute.KEYS["pass"](spot) == attribute.OWN


def test_names_survive_fusion():
    """A runtime names what it fuses by an output of ours."""
    name = "vq.conv@models/taming.py:31 > norm-silu/conv2d:67#58.64_nchwc"
    spot, = attribute.attribute(engines.mixed(), [Event("decode", name, "Conv", 0.0, 2.0)], {})
    assert (spot.op, spot.value, spot.line) == ("conv2d", "67", "models/taming.py:31")
    assert spot.passes == ("norm-silu",)


def test_lost_notes_are_told(found):
    cut = Profile(found.engine, 1.0, 1.0, 0.0, found.spans, found.events[:-1]
                  if found.events[-1].kind == RUN else [], found.spots)
    assert cut.lost


def test_the_trace(found):
    told = trace.chrome(found)["traceEvents"]
    graphs = [e for e in told if e.get("tid") == trace.LOOP and e["ph"] == "X"]
    kernels = [e for e in told if e.get("tid") == trace.KERNELS and e["ph"] == "X"]
    assert Counter(e["name"] for e in graphs) == Counter(s.graph for s in found.spans)
    matmul = next(e for e in kernels if e["name"].startswith("matmul gpt.layers.0"))
    assert matmul["args"]["line"].startswith("models/")
    run = next(e for e in graphs if e["name"] == "decode")
    inside = [e for e in kernels if e["args"]["graph"] == "decode"
              and run["ts"] - 2e3 <= e["ts"] <= run["ts"] + run["dur"] + 2e3]
    assert len(inside) > 10  # both clocks agree


def test_the_roofline(found, tmp_path):
    pytest.importorskip("matplotlib")
    groups = attribute.group(found.spots, attribute.KEYS["op"])
    roofline.draw(groups, TOP.flops, TOP.read, "tiny", tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    full = attribute.Group("x", 2.0, next(g for g in groups if g.name == "matmul").cost)
    c = full.cost
    assert full.roof(c.flops / 1.0, 1e30) == pytest.approx(0.5)  # a second's work in two


def test_the_command(found, tmp_path, monkeypatch, capsys):
    from arcompile import cli

    monkeypatch.setattr(machine, "FLOATS", 1 << 20)
    folder = found.engine.folder
    assert cli.run(["profile", str(folder), "--steps", "2", "--against", str(folder), "--json",
                    "-o", str(tmp_path / "p")]) == 0
    one, two = json.loads(capsys.readouterr().out)["engines"]
    assert one["stages"][0]["runs"] <= 2
    assert "decode" not in {s["graph"] for s in one["stages"]}
    assert {p.name for p in (tmp_path / "p").iterdir()} >= {"profile.json", "trace.json"}
    lines = list(profile_report.compare(one, two))
    assert [abs(x - y) for _, x, y in lines] == sorted((abs(x - y) for _, x, y in lines),
                                                       reverse=True)
    profile_report.show(one, ("op", "line"), 3)
    profile_report.show_comparison(one, two, "op", 3)
    assert "% of roof" in capsys.readouterr().out
    assert cli.run(["profile", str(folder), "--by", "oop"]) == 1
    assert "named 'oop'" in capsys.readouterr().err


def test_torch_targets(tmp_path):
    """Every call is noted, on the CPU by the clock, and leads back to code and passes."""
    pytest.importorskip("torch")
    p = engines.mixed().on_graphs(lambda g: replace(g, nodes=tuple(
        replace(n, origin=f"net.{g.name}@models/net.py:{i} > qkv") for i, n in enumerate(g.nodes))))
    folder = engines.write(tmp_path / "e", p, engines.none(), target="torch-cpu",
                           info={"classes": 3})
    (folder / "program.arc").write_text(str(p))
    engines.signed(folder)
    given = {"cond": np.array([1]), "extra": np.zeros((1, 2), np.float32)}
    found = measure(load(folder), Asked(given))
    assert found.lost == []
    assert {s.op for s in found.spots} >= {"gather", "where", "mul"}
    assert all(s.value != attribute.OWN for s in found.spots)
    assert all(s.line.startswith("models/net.py:") for s in found.spots)
    assert {s.module for s in found.spots} >= {"net.move", "net.paint"}
    assert {s.passes for s in found.spots} == {("qkv",)}
    assert 0 < found.kernels <= sum(s.seconds for s in found.spans)


def test_targets_without_a_profiler_refuse(tmp_path):
    zeros = engines.none()
    engine = load(engines.write(tmp_path / "e", engines.mixed(), zeros, target="reference"))
    given = {"cond": np.array([1]), "extra": np.zeros((1, 2), np.float32)}
    with pytest.raises(ArcError, match="reference has no profiler"):
        measure(engine, Asked(given))


def test_the_ceilings_of_a_gpu_are_its_own(monkeypatch):
    """What an engine for a GPU is held against is not the CPU's; without a GPU that is refused."""
    from arcompile.kernels import timing

    gpu = {name for name, t in TARGETS.all().items() if t.device == "cuda"}
    assert gpu == {"ort-cuda", "ort-cuda-graphs", "ort-tensorrt", "torch-cuda", "tensorrt"}
    monkeypatch.setattr(timing, "ceilings", lambda: {"bytes": 3e12, "flops": 8e14})
    assert Ceilings.measure("cuda") == Ceilings(8e14, 3e12)
    monkeypatch.undo()
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        with pytest.raises(ArcError, match="sees no NVIDIA GPU"):
            Ceilings.measure("cuda")
