import numpy as np
import pytest
from tiny import GATED as G
from tiny import generate, inputs, llama, of, ranges_file, same, weights

from arcompile.calibrate import watched
from arcompile.errors import ArcError
from arcompile.ir import evaluate
from arcompile.passes.int8 import Int8
from arcompile.passes.smooth import Smooth
from arcompile.pipeline import parse_pipeline, run
from arcompile.weights import Store, used

NORMAL = "fold, simplify, cse, qkv, swiglu, residual-norm"


@pytest.fixture
def ranges(tmp_path):
    """What the graph above would have met; one channel stands out by far, one never speaks."""
    reach = np.array([1, 50, 0.5, 1, 0, 1, 2, 1])
    return ranges_file(tmp_path / "r.safetensors", {
        "q.input_max": reach, "k.input_max": reach, "down.input_max": np.arange(6) + 0.5})


def brought(p, path):
    return weights(p).plus(Smooth(ranges=path).brings().load)


def test_norms_and_gates(golden, ranges):
    p = of(G)
    new = run(p, [Smooth(ranges=ranges)])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    same(p, new, brought(p, ranges))


def test_outliers_cost_less_after_it(ranges):
    """With a loud channel, rounded products are nearer to the exact ones."""
    p = of(G)
    source = brought(p, ranges)
    loud = np.ones(8, np.float32)
    loud[1] = 50
    source = source.plus({"@n": lambda: loud})
    x = {"x": np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32)}
    want = evaluate(p.graphs[0], x, Store(source))["a"]
    off = []
    for passes in ([Int8(least=0)], [Smooth(ranges=ranges), Int8(least=0)]):
        new = run(p, passes)
        found = evaluate(new.graphs[0], x, Store(source, new.fold))["a"]
        off.append(np.linalg.norm(found - want))
    assert off[1] < 0.7 * off[0]


def test_neutral_without_ranges():
    p = llama()
    assert run(p, [Smooth()]) is p


def test_the_whole_program(tmp_path):
    """Ranges taken from the very program; smoothing changes no token."""
    p = run(llama(), parse_pipeline(NORMAL))
    seen = {}
    store = Store(weights(llama()), p.fold)
    for g in p.graphs:
        out = evaluate(watched(g), inputs(g), store)
        seen |= {k.removeprefix("seen."): v for k, v in out.items() if k.startswith("seen.")}
    assert len(seen) == 2 * len({n.args[1] for g in p.graphs for n in g.nodes if n.op == "matmul"})
    path = ranges_file(tmp_path / "r.safetensors", seen)
    new = run(p, [Smooth(ranges=path)])
    changed = used(new.graphs).keys() - used(p.graphs).keys()
    assert len(changed) >= 2 * 4  # of both layers: two norms and what reads them, at least
    source = weights(llama()).plus(Smooth(ranges=path).brings().load)
    was, now = generate(p, source), generate(new, source)
    assert (was.tokens == now.tokens).all()
    assert np.allclose(was.logits, now.logits, atol=1e-4)


@pytest.mark.parametrize(("arrays", "why"), [
    ({"q.input_max": np.ones(5)}, "is of another model: q.input_max has 5 numbers"),
    ({"z.input_max": np.ones(8)}, "is of another model: it knows none of the weights here"),
    ({"q.other": np.ones(8)}, "holds no ranges"),
    ({"q.input_max": np.full(8, np.nan)}, "holds no ranges: q.input_max is broken"),
])
def test_refuses_other_files(arrays, why, tmp_path):
    path = ranges_file(tmp_path / "r.safetensors", arrays)
    with pytest.raises(ArcError, match=why):
        run(of(G), [Smooth(ranges=path)])


def test_a_build_knows_the_file_by_its_content(tmp_path):
    """Not by its name, which is all that the pass's text has."""
    marks = [Smooth(ranges=ranges_file(tmp_path / "r.safetensors", {"q.input_max": np.ones(n)}))
             .reads() for n in (8, 9)]
    assert len(set(marks)) == 2
    assert Smooth().reads() == ()


def test_bad_options(tmp_path):
    with pytest.raises(ArcError, match="cannot read ranges"):
        run(of(G), [Smooth(ranges=str(tmp_path / "none.safetensors"))])
    with pytest.raises(ArcError, match="alpha must be from 0 to 1"):
        run(of(G), [Smooth(ranges="x", alpha=1.5)])


@pytest.mark.parametrize(("old", "new", "why"), [
    ("%2 = matmul(%0, @k) : f32[b,4]", "%9 = exp(%0) : f32[b,8]\n  %2 = matmul(%9, @k) : f32[b,4]",
     "exp reads it, not a product by a weight"),
    ("a=%1", "a=%0", "it is a result of the graph"),
    ("rms_norm(%x, @n)", "rms_norm(%x)", "the norm has no weight to divide"),
])
def test_leaves(old, new, why, ranges, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    p = of(G.replace(old, new))
    same(p, run(p, [Smooth(ranges=ranges)]), brought(p, ranges))
    assert f"miss smooth at %0: {why}" in capsys.readouterr().err
