"""Policies of keeping slots, on a small model of scales and a small raster model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import tiny_scales
from tiny import generate, llama, ops, ranges_file, weights
from tiny_scales import COUNTS, NORMAL, SLOTS, close, logits, rows, scales, shrink

from arcompile.calibrate import attending
from arcompile.errors import ArcError
from arcompile.ir import Graph, dce, evaluate
from arcompile.ops import kv
from arcompile.passes.eviction import Group, by_step, caches
from arcompile.passes.kv_hack import Hack, contextual
from arcompile.passes.kv_scale import Scale
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program
from arcompile.target import TARGETS
from arcompile.weights import Store

SCALES = ("kv-hack", "kv-scale", "kv-streaming", "kv-snap", "kv-h2o", "kv-pyramid")
RASTER = ("kv-rows", "kv-streaming", "kv-snap", "kv-h2o", "kv-pyramid")


def cache_bytes(p, rows=2):
    return sum(t.nbytes({"r": rows, "b": 1}) for k, t in p.state if k[0] in "kv")


@pytest.fixture(scope="module")
def of_scales():
    p = scales()
    p.verify()
    return p, weights(p)


@pytest.fixture
def calibrated(tmp_path):
    """Heads 1 and 2 of the first layer and all of the second look everywhere alike."""
    return ranges_file(tmp_path / "r.safetensors", {
        "layer.0.head_spread": np.array([5.0, 0.2, 0.3, 4.0]),
        "layer.1.head_spread": np.array([0.1, 0.4, 0.6, 0.5])})


# --- the identity, and what is exact -------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCALES, "kv-rows"])
def test_nothing_goes_at_ratio_0(name, of_scales):
    p = llama() if name == "kv-rows" else of_scales[0]
    assert shrink(p, f"{name}{{ratio=0}}") is p


@pytest.mark.parametrize("name", SCALES)
def test_what_no_step_reads_again_costs_nothing(name, of_scales):
    """Small ratios drop only what the last step would store: the caches shrink, tokens stay."""
    p, source = of_scales
    new = shrink(p, f"{name}{{ratio=0.1}}")
    assert cache_bytes(new) <= 0.9 * cache_bytes(p)
    (t1, l1), (t2, l2) = logits(p, source), logits(new, source)
    assert (t1 == t2).all()
    assert close(l1, l2)


def test_heads_in_another_order_are_the_same(of_scales):
    """Permuted in the weights, behind a norm and a factor per head, and back in the product."""
    p, source = of_scales
    c = caches(p, "it", 0.1)
    full = (SLOTS,) * len(COUNTS)
    orders = [((3, 1), (0, 2)), ((2,), (1, 3, 0))]  # of each group, by layer
    new = by_step(c, "it", [Group(tuple(o[k] for o in orders), full) for k in range(2)])
    new.verify()
    step = new.graph("step")
    assert ops(step).count("kv_attend") == 4
    assert not {"gather", "slice"} & {n.op for n in step.nodes}  # all of it is in the weights
    (t1, l1), (t2, l2) = logits(p, source), logits(new, source)
    assert (t1 == t2).all()
    assert close(l1, l2)


# --- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_hack_keeps_to_its_budgets(ratio, of_scales, calibrated):
    p, source = of_scales
    each = Hack(ratio=ratio, ranges=calibrated)
    new = run(p, [each])
    assert cache_bytes(new) <= (1 - ratio) * cache_bytes(p)
    few, many = each.budgets(caches(p, "it", ratio), 0.5)
    assert (few + many) / 2 <= SLOTS * (1 - ratio)
    for s, after in pairwise(new.steps):
        told, then = dict(s.set), dict(after.set)
        assert told["keep0"] <= few
        assert told["keep1"] <= many
        assert {then["held0"], then["held1"]} <= {told["keep0"], told["keep1"]}
    sizes = {k: t.shape for k, t in new.state}
    assert sizes["k0.0"][1] == 2  # heads 1 and 2
    assert sizes["k0.0"][2] <= few
    assert generate(new, source, finish=False).tokens.shape == (2, SLOTS)


def test_hack_keeps_first_scales_and_the_last_one(of_scales, monkeypatch):
    """Whatever the queries say: seen from the order that the op asks for."""
    p, source = of_scales
    seen = []
    real = kv.order

    def order(score, first, recent):
        best = real(score, first, recent)
        seen.append((score.shape[-1], first, recent, best))
        return best

    monkeypatch.setattr(kv, "order", order)
    new = shrink(p, "kv-hack{ratio=0.6}")
    generate(new, source, finish=False)
    keep = int(SLOTS * 0.4)
    dropped = [x for x in seen if x[0] > keep and x[2] < COUNTS[-1]]  # the last keeps nothing
    assert dropped
    for t, first, recent, best in dropped:
        assert (first, recent) == (5, 16)
        must = {*range(first), *range(t - recent, t)}
        for row in best.reshape(-1, t):
            assert must <= set(row[:keep].tolist())


def test_planted_heads_are_told_apart():
    """Stripes vary little from query to query, diagonals much: by calibrate's own figure."""
    p = scales(layers=1)
    q = np.eye(4, dtype=np.float32)
    n = COUNTS[-1]
    ks = np.zeros((1, 4, SLOTS, 4), np.float32)
    ks[0, 0, 7] = ks[0, 2, 3] = 40  # heads 0 and 2: one key draws all
    at = np.arange(SLOTS) % 4
    ks[0, 1] = ks[0, 3] = 8 * q[at]  # heads 1 and 3: keys like the query
    x = np.tile(q[np.arange(n) % 4][None, :, None], (1, 1, 4, 1)).reshape(1, n, 16)
    found = looked(p, x, ks, SLOTS - n)["head_spread"]
    assert contextual([found.tolist()], 0.5) == ((0, 2),)


