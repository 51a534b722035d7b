"""Small programs as text, random weights for them, and ways to run them by the reference."""

from __future__ import annotations

import zlib
from dataclasses import replace

import numpy as np

from arcompile import dims, safetensors
from arcompile.ir import Type, evaluate
from arcompile.ops.tensor import NUMPY
from arcompile.program import BUILTIN
from arcompile.program_text import parse_program
from arcompile.runtime.loop import Loop, Request
from arcompile.sampling import sample_graph
from arcompile.targets.reference import models
from arcompile.text import parse_graph
from arcompile.weights import Store, of_arrays, used

SIZES = {"b": 2, "r": 4, "s": 2, "c": 1}
BELOW = {"cond": 3, "image": 2, "row": 2, "null_row": 4, "past": 3}  # of random integers
SHARES = ("noise", "temperature", "top_p")  # in [0, 1)

_HEAD = """program tiny positions=4 mask=causal accept=all
  cache full
  input cond: i64[b]
{state}
  state unread: f32[r,3]
  draw noise: uniform x 2 per step
  prompt prompt
  steps 3 x 1 : step sample feed ; append=1
  steps 1 x 1 : step sample ; append=1
  finish decode/each
graph prompt(%cond: i64[b], %image: i64[r], %is_null: bool[r]) {{
  @classes : f32[4,8]
  %0 = full() {{dtype='i64', shape=('r',), value=3}} : i64[r]
  %1 = gather(%cond, %image) {{axis=0}} : i64[r]
  %2 = where(%is_null, %0, %1) : i64[r]
  %3 = gather(@classes, %2) {{axis=0}} : f32[r,8]
  %4 = reshape(%3) {{shape=('r', 1, 8)}} : f32[r,1,8]
  return x=%4
}}
graph step(%x: f32[r,s,8], %past: i32[r], %noise: f32[b,c,2], {caches}) {{
{weights}
  @norm : f32[8]
  @head : f32[16,8]
  @cos : f32[5,2]
  @sin : f32[5,2]
{layers}
  %t = tail(%x{n}, %noise) {{axis=1}} : f32[r,c,8]
  %n = rms_norm(%t, @norm) {{eps=1e-05}} : f32[r,c,8]
  %wh = transpose(@head) {{perm=(1, 0)}} : f32[8,16]
  %logits = matmul(%n, %wh) : f32[r,c,16]
  return logits=%logits, {results}
}}
graph feed(%token: i64[b,c], %image: i64[r]) {{
  @tokens : f32[16,8]
  %0 = gather(@tokens, %token) {{axis=0}} : f32[b,c,8]
  %1 = gather(%0, %image) {{axis=0}} : f32[r,c,8]
  return x=%1
}}
graph decode(%tokens: i64[b,4]) {{
  @codes : f32[16,4]
  %0 = l2_norm(@codes) {{axis=1, eps=1e-12}} : f32[16,4]
  %1 = gather(%0, %tokens) {{axis=0}} : f32[b,4,4]
  return pixels=%1
}}
graph encode(%pixels: f32[b,4,4]) {{
  @codes : f32[16,4]
  %0 = l2_norm(@codes) {{axis=1, eps=1e-12}} : f32[16,4]
  %1 = transpose(%0) {{perm=(1, 0)}} : f32[4,16]
  %2 = matmul(%pixels, %1) : f32[b,4,16]
  %3 = argmax(%2) {{axis=2}} : i64[b,4]
  return tokens=%3
}}
"""

_WEIGHTS = """  @l{i}.n1 : f32[8]
  @l{i}.n2 : f32[8]
  @l{i}.q : f32[8,8]
  @l{i}.k : f32[8,8]
  @l{i}.v : f32[8,8]
  @l{i}.o : f32[8,8]
  @l{i}.w1 : f32[12,8]
  @l{i}.w3 : f32[12,8]
  @l{i}.w2 : f32[8,12]"""

