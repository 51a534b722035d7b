"""The bench itself: what it says, not how fast anything is."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from arcompile import bench
from arcompile.bench import built, eager, machine, runner, spread, suites, visits
from arcompile.compile import write
from arcompile.errors import ArcError
from arcompile.family import FAMILIES
from arcompile.pipeline import parse_pipeline
from arcompile.runtime.engine import load
from arcompile.target import TARGETS

HEAD = {"suite", "time", "host", "quick", "arcompile", "family", "target", "dtype", "passes",
        "model", "batch", "guidance", "weights", "positions", "steps",
        "settings", "machine", "greedy", "sampled", "tokens", "prompt_ms", "bytes", "series",
        "limits"}
STEP = {"engine", "eager", "eager_vs_engine", "tokens_per_s", "eager_tokens_per_s", "gbps",
        "percent_of_read", "floor"}


def test_verdicts():
    assert spread.compare([2.0, 2.1, 2.2], [1.0, 1.0, 1.0])["verdict"] == "faster"
    assert spread.compare([0.5, 0.6], [1.0, 1.0])["verdict"] == "slower"
    wide = spread.compare([0.8, 1.1, 1.6], [1.0, 1.0, 1.0])
    assert wide["verdict"] == spread.SAME
    assert wide["median"] == 1.1
    assert spread.compare([2.0], [1.0])["verdict"] == "measured once"


def test_unknown_suite():
    with pytest.raises(ArcError, match="no suite or engine named 'lamagen-B'") as e:
        suites.find("lamagen-B")
    assert "llamagen-B" in e.value.hint


def test_list(capsys):
    assert bench.run("list", as_json=True) == 0
    assert {r["name"] for r in json.loads(capsys.readouterr().out)} == set(suites.SUITES)


@pytest.mark.ort
def test_eager_mar_draws_what_the_engine_draws(tmp_path):
    """In the same order, from the same noise."""
    family = FAMILIES["mar"]
    source, last = family.random("tiny"), "diffloss.net.final_layer.linear.weight"
    small = np.random.default_rng(0).standard_normal(source.tensors.shape(last), np.float32) * 2e-4
    source.tensors[last] = replace(source.tensors[last], read=lambda: small)
    model = family.model(source, {})
    write(tmp_path, "mar", model, "ort-cpu", "f32", parse_pipeline(TARGETS["ort-cpu"].passes))
    loop = eager.load("mar", source)
    loop.begin([1, 3], 2.0, 0.0, 0)
    for _ in model.program.steps:
        loop.step()
    out = load(tmp_path).generate([1, 3], guidance=2.0, temperature=0, orders=loop.orders.numpy(),
                                  initial_noise=loop.noise.numpy())
    assert np.allclose(loop.tokens, out.latents, atol=1e-4 * np.abs(out.latents).max())
    assert np.allclose(loop.finish(loop.tokens), out.pixels, atol=1e-3)


@pytest.mark.ort
def test_turns_are_whole_images(tmp_path, monkeypatch):
    """Nothing runs between the steps of an image; engines of one model share the eager loop's."""
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "FLOATS", 1 << 22)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    went, made = [], []
    for name in ("llamagen-tiny", "llamagen-tiny-int8"):
        suite = suites.SUITES[name]
        b = runner.Bench(suite, load(built.ready(suite, str)[0]), False, str,
                         made[0] if made else None, brief=True)
        real = b.engine.generate
        b.engine.generate = lambda *a, f=real, n=name, **k: went.append((n, k)) or f(*a, **k)
        made.append(b)
    bandwidth, eager_loop = made[0].bandwidth, made[0].eager
    read, step, begin, finish = (bandwidth.measure, eager_loop.step, eager_loop.begin,
                                 eager_loop.finish)
    bandwidth.measure = lambda: went.append("read") or read()
    eager_loop.step = lambda: went.append("step") or step()
    eager_loop.begin = lambda *a: went.append("begin") or begin(*a)
    eager_loop.finish = lambda x: went.append("finish") or finish(x)
    turns = visits.draw(made, most=1)
    names = [w if isinstance(w, str) else w[0] for w in went]
    assert names == ["read", "llamagen-tiny", "read", "llamagen-tiny-int8", "begin",
                     *["step"] * 16, "finish"]
    assert not any("on_step" in w[1] for w in went if not isinstance(w, str))
    assert [len(t.steps) for x in (*turns.engine.values(), turns.eager) for t in x] == [16] * 3
    assert all(t.decoder > 0 and t.read > 0 for x in turns.engine.values() for t in x)
    row = made[1].steps(turns)
    assert (row["engine"]["n"], row["eager"]["n"]) == (16, 16)
    assert row["eager_vs_engine"]["verdict"] == "measured once"
    went.clear()
    del made[0].engine.generate  # a cut engine would take it along
    turns = visits.draw(made[:1], sampled=True, most=1)
    assert went == ["read", "begin", *["step"] * 16]  # no pictures of sampled tokens
    assert made[0].sampled(turns)["top_k"] == 20


