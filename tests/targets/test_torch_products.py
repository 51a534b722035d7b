"""Products of few rows as one call: which nodes it takes, and that it computes the same."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from arcompile.ir import evaluate
from arcompile.targets import torch_kernels, torch_products

torch = pytest.importorskip("torch")
from arcompile.targets.torch_plan import Plan  # noqa: E402

LAYER = """graph g(%x: f16[r,s,16], %o: f16[r,s,8]) {
  @n : f16[16]
  @wo : f16[8,16]
  @w1 : f16[16,24]
  @w3 : f16[16,24]
  @w2 : f16[24,16]
  @last : f16[16]
  @head : f16[16,40]
  %0 = matmul(%o, @wo) : f16[r,s,16]
  %1 = add(%x, %0) : f16[r,s,16]
  %2 = rms_norm(%1, @n) {eps=1e-05} : f16[r,s,16]
  %3 = matmul(%2, @w1) : f16[r,s,24]
  %4 = matmul(%2, @w3) : f16[r,s,24]
  %5 = swiglu(%3, %4) : f16[r,s,24]
  %6 = matmul(%5, @w2) : f16[r,s,16]
  %7 = add(%1, %6) : f16[r,s,16]
  %8 = rms_norm(%7, @last) {eps=1e-05} : f16[r,s,16]
  %9 = matmul(%8, @head) : f16[r,s,40]
  return y=%9
}"""


def graph(text):
    return tiny.of(text).graphs[0]


def calls(text):
    g = graph(text)
    return [(c.op, *(c.run.keywords["names"] if c.run else ())) for c in
            torch_kernels.fused(g, g.nodes)]


def test_a_layer_is_four_calls():
    assert calls(LAYER) == [("few_linear", "y"), ("few_linear", "up", "weight"),
                            ("few_linear", "y"), ("few_linear", "weight")]


@pytest.mark.parametrize("rows", [1, 3, 8, 11])
def test_the_same_numbers(rows, monkeypatch):
    """By our kernel up to 8 rows, by torch beyond."""
    g, rng = graph(LAYER), np.random.default_rng(rows)
    held = {w.name: (rng.standard_normal(w.type.shape) / 4).astype(np.float16) for w in g.weights}
    given = {"x": rng.standard_normal((rows, 1, 16)).astype(np.float16),
             "o": rng.standard_normal((rows, 1, 8)).astype(np.float16)}
    want = evaluate(g, given, held)["y"]
    taken, best = [], torch_kernels.best

    def found(name, *a, **k):
        run = best(name, *a, **k)
        taken.append(name if run else "")
        return run

    monkeypatch.setattr(torch_kernels, "best", found)
    columns = torch_products.columns([g])
    assert columns == {"@wo", "@w1", "@w3", "@w2", "@head"}
    tensors = {k: torch.from_numpy(v) for k, v in held.items()}
    tensors |= {k: tensors[k].t().contiguous().t() for k in columns}
    plan = Plan(g, tensors, "cpu", True, frozenset())
    got = plan.run({k: torch.from_numpy(v) for k, v in given.items()})["y"]
    assert np.abs(got.float().numpy() - want).max() <= 0.02 * np.abs(want).max()
    assert taken.count("few_linear") == (4 if rows <= 8 else 0)


@pytest.mark.parametrize(("line", "instead", "want"), [
    ("return y=%9", "return y=%9, n=%2",  # the norm is a result
     [("few_linear", "y"), ("rms_norm",), ("few_linear", "up"), ("few_linear", "y"),
      ("few_linear", "weight")]),
    ("return y=%9", "return y=%9, m=%3",  # half of a gate is
     [("few_linear", "y"), ("rms_norm",), ("few_linear",), ("few_linear",), ("swiglu",),
      ("few_linear", "y"), ("few_linear", "weight")]),
    ("return y=%9", "return y=%9, m=%6",  # the product is
     [("few_linear", "y"), ("few_linear", "up", "weight"), ("few_linear",), ("add",),
      ("few_linear", "weight")]),
    ("%7 = add(%1, %6)", "%7 = add(%6, %6)",  # nothing else is added
     [("few_linear", "y"), ("few_linear", "up", "weight"), ("few_linear",), ("add",),
      ("few_linear", "weight")])])
def test_what_others_read_is_left(line, instead, want):
    assert calls(LAYER.replace(line, instead)) == want


def test_tables_keep_their_rows():
    """A weight that is looked up as well stays as it is, in whichever graph that is."""
    look = graph("""graph h(%t: i64[b]) {
  @head : f16[16,40]
  %0 = gather(@head, %t) {axis=0} : f16[b,40]
  return y=%0
}""")
    for graphs in ([graph(LAYER), look], [look, graph(LAYER)]):
        assert "@head" not in torch_products.columns(graphs)
    assert "@head" in torch_products.columns([graph(LAYER)])


def test_single_precision_is_left():
    assert calls(LAYER.replace("f16", "f32"))[0] == ("matmul",)