# projections apart, weights stored as torch does, a reshape of no effect
_LAYER = """  %n{i} = rms_norm(%{x}, @l{i}.n1) {{eps=1e-05}} : f32[r,s,8]
  %wq{i} = transpose(@l{i}.q) {{perm=(1, 0)}} : f32[8,8]
  %q{i} = matmul(%n{i}, %wq{i}) : f32[r,s,8]
  %wk{i} = transpose(@l{i}.k) {{perm=(1, 0)}} : f32[8,8]
  %kk{i} = matmul(%n{i}, %wk{i}) : f32[r,s,8]
  %wv{i} = transpose(@l{i}.v) {{perm=(1, 0)}} : f32[8,8]
  %vv{i} = matmul(%n{i}, %wv{i}) : f32[r,s,8]
  %rq{i} = rope(%q{i}, @cos, @sin, %past) {{heads=2, interleaved=True}} : f32[r,s,8]
  %rk{i} = rope(%kk{i}, @cos, @sin, %past) {{heads=2, interleaved=True}} : f32[r,s,8]
  %ck{i} = cache_append(%k{i}, %rk{i}, %past) : f32[r,2,5,4]
  %cv{i} = cache_append(%v{i}, %vv{i}, %past) : f32[r,2,5,4]
  %a{i} = attention(%rq{i}, %ck{i}, %cv{i}, %past) {{extra=('past',), heads=2, kv_heads=2, mask='causal', scale=0.5}} : f32[r,s,8]
  %wo{i} = transpose(@l{i}.o) {{perm=(1, 0)}} : f32[8,8]
  %o{i} = matmul(%a{i}, %wo{i}) : f32[r,s,8]
  %h{i} = add(%{x}, %o{i}) : f32[r,s,8]
  %m{i} = rms_norm(%h{i}, @l{i}.n2) {{eps=1e-05}} : f32[r,s,8]
  %g{i} = transpose(@l{i}.w1) {{perm=(1, 0)}} : f32[8,12]
  %gate{i} = matmul(%m{i}, %g{i}) : f32[r,s,12]
  %act{i} = silu(%gate{i}) : f32[r,s,12]
  %u{i} = transpose(@l{i}.w3) {{perm=(1, 0)}} : f32[8,12]
  %up{i} = matmul(%m{i}, %u{i}) : f32[r,s,12]
  %flat{i} = reshape(%up{i}) {{shape=('r', 's', 12)}} : f32[r,s,12]
  %y{i} = mul(%act{i}, %flat{i}) : f32[r,s,12]
  %d{i} = transpose(@l{i}.w2) {{perm=(1, 0)}} : f32[12,8]
  %z{i} = matmul(%y{i}, %d{i}) : f32[r,s,8]
  %x{n} = add(%h{i}, %z{i}) : f32[r,s,8]"""  # noqa: E501

# a norm read by two products, and a gate by one
GATED = """graph g(%x: f32[b,8]) {
  @n : f32[8]
  @q : f32[8,4]
  @k : f32[8,4]
  @up : f32[8,6]
  @down : f32[6,8]
  %0 = rms_norm(%x, @n) {eps=1e-05} : f32[b,8]
  %1 = matmul(%0, @q) : f32[b,4]
  %2 = matmul(%0, @k) : f32[b,4]
  %3 = matmul(%x, @up) : f32[b,6]
  %4 = matmul(%x, @up) : f32[b,6]
  %5 = swiglu(%3, %4) : f32[b,6]
  %6 = matmul(%5, @down) : f32[b,8]
  return a=%1, b=%2, c=%6
}"""


def llama(layers=2):
    """A class-conditional decoder of 4 tokens from a vocabulary of 16, with its whole loop."""
    kv = [f"{c}{i}" for i in range(layers) for c in "kv"]
    text = _HEAD.format(
        n=layers,
        state="\n".join(f"  state {c}: f32[r,2,5,4]" for c in kv),
        caches=", ".join(f"%{c}: f32[r,2,5,4]" for c in kv),
        results=", ".join(f"{c}=%c{c}" for c in kv),
        weights="\n".join(_WEIGHTS.format(i=i) for i in range(layers)),
        layers="\n".join(_LAYER.format(i=i, n=i + 1, x=f"x{i}" if i else "x")
                         for i in range(layers)),
    )
    return parse_program(text + str(sample_graph(16)))


