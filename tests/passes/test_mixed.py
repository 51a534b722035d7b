import json

import numpy as np
import pytest
from tiny import llama, of, ops, weights

from arcompile.passes import mixed
from arcompile.passes.fold import Fold
from arcompile.passes.linears import weights_of
from arcompile.passes.mixed import Mixed, _runs, estimate, rows
from arcompile.pipeline import run
from arcompile.weights import used

G = """graph g(%x: f32[b,{rows},256]) {{
  @w : f32[256,256]
  @v : f32[256,256]
  %0 = matmul(%x, @w) : f32[b,{rows},256]
  %1 = matmul(%0, @v) : f32[b,{rows},256]
  return y=%1
}}"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Groups of 4 bits are quickest up to 8 rows, integers beyond; f32 never."""
    us = {"f32": [[100.0, 800.0]], "int8": [[40.0, 40.0]], "int8-128": [[30.0, 400.0]],
          "int4-128": [[10.0, 220.0]]}
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": [1, 8], "shapes": [[256, 256]], "us": us}))
    monkeypatch.setattr(mixed, "TABLE", path)
    mixed.table.cache_clear()
    yield
    mixed.table.cache_clear()


@pytest.mark.parametrize(("count", "form"), [(1, "matmul_blocks"), (4, "matmul_int8")])
def test_few_rows_take_groups_and_many_integers(table, count, form):
    p = of(G.format(rows=count))
    new = run(p, [Mixed()])
    assert set(ops(new.graph("g"))) - {"quantize_rows"} == {form}
    assert run(new, [Mixed()]) is new


def test_a_batch_is_more_rows(table):
    new = run(of(G.format(rows=1)), [Mixed(batch=4)])
    assert "matmul_int8" in ops(new.graph("g"))


def test_what_four_bits_cannot_say_takes_eight_or_stays(table):
    p = of(G.format(rows=1))
    rough = np.full((256, 256), 0.004, np.float32)
    rough[::64] = 1.0  # nothing of the others is left at 4 bits, half of them at 8
    fine = np.tile(np.linspace(-1, 1, 256, dtype=np.float32), (256, 1)).T.copy()
    source = weights(p).plus({"@w": lambda: rough, "@v": lambda: fine})
    done = []
    new = run(p, [Mixed(bound=0.02)], source, done)
    assert str(done[0]) == "mixed{bound=0.02,skip='w',eight='w v'}"
    assert ops(new.graph("g")) == ["matmul", "matmul_blocks"]
    assert {n.attrs["bits"] for n in new.graph("g").nodes if n.op == "matmul_blocks"} == {8}
    assert "@w" in used(new.graphs)


def test_the_estimate_is_straight_between_points(table):
    assert estimate("f32", 1, 256, 256) == 100
    assert estimate("f32", 8, 256, 256) == 800
    assert estimate("f32", 4, 256, 256) == 400
    assert estimate("f32", 16, 256, 512) == 2 * 1600


def test_the_shipped_table_is_whole():
    t = mixed.table()
    for form in ("f32", *mixed.FORMS):
        assert len(t["us"][form]) == len(t["shapes"])
        assert all(len(line) == len(t["rows"]) and min(line) > 0 for line in t["us"][form])
    for k, n in ((768, 2304), (1024, 4096), (4096, 4096)):
        times = [estimate("int8", r, k, n) for r in (1, 64, 512, 1024)]
        assert times[1] < times[2] < times[3]


def test_counts_the_runs_of_the_loop():
    """Of the tiny decoder: two rows a guided image, in each of 4 steps."""
    p = Fold()(llama())
    head = next(u for w, u in weights_of(p).items() if w.name == "@head.T")
    assert rows(head, _runs(p, 1)) == {2: 4}
    assert rows(head, _runs(p, 3)) == {6: 4}