def looked(p, x, keys, past):
    """What calibrate notes of the attention of a layer, for queries x over a cache of keys."""
    g = attending(p.graph("step"))
    node = next(n for n in g.nodes if n.op == "attention")
    behind = g.nodes[g.nodes.index(node) + 1 :]
    told = [(k.split(".")[-1], v) for k, v in g.results if k.startswith("seen.")]
    args = (*node.args[:2], node.args[3])
    tail = dce(Graph("g", args, behind, tuple(told)))
    given = zip(args, (x, keys, np.full(1, past, np.int32)), strict=True)
    return {k: v[0] for k, v in evaluate(tail, {a.name: v for a, v in given}).items()}


def test_planted_layers_are_told_apart():
    """One that stays with the scale that is drawn and one slot before it, and one that looks at
    all there is: the latter's index is the lower. Slots that are not filled yet draw nobody."""
    p = scales(layers=1)
    n, past = COUNTS[-2], sum(COUNTS[:-2])
    x = np.ones((1, n, 16), np.float32)
    found = []
    for stays in (True, False):
        ks = np.zeros((1, 4, SLOTS, 4), np.float32)
        ks[:, :, past + n :] = 50  # not filled
        if stays:
            ks[:, :, 3] = 3.0
            ks[:, :, past : past + n] = 1.5
        found.append(float(looked(p, x, ks, past)["selectivity"]))
    top = SLOTS // 16
    assert np.isclose(found[1], n / (past + n) * top / (past + n))
    e = np.exp([2 * 3.0, 2 * 1.5, 0])  # of scale 0.5 over 4 channels
    total = e[0] + n * e[1] + (past - 1) * e[2]
    assert np.isclose(found[0], n * e[1] / total * (e[0] + (top - 1) * e[2]) / total, rtol=1e-5)
    assert found[0] > 2 * found[1]


def test_calibration_of_another_model_is_refused(of_scales, tmp_path):
    wrong = ranges_file(tmp_path / "r.safetensors", {"layer.0.head_spread": np.ones(4)})
    with pytest.raises(ArcError, match="knows the heads of 1 attentions"):
        run(of_scales[0], [Hack(ranges=wrong)])


