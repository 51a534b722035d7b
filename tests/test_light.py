"""Graphs too light for threads of their own: which they are, and that both runtimes are told."""

from __future__ import annotations

import json

import engines
import plain
import pytest
import tiny

from arcompile.family import FAMILIES
from arcompile.light import light
from arcompile.program_text import parse_program
from arcompile.runtime.engine import load

STOP = "session.force_spinning_stop"


def program(folder):
    return parse_program((folder / "program.arc").read_text())


@pytest.mark.ort
def test_what_the_engine_says_is_what_its_sessions_get(tmp_path):
    e = plain.engine("llamagen", FAMILIES["llamagen"].random("tiny"), tmp_path, grid=4)
    told = json.loads((tmp_path / "light.json").read_text())
    assert told == light(program(tmp_path)) == ["feed"]
    assert "light.json" in e.manifest["files"]
    e.threads = 2
    e.generate(1)
    threads = {k: s.model.get_session_options().intra_op_num_threads
               for k, s in e.models.sessions.items()}
    assert threads["feed"] == 1
    assert threads["step"] == threads["decode"] == 2


def awake(e):
    """Graphs whose threads wait for the next run without sleeping."""
    e.generate(1)
    return {k for k, s in e.models.sessions.items() if k not in e.models.light
            and s.model.get_session_options().get_session_config_entry(STOP) == "0"}


@pytest.mark.ort
@pytest.mark.parametrize(("family", "passes", "expected"), [
    ("llamagen", "", {"step"}),
    ("llamagen", "scd{window=4}", {"window"}),
    ("llamagen", "draft{window=3,by='int8'}", set()),  # two models take turns
    ("var", "", {"step"}),
    ("mar", "", set()),  # a transformer and a head do
])
def test_threads_stay_awake_only_where_no_other_graph_has_its_turn(tmp_path, family, passes,
                                                                   expected):
    options = {"grid": 4} if family == "llamagen" else {}
    e = plain.engine(family, FAMILIES[family].random("tiny"), tmp_path, passes=passes, **options)
    assert awake(e) == expected


@pytest.mark.ort
def test_a_loop_of_turns_counts_all_of_them():
    """MAR's head is small, but runs many times a step."""
    from arcompile.compile import exported

    p = exported(FAMILIES["mar"].model(FAMILIES["mar"].random("tiny"), {}), lambda s, f: None)
    assert light(p) == ["place"]


@pytest.mark.ort
@pytest.mark.parametrize("text", ["{}", "[1]", "[", '"feed"'])
def test_a_list_that_is_none(tmp_path, text):
    p = tiny.llama(1)
    folder = engines.write(tmp_path / "e", p, tiny.weights(p), 16, "ort-cpu", info={"classes": 3})
    (folder / "light.json").write_text(text)
    plain.refuses("light", lambda: load(folder, check=False).models)
