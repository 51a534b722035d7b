"""Small programs with caches: one of scales, with heads as VAR has them, and one of rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tiny import llama

from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program
from arcompile.runtime.loop import Loop, Request
from arcompile.sampling import sample_graph
from arcompile.targets.reference import models
from arcompile.weights import Store

NORMAL = "fold, simplify, cse, qkv, swiglu, residual-norm, rotary-attention"

SIDES, HEADS, LAYERS = (1, 2, 3, 4, 5), 4, 2
COUNTS = tuple(n * n for n in SIDES)
SLOTS = sum(COUNTS)

_LAYER = """  %n{i} = layer_norm({x}) {{eps=1e-05}} : f32[r,s,16]
  %p{i} = matmul(%n{i}, @w{i}) : f32[r,s,48]
  %b{i} = add(%p{i}, @bias{i}) : f32[r,s,48]
  %q{i}, %kk{i}, %vv{i} = split(%b{i}) {{axis=2, sizes=(16, 16, 16)}} : f32[r,s,16], f32[r,s,16], f32[r,s,16]
  %h{i} = reshape(%q{i}) {{shape=('r', 's', 4, 4)}} : f32[r,s,4,4]
  %u{i} = l2_norm(%h{i}) {{axis=3, eps=1e-12}} : f32[r,s,4,4]
  %m{i} = mul(%u{i}, @mul{i}) : f32[r,s,4,4]
  %f{i} = reshape(%m{i}) {{shape=('r', 's', 16)}} : f32[r,s,16]
  %ck{i} = cache_append(%k{i}, %kk{i}, %past) : f32[r,4,{slots},4]
  %cv{i} = cache_append(%v{i}, %vv{i}, %past) : f32[r,4,{slots},4]
  %a{i} = attention(%f{i}, %ck{i}, %cv{i}, %past) {{extra=('past',), heads=4, kv_heads=4, mask='full', scale=0.5}} : f32[r,s,16]
  %o{i} = matmul(%a{i}, @out{i}) : f32[r,s,16]
  %x{i} = add({x}, %o{i}) : f32[r,s,16]"""  # noqa: E501

_FEED = """graph feed{i}(%token: i64[b,{n}], %image: i64[r]) {{
  @tokens : f32[16,16]
  @place{i} : f32[{more},16]
  %0 = gather(@tokens, %token) {{axis=0}} : f32[b,{n},16]
  %1 = mean(%0) {{axes=(1,), keepdims=True}} : f32[b,1,16]
  %2 = add(%1, @place{i}) : f32[b,{more},16]
  %3 = gather(%2, %image) {{axis=0}} : f32[r,{more},16]
  return x=%3
}}"""

_PROMPT = """graph prompt(%cond: i64[b], %image: i64[r]) {
  @classes : f32[4,1,16]
  %0 = gather(%cond, %image) {axis=0} : i64[r]
  %1 = gather(@classes, %0) {axis=0} : f32[r,1,16]
  return x=%1
}"""


def scales(layers=LAYERS):
    """Five scales of 1 to 25 cells from a vocabulary of 16."""
    kv = [f"{c}{i}" for i in range(layers) for c in "kv"]
    head = [f"program scales positions={SLOTS} mask=full accept=all", "  cache full",
            "  input cond: i64[b]",
            *(f"  state {c}: f32[r,4,{SLOTS},4]" for c in kv),
            "  draw noise: uniform x 2 per step", "  prompt prompt"]
    for i, n in enumerate(COUNTS):
        feed = f" feed{i}" if i + 1 < len(COUNTS) else ""
        head.append(f"  steps 1 x {n} : step sample{feed} ; append={n}")
    caches = ", ".join(f"%{c}: f32[r,4,{SLOTS},4]" for c in kv)
    step = [f"graph step(%x: f32[r,s,16], %past: i32[r], %noise: f32[b,c,2], {caches}) {{"]
    for i in range(layers):
        step += [f"  @w{i} : f32[16,48]", f"  @bias{i} : f32[48]", f"  @mul{i} : f32[4,1]",
                 f"  @out{i} : f32[16,16]"]
    step.append("  @head : f32[16,16]")
    step += [_LAYER.format(i=i, slots=SLOTS, x=f"%x{i - 1}" if i else "%x")
             for i in range(layers)]
    results = ", ".join(f"{c}=%c{c}" for c in kv)
    step += [f"  %logits = matmul(%x{layers - 1}, @head) : f32[r,s,16]",
             "  %tail = tail(%logits, %noise) {axis=1} : f32[r,c,16]",
             f"  return logits=%tail, {results}", "}"]
    feeds = [_FEED.format(i=i, n=n, more=COUNTS[i + 1]) for i, n in enumerate(COUNTS[:-1])]
    return parse_program("\n".join([*head, _PROMPT, *step, *feeds, str(sample_graph(16))]))


def rows():
    """16 tokens in rows of 4."""
    text = str(llama())
    for old, new in (("positions=4", "positions=16"), ("steps 3 x 1", "steps 15 x 1"),
                     (",5,4]", ",17,4]"), ("f32[5,2]", "f32[17,2]"), ("i64[b,4]", "i64[b,16]"),
                     ("f32[b,4,4]", "f32[b,16,4]"), ("f32[b,4,16]", "f32[b,16,16]")):
        text = text.replace(old, new)
    return parse_program(text)


def shrink(p, passes):
    return run(p, parse_pipeline(passes))


def logits(p, source, forced=None):
    """(tokens, the images' logits of each step) of two images; on `forced` tokens, or its own."""
    q = Request({"cond": np.array([1, 2])}, np.arange(2, dtype=np.uint64), np.zeros(2, int),
                np.full(2, 2.0), np.zeros(2, np.float32), np.zeros(2, int),
                np.ones(2, np.float32))
    loop = Loop(p, models(p, Store(source, p.fold)).runner(), replace(q, forced=forced), 16)
    loop.keep_logits = True
    found = loop.run(finish=False)
    return found.tokens, [x for x, _ in found.logits]


def close(a, b, tolerance=1e-5):
    return all(np.abs(x - y).max() <= tolerance * np.abs(x).max()
               for x, y in zip(a, b, strict=True))
