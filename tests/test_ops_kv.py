"""What the ops of shrinking caches mean: against plain loops, and as ONNX nodes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from arcompile.errors import IRError
from arcompile.ir import Builder, Type, evaluate
from arcompile.ops import kv
from arcompile.targets.onnx_emit import emit

RNG = np.random.default_rng(0)
R, H, G, E, C, S = 2, 4, 2, 3, 6, 5  # rows, heads, of keys, head size, slots, query slots
HOW = {"heads": H, "kv_heads": G, "scale": 0.5}


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def operands(s=S, held=4, keep=5):
    return {"q": f32(R, s, H * E), "k": f32(R, s, G * E), "v": f32(R, s, G * E),
            "kc": f32(R, G, C, E), "vc": f32(R, G, C, E), "held": np.array(held),
            "keep": np.array(keep)}


def graph(op, x, names, results, attrs):
    """One op over named operands, whose number of query slots is symbolic."""
    b = Builder("g")
    kinds = {"float32": "f32", "int64": "i64", "int32": "i32"}

    def shape(name):
        dims = list(x[name].shape)
        if name in ("q", "k", "v"):
            dims[:2] = ["r", "s"]
        elif dims:
            dims[0] = "r"
        return tuple(dims)

    params = [b.param(n, Type(kinds[str(x[n].dtype)], shape(n))) for n in names]
    return b.graph(**dict(zip(results, b.emit(op, *params, **attrs), strict=True)))


def run(op, x, names, results, **attrs):
    """By numpy and by ONNX Runtime, which must agree."""
    ort = pytest.importorskip("onnxruntime")
    g = graph(op, x, names, results, attrs)
    x = {n: x[n] for n in names}
    want = evaluate(g, x)
    made = ort.InferenceSession(emit(g, {}), providers=["CPUExecutionProvider"])
    outs = made.run([f"out.{n}" for n in results], x)
    for name, found in zip(results, outs, strict=True):
        np.testing.assert_allclose(found, want[name], atol=2e-6, err_msg=name)
    return want


def kept(cache, keys):
    """The places of a cache's slots among keys, by value: [g][..]."""
    return [[int(np.flatnonzero((keys[h] == slot).all(-1))[0]) for slot in cache[h]]
            for h in range(len(cache))]


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("held", [0, 4])
def test_attention_is_that_of_one_long_cache(mask, held):
    x = operands(held=held)
    out = run("kv_attend", x, ["q", "k", "v", "kc", "vc", "held"], ["y"], **HOW, mask=mask)["y"]
    keys, values = (kv.joined(x[c], x[n], held) for c, n in (("kc", "k"), ("vc", "v")))
    for r in range(R):
        for h in range(H):
            for i in range(S):
                last = held + i + 1 if mask == "causal" else held + S
                g = h // (H // G)
                a = np.exp(x["q"][r, i, h * E : h * E + E] @ keys[r, g, :last].T * 0.5)
                want = a / a.sum() @ values[r, g, :last]
                assert np.allclose(out[r, i, h * E : h * E + E], want, atol=1e-5)


UPDATE = ["q", "k", "v", "kc", "vc", "held", "keep"]


def test_all_is_kept_where_there_is_room():
    x = operands(s=2, held=4, keep=6)
    out = run("kv_update", x, UPDATE, ["a", "b"], **HOW)
    assert (out["a"] == kv.joined(x["kc"], x["k"], 4)).all()
    assert (out["b"] == kv.joined(x["vc"], x["v"], 4)).all()


def test_nothing_is_kept_for_nobody():
    x = operands(keep=0)
    out = run("kv_update", x, UPDATE, ["a", "b"], **HOW)
    assert (out["a"] == x["kc"]).all()


@pytest.mark.parametrize("pool", [1, 3])
def test_the_best_are_kept_in_order_and_first_and_new_ones_before_all(pool):
    x = operands(s=2, held=6, keep=5)
    out = run("kv_update", x, UPDATE, ["a", "b"], **HOW, first=1, recent=-1, pool=pool)
    keys = kv.joined(x["kc"], x["k"], 6)
    worth = kv.pooled(kv.watched(x["q"][:, kv.observers(2, 32)], keys, H, 0.5, 8), pool)
    for r in range(R):
        for g, slots in enumerate(kept(out["a"][r, :, :5], keys[r])):
            assert slots == sorted(slots)
            assert {0, 6, 7} <= set(slots)
            best = 1 + np.argsort(-worth[r, g, 1:6], kind="stable")[:2]
            assert set(slots) == {0, 6, 7, *best.tolist()}


def test_new_slots_that_do_not_all_fit_are_the_best_of_them():
    x = operands(s=5, held=3, keep=4)
    out = run("kv_update", x, UPDATE, ["a", "b"], **HOW, first=2, recent=-1)
    for slots in kept(out["a"][0, :, :4], kv.joined(x["kc"], x["k"], 3)[0]):
        assert slots[:2] == [0, 1]
        assert set(slots[2:]) < {3, 4, 5, 6, 7}


def test_kept_sets_grow_with_the_budget():
    worth = f32(R, G, 20)
    for first, recent in ((0, 0), (3, 4)):
        best = kv.order(worth, first, recent)
        sets = [[set(best[r, g, :n].tolist()) for r in range(R) for g in range(G)]
                for n in range(21)]
        assert all(a < b for less, more in pairwise(sets)
                   for a, b in zip(less, more, strict=True))


