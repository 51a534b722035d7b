"""auto: what it tries, how it predicts, what it chooses, and that the engine says so."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny import llama, weights

from arcompile import auto
from arcompile.auto import Bench, Tried, decide, methods, predict, rows
from arcompile.cost import Cost
from arcompile.errors import ArcError
from arcompile.passes.auto import Auto
from arcompile.passes.dead_code import DeadCode
from arcompile.passes.draft import Draft
from arcompile.passes.gsd import GSD
from arcompile.passes.scd import SCD
from arcompile.pipeline import contract, parse_pipeline, run
from arcompile.program_text import to_data
from arcompile.quality import LOSSY

FACTS = {"family": "tiny", "target": "reference", "dtype": "f32", "key": "", "passes": [],
         "vocabulary": 16, "info": {"classes": 3}, "defaults": {"guidance": 1.5}}


def bench(folder, **more):
    p = llama(2)
    return Bench(p, weights(p), FACTS, folder, **more)


def test_exact_methods_only_unless_asked():
    exact, every = [*methods(1.0)], [*methods(0.9)]
    assert exact
    assert not [p for p in exact if p.keeps in LOSSY]
    assert {p.name for p in every} > {p.name for p in exact}


def test_predictions():
    """By windows' rounds where there are windows, by bytes elsewhere, drafters apart; what rounds
    take beside is told by the narrowest window."""
    plain = Tried((), cost=Cost(weights=640), forwards=64.0)  # ten bytes a step
    narrow = Tried((SCD(),), forwards=32.0, window=4, gain=64 / (32 * 1.9))  # 0.4 beside
    scd = Tried((SCD(),), cost=Cost(weights=99), forwards=16.0, window=8)
    draft = Tried((Draft(),), forwards=16.0, window=4, drafting=320, gain=64 / (16 * 1.6 + 32))
    drafts = Tried((Draft(),), forwards=8.0, window=8, drafting=320)
    other = Tried((GSD(),), cost=Cost(weights=320), forwards=64.0)
    predict([plain, scd, narrow, draft, drafts, other, Tried((GSD(),), refused="no")], 2,
            lambda window, batch: {(8, 2): 2.0, (4, 2): 1.5}[window, batch])
    assert plain.predicted == 1
    assert narrow.predicted == pytest.approx(narrow.gain)
    assert scd.predicted == pytest.approx(64 / (16 * 2.4))
    assert drafts.predicted == pytest.approx(64 / (8 * 2.1 + 32))
    assert other.predicted == 2


def test_a_window_costs_what_a_step_of_as_many_images_does(monkeypatch):
    from arcompile import ceilings

    asked = []
    monkeypatch.setattr(ceilings, "step_seconds", lambda e, n: asked.append(n) or 1.0 + n)
    told = ceilings.Ceilings(None)
    assert told.steps(4, 1) == 5 / 2
    assert told.steps(4, 2) == 9 / 3
    assert told.steps(2, 2) == 5 / 3  # four images are known
    assert asked == [1, 4, 2, 8]


def test_what_a_drafter_moves():
    p = run(llama(2), [SCD(window=2)])
    few = auto.drafted_bytes(p, 1, 1.0)
    assert auto.drafted_bytes(llama(2), 1, 1.0) == 0
    q = run(llama(2), [Draft(window=2, by="shallow{layers=1}")])
    assert auto.drafted_bytes(q, 1, 1.0) > 4 * few > 0


def test_the_quickest_that_keeps_enough():
    a, b, c = (Tried((x,), x.keeps) for x in (SCD(), GSD(), SCD(window=4)))
    a.gain, b.gain, c.gain = 1.4, 2.0, 1.01
    none = Tried((), "values")
    score = {id(none): 0.9, id(b): 0.85}
    def best(share, again=lambda t: t.gain):
        return auto._best([none, a, b, c], share, lambda t: score[id(t)], again)

    assert best(0.9) is b
    assert best(0.95) is a
    assert best(0.9, lambda t: 1.0 if t is b else t.gain) is a  # luck does not last
    assert auto._best([none, c], 1.0, lambda t: 0.0, lambda t: t.gain) is none


def test_what_was_measured_is_told(tmp_path, monkeypatch):
    """Time is made up here: a forward takes a second, whatever it is of."""
    true = auto.timed
    monkeypatch.setattr(auto, "timed", lambda *a, **k: (true(*a, **k)[1],) * 2)
    passes, found = decide([DeadCode(), Auto(), DeadCode()], bench(tmp_path))
    assert passes[0] == passes[-1] == DeadCode()
    assert len(passes) == 3
    assert found["chosen"] == str(passes[1]) != "none"
    lines = {t["method"]: t for t in found["tried"]}
    assert lines[found["chosen"]]["forwards"] < lines["none"]["forwards"] == 4
    assert "a window of 16 positions in an image of 4" in lines["scd"]["refused"]
    assert json.loads(json.dumps(found)) == found
    marked = [r[0] for r in rows(found) if r[1] == "*"]
    assert marked == [found["chosen"]]


def test_nothing_where_nothing_gains(tmp_path, monkeypatch):
    true = auto.timed
    monkeypatch.setattr(auto, "timed", lambda *a, **k: (1.0, true(*a, **k)[1]))
    passes, found = decide([Auto()], bench(tmp_path))
    assert passes == []
    assert found["chosen"] == "none"


def test_a_share_needs_a_judge(tmp_path):
    with pytest.raises(ArcError, match="nothing judges these pictures"):
        decide(parse_pipeline("auto{quality=0.98}"), bench(tmp_path))


@pytest.mark.parametrize("text", ["auto{quality=2}", "auto{quality=best}", "auto{batch=0}"])
def test_refuses(text, tmp_path):
    with pytest.raises(ArcError, match="quality=exact or a share"):
        decide(parse_pipeline(text), bench(tmp_path))


def test_undecided_it_changes_nothing():
    p = llama(1)
    assert to_data(run(p, [Auto()])) == to_data(p)
    assert np.array_equal(Auto(quality="0.5").share(), 0.5)


def test_a_pipeline_keeps_what_its_weakest_pass_keeps():
    def keeps(text):
        return contract(parse_pipeline(text))

    assert keeps("fold, cse") == {"keeps": "values", "by": [],
                                  "means": "exact: the tokens of the model as it is"}
    assert keeps("fold, scd, jacobi")["by"] == ["scd", "jacobi"]
    assert keeps("scd, cool-sd, fold")["keeps"] == "bound"
    assert keeps("cool-sd, int8")["by"] == ["int8"]


def test_the_engines_readme_tells_it():
    from arcompile.compile import _contract

    tried = [Tried((), "values", 1.0, 64.0), Tried((SCD(),), "distribution", 0.5, 21.0, 2.0)]
    text = _contract({"contract": contract([SCD()]), "auto": {
        "chosen": "scd", "tried": [t.data() for t in tried]}})
    assert text.startswith("exact in law: images are distributed as the model's own (by scd)\n")
    assert "| scd | * | distribution | 21.0 | 0.5 | 2.00x |" in text
