"""Scores of pictures, scenarios, comparisons, the report and README's figures: their arithmetic."""

from __future__ import annotations

import json
from pathlib import Path

import engines
import numpy as np
import pytest
import tiny

from arcompile import bench
from arcompile.bench import (
    history,
    peers,
    pictures,
    race,
    readme,
    report,
    scenarios,
    stages,
)
from arcompile.bench.spread import SAME
from arcompile.bench.suites import Suite
from arcompile.errors import ArcError
from arcompile.runtime.engine import load

ROOT = Path(__file__).parents[1]
STEP = {"n": 9, "median": 10.0, "min": 9.0, "p10": 9.5, "p90": 11.0}


# --- pictures ------------------------------------------------------------------------------------


def test_frechet_of_known_laws():
    x = np.random.default_rng(0).standard_normal((4000, 3))
    assert pictures.frechet(x, x) < 1e-9
    assert np.isclose(pictures.frechet(x, x + np.array([1, 2, 0])), 5)  # the mean alone
    scaled = x * [2.0, 1.0, 1.0]  # of diagonal covariances: (s - t)^2 an axis
    assert abs(pictures.frechet(x, scaled) - 1.0) < 0.05
    turned = x @ np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0]
    assert pictures.frechet(x, turned) < 0.02
    with pytest.raises(ArcError):
        pictures.frechet(x, x[:, :2])


def test_inception_score():
    assert np.isclose(pictures.inception_score(np.eye(5)), 5)
    assert np.isclose(pictures.inception_score(np.full((7, 4), 0.25)), 1)


def test_ssim_and_detail():
    rng = np.random.default_rng(0)
    x = np.clip(rng.standard_normal((2, 3, 24, 24)).cumsum(-1) / 4, -1, 1)
    soft = (x + np.roll(x, 1, -1) + np.roll(x, 1, -2)) / 3
    assert np.isclose(pictures.ssim(x, x), 1)
    assert pictures.ssim(x, soft) > pictures.ssim(x, rng.permutation(x.ravel()).reshape(x.shape))
    assert np.isclose(pictures.detail(x, x), 1)
    assert pictures.detail(x, soft) < 0.9


def test_better_drawings_are_nearer():
    """The shipped judge's features tell real drawings from spoilt ones."""
    real, other = (np.uint8((pictures.of_drawings(72, s).transpose(0, 2, 3, 1) + 1) * 127.5)
                   for s in (1, 2))
    spoilt = np.roll(real, 20, 1) // 2
    f = pictures.features(real)
    same, far = (pictures.frechet(f, pictures.features(x)) for x in (other, spoilt))
    assert far > 3 * same


# --- scenarios -----------------------------------------------------------------------------------


def test_server_by_hand(monkeypatch):
    """A second a picture, alone or in company: what waits goes together."""
    monkeypatch.setattr(scenarios, "draw", lambda e, g, b: 1.0)
    monkeypatch.setattr(scenarios, "SEED", 0)
    idle = scenarios.server(None, 1.0, 40, 0.01, 8)
    assert idle["latency_ms"]["median"] == 1000
    assert idle["mean_batch"] == 1
    busy = scenarios.server(None, 1.0, 200, 5.0, 8)
    assert 3 < busy["mean_batch"] <= 8
    assert 1000 < busy["latency_ms"]["median"] < 2500
    full = scenarios.server(None, 1.0, 200, 5.0, 1)  # more than it can do: the queue grows
    assert full["latency_ms"]["p99"] > 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from dataclasses import replace

    p = replace(tiny.llama(1), finish=())
    return engines.write(tmp_path_factory.mktemp("bench") / "e", p, tiny.weights(p), 16,
                         "reference", info={"classes": 3})


def test_scenarios_of_an_engine(folder):
    told = scenarios.scenarios(load(folder), 2.0, pictures=4, batches=(1, 2))
    assert told["single_stream_ms"]["n"] == 4
    assert told["offline"]["batch"] in (1, 2)
    assert told["server"]["latency_ms"]["n"] == 4
    with pytest.raises(ArcError):
        scenarios.scenarios(load(folder), 2.0, pictures=1)


# --- the race ------------------------------------------------------------------------------------


def test_a_turn_is_the_first_steps_of_a_new_image(folder):
    ours = race.Ours(load(folder), Suite("x", guidance=2.0, top_k=0))
    assert [len(ours.turn(n)) for n in (1, 3, 48)] == [1, 3, 4]  # an image has four
    assert race.counted(range(race.STEPS)) == range(race.WARM, race.STEPS)
    assert race.counted([1.0, 2.0]) == [1.0, 2.0]


