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


def test_predictions_are_exact_where_the_model_is():
    """Times made of 2 s a byte and 3 s a flop: all are found from two."""
    made = [Tried((), cost=Cost(10, 100)), Tried((SCD(),), cost=Cost(400, 20)),
            Tried((SCD(window=4),), cost=Cost(50, 40)), Tried((GSD(),), refused="no")]
    for t in made[:3]:
        t.seconds = 2.0 * t.cost.bytes + 3.0 * t.cost.flops
        t.gain = made[0].seconds / t.seconds
    predict(made)
    assert [t.predicted for t in made[:3]] == pytest.approx([t.gain for t in made[:3]])


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
    true = auto._time
    monkeypatch.setattr(auto, "_time", lambda *a, **k: (true(*a, **k)[1],) * 2)
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
    true = auto._time
    monkeypatch.setattr(auto, "_time", lambda *a, **k: (1.0, true(*a, **k)[1]))
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
