import numpy as np
import pytest
from tiny import inputs, of, same, weights

from arcompile.ir import evaluate
from arcompile.passes.rotary_attention import RotaryAttention
from arcompile.pipeline import run

G = """graph g(%q: f32[r,s,16], %k: f32[r,s,8], %v: f32[r,s,8], %past: i32[r], %at: i64[r,s],
 %keep: bool[r,5], %bias: f32[1,4,s,5], %kc: f32[r,2,5,4], %vc: f32[r,2,5,4], %other: i32[r]) {
  @cos : f32[5,2]
  @sin : f32[5,2]
  @tan : f32[5,2]
  %0 = rope(%q, @cos, @sin, %past) {heads=4, interleaved=True} : f32[r,s,16]
  %1 = rope(%k, @cos, @sin, %past) {heads=2, interleaved=True} : f32[r,s,8]
  %2 = cache_append(%kc, %1, %past) : f32[r,2,5,4]
  %3 = cache_append(%vc, %v, %past) : f32[r,2,5,4]
  %4 = attention(%0, %2, %3, %past) {extra=('past',), heads=4, kv_heads=2, scale=0.5} : f32[r,s,16]
  return y=%4, kc=%2, vc=%3
}""".replace(",\n", ",")


def test_one_op_with_both_caches(golden):
    p = of(G)
    new = run(p, [RotaryAttention()])
    same(p, new)
    assert str(new.graph("g")) == golden
    assert run(new, [RotaryAttention()]) is new


def test_keep_and_mask_come_along():
    text = G.replace("%3, %past) {extra=('past',)", "%3, %keep, %past) {extra=('keep', 'past')")
    p = of(text.replace("scale=0.5", "mask='causal', scale=0.5"))
    new = run(p, [RotaryAttention()])
    same(p, new)
    assert "@sin, %keep) {heads=4, interleaved=True, kv_heads=2, mask='causal'" in str(new)


PAST = "%past) {extra=('past',)"


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("%1 = rope(%k, @cos, @sin", "%1 = rope(%k, @cos, @tan", "turn by different tables"),
        ("append(%vc, %v, %past)", "append(%vc, %v, %other)", "start at different slots"),
        ("@sin, %past) {heads=4", "@sin, %at) {heads=4", "the rotation takes explicit rows"),
        (PAST, "%past, %bias) {extra=('past', 'bias')", "the attention adds a bias"),
        (", " + PAST, ") {extra=()", "the attention has no past"),
        ("{heads=2, interleaved=True}", "{heads=2, interleaved=False}", "pair their halves"),
        ("{heads=2, interleaved=True}", "{heads=1, interleaved=True}", "count heads differently"),
        ("return y=%4,", "return y=%4, k=%1,", "%1 is read elsewhere"),
        ("  return y", "  %5 = neg(%2) : f32[r,2,5,4]\n  return z=%5, y", "%2 is read elsewhere"),
    ],
)
def test_refuses(old, new, why, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    assert old in G
    text = G.replace(old, new)
    if "heads=1" in new:  # two rows of tables then
        text = text.replace("f32[5,2]", "f32[5,4]").replace("heads=4, i", "heads=2, i")
    p = of(text)
    p.verify()
    assert RotaryAttention()(p) is p
    told = capsys.readouterr().err
    assert told.startswith("miss rotary-attention at %4: ")
    assert why in told


def test_plain_attention_is_no_near_miss(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of("""graph g(%q: f32[r,s,8], %k: f32[r,s,8]) {
  %0 = attention(%q, %k, %k) {heads=2, kv_heads=2, scale=0.5} : f32[r,s,8]
  return y=%0
}""")
    assert RotaryAttention()(p) is p
    assert "miss" not in capsys.readouterr().err


def test_caches_carry_on():
    """Two steps of the fused graph fill the caches that two steps of the plain one fill."""
    p, sizes = of(G), {"r": 2, "s": 1}
    both = []
    for q in (p, run(p, [RotaryAttention()])):
        env, w = inputs(q.graph("g"), sizes), weights(p)
        for past in (0, 1):
            env["past"] = np.full(2, past, np.int32)
            env |= evaluate(q.graph("g"), env, w)
        both.append(env)
    assert all(np.allclose(both[0][k], both[1][k], atol=1e-6) for k in ("y", "kc", "vc"))