@pytest.fixture
def indices(tmp_path):
    """Of scales of 1, 4, 9, 16, 25: layer 1 drafts the fourth and the fifth, if any."""
    return ranges_file(tmp_path / "s.safetensors", {
        "layer.0.selectivity": np.array([0, 0.2, 0.3, 0.8, 0.9]),
        "layer.1.selectivity": np.array([0, 0.2, 0.3, 0.1, 0.2])})


@pytest.mark.parametrize("ratio", [0.6, 0.7, 0.8])
def test_scale_keeps_to_its_budgets(ratio, of_scales, indices):
    p, source = of_scales
    each = Scale(ratio=ratio, ranges=indices, share=0.5)
    c = caches(p, "it", ratio)
    full = [n > (1 - ratio) * SLOTS for n in (0, 1, 5, 14, 30)]
    assert each.roles(c) == tuple(frozenset({1}) if goes else frozenset() for goes in full)
    new = run(p, [each])
    assert 0.9 < cache_bytes(new) / cache_bytes(p) / (1 - ratio) <= 1 + 1e-9
    refiner, drafter = (dict(new.state)[k].shape[2] for k in ("k0", "k1"))
    assert refiner < drafter
    assert generate(new, source, finish=False).tokens.shape == (2, SLOTS)


def test_refiners_lose_from_scale_to_scale_what_drafters_get(of_scales, indices):
    c = caches(of_scales[0], "it", 0.8)
    each = Scale(ratio=0.8, ranges=indices, share=0.5, fall=0.1)
    refiner, drafter = each.budgets(c, each.roles(c))
    assert refiner[1] > refiner[2] > refiner[3]
    assert {a + b for a, b in zip(refiner, drafter, strict=True)} == {2 * refiner[1]}


def test_drafters_leave_what_they_cannot_use(of_scales, indices):
    """Where a drafter keeps all there is, refiners have the rest."""
    c = caches(of_scales[0], "it", 0.5)
    each = Scale(ratio=0.5, ranges=indices, share=0.5, fall=0.2)
    refiner, drafter = each.budgets(c, each.roles(c))
    assert drafter[3] == c.history
    assert refiner[3] + drafter[3] == 2 * refiner[0] > 2 * 0.2 * refiner[0] + drafter[3]


def test_without_indices_all_layers_are_alike(of_scales):
    new = shrink(of_scales[0], "kv-scale{ratio=0.6}")
    assert {t.shape[2] for k, t in new.state} == {int(SLOTS * 0.4)}


@pytest.mark.parametrize(("layers", "steps", "said"), [
    (1, 5, "knows 1 attentions in 5 steps, not 2 in 5"), (2, 3, "knows 2 attentions in 3 steps")])
def test_indices_of_another_model_are_refused(layers, steps, said, of_scales, tmp_path):
    wrong = ranges_file(tmp_path / "r.safetensors", {
        f"layer.{i}.selectivity": np.ones(steps) for i in range(layers)})
    with pytest.raises(ArcError, match=said):
        run(of_scales[0], [Scale(ranges=wrong)])


# --- raster --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_rows():
    p = rows()
    return p, weights(p)


@pytest.mark.parametrize("name", RASTER)
def test_raster_caches_shrink_and_never_overflow(name, of_rows):
    p, source = of_rows
    p = run(p, parse_pipeline(NORMAL))
    options = "ratio=0.2,latest=1" if name == "kv-rows" else "ratio=0.4"
    options += ",sinks=1" if name == "kv-streaming" else ""
    new = shrink(p, f"{name}{{{options}}}")
    assert cache_bytes(new) <= (0.8 if name == "kv-rows" else 0.6) * cache_bytes(p)
    drops = [sum(c.graph.startswith("drop") for c in s.calls) for s in new.steps]
    assert sum(drops)
    assert not drops[-1]
    found = generate(new, source, finish=False)  # cache_append raises where there is no room
    assert (found.tokens >= 0).all()
    assert str(parse_program(str(new))) == str(new)


