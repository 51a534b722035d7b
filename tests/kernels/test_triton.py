"""Every version of every kernel against its numpy meaning, and compiled ahead of time.

Without a GPU they run in Triton's interpreter, in f32 and f16 (bf16 is silently wrong there);
with one, the same tests run on it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from arcompile.errors import ArcError
from arcompile.kernel import KERNELS, Case, Kernel, case, kernel
from arcompile.kernels import check, lang, timing

GOLDEN = Path(__file__).parents[1] / "golden" / "kernels" / "aot.json"
VERSIONS = [(k, v) for k, found in KERNELS.all().items() for v in found.versions]
on_demand = pytest.mark.skipif(not os.getenv("ARC_SLOW"), reason="slow; ARC_SLOW=1 runs it")
needs_triton = pytest.mark.skipif(lang.triton is None, reason="triton is not installed")


def checked(name: str, version: str, wide: bool) -> list[check.Found]:
    k = KERNELS[name]
    v = k.versions[version]
    if reason := check.absent(v):
        pytest.skip(reason)
    ran = [f for c, seed in check.cases(k, wide)
           if not (f := check.check(k, v, c, seed)).reason]
    assert not [f"{f.case}: {f.wrong}" for f in ran if f.wrong]
    return ran


@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_meaning(name, version):
    assert checked(name, version, wide=False)


@pytest.mark.slow
@on_demand
@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_meaning_of_many(name, version):
    assert checked(name, version, wide=True)


@pytest.mark.gpu
@pytest.mark.skipif(lang.interpreting() or bool(lang.missing()), reason="no NVIDIA GPU")
@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_on_a_gpu(name, version):
    """Declared, random and real shapes, in every dtype it takes."""
    checked(name, version, wide=True)
    k, v = KERNELS[name], KERNELS[name].versions[version]
    for c in (*k.shapes, *k.large):
        for dtype in v.dtypes:
            found = check.check(k, v, Case(c.sizes, dtype))
            assert not found.wrong, f"{found.case}: {found.wrong}"


@pytest.mark.gpu
@pytest.mark.skipif(lang.interpreting() or bool(lang.missing()), reason="no NVIDIA GPU")
def test_times_are_kept(tmp_path):
    rows = timing.time_all(KERNELS["add_norm"], tmp_path / "gpu.jsonl")
    held = [json.loads(x) for x in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert held == rows
    assert held[0].keys() >= {"us", "graph_us", "tflops", "gbs", "share", "device", "driver",
                              "versions"}


@pytest.mark.gpu
@pytest.mark.skipif(lang.interpreting() or bool(lang.missing()), reason="no NVIDIA GPU")
@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="no compute-sanitizer")
@pytest.mark.parametrize("name", sorted(KERNELS.all()))
def test_sanitized(name):
    """No kernel reads or writes where it should not."""
    command = ["compute-sanitizer", "--error-exitcode", "9", sys.executable, "-m"]
    done = subprocess.run([*command, f"arcompile.kernels.{name}", "--untimed"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_shares_of_the_ceilings():
    """A case that reads 8 MB in a millisecond where 16 GB/s can be read: half of what bounds it."""
    k = replace(KERNELS["add_norm"], cost=lambda c: (1e3, 8e6))
    row = timing.row(k, "v1", k.shapes[0], 1e-3, {"bytes": 16e9, "flops": 1e12})
    assert (row["us"], row["gbs"], row["share"]) == pytest.approx((1000, 8, 0.5))
    k = replace(k, cost=lambda c: (8e8, 1.0))
    assert timing.row(k, "v1", k.shapes[0], 1e-3, {"bytes": 16e9, "flops": 1e12})[
        "share"] == pytest.approx(0.8)


@pytest.mark.parametrize("name", sorted(n for n, k in KERNELS.all().items() if k.peer))
def test_peer(name):
    """What is timed against computes the same."""
    k = KERNELS[name]
    for c in k.shapes:
        arguments = k.inputs(c, np.random.default_rng(1))
        got = k.peer(**check.tensors(k, arguments, "f32", "cpu"))
        assert check.compare(got, k.reference(**arguments), 1e-5)[1] == ""


@pytest.mark.parametrize("name", sorted(KERNELS.all()))
def test_rivals(name):
    """What else is timed against runs on the same arguments."""
    import torch

    k = KERNELS[name]
    for c in k.shapes:
        given = check.tensors(k, k.inputs(c, np.random.default_rng(1)), "f32", "cpu")
        for called, run in k.rivals(c).items():
            if called == "flash":  # torch has it on a GPU alone
                continue
            assert torch.isfinite(run(**given)).all(), called
    assert bool(k.rivals(k.large[0])) == (name in {"range_attention", "flash_decode",
                                                   "logits_chain"})


def test_calls_that_share_nothing_large():
    """Weights of their own, small operands and options once; more calls of what moves little."""
    import torch

    given = {"w": torch.zeros(1 << 15), "x": torch.zeros(8), "heads": 2}
    many = timing.apart(given, 1e9)
    assert len(many) == timing.CALLS[0]
    assert len({m["w"].data_ptr() for m in many} | {given["w"].data_ptr()}) == len(many) + 1
    assert all(m["x"] is given["x"] and m["heads"] == 2 for m in many)
    assert len(timing.apart(given, 1.0)) == timing.CALLS[1]


def test_times_go_on_after_a_rival_that_fails(tmp_path, monkeypatch, capsys):
    """Rows of what ran; how the best of ours stands to each other."""
    def refuses(**_):
        raise RuntimeError("no kernel takes it")

    k = replace(KERNELS["add_norm"], rivals=lambda c: {"other": refuses})
    monkeypatch.setattr(timing, "facts", lambda: {"device": "GPU A"})
    monkeypatch.setattr(timing, "ceilings", lambda: {"bytes": 1e12, "flops": 1e14})
    monkeypatch.setattr(timing, "tensors", lambda *a: {})
    monkeypatch.setattr(timing, "absent", lambda v: "" if v.name == "v1" else "not here")

    def measured(run):
        if run.func is refuses:
            run()
        return 2e-6 if run.func is k.peer else 1e-6

    monkeypatch.setattr(timing, "measure", measured)
    monkeypatch.setattr(timing, "replayed", lambda calls: measured(calls[0]) / len(calls))
    rows = timing.time_all(k, tmp_path / "gpu.jsonl")
    assert {r["version"] for r in rows} == {"v1", "torch"}
    said = capsys.readouterr().out
    assert "v1 takes 0.50 of torch's time" in said
    assert "no kernel takes it" in said


@pytest.mark.parametrize("name", sorted(KERNELS.all()))
def test_declared(name):
    """One line about it, a cost, real shapes that some version takes, and a reason where none."""
    k = KERNELS[name]
    assert k.about
    assert "\n" not in k.about
    for c in (*k.shapes, *k.large):
        flops, moved = k.cost(c)
        assert flops >= 0
        assert moved > 0
        assert any(not v.refusal(c) for v in k.versions.values()), str(c)
    for v in k.versions.values():
        assert v.idea, f"{name} {v.name} says nothing of its idea"


def test_what_is_wrong_is_seen():
    """A kernel that leaves a number unwritten, and one that is off by a little."""
    k = KERNELS["add_norm"]
    c = k.shapes[0]
    assert "not finite" in check.compare(_nan(), np.ones(3, np.float32), 1e-5)[1]
    right = k.reference(**k.inputs(c, np.random.default_rng(0)))
    import torch

    off = tuple(torch.from_numpy(x * np.float32(1.001)) for x in right)
    assert "off by" in check.compare(off, right, 1e-5)[1]


def _nan():
    import torch

    return torch.tensor([1.0, float("nan"), 1.0])


def test_refusals():
    k = KERNELS["add_norm"]
    with pytest.raises(ArcError, match="takes no") as e:
        k.best(case("f64", n=1, d=8))
    assert "it takes f32, f16, bf16, not f64" in (e.value.hint or "")
    with pytest.raises(ArcError, match="takes no"):
        k.best(case(n=1, d=1 << 20))

    def cuda(v):
        return "no nvcc" if "nvcc" in v.needs else ""

    assert k.best(case(n=1, d=64)).name == "v3"
    assert k.best(case(n=1, d=64), cuda).name == "v2"
    assert k.best(case(n=1, d=4096), cuda).name == "v1"


def test_registered_once():
    with pytest.raises(ArcError, match="no kernel named 'add_nrm'"):
        kernel("add_nrm")(test_refusals)
    assert isinstance(KERNELS["add_norm"], Kernel)


@needs_triton
@pytest.mark.skipif(not lang.interpreting(), reason="runs on a GPU here")
def test_the_interpreter_is_not_given_bf16():
    k = KERNELS["add_norm"]
    found = check.check(k, k.versions["v1"], case("bf16", n=2, d=8))
    assert "bf16" in found.reason
    made = check.tensors(k, k.inputs(case(n=2, d=8), np.random.default_rng(0)), "bf16", "cpu")
    with pytest.raises(ArcError, match="gets bf16 wrong"):
        k.versions["v1"].run(**made)


# --- ahead of time -------------------------------------------------------------------------------


def compiled(*more: str) -> dict:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "arcompile.kernels.aot", *more], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(done.stdout)


def same(found: dict) -> None:
    """As recorded, where it is the same Triton; within bounds in any case (aot says)."""
    held = json.loads(GOLDEN.read_text())
    for name, what in found.items():
        assert what["spilled"] <= 64, name
        if held["triton"] == lang.triton.__version__:
            assert held["launches"].get(name) == what, f"{name}: see --accept"


@needs_triton
def test_compiles(request):
    """The newest version of each, for sm_90; all for both under `slow`."""
    if request.config.getoption("--accept"):
        GOLDEN.parent.mkdir(exist_ok=True)
        lines = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in compiled().items()]
        head = f'{{"triton": "{lang.triton.__version__}", "launches": {{\n'
        GOLDEN.write_text(head + ",\n".join(lines) + "\n}}\n")
    same(compiled("--newest", "--arch", "90"))


@needs_triton
@pytest.mark.slow
@on_demand
def test_all_compile():
    found = compiled()
    same(found)
    assert found.keys() == json.loads(GOLDEN.read_text())["launches"].keys()


@needs_triton
@pytest.mark.slow
@on_demand
def test_what_does_not_fit_is_an_error():
    code = ("from arcompile.kernels import aot; aot.SHARED[90] = 16\n"
            "raise SystemExit(aot.main(['add_norm', '--newest', '--arch', '90']))")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not fit sm_90" in done.stdout


def test_without_triton():
    """Kernels import, are listed, and say what they lack."""
    code = ("import sys; sys.modules['triton'] = None\n"
            "from arcompile.kernel import KERNELS\nfrom arcompile.kernels import lang\n"
            "print(len(KERNELS.all()), lang.missing())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1)[1].strip() == "triton is not installed", done.stderr