def test_a_peer_called_once_a_step_begins_anew_each_turn():
    class Peer(peers.Stepped):
        began = went = 0

        def begin(self):
            self.began += 1

        def step(self):
            self.went += 1

    peer = Peer()
    assert [len(peer.turn(n)) for n in (2, 5)] == [2, 5]
    assert (peer.began, peer.went) == (2, 7)


def test_a_failing_engine_says_so(folder):
    e = load(folder)
    ours = race.Ours(e, Suite("x", guidance=float("nan"), top_k=0))
    with pytest.raises(ArcError):
        ours.turn(1)


def test_a_peer_that_is_not_there(tmp_path):
    def absent(suite, folder):
        raise ModuleNotFoundError("no", name="openvino")

    def broken(suite, folder):
        raise RuntimeError("two\nlines")

    assert peers.ready(peers.Kind("a", absent, True, ""), None, tmp_path) == (
        None, "openvino is not installed")
    assert peers.ready(peers.Kind("b", broken, True, ""), None, tmp_path) == (
        None, "RuntimeError: two")
    with pytest.raises(ArcError, match="no peer named 'torhc'"):
        peers.find("torhc")
    assert len({k.name for k in peers.kinds()}) == len(peers.find("all"))


def test_transformers_is_stopped_after_the_steps_of_a_turn():
    pytest.importorskip("transformers")
    (kind,) = peers.find("transformers-f32")
    peer = kind.make(Suite("janus-tiny", "janus", "tiny", guidance=5.0, top_k=0), None)
    # an image has 16 tokens, and its last logits are no step's beginning
    assert [len(peer.turn(n)) for n in (3, 1, 48)] == [3, 1, 15]


def test_what_no_peer_can_do_is_said_by_name():
    assert {"llamagen", "janus"} == peers.UNABLE.keys() == {k.family for k in peers.kinds()}
    named = {k.name for k in peers.kinds()}
    assert not named & {n for x in peers.UNABLE.values() for n in x}


def test_stages_of_a_loop():
    each = [{"step": 1.0}, {"step": 3.0}]
    assert stages.over_all([0, 4], each, 5) == {"step": 10.0}  # 1, 1.5, 2, 2.5, 3
    assert stages.least([{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 3.0}]) == {"a": 1.0, "b": 1.0}


# --- earlier results, the page, README -----------------------------------------------------------


def row(suite="s", time="2026-01-01", **more):
    return {"suite": suite, "time": time, "greedy": {"engine": STEP}, **more}


def test_since():
    slow = {**STEP, "median": 20.0, "p10": 19.0, "p90": 22.0}
    near = {**STEP, "median": 10.4, "p10": 9.9, "p90": 11.4}
    was = [row(), row(time="2025", greedy={"engine": slow}), row("other")]
    (same,) = history.since([row(greedy={"engine": near})], was)
    assert same["verdict"] == SAME
    (worse,) = history.since([row(greedy={"engine": slow})], was)
    assert (worse["verdict"], worse["ratio"]) == ("slower", 2.0)
    assert "slower" in history.table([worse])


@pytest.mark.parametrize("where", ["no-such-revision", "--output=x", "/", ""])
def test_since_what_is_nothing(where):
    with pytest.raises(ArcError):
        history.rows(where)


def test_the_page_is_whole_by_itself(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [json.loads(json.dumps(r)) for r in bench.committed()]
    page = report.write([*rows, row("<script>alert(1)</script>",
                                    sides={"arcompile-f32": STEP, "other": STEP})],
                        tmp_path / "x.html").read_text()
    assert "http://" not in page
    assert "https://" not in page.replace(str(rows), "")
    assert "<script>" not in page
    assert page.count("data:image/png;base64,") >= 1
    for r in rows:
        assert f"<h2>{r['suite']}</h2>" in page


def test_readme_shows_the_committed_rows():
    text = (ROOT / "README.md").read_text()
    if readme.BEGIN not in text:
        pytest.skip("README has no block of figures")
    shown = text[text.index(readme.BEGIN) : text.index(readme.END) + len(readme.END)]
    assert shown == readme.block(bench.committed())


def test_block_from_rows():
    sides = {"arcompile-f32": {"step": STEP, "vs_arcompile": {"median": 1.0, "verdict": SAME},
                               "says": "ours"},
             "peer": {"step": {**STEP, "median": 8.0},
                      "vs_arcompile": {"median": 0.8, "verdict": "slower"}, "says": "theirs"}}
    machine = {"cpu": "c", "threads": 2, "read_gbps": {"best": 9.0}}
    made = readme.block([row(kind="peers", sides=sides, missing={"lost": "not installed"},
                             machine=machine, quick=False, greedy={"engine": STEP})])
    assert made.startswith(readme.BEGIN)
    assert made.endswith(readme.END)
    assert made.index("| peer | 8 ") < made.index("| arcompile-f32 | 10 ")  # who wins stands first
    assert "| lost | - | | not installed |" in made
