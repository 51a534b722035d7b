"""What a build says of its drafts is what its engine does."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcompile import quality, rounds
from arcompile.runtime.engine import Engine, load


def built(folder: Path, passes: str, report: bool = True) -> Engine:
    pytest.importorskip("torch")
    from arcompile.compile import write
    from arcompile.family import FAMILIES
    from arcompile.pipeline import parse_pipeline
    from arcompile.target import TARGETS

    family = FAMILIES["llamagen"]
    model = family.model(family.random("tiny"), {})
    folder.mkdir()
    pipeline = parse_pipeline(f"{TARGETS['ort-cpu'].passes}{passes}")
    write(folder, "llamagen", model, "ort-cpu", "f32", pipeline,
          wanted=quality.Wanted(report=report))
    return load(folder)


def test_rounds_are_counted_at_the_engines_settings(tmp_path: Path) -> None:
    e = built(tmp_path / "engine", ", scd{window=4}")
    found = e.manifest["drafts"]
    out = e.generate(quality.condition(e), seed=[0, 1], **quality.settings(e))
    assert out.rounds is not None
    assert found["forwards"] == (out.rounds > 0).sum(0).mean() <= found["positions"] == 16
    assert found["committed"] == round(16 / found["forwards"], 3)
    drawn = int((out.rounds > 0).sum())  # each round draws its last position anew
    assert found["held"] == pytest.approx(1 - drawn / 32, abs=1e-4)
    assert "drafts that held" in (e.folder / "README.md").read_text()
    titles, row = rounds.rows(found)
    assert dict(zip(titles, row, strict=True))["positions"] == "16"


def test_what_does_not_draft_says_nothing(tmp_path: Path) -> None:
    e = built(tmp_path / "plain", "")
    assert "drafts" not in e.manifest
    assert rounds.rows(rounds.measure(e)) == []
    assert "drafts" not in built(tmp_path / "quiet", ", scd{window=4}", report=False).manifest
