"""A generator so small that the law of its images can be enumerated, and tests of samples by it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from arcompile.ops.sampling import filter_logits
from arcompile.ops.speculation import law
from arcompile.program_text import parse_program
from arcompile.runtime.loop import Loop, Request
from arcompile.sampling import sample_graph
from arcompile.targets.reference import models

TEXT = """program toy positions={n} mask=causal accept=all
  cache full
  input cond: i64[b]
  state k: f32[r,1,{slots},4]
  state v: f32[r,1,{slots},4]
  draw noise: uniform x 2 per step
  prompt prompt
  steps {last} x 1 : step sample feed ; append=1
  steps 1 x 1 : step sample ; append=1
graph prompt(%cond: i64[b], %image: i64[r], %is_null: bool[r]) {{
  @classes : f32[3,4]
  %0 = full() {{dtype='i64', shape=('r',), value=2}} : i64[r]
  %1 = gather(%cond, %image) {{axis=0}} : i64[r]
  %2 = where(%is_null, %0, %1) : i64[r]
  %3 = gather(@classes, %2) {{axis=0}} : f32[r,4]
  %4 = reshape(%3) {{shape=('r', 1, 4)}} : f32[r,1,4]
  return x=%4
}}
graph step(%x: f32[r,s,4], %past: i32[r], %noise: f32[b,c,2], %k: f32[r,1,{slots},4], %v: f32[r,1,{slots},4]) {{
  @q : f32[4,4]
  @w : f32[4,{v}]
  @cos : f32[{slots},2]
  @sin : f32[{slots},2]
  %0 = matmul(%x, @q) : f32[r,s,4]
  %1 = rope(%0, @cos, @sin, %past) {{heads=1, interleaved=True}} : f32[r,s,4]
  %2 = rope(%x, @cos, @sin, %past) {{heads=1, interleaved=True}} : f32[r,s,4]
  %3 = cache_append(%k, %2, %past) : f32[r,1,{slots},4]
  %4 = cache_append(%v, %x, %past) : f32[r,1,{slots},4]
  %5 = attention(%1, %3, %4, %past) {{extra=('past',), heads=1, kv_heads=1, mask='causal', scale=1.0}} : f32[r,s,4]
  %6 = add(%x, %5) : f32[r,s,4]
  %7 = tail(%6, %noise) {{axis=1}} : f32[r,c,4]
  %8 = matmul(%7, @w) : f32[r,c,{v}]
  return logits=%8, k=%3, v=%4
}}
graph feed(%token: i64[b,c], %image: i64[r]) {{
  @tokens : f32[{v},4]
  %0 = gather(@tokens, %token) {{axis=0}} : f32[b,c,4]
  %1 = gather(%0, %image) {{axis=0}} : f32[r,c,4]
  return x=%1
}}
"""  # noqa: E501


class Toy:
    """n tokens out of v; the last token, its place and all before it matter."""

    def __init__(self, n=5, v=3, seed=1):
        text = TEXT.format(n=n, v=v, slots=n, last=n - 1)
        self.program = parse_program(text + str(sample_graph(v)))
        self.n, self.v = n, v
        rng = np.random.default_rng(seed)
        angles = np.arange(n)[:, None] * np.array([1.0, 0.4])

        def normal(*shape):
            return rng.normal(size=shape).astype(np.float32)

        self.weights = {"@classes": normal(3, 4), "@tokens": normal(v, 4), "@q": normal(4, 4),
                        "@w": 0.5 * normal(4, v), "@cos": np.cos(angles).astype(np.float32),
                        "@sin": np.sin(angles).astype(np.float32)}

    def request(self, images, guidance=1.0, temperature=1.0, top_k=0, top_p=1.0, cond=1, seed=0,
                **more):
        return Request({"cond": np.full(images, cond)}, np.full(images, seed, np.uint64),
                       np.arange(images), np.full(images, guidance),
                       np.full(images, temperature, np.float32), np.full(images, top_k),
                       np.full(images, top_p, np.float32), **more)

    def run(self, program, request):
        loop = Loop(program, models(program, self.weights).runner(), request, self.v)
        loop.keep_logits = request.forced is not None
        return loop.run()

    def sample(self, program, images, **how):
        return self.run(program, self.request(images, **how))

    def law(self, **how):
        """(images [v^n, n], the probability of each), by enumeration."""
        every = np.array(list(itertools.product(range(self.v), repeat=self.n)))
        q = self.request(len(every), **how, forced=every)
        pairs = self.run(self.program, q).logits
        total = np.ones(len(every))
        for j, (cond, null) in enumerate(pairs):
            guided = (cond + (q.guidance[:, None, None] - 1) * (cond - null)).astype(np.float64)
            most = np.array([self.v])
            p = law(filter_logits(guided, q.temperature, q.top_k, q.top_p, most), q.temperature)
            total *= p[np.arange(len(every)), 0, every[:, j]]
        return every, total

    def counts(self, tokens):
        """How often each image came, in the order of `law`."""
        index = (tokens * self.v ** np.arange(self.n)[::-1]).sum(1)
        return np.bincount(index, minlength=self.v**self.n)


def same_in_any_batch(toy, program):
    """Each of six images is drawn alone, in a pair and in another order as it is among all.

    They differ in class, seed, guidance and temperature.
    """
    b = 6
    ask = {"inputs": {"cond": np.arange(b) % 2}, "seeds": np.arange(b, dtype=np.uint64),
           "guidance": np.array([1.0, 2.0, 1.5, 1.0, 3.0, 1.0]),
           "temperature": np.array([1, 0.5, 0, 1, 2, 1], np.float32)}
    whole = toy.run(program, replace(toy.request(b), copies=np.zeros(b, int), **ask)).tokens
    assert len(np.unique(whole, axis=0)) > 2
    for at in (*([i] for i in range(b)), [4, 1], [5, 2, 0, 4, 1, 3]):
        part = {k: v[at] if k != "inputs" else {"cond": v["cond"][at]} for k, v in ask.items()}
        found = toy.run(program, replace(toy.request(len(at)), copies=np.zeros(len(at), int),
                                         **part)).tokens
        assert (found == whole[at]).all()


def chi_square(counts, law):
    """The p-value of counts under a law; what may not come must not have come."""
    assert not counts[law < 1e-12].any()
    expected = law * counts.sum()
    rare = expected < 5
    counts, expected = (np.append(x[~rare], x[rare].sum()) for x in (counts, expected))
    live = expected > 1e-9
    return tail(((counts - expected)[live] ** 2 / expected[live]).sum(), live.sum() - 1)


def two_sample(a, b):
    """The p-value of two tables of counts coming from one law."""
    rare = a + b < 10
    a, b = (np.append(x[~rare], x[rare].sum()).astype(float) for x in (a, b))
    k, live = np.sqrt(b.sum() / a.sum()), a + b > 0
    return tail(((k * a - b / k)[live] ** 2 / (a + b)[live]).sum(), live.sum() - 1)


def tail(x, freedom):
    """P(chi-square > x), after Wilson and Hilferty."""
    if freedom < 1:
        return 1.0
    v = 2 / (9 * freedom)
    return 0.5 * math.erfc((np.cbrt(x / freedom) - 1 + v) / np.sqrt(2 * v))


def with_graph(program, name, fn):
    """The program with one graph changed."""
    return replace(program, graphs=tuple(fn(g) if g.name == name else g for g in program.graphs))
