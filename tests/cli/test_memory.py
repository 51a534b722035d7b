"""What the command line says of memory and quality: plans, limits, reports, calibration."""

from __future__ import annotations

import json

import pytest
from shell import SIZES

pytestmark = pytest.mark.ort


def given(files):
    return (str(files[0]), "--decoder", str(files[1]), *SIZES)


def most(need):
    """At once: caches and pictures are not there together."""
    always = sum(need[k] for k in ("runtime", "weights", "activations"))
    return always + max(need["state"], need["decoder"] + need["pictures"])


def test_plan_tells_without_building(run, files, tmp_path):
    done = run("build", *given(files), "--plan", "--batch", "2", "--json", "-o", tmp_path / "e")
    assert done.code == 0
    found = json.loads(done.out)
    assert {"ort-cpu", "reference"} <= set(found)
    for need in found.values():
        assert need["total"] == most(need)
        assert need["batch"] == 2
    assert not (tmp_path / "e").exists()
    table = run("build", *given(files), "--plan").out.splitlines()
    assert table[0].split()[:3] == ["target", "runtime", "weights"]


def test_the_plan_is_in_the_engine(run, built):
    told = json.loads(built.out)
    assert told["plan"]["total"] == most(told["plan"])
    assert told["quality"] is None
    assert told["memory"] is None


def test_a_limit_is_kept_and_explained(run, files, tmp_path):
    plain = json.loads(run("build", *given(files), "--plan", "--json").out)["ort-cpu"]["total"]
    small = json.loads(run("build", *given(files), "--plan", "--passes", "int8{least=0}",
                           "--json").out)["ort-cpu"]["total"]
    assert small < plain
    done = run("build", *given(files), "--memory", f"{plain - 1000}", "--no-report", "--json",
               "-o", tmp_path / "e")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert told["plan"]["total"] <= plain - 1000
    assert told["memory"]["tried"][0].startswith("as it is: ")
    assert told["passes"][-1].startswith(("bf16", "int", "kv"))
    shown = run("build", *given(files), "--memory", f"{plain - 1000}", "--no-report",
                "-o", tmp_path / "e").out
    assert "tried" in shown


@pytest.mark.parametrize(("memory", "said"), [
    ("1MB", "cannot be drawn in 1 MB: as it is: "), ("lots", "not an amount of memory: 'lots'")])
def test_limits_that_cannot_be(run, files, tmp_path, memory, said):
    done = run("build", *given(files), "--memory", memory, "-o", tmp_path / "e")
    assert done.code == 1
    assert said in done.err
    assert not (tmp_path / "e").exists()


def test_calibrate_then_build_then_show(run, files, tmp_path):
    ranges = tmp_path / "r.safetensors"
    done = run("calibrate", *given(files), "--pictures", "1", "-o", ranges, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["ranges"] > 10
    passes = f"smooth{{ranges='{ranges}'}}, int8{{least=0}}, int8-conv{{dynamic=True}}"
    done = run("build", *given(files), "--passes", passes, "-o", tmp_path / "e")
    assert done.code == 0, done.err
    assert "lossy passes" in done.out
    found = json.loads(run("show", tmp_path / "e", "--json").out)["quality"]["passes"]
    assert len(found) == 3
    alone = found["int8-conv{dynamic=True}"]
    assert alone["kl"] == 0  # the decoder makes no tokens
    assert 25 <= alone["decoder_psnr"] < 99  # weights of noise
    assert found["int8{least=0}"]["decoder_psnr"] == 99
    assert "decoder, dB" in run("show", tmp_path / "e").out
    done = run("build", *given(files), "--passes", f"int8-conv{{ranges='{ranges}'}}", "-o",
               tmp_path / "f")
    assert done.code == 1
    assert "hint: int8-conv{dynamic=True}" in done.err


def test_calibrate_writes_where_it_can(run, tmp_path):
    for out in ("r.bin", tmp_path / "none" / "r.safetensors"):
        done = run("calibrate", "demo", "-o", out)
        assert done.code == 1
        assert "cannot write ranges to" in done.err
