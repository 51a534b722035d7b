"""Plans: what counts, how it grows, what is refused, and that it is what really gets allocated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
from tiny_scales import scales

from arcompile import choose
from arcompile.errors import MACHINE, ArcError
from arcompile.pipeline import parse_pipeline, run
from arcompile.plan import Memory, Plan, plan, read_bytes, read_plan, refuse
from arcompile.program import Call
from arcompile.runtime.runner import zeros
from arcompile.text import parse_graph
from arcompile.weights import Store, of_arrays, used

HERE = Memory(resident=100, arenas=True, in_place=True)
ONE = parse_graph("""graph g(%x: f32[b,8], %k: f32[b,4]) {
  %0 = neg(%x) : f32[b,8]
  %1 = reshape(%0) {shape=('b', 2, 4)} : f32[b,2,4]
  %2 = exp(%1) : f32[b,2,4]
  %3 = neg(%k) : f32[b,4]
  return y=%2, k=%3
}""")


def one():
    return tiny.of(str(ONE), state="  state k: f32[b,4]\n")


def test_what_counts():
    """Two of x, 0 and 2 are live at once, 32 bytes each; a reshape is no copy; states are apart."""
    found = plan(one(), HERE, batch=10)
    assert found == Plan(10, True, runtime=100, weights=0, state=160, activations=640, decoder=0,
                         pictures=0)
    assert found.total == 900
    assert plan(one(), replace(HERE, in_place=False), 10).state == 320


def test_the_most_at_once():
    """Caches and what makes pictures are not there together; the rest always is."""
    assert Plan(1, True, 1, 2, 400, 8, 16, 32).total == 1 + 2 + 8 + 400
    assert Plan(1, True, 1, 2, 4, 8, 16, 32).total == 1 + 2 + 8 + 16 + 32


def test_graphs_and_nodes_count():
    p = tiny.llama()
    plain, more = (plan(p, Memory(100, *x)).runtime for x in ((), (1000, 10)))
    ran = [g for g in p.graphs if g.name != "encode"]
    assert more - plain == 1000 * len(ran) + 10 * sum(len(g.nodes) for g in ran)


def test_what_pictures_are_made_of_stays():
    """A state that the finish reads is there while pictures are made."""
    g = str(ONE).replace("graph g", "graph paint").replace("y=%2, k=%3", "pixels=%2")
    p = replace(one(), graphs=(*one().graphs, parse_graph(g)), finish=(Call("paint"),))
    assert plan(p, HERE, 10).decoder == 640 + 160


def test_arenas_keep_and_others_do_not():
    p = tiny.llama()
    kept, freed = (plan(p, Memory(0, arenas=arenas, in_place=True)) for arenas in (True, False))
    assert freed.activations < kept.activations
    assert freed.decoder == kept.decoder > 0  # there is one graph


@pytest.mark.parametrize("guided", [True, False])
def test_any_batch_follows_from_one_and_two(guided):
    p = tiny.llama()
    first, second = (plan(p, HERE, b, guided) for b in (1, 2))
    for batch in (1, 2, 3, 7, 100):
        assert first.of(batch, second) == plan(p, HERE, batch, guided)


def test_bytes_are_those_that_are_allocated():
    p = run(tiny.llama(), parse_pipeline("fold, int8{least=0}"))
    found = plan(p, HERE, 3)
    sizes = p.sizes(3, 6)
    assert found.state == sum(
        zeros(t, sizes).nbytes for k, t in p.state if k != "unread")
    ran = [g for g in p.graphs if g.name != "encode"]
    store = Store(tiny.weights(tiny.llama()), p.fold)
    assert found.weights == sum(store[name].nbytes for name in used(ran))
    made = tiny.generate(p, cond=(1, 2, 0))
    assert found.pictures == made.env["pixels"].nbytes


def test_quantised_needs_less():
    need = [plan(run(wide()[0], parse_pipeline(x)), HERE).weights
            for x in ("fold", "int8", "int4", "int4{block=32}")]
    n = 512
    assert need == [n * n * 4, n * n + n * 4, n * n // 2 + n * n // 32, n * n // 2 + n * n // 8]


@pytest.mark.parametrize(("text", "want"), [
    ("4GiB", 4 * 2**30), ("600 MB", 600e6), ("1e9", 1e9), ("2G", 2e9), ("0.5 KiB", 512), ("7B", 7),
])
def test_amounts(text, want):
    assert read_bytes(text) == int(want)


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "4 GiBB", "1e999", "nanGB", "GiB"])
def test_amounts_that_are_none(text):
    with pytest.raises(ArcError, match="not an amount of memory"):
        read_bytes(text)


def test_refuses_what_does_not_fit():
    need = Plan(4, True, 10, 20, 130, 40, 50, 60)
    refuse(need, 10, 190)
    refuse(need, 0, None)  # the system does not tell
    with pytest.raises(ArcError, match="4 images would need 190 B more memory, and 189 B") as e:
        refuse(need, 10, 189)
    assert e.value.code == MACHINE
    assert e.value.hint


def test_reads_what_was_written():
    need = Plan(2, False, 10, 20, 30, 40, 50, 60)
    assert read_plan(2, False, need.parts()) == need
    for bad in (None, 3, {}, {**need.parts(), "state": "x"}):
        with pytest.raises(ArcError, match="holds no plan"):
            read_plan(2, False, bad)


def test_bad_batch():
    with pytest.raises(ArcError, match="batch must be 1 or more"):
        plan(one(), HERE, 0)


# --- choosing ------------------------------------------------------------------------------------


def wide():
    """A graph whose weights are most of what a run takes."""
    p = tiny.of("graph g(%x: f32[b,512]) {\n  @w : f32[512,512]\n"
                "  %0 = matmul(%x, @w) : f32[b,512]\n  return y=%0\n}")
    w = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    return p, of_arrays({"w": w})


@pytest.mark.parametrize(("share", "last"), [(2.0, ""), (0.6, "int8"), (0.2, "int4")])
def test_the_least_loss_that_fits(share, last, monkeypatch):
    p, source = wide()
    monkeypatch.setattr(choose.TARGETS["reference"], "memory", HERE, raising=False)
    found = choose.fit(p, [], source, "reference", int(share * (1 << 20)))
    assert [str(x) for x in found.passes] == ([last] if last else [])
    assert found.tried[0].startswith("as it is: 1.05 MB")
    assert found.tried[-1].startswith(last or "as it is")


def test_nothing_fits(monkeypatch):
    p, source = wide()
    monkeypatch.setattr(choose.TARGETS["reference"], "memory", HERE, raising=False)
    with pytest.raises(ArcError, match=r"drawn in 1 kB: as it is: 1\.05 MB; .*; int8: "):
        choose.fit(p, [], source, "reference", 1000)


def test_every_target_has_a_plan():
    found = choose.plans(tiny.llama(), [], batch=2)
    assert {"ort-cpu", "reference"} <= set(found)
    assert found["reference"].state == 2 * found["ort-cpu"].state


def asked(passes, p, source, batch):
    return choose._need(choose._made(p, parse_pipeline(passes), source, [], batch).program,
                        "reference", batch)


def test_caches_shrink_where_they_are_the_most(monkeypatch):
    p, source = scales(), tiny.weights(scales())
    monkeypatch.setattr(choose.TARGETS["reference"], "memory", HERE, raising=False)
    rung = "int8{decoder=True}, int8-conv{dynamic=True}, kv-int8"
    found = choose.fit(p, [], source, "reference", asked(rung, p, source, 8), batch=8)
    assert ", ".join(map(str, found.passes)) == rung
    assert found.batch == 8


def test_the_decoder_is_tiled_where_it_is_the_most(monkeypatch):
    """Before anything is rounded; the program after it needs no more than it was to."""
    conv = """graph d(%z: f32[b,16,256,256]) {
  @a : f32[16,16,3,3]
  @c : f32[3,16,3,3]
  %0 = upsample(%z) {factor=2} : f32[b,16,512,512]
  %1 = conv2d(%0, @a) {pads=(1, 1, 1, 1)} : f32[b,16,512,512]
  %2 = conv2d(%1, @a) {pads=(1, 1, 1, 1)} : f32[b,16,512,512]
  %3 = conv2d(%2, @c) {pads=(1, 1, 1, 1)} : f32[b,3,512,512]
  return pixels=%3
}"""
    loop = "graph g(%i: f32[b,1]) {\n  %0 = neg(%i) : f32[b,1]\n  return j=%0\n}"
    p = run(tiny.of(loop, conv, steps="1 x 1 : g\n  finish d"), parse_pipeline("channels-last"))
    source = tiny.weights(tiny.of(loop, conv))
    monkeypatch.setattr(choose.TARGETS["reference"], "memory", HERE, raising=False)
    limit = choose._need(p, "reference", 1) - 1000
    found = choose.fit(p, [], source, "reference", limit)
    assert [str(x) for x in found.passes] == ["tile-decoder{bands=8}"]
    assert choose._need(found.program, "reference", 1) <= limit


def test_fewer_images_where_nothing_else_is_left(monkeypatch):
    """A rung that is not for the program is passed by, and said so."""
    p, source = scales(), tiny.weights(scales())
    monkeypatch.setattr(choose.TARGETS["reference"], "memory", HERE, raising=False)
    last = "int4{bound=1.0}, int8-conv{dynamic=True}, kv-hack{ratio=0.5}, kv-int8"
    found = choose.fit(p, [], source, "reference", asked(last, p, source, 3), batch=8)
    assert found.batch == 3
    assert found.tried[-1].startswith("3 at a time of 8: int4")
    assert any("needs rows" in x for x in found.tried)