def test_heads_do_not_know_their_places():
    """In another order, they keep the same."""
    x = operands(held=5, keep=4)
    turn = [1, 0]

    def turned(a, n):
        return a.reshape(R, -1, G, n // G * E)[:, :, turn].reshape(a.shape)

    y = {**x, "q": turned(x["q"], H), "k": turned(x["k"], G), "v": turned(x["v"], G),
         "kc": x["kc"][:, turn], "vc": x["vc"][:, turn]}
    a, b = (run("kv_update", z, UPDATE, ["a", "b"], **HOW, first=1) for z in (x, y))
    assert (a["a"][:, turn] == b["a"]).all()


def test_rows_can_go_by_the_scores_of_another():
    x = {**operands(held=6, keep=4), "image": np.array([0, 0])}
    out = run("kv_update", x, [*UPDATE, "image"], ["a", "b"], **HOW, extra=("image",))
    keys = kv.joined(x["kc"], x["k"], 6)
    assert kept(out["a"][0, :, :4], keys[0]) == kept(out["a"][1, :, :4], keys[1])


def test_dropped_slots_go_into_those_most_like_them():
    x = operands(s=2, held=4, keep=3)
    x["kc"][:, :, 3] = 2 * x["kc"][:, :, 0]  # alike but for its length
    x["q"][:] = 0  # all are worth the same, so the lower slots stay
    out = run("kv_update", x, UPDATE, ["a", "b"], **HOW, merge=6, first=3)
    goes = [3]
    unit = kv.joined(x["kc"], x["k"], 4)
    unit = unit / np.linalg.norm(unit, axis=-1, keepdims=True)
    for r in range(R):
        for g in range(G):
            goes = [int((unit[r, g, :3] @ unit[r, g, i]).argmax()) for i in (3, 4, 5)]
            assert goes[0] == 0
            values = kv.joined(x["vc"], x["v"], 4)[r, g]
            for j in range(3):
                group = [j, *(i for i, to in zip((3, 4, 5), goes, strict=True) if to == j)]
                assert np.allclose(out["b"][r, g, j], values[group].mean(0), atol=1e-6)
    late = run("kv_update", x, UPDATE, ["a", "b"], **HOW, merge=7, first=3)
    assert (late["b"][:, :, :3] == x["vc"][:, :, :3]).all()


def test_what_was_seen_adds_up():
    x = {**operands(s=2, held=5, keep=4), "seen": RNG.random((R, G, C)).astype(np.float32)}
    out = run("kv_update", x, [*UPDATE, "seen"], ["a", "b", "seen"], **HOW, extra=("seen",))
    keys = kv.joined(x["kc"], x["k"], 5)
    total = kv.watched(x["q"][:, kv.observers(2, 32)], keys, H, 0.5, 7)
    total[:, :, :5] += x["seen"][:, :, :5]
    for r in range(R):
        for g, slots in enumerate(kept(out["a"][r, :, :4], keys[r])):
            assert set(slots) == set(np.argsort(-total[r, g], kind="stable")[:4].tolist())
            assert np.allclose(out["seen"][r, g], [*total[r, g, slots], 0, 0], atol=1e-6)
    roomy = {**x, "held": np.array(2), "keep": np.array(4)}
    out = run("kv_update", roomy, [*UPDATE, "seen"], ["a", "b", "seen"], **HOW, extra=("seen",))
    assert (out["seen"][:, :, 4:] == 0).all()


def test_watching_ignores_empty_slots():
    x = {**operands(s=1, held=3), "seen": f32(R, G, C)}
    names = ["seen", "q", "kc", "held"]
    a = run("kv_watch", x, names, ["y"], heads=H, scale=0.5)["y"]
    x["kc"] = x["kc"].copy()
    x["kc"][:, :, 4:] = 9  # of nobody
    b = run("kv_watch", x, names, ["y"], heads=H, scale=0.5)["y"]
    assert (a == b).all()
    assert np.allclose((a - x["seen"]).sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("forget", [False, True])
def test_rows_are_dropped_whole(forget):
    seen = np.tile(np.array([0, 9, 9, 1, 1, 5, 0, 2, 2], np.float32), (R, G, 1))
    x = {"kc": f32(R, G, 9, E), "vc": f32(R, G, 9, E), "seen": seen}
    out = run("kv_drop", x, ["kc", "vc", "seen"], ["kc", "vc", "seen"], keep=7, first=1,
              recent=2, row=2, forget=forget)
    stay = [0, 1, 2, 5, 6, 7, 8]  # the row of 1 and 1 goes: that of 5 and 0 was seen more
    assert (out["kc"][:, :, :7] == x["kc"][:, :, stay]).all()
    assert (out["vc"][:, :, :7] == x["vc"][:, :, stay]).all()
    assert np.allclose(out["seen"][:, :, :7], 0 if forget else seen[:, :, stay])
    assert (out["seen"][:, :, 7:] == 0).all()


def test_the_latest_stay_where_nothing_was_seen():
    x = {"kc": f32(R, G, 6, E), "vc": f32(R, G, 6, E)}
    out = run("kv_drop", x, ["kc", "vc"], ["kc", "vc"], keep=4, first=1)
    assert (out["kc"][:, :, :4] == x["kc"][:, :, [0, 3, 4, 5]]).all()


@pytest.mark.parametrize(("attrs", "said"), [
    ({"keep": 9}, "cannot keep 9 of 9"), ({"keep": 0}, "cannot keep 0"),
    ({"keep": 6, "first": 1, "row": 2}, "in rows of 2"), ({"keep": 4, "pool": 2}, "cannot keep"),
])
def test_drops_that_cannot_be_are_refused(attrs, said):
    b = Builder("g")
    cache = [b.param(n, f"f32[r,{G},9,{E}]") for n in ("kc", "vc")]
    with pytest.raises(IRError, match=said):
        b.emit("kv_drop", *cache, **attrs)


def test_scores_that_are_not_known_are_refused():
    x = operands()
    with pytest.raises(IRError, match="by 'luck'"):
        graph("kv_update", x, UPDATE, ["a", "b"], {**HOW, "score": "luck"})