def test_raster_is_exact_until_something_goes(of_rows):
    p, source = of_rows
    new = shrink(p, "kv-snap{ratio=0.4}")
    first = next(i for i, s in enumerate(new.steps) if any(c.graph == "drop0" for c in s.calls))
    a, b = (generate(x, source, finish=False) for x in (p, new))
    assert close([x for x, _ in a.logits][: first + 1], [x for x, _ in b.logits][: first + 1])
    assert not close([x for x, _ in a.logits], [x for x, _ in b.logits], 1e-3)


def test_slots_filled_are_counted(of_rows):
    new = shrink(of_rows[0], "kv-rows{ratio=0.2,latest=1}")
    size = dict(new.state)["k0"].shape[2]
    assert size == 13  # the prompt, and three rows
    held = 0
    for s in new.steps:
        assert dict(s.set)["held0"] == held
        held += 1
        held -= 4 * sum(c.graph == "drop0" for c in s.calls)
        assert held <= size


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "said"), [
    ("kv-hack{ratio=1}", "ratio must be from 0 to less than 1, got 1.0"),
    ("kv-snap{ratio=-0.1}", "ratio must be"),
    ("kv-hack{ratio=0.95}", "leaves"),
    ("kv-hack{few=2.0}", "few and share are shares"),
    ("kv-scale{ratio=0.99}", "leaves 0 of 55 slots a layer"),
    ("kv-scale{share=1.0}", "share and fall are shares"),
    ("kv-scale, kv-hack", "needs whole caches, and kv-scale changed"),
    ("kv-snap{ratio=0.5}, kv-h2o{ratio=0.5}", "needs whole caches, and kv-snap changed"),
    ("kv-rows{ratio=0.3}", "needs rows"),
    ("kv-pyramid{beta=0.5}", "beta must be 1 or more"),
])
def test_refused_on_scales(passes, said, of_scales):
    with pytest.raises(ArcError, match=said) as e:
        shrink(of_scales[0], passes)
    assert e.value.hint


@pytest.mark.parametrize(("passes", "said"), [
    ("kv-hack", "needs scales"),
    ("kv-scale", "needs scales"),
    ("kv-rows{ratio=0.9}", "are always kept"),
    ("kv-rows{latest=0}", "0 latest rows"),
    ("kv-streaming{row=99}", "row must be from 1"),
    ("kv-snap{ratio=0.3}, sjd{window=3}", "needs whole caches, and kv-snap drops"),
    ("sjd{window=3}, kv-snap{ratio=0.3}", "a rejected draft"),
    ("kv-snap{ratio=0.3}, zipar{window=2}", "needs whole caches"),
])
def test_refused_on_rows(passes, said, of_rows):
    p = run(of_rows[0], parse_pipeline(f"{NORMAL}, fuse-sampling"))
    with pytest.raises(ArcError, match=said) as e:
        shrink(p, passes)
    assert e.value.hint


def told(p):
    """What a policy says in a program, and the step's ops of caches."""
    lines = [x for x in str(p).splitlines() if x.startswith(("program", "  cache", "  state",
                                                             "  steps"))]
    step = [x for x in str(p.graph("step")).splitlines() if "kv_" in x or "return" in x]
    return "\n".join([*lines, *step])


def test_golden(golden):
    assert told(shrink(tiny_scales.scales(layers=1), "kv-hack{ratio=0.5}")) == golden


def test_golden_scale(golden, of_scales, indices):
    assert told(run(of_scales[0], [Scale(ratio=0.7, ranges=indices, share=0.5)])) == golden


@pytest.mark.ort
def test_onnx_runtime_takes_nodes_whose_origin_has_spaces(of_scales, tmp_path):
    """Names of nodes tell where they came from, `models/x.py:5 > rotary-attention`."""
    p, source = of_scales
    new = shrink(p, "kv-hack{ratio=0.5}").on_graphs(lambda g: replace(g, nodes=tuple(
        replace(n, origin=f"models/x.py:5 > a-pass/{n.op}") for n in g.nodes)))
    TARGETS["ort-cpu"].lower(new, Store(source, new.fold), tmp_path, lambda stage, share: None)
    opened = TARGETS["ort-cpu"].open(new, tmp_path, 1)
    for g in new.graphs:
        assert opened.session(g.name).inputs