@pytest.mark.ort
def test_tiny_scales(tmp_path, capsys, monkeypatch):
    """Steps of different sizes; the eager loop draws the same tokens."""
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "FLOATS", 1 << 22)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    bench.run("var-tiny", quick=True, as_json=True, out=tmp_path)
    row = json.loads(capsys.readouterr().out)
    assert row["tokens"] == {"equal": True, "compared": 14, "first_difference": None,
                             "promised": True}
    assert row["greedy"]["engine"]["n"] % 3 == 0  # whole images of three scales


@pytest.mark.ort
def test_other_tokens_fail_where_the_passes_promise_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "FLOATS", 1 << 22)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    told = runner.Bench._tokens
    for promise, code in ((True, 1), (False, 0)):
        monkeypatch.setattr(runner.Bench, "_tokens", lambda *x, p=promise: {
            **told(*x), "equal": False, "promised": told(*x)["promised"] and p})
        assert bench.run("llamagen-tiny", quick=True, as_json=True) == code
    monkeypatch.setattr(runner.Bench, "_tokens", told)
    bench.run("llamagen-tiny-int8", quick=True, as_json=True)
    assert not json.loads(capsys.readouterr().out.splitlines()[-1])["tokens"]["promised"]


@pytest.mark.ort
def test_tiny_end_to_end(tmp_path, capsys, monkeypatch):
    """16 positions on both sides, from random weights to a row with every field."""
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "FLOATS", 1 << 22)
    monkeypatch.setattr(machine, "PAUSE", 0.0)
    code = bench.run("llamagen-tiny", quick=True, as_json=True, out=tmp_path)
    row = json.loads(capsys.readouterr().out)
    assert set(row) == HEAD
    assert set(row["greedy"]) == STEP
    assert set(row["sampled"]) == STEP | {"top_k"}
    assert row["tokens"] == {"equal": True, "compared": 16, "first_difference": None,
                             "promised": True}
    assert code == 0
    assert 0 < row["bytes"]["step_weights"] < row["bytes"]["run_weights"] < row["bytes"]["file"]
    assert row["greedy"]["engine"]["n"] % 16 == 0  # whole images
    assert len(row["series"]["engine_ms"]) == len(row["series"]["eager_ms"]) == 16
    floor, held = row["greedy"]["floor"], row["bytes"]
    more = floor["pairs_vs_floor"]["median"] / floor["with_caches"]["median"] - 1
    assert 0 < more < 2 * held["state"] / held["step_weights"]  # what caches hold, by and by
    (written,) = tmp_path.glob("*.jsonl")
    assert json.loads(written.read_text()) == row
    folder = tmp_path / "cache" / "bench" / "llamagen-tiny" / "engine"
    assert suites.find(str(folder)).engine == str(folder)


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
def test_eager_is_upstream(goldens, kind):
    """The loop that engines are compared with draws what upstream's own code drew."""
    import torch

    from arcompile.bench.eager_llamagen import load
    from arcompile.checkpoint import open_checkpoint
    from arcompile.family import Source

    folder = goldens / f"llamagen-{kind}"
    about = json.loads((folder / "about.json").read_text())
    want = np.load(folder / "expected.npz")
    held = open_checkpoint(folder / f"{kind}_tiny.pt").weights("model")
    vq = open_checkpoint(folder / f"vq_ds16_{kind}_tiny.pt").weights("model")
    facts = {k: str(about[k]) for k in ("n_head", "grid")}
    model = load(Source(held, vq, metadata=facts))
    cond = want["cond"] if kind == "c2i" else {"features": want["cond"], "mask": want["emb_masks"]}
    model.begin(cond, about["cfg_scale"], 0.0, 0)
    tokens = torch.cat([model.step() for _ in range(want["greedy_tokens"].shape[1])], 1)
    assert (tokens.numpy() == want["greedy_tokens"]).all()
    image = model.finish(tokens).numpy()
    assert np.linalg.norm(image - want["image"]) <= 1e-4 * np.linalg.norm(want["image"])
