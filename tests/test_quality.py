"""The quality report: its figures against their definitions, and on engines of the demo's kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from arcompile import quality
from arcompile.quality import Drawn


def test_divergence_is_torch_s():
    a, b = (np.random.default_rng(i).normal(size=(2, 3, 7)).astype(np.float32) * 5 for i in (0, 1))
    p, q = (torch.from_numpy(x).double().log_softmax(-1) for x in (a, b))
    want = (p.exp() * (p - q)).sum(-1).mean()
    assert abs(quality.divergence(a, b) - float(want)) < 1e-9
    assert quality.divergence(a, a) == 0
    assert quality.divergence(a, a + 100) < 1e-6  # a constant changes no law


def test_psnr():
    x = np.zeros((1, 3, 4, 4), np.float32)
    assert quality.psnr(x, x) == 99
    assert abs(quality.psnr(x, x + 0.02) - 40) < 1e-4  # 2 / 0.02 = 100
    assert quality.psnr(x + 1, x + 5) == 99  # beyond 1 is white


def test_compare_tells_what_it_can():
    t = np.zeros((2, 4), np.int64)
    logits = np.eye(3, dtype=np.float32)[None, [0, 1, 2, 0]]
    other = logits[:, [0, 1, 2, 1]]
    found = quality.compare(Drawn(t, None, None, logits), Drawn(t, None, None, other))
    assert found["agreement"] == 0.75
    assert found.keys() == {"kl", "agreement"}
    pixels = np.zeros((1, 3, 2, 2), np.float32)
    both = quality.compare(Drawn(t, pixels, pixels), Drawn(t, pixels, pixels + 0.2))
    assert both.keys() == {"psnr", "decoder_psnr"}
    assert both["psnr"] == 99
    assert abs(both["decoder_psnr"] - 20) < 1e-3


def test_rows_for_people():
    found = {"base": {"score": 0.95, "interval": [0.9, 0.97], "n": 36, "weights": 4_000_000},
             "passes": {"int8": {"kl": 0.00123456, "agreement": 0.97, "weights": 1_000_000}}}
    assert quality.rows(found) == [
        ("lossy passes", "KL, nats", "agree", "judge", "95 %", "pictures", "weights"),
        ("none", "", "", "0.95", "0.9-0.97", "36", "4 MB"),
        ("int8", "0.001235", "0.97", "", "", "", "1 MB"),
    ]
    assert quality.rows({"not measured": "no condition"}) == []


def test_notes_for_people():
    left = {**{f"@l{i}": "it is to be skipped" for i in range(8)}, "@h": "it is the head"}
    assert quality.notes({"passes": {"int8": {"left": left}, "int4": {"kl": 0.1}}}) == [
        "int8 leaves l0, l1, l2, l3, l4, l5 and 2 more as it is: it is to be skipped",
        "int8 leaves h as it is: it is the head"]


def test_paired_counts_pictures_that_only_one_has_right():
    was, now = np.zeros(1000, bool), np.zeros(1000, bool)
    was[:900], now[:870], now[900:920] = True, True, True
    found = quality.paired(was, now)
    assert (found["won"], found["lost"]) == (20, 30)
    middle, low, high = found["points"]
    assert middle == -1.0
    assert (low, high) == pytest.approx((-2.38, 0.38), abs=0.01)  # 196 * sqrt(50 - 0.1) / 1000
    assert quality.paired(was, was)["points"] == [0, 0, 0]


@pytest.mark.ort
def test_a_build_reports_each_lossy_pass_and_all(tmp_path):
    from plain import held

    from arcompile.compile import write
    from arcompile.family import FAMILIES
    from arcompile.pipeline import parse_pipeline
    from arcompile.runtime.engine import load
    from arcompile.target import TARGETS

    assert held
    model = FAMILIES["llamagen"].model(FAMILIES["llamagen"].random("tiny"), {})
    folder = tmp_path / "engine"
    folder.mkdir()
    passes = parse_pipeline(TARGETS["ort-cpu"].passes + ", int8{head=False}, int4{block=32}")

    def judge(pictures, classes):
        right = classes < 3
        return {"both": float(right.mean()), "ci": (0.0, 1.0), "n": len(pictures), "right": right}

    write(folder, "llamagen", model, "ort-cpu", "f32", passes,
          wanted=quality.Wanted(report=True, pictures=10, judge=judge))
    e = load(folder)
    found = e.manifest["quality"]
    both = "int8{head=False} + int4{block=32}"
    assert list(found["passes"]) == ["int8{head=False}", "int4{block=32}", both]
    kept = found["passes"]["int8{head=False}"]["left"]
    assert any("it is the head" in why for why in kept.values())
    assert "left" not in found["passes"][both]
    for line in found["passes"].values():
        assert 0 < line["kl"] < 1
        assert 0.5 < line["agreement"] <= 1
        assert line["decoder_psnr"] == 99  # the decoder was left alone
        assert line["weights"] < found["base"]["weights"]
        assert line["state"] == found["base"]["state"] > 0
        assert line["seconds"] > 0
        assert (line["score"], line["n"], line["difference"]) == (0.6, 10, [0, 0, 0])
    assert found["base"]["score"] == 0.6
    need = e.plan(3)
    assert need.total > need.weights > 0
    assert need.state == sum(t.nbytes(e.program.sizes(3, 6)) for _, t in e.program.state)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["engine"]  # the others are gone


@pytest.mark.ort
def test_generate_refuses_before_it_allocates(tmp_path, monkeypatch):
    from plain import engine, refuses

    from arcompile.family import FAMILIES
    from arcompile.runtime import engine as module

    e = engine("llamagen", FAMILIES["llamagen"].random("tiny"), tmp_path)
    monkeypatch.setattr(module, "available", lambda: 1000)
    monkeypatch.setattr(module.Engine, "models", property(lambda self: pytest.fail("allocated")))
    refuses("an image would need", lambda: e.generate([1]))
    refuses("9 images would need", lambda: e.generate([1, 2, 3], n=3))
