import numpy as np
import pytest
from tiny import generate, llama, of

from arcompile.passes.fuse_sampling import FuseSampling
from arcompile.pipeline import run
from arcompile.program_text import parse_program

STEP = """graph {}(%x: f32[r,4], %row: i64[b]) {{
  %0 = silu(%x) : f32[r,4]
  return logits=%0
}}"""
SAMPLE = """graph sample(%logits: f32[r,4], %row: i64[b], %image: i64[r]) {
  %0 = gather(%logits, %row) {axis=0} : f32[b,4]
  %1 = argmax(%0) {axis=1} : i64[b]
  %2 = gather(%1, %image) {axis=0} : i64[r]
  return token=%1, rows=%2
}"""


def test_the_step_ends_in_the_sampler(golden):
    p = of(STEP.format("g"), SAMPLE, steps="1 x 1 : g sample")
    new = run(p, [FuseSampling()])
    assert str(new) == golden
    assert run(new, [FuseSampling()]) is new


def test_each_caller_gets_its_own():
    two = "1 x 1 : g sample\n  steps 1 x 1 : h sample"
    text = str(of(STEP.format("g"), STEP.format("h"), SAMPLE)).replace("1 x 1 : g", two)
    new = run(parse_program(text.replace("positions=1", "positions=2")), [FuseSampling()])
    assert [g.name for g in new.graphs] == ["g", "h"]
    assert all(g.result("token") and g.result("logits") for g in new.graphs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_same_tokens(temperature):
    p = llama(1)
    new = run(p, [FuseSampling()])
    a, b = generate(p, temperature=temperature), generate(new, temperature=temperature)
    assert (a.tokens == b.tokens).all()
    assert np.allclose([c for c, _ in a.logits], [c for c, _ in b.logits], atol=1e-6)


def test_another_call_is_an_option():
    p = of(STEP.format("g"), SAMPLE.replace("sample", "pick"), steps="1 x 1 : g pick")
    assert run(p, [FuseSampling()]) is p
    assert "pick" not in str(run(p, [FuseSampling(call="pick")]))


@pytest.mark.parametrize(
    ("steps", "old", "why"),
    [
        ("1 x 1 : g sample g", "", "g also runs without it"),
        ("1 x 1 : g sample\n  finish sample", "", "the prompt or the finish calls it"),
        ("1 x 1 : g sample sample", "", "a step calls it first, or twice in a row"),
        ("1 x 1 : g/each sample", "", "g/each or sample is not a plain call"),
        ("1 x 1 : g sample", "%logits: f32[r,4]", "g has logits as f32[r,4], not f32[rows,4]"),
    ],
)
def test_refuses(steps, old, why, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    sample = SAMPLE.replace(old, old.replace("[r,", "[rows,")) if old else SAMPLE
    p = of(STEP.format("g"), sample, steps=steps)
    assert run(p, [FuseSampling()]) is p
    assert f"miss fuse-sampling at sample: {why}" in capsys.readouterr().err
