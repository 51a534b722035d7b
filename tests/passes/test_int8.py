import numpy as np
import pytest
from tiny import generate, llama, of, ops, weights

from arcompile.errors import ArcError
from arcompile.passes.int8 import Int8
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program
from arcompile.weights import Store, used

G = """graph g(%x: f32[b,32], %i: i64[b]) {
  @a : f32[32,8]
  @b : f32[32,8]
  @codes : f32[16,32]
  @odd : f32[24,8]
  %0 = gather(@codes, %i) {axis=0} : f32[b,32]
  %1 = add(%x, %0) : f32[b,32]
  %2 = matmul(%1, @a) : f32[b,8]
  %3 = matmul(%1, @b) : f32[b,8]
  %4 = add(%2, %3) : f32[b,8]
  %5 = slice(%x) {axis=1, start=0, stop=24} : f32[b,24]
  %6 = matmul(%5, @odd) : f32[b,8]
  return logits=%4, y=%6
}"""
TINY = "fold, simplify, cse, qkv, swiglu, residual-norm, int8{least=0}"


def small(**options):
    return Int8(least=0, **options)


def test_products_and_tables(golden):
    """Rows are rounded once for all products that read them; old values keep their names."""
    p = of(G)
    new = run(p, [small(skip="odd")])
    assert f"{new.graph('g')}\n{new.fold}" == golden
    assert str(parse_program(str(new))) == str(new)
    assert run(new, [small(skip="odd")]) is new


def test_groups(golden):
    new = run(of(G), [small(block=32, embeddings=False)])
    assert f"{new.graph('g')}\n{new.fold}" == golden  # 24 rows take groups of 8, which are too few


@pytest.mark.parametrize(
    ("options", "name", "why"),
    [
        ({"head": False}, "@a", "it is the head; head=True quantises that"),
        ({"embeddings": False}, "@codes", "it is an embedding; embeddings=True quantises those"),
        ({"skip": "x o?d"}, "@odd", "it is to be skipped, or beyond the bound"),
        ({"block": 64}, "@odd", "no groups of 16 to 64 divide its 24 rows"),
        ({"least": 500}, "@a", "it is f32[32,8], not a matrix of 500 f32 numbers or more"),
    ],
)
def test_leaves(options, name, why, capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    new = run(of(G), [Int8(**{"least": 0, **options})])
    assert f"miss int8 at {name}: {why}" in capsys.readouterr().err
    assert name in used(new.graphs)


def test_leaves_the_decoder_and_what_is_read_in_two_ways(capsys, monkeypatch):
    monkeypatch.setenv("ARC_DEBUG", "4")
    loop = "graph g(%x: f32[b,32]) {\n  @w : f32[32,32]\n  %0 = matmul(%x, @w) : f32[b,32]\n" \
           "  %1 = exp(@w) : f32[32,32]\n  %2 = sum(%1) {axes=(0,)} : f32[32]\n" \
           "  %3 = add(%0, %2) : f32[b,32]\n  return z=%3\n}"
    late = "graph d(%z: f32[b,32]) {\n  @v : f32[32,32]\n  %0 = matmul(%z, @v) : f32[b,32]\n" \
           "  return pixels=%0\n}"
    p = of(loop, late, steps="1 x 1 : g\n  finish d")
    new = run(p, [small()])
    said = capsys.readouterr().err
    assert "miss int8 at @v: it belongs to the image decoder; decoder=True" in said
    assert ops(new.graph("d")) == ["matmul"]
    assert ops(run(p, [small(decoder=True)]).graph("d")) == ["quantize_rows", "matmul_int8"]


@pytest.mark.parametrize("name", ["int8", "int4", "mixed"])
def test_neutral_is_the_identity(name):
    p = llama()
    assert run(p, parse_pipeline(f"{name}{{bound=0}}")) is p


@pytest.mark.parametrize("text", ["int8{bits=6}", "int8{bits=7,block=32}", "int8{block=24}",
                                  "int8{block=8}", "int8{bound=-1}", "int4{block=0}",
                                  "mixed{batch=0}"])
def test_impossible_options(text):
    name, _, more = text.partition("{")
    with pytest.raises(ArcError, match=f"pass {name}|groups of"):
        run(of(G), parse_pipeline(f"{name}{{least=0,{more}"))


def test_beyond_the_bound_stays(capsys):
    """The choice by the weights is written into the options, and is made again without them."""
    p = of(G)
    source = weights(p)
    spiky = np.full((32, 8), 0.004, np.float32)
    spiky[0] = 1.0  # the others round to nothing or a whole step
    source = source.plus({"@a": lambda: spiky})
    done = []
    new = run(p, [small(bound=0.01)], source, done)
    assert [str(x) for x in done] == ["int8{bound=0.01,least=0,skip='a'}"]
    assert str(run(p, done)) == str(new)
    assert "@a" in used(new.graphs)
    assert "@b" not in used(new.graphs)
    assert done[0].left(p) == {"@a": "it is to be skipped, or beyond the bound"}


@pytest.mark.parametrize(("passes", "most"), [
    (TINY, 0.05), (TINY.replace("least=0", "bits=7,least=0"), 0.1),
    (TINY.replace("int8{", "int4{block=16,"), 0.5),
])
def test_the_whole_program(passes, most):
    """Drawing still works, close to what it was, and each image alone is what it is in a batch."""
    p = llama()
    source = weights(p)
    new = run(p, parse_pipeline(passes))
    was, now = generate(p, source), generate(new, source)
    # the first step sees the same input in both
    off = np.linalg.norm(now.logits[0][0] - was.logits[0][0]) / np.linalg.norm(was.logits[0][0])
    assert 0 < off < most
    one = generate(new, source, cond=(1,))
    assert np.array_equal(one.logits[0][0], now.logits[0][0][:1])


def test_sizes_are_real_bytes():
    p = run(llama(), parse_pipeline(TINY))
    store = Store(weights(llama()), p.fold)
    for name, v in used(p.graphs).items():
        assert store[name].nbytes == v.type.nbytes(), name
        assert store[name].shape == v.type.shape


def test_cuda_has_groups_only(tmp_path):
    """Refused before anything is written."""
    from arcompile.target import TARGETS

    p = run(of(G), [small()])
    with pytest.raises(ArcError, match="no CUDA kernel for matmul_int8"):
        TARGETS["ort-cuda"].lower(p, Store(weights(of(G)), p.fold), tmp_path, lambda s, f: None)
    assert not list(tmp_path.iterdir())


def test_leaves_a_head_that_samples():
    """MAR's sampler multiplies an error of the noise by thousands: its head keeps its precision."""
    from arcompile.compile import exported
    from arcompile.family import FAMILIES

    mar = FAMILIES["mar"]
    p = exported(mar.model(mar.random("tiny"), {}))
    head = {w.name for w in p.graph("head").weights}
    assert head
    assert not head & dict(small().choices(p)).keys()
    assert head & dict(small(sampler=True).choices(p)).keys()
    xar = exported(FAMILIES["xar"].model(FAMILIES["xar"].random("tiny"), {}))
    assert dict(small().choices(xar))  # the whole transformer flows: it is no head
