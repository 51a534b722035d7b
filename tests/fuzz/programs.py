"""A random generator of the usual shape: a decoder over caches, some order, guidance and sampling.

Its graphs are drawn from a few choices a family makes (norm, gate, positions, heads, mask, order),
and random ops stand in the stream between them.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
from fuzz.grow import array

from arcompile.ir import Builder, Type
from arcompile.program import Call, Draw, Program, Step, groups
from arcompile.sampling import sample_graph
from arcompile.text import parse_graph
from arcompile.weights import Weights, of_arrays, used

WIDTH = 16


def program(random: Random) -> Program:
    """A verified program over `cond: i64[b]`."""
    sizes = random.choice(([1] * 4, [1] * 6, [1, 2, 3], [1, 4, 4], [2, 2], [1, 1, 2, 1]))
    n, size = sum(sizes), random.choice((5, 16, 140))
    e, kv = random.choice((4, 8, 16)), random.choice((1, 2))
    heads = kv * random.choice((1, 2))
    mask = "causal" if max(sizes) == 1 else random.choice(("causal", "full"))
    deep = random.randint(1, 2)
    how = {"e": e, "kv": kv, "heads": heads, "mask": mask, "slots": n, "deep": deep}
    caches = {f"{c}{i}": Type("f32", ("r", kv, n, e)) for i in range(deep) for c in "kv"}
    graphs = (_prompt(sizes[0]), _step(random, size, caches, how), _feed(random, size, sizes),
              sample_graph(size), _paint(random, size, n))
    steps = _steps(random, sizes)
    p = Program(
        f"p{random.randrange(1 << 30)}", n, steps, graphs, (_call("prompt"),),
        finish=(_call("paint", each=random.random() < 0.5),),
        inputs=(("cond", Type("i64", ("b",))),), state=tuple(caches.items()),
        draws=(Draw("noise", "uniform", 2, "step"),))
    p.verify()
    return p


def _call(name, each=False):
    return Call(name, each=each)


def _steps(random: Random, sizes) -> tuple[Step, ...]:
    plain = groups(sizes)
    guides = [(0.0, 1.0) if random.random() < 0.7 else (random.choice((0.5, 1.0)), 0.5)
              for _ in sizes]
    last = len(sizes) - 1
    return tuple(replace(s, guide=g, calls=tuple(map(_call, ["step", "sample"] + ["feed"] * (
        i < last))), set=(("next", _next(sizes, i)),) if i < last else ())
        for i, (s, g) in enumerate(zip(plain, guides, strict=True)))


def _next(sizes, i) -> tuple[int, ...]:
    """Where in what was drawn each slot of the next step looks."""
    return tuple(j % sizes[i] for j in range(sizes[i + 1]))


def _prompt(slots: int):
    return parse_graph(f"""graph prompt(%cond: i64[b], %image: i64[r], %is_null: bool[r]) {{
  @classes : f32[4,{WIDTH}]
  %0 = const() {{dtype='i64', value=3}} : i64[]
  %1 = gather(%cond, %image) {{axis=0}} : i64[r]
  %2 = where(%is_null, %0, %1) : i64[r]
  %3 = gather(@classes, %2) {{axis=0}} : f32[r,{WIDTH}]
  %4 = reshape(%3) {{shape=('r', 1, {WIDTH})}} : f32[r,1,{WIDTH}]
  %5 = expand(%4) {{shape=('r', {slots}, {WIDTH})}} : f32[r,{slots},{WIDTH}]
  return x=%5
}}""")


def _feed(random: Random, size: int, sizes):
    """Tokens of this step, looked up for the slots of the next."""
    b = Builder("feed")
    token, image = b.param("token", "i64[b,c]"), b.param("image", "i64[r]")
    at = b.param("next", "i64[p]")
    x = b.gather(b.weight("tokens", f"f32[{size},{WIDTH}]"), token, axis=0)
    x = b.gather(b.gather(x, image, axis=0), at, axis=1)
    return b.graph(x=_stray(random, b, x))


def _stray(random: Random, b: Builder, x):
    """A few ops that leave the type as it is."""
    for _ in range(random.randint(0, 3)):
        match random.randrange(6):
            case 0:
                x = b.mul(x, b.weight(f"gain{len(b.nodes)}", f"f32[{WIDTH}]"))
            case 1:
                x = b.transpose(b.transpose(x, perm=(0, 2, 1)), perm=(0, 2, 1))
            case 2:
                x = b.tanh(x)
            case 3:
                a, c = b.split(x, axis=2, sizes=(WIDTH // 2, WIDTH // 2))
                x = b.concat(c, a, axis=2)
            case 4:
                x = b.reshape(b.reshape(x, shape=(*x.type.shape[:2], 2, WIDTH // 2)),
                              shape=x.type.shape)
            case 5:
                w = b.weight(f"w{len(b.nodes)}", f"f32[{WIDTH},{WIDTH}]")
                x = b.add(x, b.matmul(x, b.transpose(w, perm=(1, 0))))
    return x


def _step(random: Random, size: int, caches, how):
    b = Builder("step")
    x, past = b.param("x", f"f32[r,s,{WIDTH}]"), b.param("past", "i32[r]")
    noise = b.param("noise", "f32[b,c,2]")
    held = {k: b.param(k, t) for k, t in caches.items()}
    made = {}
    norm = random.choice(("rms", "layer"))
    for i in range(how["deep"]):
        x = _stray(random, b, x)
        a, made[f"k{i}"], made[f"v{i}"] = _attend(random, b, _norm(b, norm, x, f"{i}a"), past, i,
                                                  held, how)
        x = b.add(x, a)
        x = b.add(x, _mlp(random, b, _norm(b, norm, x, f"{i}b"), i))
    x = b.tail(_norm(b, norm, x, "end"), noise, axis=1)
    logits = b.matmul(x, b.transpose(b.weight("head", f"f32[{size},{WIDTH}]"), perm=(1, 0)))
    return b.graph(logits=logits, **made)


def _norm(b: Builder, kind: str, x, name: str):
    w = b.weight(f"above_{name}", f"f32[{WIDTH}]")
    return b.rms_norm(x, w, eps=1e-5) if kind == "rms" else b.layer_norm(
        x, w, b.weight(f"bias_{name}", f"f32[{WIDTH}]"), eps=1e-6)


def _linear(random: Random, b: Builder, x, name: str, out: int):
    w = b.transpose(b.weight(f"{name}", f"f32[{out},{x.type.shape[-1]}]"), perm=(1, 0))
    y = b.matmul(x, w)
    return b.add(y, b.weight(f"{name}b", f"f32[{out}]")) if random.random() < 0.3 else y


def _attend(random: Random, b: Builder, x, past, i: int, held, how):
    e, kv, heads = how["e"], how["kv"], how["heads"]
    q = _linear(random, b, x, f"q{i}", heads * e)
    k, v = (_linear(random, b, x, f"{c}{i}w", kv * e) for c in "kv")
    if random.random() < 0.7:
        tables = [b.weight(f"share_{c}", f"f32[{how['slots']},{e // 2}]") for c in ("cos", "sin")]
        spin = {"interleaved": random.random() < 0.5}
        q = b.rope(q, *tables, past, heads=heads, **spin)
        k = b.rope(k, *tables, past, heads=kv, **spin)
    k, v = b.cache_append(held[f"k{i}"], k, past), b.cache_append(held[f"v{i}"], v, past)
    a = b.attention(q, k, v, past, heads=heads, kv_heads=kv, mask=how["mask"], extra=("past",),
                    scale=e**-0.5)
    return _linear(random, b, a, f"o{i}", WIDTH), k, v


def _mlp(random: Random, b: Builder, x, i: int):
    up = _linear(random, b, x, f"up{i}", 24)
    match random.randrange(3):
        case 0:
            up = b.mul(b.silu(_linear(random, b, x, f"gate{i}", 24)), up)
        case 1:
            up = b.gelu(up)
        case _:
            up = b.relu(up)
    return _linear(random, b, up, f"down{i}", WIDTH)


def _paint(random: Random, size: int, n: int):
    b = Builder("paint")
    tokens = b.param("tokens", f"i64[b,{n}]")
    x = b.gather(b.weight("codes", f"f32[{size},8]"), tokens, axis=0)
    x = b.reshape(b.transpose(x, perm=(0, 2, 1)), shape=("b", 8, 1, n))
    if random.random() < 0.5:
        w, c = (b.weight(f"above_n{k}", "f32[8]") for k in "12")
        x = b.silu(b.group_norm(x, w, c, groups=2, eps=1e-6))
    x = b.conv2d(x, b.weight("kernel", "f32[3,8,3,3]"), pads=(1, 1, 1, 1))
    return b.graph(pixels=b.upsample(x, factor=random.choice((1, 2))))


def weights(p: Program) -> Weights:
    """By name, scaled so that depth does not blow values up."""
    def one(name, t):
        a = array(name, t, {})
        return a / np.sqrt(a.shape[-1]).astype(a.dtype) * 2 if a.ndim > 1 else a

    return of_arrays({k: one(k, v.type) for k, v in used(p.graphs).items()})
