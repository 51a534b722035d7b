"""auto: what it tries, how it predicts, what it chooses, and that the engine says so."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import llama, weights

from arcompile import auto, ceilings
from arcompile.auto import Bench, Tried, decide, methods, notes, rows
from arcompile.bench import windows
from arcompile.ceilings import Ceilings, Drawn, Spent, window_of
from arcompile.errors import ArcError
from arcompile.passes.auto import Auto
from arcompile.passes.dead_code import DeadCode
from arcompile.passes.draft import Draft
from arcompile.passes.gsd import GSD
from arcompile.passes.guidance import Guidance
from arcompile.passes.scd import SCD
from arcompile.passes.zipar_adaptive import ZipARAdaptive
from arcompile.pipeline import contract, parse_pipeline, run
from arcompile.program_text import to_data
from arcompile.quality import LOSSY
from arcompile.raster import hollow
from arcompile.speculation import blind

FACTS = {"family": "tiny", "target": "reference", "dtype": "f32", "key": "", "passes": [],
         "vocabulary": 16, "info": {"classes": 3}, "defaults": {"guidance": 1.5}}


def bench(folder, plain=None, **more):
    p = llama(2)
    return Bench(plain or p, weights(p), FACTS, folder, **more)


def test_exact_methods_only_unless_asked():
    exact, every = ([*methods(share, llama(2))] for share in (1.0, 0.9))
    assert exact
    assert not [p for p in exact if p.keeps in LOSSY]
    assert {p.name for p in every} > {p.name for p in exact}


def test_no_prediction_where_passes_behind_refuse_a_network_that_is_nothing():
    def make(p, passes):
        raise ArcError("this pass needs caches")

    t = Tried((SCD(window=2),), rounds=3.0, window=2)
    assert auto._parts(t, Ceilings(llama(2), make, 1)) == {}
    assert rows({"chosen": "none", "tried": [t.data()]})[1][-2] == ""


def told_by(tmp_path):
    """Ceilings whose engines are nothing, and the parts that were asked for."""
    asked = []

    def make(p, passes):
        told = window_of(run(p, passes)), not p.state, ", ".join(map(str, passes))
        asked.append(told)
        return SimpleNamespace(told=told, folder=tmp_path)

    return Ceilings(llama(2), make, 1), asked


def round_of(told, p, seconds):
    """Where parts take made-up seconds."""
    return told.round(p, {ceilings.PLAIN: seconds(0, False, ""),
                          **{k: seconds(*e.told) for k, e in told.parts(p).items()}})


def test_a_round_is_a_method_on_nothing_and_a_network_on_slots(tmp_path):
    """The network takes a second a slot and 7 at first; the loop 0.5, a method 0.25 more."""
    def seconds(window, nothing, passes):
        own = 0.5 + 0.25 * ("scd" in passes)
        return Spent(1.0 if nothing else 8.0, own if nothing else own + max(window, 1))

    told, asked = told_by(tmp_path)
    assert round_of(told, SCD(window=2), seconds).total(3.0) == 8 + 3 * (0.75 + 2)
    assert (2, True, "scd{window=2}") in asked
    assert (2, False, "scd{window=2}") not in asked  # the method itself is not run
    count = len(asked)
    assert round_of(told, SCD(window=3), seconds).total(2.0) == 8 + 2 * (0.75 + 3)
    assert len(asked) == count + 3  # the method, and the window with and without a network
    with pytest.raises(ArcError, match="draws in no windows"):
        told.parts(SCD(window=1))


def test_a_second_model_drafts_once_for_each_slot(tmp_path):
    def seconds(window, nothing, passes):
        own = 0.5 + 0.125 * ("draft" in passes)
        network = 0.75 if passes == "dead-code" else max(window, 1)
        return Spent(0.0, own + (0.0 if nothing else network))

    told, _ = told_by(tmp_path)
    each = round_of(told, Draft(window=2, by="dead-code"), seconds).each
    assert each == 0.625 + 2 + 2 * 0.75


def test_the_bench_expects_a_round_turn_by_turn():
    """Each turn by what the parts took in it; engines that are no parts of it have no say."""
    class Told:
        def parts(self, p):
            return {"window 2": None}

        def round(self, p, took):
            return Spent(0.0, took["plain"].each + 2 * took["window 2"].each)

    each = {"another": [9.0, 9.0], "window 2": [1.0, 3.0], "plain": [10.0, 20.0]}
    assert windows._expected(Told(), SCD(window=2), each) == [12.0, 26.0]


@pytest.mark.ort
def test_without_a_network_graphs_have_the_threads_that_they_have_beside_one(tmp_path):
    made = replace(bench(tmp_path), facts={**FACTS, "target": "ort-cpu"})

    def make(p, passes):
        return auto.engine(passes, replace(made, plain=p))

    parts = Ceilings(llama(2), make, 1).parts(SCD(window=2))
    light = {k: json.loads((e.folder / "light.json").read_text()) for k, e in parts.items()}
    assert light["window 2"] == light["nothing, window 2"]
    assert all("feed" in names for names in light.values())


def test_the_quickest_of_equal_runs_tells_what_it_takes():
    slow, quick = np.array([9.0, 9, 9, 9]), np.array([5.0, 3, 1, 4])
    assert ceilings.spent([slow, quick]) == Spent(5 + 3 - 2 * 2.5, 2.5)


def test_turns_are_one_after_another_and_each_set_loads_first(monkeypatch):
    monkeypatch.setattr(ceilings, "PAUSE", 0)
    monkeypatch.setattr(ceilings, "SETS", 2)
    monkeypatch.setattr(ceilings, "TURNS", 2)
    sides = {k: SimpleNamespace(name=k) for k in "ab"}
    seen = []

    def draw(e, turn):
        seen.append((e.name, turn, hasattr(e, "models")))
        e.models = 1
        return e.name, turn

    found = ceilings.by_turns(sides, draw)
    loads = [("a", None, False), ("b", None, False)]
    assert seen == [*loads, *((n, t, True) for t in (0, 1) for n in "ab"),
                    *loads, *((n, t, True) for t in (2, 3) for n in "ab")]
    assert found == {n: [(n, t) for t in range(4)] for n in "ab"}
    assert not any(hasattr(e, "models") for e in sides.values())
    assert len(ceilings.by_turns(sides, draw, long=0.0)["a"]) == ceilings.LEAST


@pytest.mark.parametrize("what", ["nothing", "blind"])
def test_parts_run(tmp_path, what):
    """A network that is nothing draws by any method, and blind windows end."""
    p = hollow(llama(2)) if what == "nothing" else blind(llama(2), "scd", 2)
    e = auto.engine([SCD(window=2)] if what == "nothing" else [], bench(tmp_path, plain=p))
    held = any(n.op == "attention" for g in e.program.graphs for n in g.nodes)
    assert held == (what == "blind")
    found = ceilings.drawn(e, 2)
    assert 1 < found.forwards <= found.rounds <= 4
    assert len(ceilings.drawn(e, 2, 0, 2).steps) == 2
    small = auto.engine([Draft(window=2, by="dead-code")], bench(tmp_path, plain=hollow(llama(2))))
    assert ceilings.drawn(small, 1).rounds <= 4


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
    assert best(0.8, lambda t: 1.2 if t is b else t.gain) is a  # nor does a lead
    assert auto._best([none, c], 1.0, lambda t: 0.0, lambda t: t.gain) is none


def made_up(monkeypatch, seconds):
    """Time is made up: `seconds` of a forward or a round, by whether the engine has windows."""
    def timed(e, *how):
        found = ceilings.drawn(e, *how)
        each = seconds(window_of(e.program))
        return Drawn(each * found.rounds, found.forwards, np.full(found.rounds, each))

    monkeypatch.setattr(auto, "drawn", timed)
    monkeypatch.setattr(ceilings, "PAUSE", 0)


def test_what_was_measured_is_told(tmp_path, monkeypatch):
    """A round takes as long as a step, whatever its slots."""
    made_up(monkeypatch, lambda window: 1.0)
    passes, found = decide([DeadCode(), Auto(), DeadCode()], bench(tmp_path))
    assert passes[0] == passes[-1] == DeadCode()
    assert len(passes) == 3
    assert found["chosen"] == str(passes[1]) != "none"
    lines = {t["method"]: t for t in found["tried"]}
    best = lines[found["chosen"]]
    assert best["forwards"] < lines["none"]["forwards"] == 4
    assert best["gain"] == pytest.approx(best["beside"] / best["seconds"], rel=1e-3)
    # a network of a second a round, whose loop takes next to nothing
    scd = lines["scd{window=2}"]
    assert scd["predicted"] == pytest.approx(scd["gain"], rel=0.05)
    assert "a window of 16 positions in an image of 4" in lines["scd"]["refused"]
    assert json.loads(json.dumps(found)) == found
    marked = [r[0] for r in rows(found) if r[1] == "*"]
    assert marked == [found["chosen"]]


# --- other families ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["var", "mar"])
def family(request):
    """(name, an exported program, its weights): three scales, or four steps of cells."""
    pytest.importorskip("torch")
    from arcompile.compile import exported
    from arcompile.family import FAMILIES

    f = FAMILIES[request.param]
    model = f.model(f.random("tiny"), {})
    return f.name, exported(model), model.weights


def guided(p):
    return sum(s.guide != (1.0, 0.0) for s in p.steps)


def test_shares_of_quality_in_other_families(family, tmp_path, monkeypatch):
    """A step takes a second and its twins two more; and the quickest loses too many pictures."""
    name, p, source = family
    said = iter([0.9, 0.5, 0.89])

    def timed(e, *how):
        found = ceilings.drawn(e, *how)
        return replace(found, seconds=found.rounds + 2.0 * guided(e.program))

    monkeypatch.setattr(auto, "drawn", timed)
    for few in ("SETS", "TURNS"):
        monkeypatch.setattr(ceilings, few, 1)
    judge = lambda pictures, classes: {"both": next(said)}  # noqa: E731
    facts = {**FACTS, "family": name, "vocabulary": 0}
    made = Bench(p, source, facts, tmp_path, judge, 2)
    passes, found = decide([Auto(quality="0.98")], made)
    lines = {t["method"]: t for t in found["tried"]}
    quickest, best = {
        "var": ("guidance{last=1}", "trim{scales=1}"),
        "mar": ("guidance{last=2}", "guidance{last=3}")}[name]
    assert (lines[quickest]["score"], lines[best]["score"]) == (0.5, 0.89)
    assert found["chosen"] == str(passes[0]) == best
    assert {"seconds", "gain"} <= lines["cspd" if name == "mar" else best].keys()
    assert [r[0] for r in rows(found) if r[1]] == [best]
    assert not [r for r in rows(found) if r[0].startswith("scd")]
    raster = [s for s in notes(found) if "needs a raster program" in s]
    assert len(raster) == 1
    assert raster[0].startswith("not tried: cool-sd, draft, gsd, jacobi, lantern, scd, zipar")


def test_nothing_in_another_family_without_a_loss(family, tmp_path, monkeypatch):
    name, p, source = family
    monkeypatch.setattr(auto, "drawn", lambda *a: Drawn(1.0, 1.0, np.ones(1)))
    passes, found = decide([Auto()], Bench(p, source, {**FACTS, "family": name}, tmp_path))
    assert passes == []
    assert [r[0] for r in rows(found)] == ["tried", "none"]


def test_a_network_that_is_nothing_has_no_rows_to_draw_side_by_side():
    with pytest.raises(ArcError, match="has no caches"):
        run(hollow(llama(2)), [ZipARAdaptive(window=1)])


def test_guidance_of_later_steps_only():
    assert [p.last for p in Guidance.worth(llama(2))] == [2, 3]
    assert [p.window for p in ZipARAdaptive.worth(llama(2))] == [1]


def test_nothing_where_nothing_gains(tmp_path, monkeypatch):
    made_up(monkeypatch, lambda window: 1.0 + 9 * (window > 0))
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

    tried = [Tried((), "values", 1.0, 1.0, 64.0),
             Tried((SCD(),), "distribution", 0.5, 1.0, 21.0, 21.0, 2.0)]
    text = _contract({"contract": contract([SCD()]), "auto": {
        "chosen": "scd", "tried": [t.data() for t in tried]}})
    assert text.startswith("exact in law: images are distributed as the model's own (by scd)\n")
    assert "| scd | * | distribution | 21.0 | 0.5 | 1 | 2.00x |" in text
