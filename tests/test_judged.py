"""Tables of what lossy passes cost: their arithmetic, and that README and docs show the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cells import walk

from arcompile.bench import judged, judged_pages
from arcompile.ceilings import Drawn, forwards_of
from arcompile.models.demo import DEMOS
from arcompile.passes.cspd import CSpD
from arcompile.pipeline import run

ROOT = Path(__file__).parent.parent
PLAIN = {"score": 0.9, "interval": [0.88, 0.92], "forwards": 64.0}
WORSE = {"score": 0.85, "interval": [0.83, 0.87], "forwards": 20.0,
         "against_plain": {"points": [-5.0, -7.0, -3.0], "won": 2, "lost": 7}}


def rows(kind="decoding", names=("gsd", "gsd{group=4}")):
    return [{"demo": "demo", "set": kind, "pictures": 100,
             "settings": {"": PLAIN, **dict.fromkeys(names, WORSE)}},
            {"demo": "demo", "set": kind, "loop_ms": {"": {"median": 40.0, "least": 32.1}}}]


def test_every_setting_is_a_line():
    lines = judged_pages.markdown(rows(), "decoding").splitlines()
    assert lines[2] == "| demo | plain | 64 | 32.1 | 90.0 | 88.0-92.0 |  | 100 |"
    assert lines[4] == ("| demo | `gsd{group=4}` | 20 |  | 85.0 | 83.0-87.0 | -5.0 (-7.0 to -3.0) "
                        "| 100 |")


def test_settings_of_a_method_stand_side_by_side():
    lines = judged_pages.by_method(rows()).splitlines()
    assert lines[2] == "| demo | plain |  | 64 | 32.1 | 90.0 |"
    assert lines[3] == "| demo | `gsd` | as it is, `group=4` | 20, 20 | ,  | 85.0, 85.0 |"


def test_weights_have_a_column_for_each_pass():
    hack = "kv-hack{ratio=0.5,ranges='@ranges'}"
    lines = judged_pages.weights(rows("weights", ("int8", hack))).splitlines()
    assert lines[0] == "| judged right, % | plain | `int8` | `kv-hack{ratio=0.5}` | pictures |"
    assert lines[2].startswith("| `demo` | 90.0 | 85.0 -5.0 (-7.0 to -3.0) |")


def test_newer_rows_replace_older_ones():
    again = {**rows()[0], "settings": {"gsd": {**WORSE, "score": 0.5}}}
    assert "| 50.0 |" in judged_pages.markdown([*rows(), again], "decoding")


def test_counts_that_come_with_times_are_newer():
    made = [*rows(), {"demo": "demo", "set": "decoding", "loop_ms": {}, "forwards": {"gsd": 9.0}}]
    assert "| demo | `gsd` | 9 |" in judged_pages.markdown(made, "decoding")


def test_the_quickest_round_counts_for_all():
    """A picture in 4 rounds and one in 6; the second ran while the host was slow."""
    found = judged.least([Drawn(4.0, 4.0, np.ones(4)), Drawn(12.0, 6.0, np.ones(6))])
    assert (found["n"], found["median"], found["least"]) == (2, 8000, 5000)


def test_drafts_of_a_second_model_are_no_forwards():
    """Of MAR in rounds of two steps: each is one forward, and so is the step it takes alone."""
    p = walk()
    assert forwards_of(p) == len(p.steps) == 2
    assert forwards_of(run(p, [CSpD(by="swiglu", window=2, alone=0.0)])) == 1


@pytest.mark.parametrize(("setting", "method"), [
    ("--option diffusion_least=5 --option annealing=cosine",
     ("DiSA", "diffusion_least=5, annealing=cosine")),
    ("code{engine='@demo-var',scales=3}", ("`code`", "scales=3")),
    ("@demo-var", ("demo-var, plain", ""))])
def test_a_setting_tells_its_method(setting, method):
    assert judged_pages._split(setting) == method


def test_sets_name_demos():
    assert {d for s in judged.SETS.values() for d in s} <= set(DEMOS)


@pytest.mark.ort
def test_a_setting_s_engine_is_what_it_says(tmp_path, monkeypatch):
    monkeypatch.setenv("ARC_CACHE", str(tmp_path))
    small = judged.ready("demo-mar", "--option diffusion_least=5")
    assert int(small.manifest["info"]["diffusion_least"]) == 5
    passes = judged._filled("demo-var-small", "code{engine='@demo-var',scales=3}")
    folder = passes.split("'")[1]
    assert passes == f"code{{engine='{folder}',scales=3}}"
    assert (Path(folder) / "manifest.json").is_file()


@pytest.mark.parametrize("page", judged_pages.PAGES)
def test_pages_show_the_committed_rows(page):
    text = (ROOT / page).read_text()
    assert "<!-- judged " in text
    assert judged_pages.filled(text, judged_pages.kept()) == text


def test_marks_hold_their_tables():
    made = judged_pages.filled("a\n<!-- judged methods -->\nold\n<!-- /judged -->\nb", rows())
    assert made.startswith("a\n<!-- judged methods -->\n| demo |")
    assert made.endswith("|\n<!-- /judged -->\nb")
    assert "old" not in made