PAINT = """graph decode(%tokens: i64[b,4]) {
  @codes : f32[16,4]
  @paint : f32[4,3]
  %0 = l2_norm(@codes) {axis=1, eps=1e-12} : f32[16,4]
  %1 = gather(%0, %tokens) {axis=0} : f32[b,4,4]
  %2 = matmul(%1, @paint) : f32[b,4,3]
  %3 = transpose(%2) {perm=(0, 2, 1)} : f32[b,3,4]
  %4 = reshape(%3) {shape=('b', 3, 2, 2)} : f32[b,3,2,2]
  %5 = upsample(%4) {factor=2} : f32[b,3,4,4]
  return pixels=%5
}"""


def painted():
    """The same of one layer, with pixels that are a linear map of the codes."""
    p = llama(1)
    return replace(p, graphs=tuple(parse_graph(PAINT) if g.name == "decode" else g
                                   for g in p.graphs))


def of(*graphs, steps="1 x 1 : g", state=""):
    """A program of one position around graphs given as text; what they read is an input."""
    head = f"program p positions=1 mask=causal accept=all\n  cache full\n{state}  steps {steps}\n"
    p = parse_program(head + "\n".join(graphs))
    made = {k for g in p.graphs for k, _ in g.results if not g.param(k)}
    made |= {*BUILTIN, *dict(p.state)}
    reads = {v.name: v.type for g in p.graphs for v in g.params if v.name not in made}
    return replace(p, inputs=tuple(reads.items()))


def weights(p):
    """Random arrays for what the program loads, the same for the same name and shape."""
    made = {f"@{k}" for k, _ in p.fold.results} if p.fold else set()
    needed = {**used(p.graphs), **({w.name: w for w in p.fold.weights} if p.fold else {})}
    return of_arrays({k: _array(k, w.type, {}) for k, w in needed.items() if k not in made})


def _array(name, t, sizes):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    shape = tuple(dims.value(d, sizes) for d in t.shape)
    if name == "most":
        return np.full(shape, 16)
    if name in SHARES:
        return rng.random(shape, np.float32)
    if t.dtype.startswith("i"):
        return rng.integers(0, BELOW.get(name, 4), shape).astype(NUMPY[t.dtype])
    if t.dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.standard_normal(shape).astype(NUMPY[t.dtype])


def inputs(g, sizes=SIZES):
    """Random inputs of a graph, the same for the same name and shape."""
    return {v.name: _array(v.name, v.type, sizes) for v in g.params}


def results(p, source=None, only=None):
    """What every graph computes from random inputs: {graph: {result: array}}."""
    store = Store(source or weights(p), p.fold)
    return {g.name: evaluate(g, inputs(g), store) for g in p.graphs
            if only is None or g.name in only}


def same(old, new, source=None, only=None):
    """Assert that the graphs of `new` compute what those of `old` did, and maybe more."""
    source = source or weights(old)
    was, now = results(old, source, only), results(new, source, only)
    for name in was.keys() & now.keys():
        for key, x in was[name].items():
            y = now[name][key]
            assert (x.shape, x.dtype) == (y.shape, y.dtype), (name, key)
            x, y = x.astype(float), y.astype(float)
            assert np.abs(x - y).max(initial=0) <= 1e-5 * max(np.abs(x).max(initial=0), 1), key


def generate(p, source=None, temperature=0.0, cond=(1, 2), scale=2.0, finish=True):
    """Run the whole program by the reference, from seeds 0, 1, ...: the loop's result."""
    b = len(cond)
    q = Request({"cond": np.array(cond)}, np.arange(b, dtype=np.uint64), np.zeros(b, int),
                np.full(b, scale), np.full(b, temperature, np.float32), np.zeros(b, int),
                np.ones(b, np.float32))
    runner = models(p, Store(source or weights(p), p.fold)).runner()
    loop = Loop(p, runner, q, 16)
    loop.keep_logits = True
    return loop.run(finish=finish)


def ranges_file(path, arrays):
    """A file such as calibrate writes; its path."""
    types = {k: Type("f32", a.shape) for k, a in arrays.items()}
    safetensors.write(path, types, lambda k: arrays[k].astype(np.float32))
    return str(path)


def ops(g):
    return [n.op for n in g.nodes]
