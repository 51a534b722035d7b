"""The cost model against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from arcompile.cost import COLUMNS, Cost, figure, graph_cost, node_cost, program_cost, table
from arcompile.ir import Builder, Graph, Type
from arcompile.program import Call, Draw, Program, Step, groups, raster
from arcompile.sampling import sample_graph
from arcompile.text import parse_graph

SIZES = {"r": 2, "s": 3, "b": 5}


def one(op: str, *types: str, context: int | None = None, weights=(), **attrs) -> Cost:
    b = Builder("g")
    args = [b.weight(f"w{i}", t) if i in weights else b.param(f"p{i}", t)
            for i, t in enumerate(types)]
    b.emit(op, *args, **attrs)
    return node_cost(b.nodes[-1], SIZES, context)


def test_single_ops():
    assert one("add", "f32[b,4]", "f32[4]") == Cost(20, 0, 80 + 16 + 80, 0)
    assert one("matmul", "f32[r,s,4]", "f32[4,8]", weights={1}) == Cost(
        2 * 6 * 4 * 8, 4 * 8 * 4, (6 * 4 + 6 * 8) * 4, 0)
    assert one("conv2d", "f32[b,4,8,8]", "f32[6,2,3,3]", weights={1}, groups=2,
               pads=(1, 1, 1, 1)).flops == 2 * 5 * 6 * 64 * 2 * 9
    assert one("reshape", "f32[b,4]", shape=(4, "b")) == Cost()
    assert one("sum", "f32[b,4]", axes=(1,)).flops == 20
    assert one("silu", "f16[b,4]").bytes == 2 * 5 * 4 * 2


def test_gather_moves_rows_not_the_table():
    c = one("gather", "f32[16384,768]", "i64[b]", weights={0}, axis=0)
    assert c == Cost(0, 0, 2 * 5 * 768 * 4 + 5 * 8, 0)
    c = one("rope", "f32[r,s,8]", "f32[99,2]", "f32[99,2]", "i32[r]", weights={1, 2}, heads=2,
            interleaved=True)
    assert c.weights == 0
    assert c.activations == 2 * (6 * 8 * 4) + 2 * (6 * 2 * 4) + 2 * 4


CACHE = "f32[r,2,64,4]"
HEADS = {"heads": 4, "kv_heads": 2, "scale": 1.0}


@pytest.mark.parametrize("context", [3, 10, None, 999])
def test_attention_reads_what_is_filled(context):
    """r 2, s 3, 4 heads on 2 of keys, width 4: caches are read up to the context."""
    seen = min(context or 64, 64)
    c = one("attention", "f32[r,s,16]", CACHE, CACHE, "i32[r]", context=context, mask="causal",
            extra=("past",), **HEADS)
    pairs = 3 * seen - 3
    assert c.flops == 2 * 4 * pairs * (2 * 4 + 2 * 4 + 5)
    assert c.cache == 2 * (2 * 2 * seen * 4) * 4
    assert c.activations == 2 * (6 * 16 * 4) + 2 * 4


def test_decode_attention_costs_its_parts():
    new, tab, past = "f32[r,s,8]", "f32[64,2]", "i32[r]"
    whole = one("decode_attention", "f32[r,s,16]", new, new, CACHE, CACHE, past, tab, tab,
                context=10, mask="causal", interleaved=True, **HEADS)
    att = one("attention", "f32[r,s,16]", CACHE, CACHE, past, context=10, mask="causal",
              extra=("past",), **HEADS)
    spin = {"interleaved": True}
    q = one("rope", "f32[r,s,16]", tab, tab, past, heads=4, **spin)
    k = one("rope", new, tab, tab, past, heads=2, **spin)
    append = one("cache_append", CACHE, new, past)
    assert append.cache == 6 * 8 * 4
    assert whole.flops == att.flops + q.flops + k.flops
    assert whole.cache == att.cache + 2 * append.cache
    assert whole.activations < sum(c.activations for c in (att, q, k, append))  # it is fused


def test_what_weights_alone_make_is_free():
    g = parse_graph(
        "graph g(%x: f32[b,4]) {\n  @w : f32[8,4]\n  @u : f32[4,8]\n"
        "  %0 = transpose(@w) {perm=(1, 0)} : f32[4,8]\n  %1 = add(%0, @u) : f32[4,8]\n"
        "  %2 = const() {dtype='f32', value=2.0} : f32[]\n  %3 = mul(%1, %2) : f32[4,8]\n"
        "  %4 = matmul(%x, %3) : f32[b,8]\n  return y=%4\n}"
    )
    assert graph_cost(g, SIZES) == Cost(2 * 5 * 4 * 8, 4 * 8 * 4, (20 + 40) * 4, 0)


def test_sampling():
    c = one("filter_logits", "f32[b,1,4]", "f32[b]", "i64[b]", "f32[b]", "i64[1]")
    assert c.flops == 8 * 20


# --- LlamaGen-B, 256 x 256 -----------------------------------------------------------------------

DIM, LAYERS, HIDDEN, VOCABULARY, SLOTS = 768, 12, 2048, 16384, 257


def llamagen_step() -> Graph:
    b = Builder("step")
    x, past = b.param("x", f"f32[r,s,{DIM}]"), b.param("past", "i32[r]")
    cos, sin = b.weight("cos", f"f32[{SLOTS},32]"), b.weight("sin", f"f32[{SLOTS},32]")
    out = {}

    def linear(x, name, n, m):
        return b.matmul(x, b.transpose(b.weight(name, f"f32[{m},{n}]"), perm=(1, 0)))

    def norm(x, name):
        return b.rms_norm(x, b.weight(name, f"f32[{DIM}]"), eps=1e-5)

    for i in range(LAYERS):
        qkv = linear(norm(x, f"{i}.norm1"), f"{i}.qkv", DIM, 3 * DIM)
        q, k, v = b.split(qkv, axis=-1, sizes=(DIM,) * 3)
        caches = [b.param(f"{n}{i}", f"f32[r,12,{SLOTS},64]") for n in "kv"]
        y, out[f"k{i}"], out[f"v{i}"] = b.decode_attention(
            q, k, v, *caches, past, cos, sin, heads=12, kv_heads=12, scale=0.125, mask="causal",
            interleaved=True)
        x = b.add(x, linear(y, f"{i}.wo", DIM, DIM))
        h = norm(x, f"{i}.norm2")
        h = b.swiglu(linear(h, f"{i}.w1", DIM, HIDDEN), linear(h, f"{i}.w3", DIM, HIDDEN))
        x = b.add(x, linear(h, f"{i}.w2", HIDDEN, DIM))
    return b.graph(logits=linear(norm(x, "norm"), "output", DIM, VOCABULARY), **out)


def llamagen() -> Program:
    step = llamagen_step()
    b = Builder("prompt")
    cond, image = b.param("cond", "i64[b]"), b.param("image", "i64[r]")
    rows = b.gather(b.weight("cls", f"f32[1001,{DIM}]"), b.gather(cond, image, axis=0), axis=0)
    prompt = b.graph(x=b.reshape(rows, shape=("r", 1, DIM)))
    b = Builder("feed")
    token, image = b.param("token", "i64[b,c]"), b.param("image", "i64[r]")
    emb = b.weight("tok", f"f32[{VOCABULARY},{DIM}]")
    feed = b.graph(x=b.gather(b.gather(emb, token, axis=0), image, axis=0))
    calls = (Call("step"), Call("sample"), Call("feed"))
    steps = raster(256, calls=calls)
    steps = (*steps[:-1], replace(steps[-1], calls=calls[:2]))
    state = tuple((p.name, p.type) for p in step.params if p.name[1:].isdigit())
    return Program("llamagen", 256, steps, (prompt, step, sample_graph(VOCABULARY), feed),
                   prompt=(Call("prompt"),), inputs=(("cond", Type.parse("i64[b]")),),
                   state=state, draws=(Draw("noise", "uniform", 2),))


def test_llamagen_b_by_hand():
    p = llamagen()
    p.verify()
    c = program_cost(p)
    layer = 4 * DIM * DIM + 3 * DIM * HIDDEN + 2 * DIM
    read = LAYERS * layer + DIM + VOCABULARY * DIM  # all but the embeddings and the rope tables
    embeddings = (VOCABULARY + 1001) * DIM
    assert read + embeddings == 110_888_448  # the published 111 M
    assert c.weights == 4 * (read + embeddings + 2 * SLOTS * 32)
    assert c.state == 2 * 12 * 2 * 257 * 768 * 4
    prompt, first, *_, last = c.steps
    assert (prompt.name, first.name, last.name) == ("prompt", "0", "255")
    assert {s.cost.weights for s in c.steps[1:]} == {4 * read}
    assert prompt.cost.weights == 0
    assert (first.context, last.context) == (1, 256)
    row = 2 * LAYERS * 2 * DIM * 4  # two rows, a key and a value in each layer
    assert [s.cost.cache for s in c.steps[1:]] == [row * (n + 1) for n in range(1, 257)]
    assert last.cost.flops > first.cost.flops > 2 * 2 * (read - LAYERS * 2 * DIM)
    assert last.cost.flops - first.cost.flops == 2 * LAYERS * 12 * 255 * (4 * 64 + 5)
    assert c.total.weights == 256 * 4 * read


def test_rows_and_batch():
    p = llamagen()
    guided, plain = program_cost(p), program_cost(p, guided=False)
    assert plain.state * 2 == guided.state
    assert plain.weights == guided.weights
    assert plain.steps[5].cost.weights == guided.steps[5].cost.weights
    assert plain.steps[5].cost.cache * 2 == guided.steps[5].cost.cache
    four = program_cost(p, batch=4)
    assert four.steps[5].cost.cache == 4 * guided.steps[5].cost.cache
    fixed = replace(p, steps=tuple(replace(s, guide=(1.0, 0.0)) for s in p.steps))
    assert program_cost(fixed).state == plain.state


def test_groups_of_positions_and_loops():
    step = parse_graph("graph step(%x: f32[r,n,4], %t: f32[], %noise: f32[b,c,2]) {\n"
                       "  %0 = mul(%x, %t) : f32[r,n,4]\n  return x=%0\n}")
    grow = parse_graph("graph grow(%x: f32[r,n,4]) {\n  %0 = concat(%x, %x) {axis=1} : f32[r,2*n,4]"
                       "\n  return x=%0\n}")
    start = parse_graph("graph start(%image: i64[r]) {\n"
                        "  %0 = full() {dtype='f32', shape=('r', 1, 4), value=0.0} : f32[r,1,4]\n"
                        "  return x=%0\n}")
    calls = (Call("step", loop="time"), Call("grow"))
    p = Program("p", 3, groups((1, 2), calls=calls), (step, grow, start), (Call("start"),),
                draws=(Draw("noise", "uniform", 2),),
                tables={"time": {"t": (0.1, 0.2, 0.3)}})
    p.verify()
    first, second = program_cost(p).steps[1:]
    assert (first.cost.flops, second.cost.flops) == (3 * 8, 3 * 16)  # r 2, n 1 then 2, 3 turns
    assert (second.query, second.commit, second.context) == (2, 2, 3)


def test_each_and_finish():
    g = parse_graph("graph paint(%tokens: i64[b,4]) {\n  %0 = cast(%tokens) {dtype='f32'} : "
                    "f32[b,4]\n  %1 = exp(%0) : f32[b,4]\n  return pixels=%1\n}")
    steps = (Step(tuple(range(4)), tuple(range(4)), ()),)
    p = Program("p", 4, steps, (g,), finish=(Call("paint", each=True),))
    assert program_cost(p, batch=3).steps[-1].cost.flops == 3 * 4
    whole = replace(p, finish=(Call("paint"),))
    assert program_cost(whole, batch=3).steps[-1].cost == program_cost(p, batch=3).steps[-1].cost


def test_table():
    rows = table(program_cost(llamagen()))
    assert all(len(r) == len(COLUMNS) for r in rows)
    assert [r[0] for r in rows] == ["prompt", "0-254", "255", "all"]
    assert rows[2][1:4] == ("step sample", "1", "256")
    assert rows[2][5] == "390 MB"


@pytest.mark.parametrize(("n", "text"), [(0, "0 B"), (5, "5 B"), (999, "999 B"), (1234, "1.23 kB"),
                                         (999_600, "1 MB"), (3.9e8, "390 MB")])
def test_figures(n, text):
    assert figure(n, "B") == text


def test_rounds_of_a_window():
    """A round costs its window; how many there are is what a run commits in each."""
    from tiny import llama

    from arcompile.passes.scd import SCD
    from arcompile.pipeline import run

    p = llama(1)
    new = run(p, [SCD(window=2)])
    slow, fast = program_cost(new), program_cost(new, committed=1.5)
    plain = program_cost(p)
    assert [s.name for s in slow.steps] == ["prompt", "0", "1", "1", "1", "finish"]
    assert [s.name for s in fast.steps] == ["prompt", "0", "1", "1", "finish"]
    assert [s.context for s in slow.steps][1:5] == [1, 3, 4, 4]  # it ends where the image does
    assert [s.query for s in slow.steps][1:5] == [1, 2, 2, 2]
    matmuls = [s.cost.flops for s in plain.steps][2]
    assert 1.9 * matmuls < slow.steps[2].cost.flops < 3.5 * matmuls
    assert fast.total.flops < slow.total.flops
