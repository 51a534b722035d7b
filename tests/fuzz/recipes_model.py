"""Recipes for the ops that are parts of a generator: attention, sampling, drafting, quantised
products."""

from __future__ import annotations

from fuzz.grow import Grow, Reject
from fuzz.recipes import recipe

from arcompile.ir import Type, Value


def rows(g: Grow, width: int, length: str = "s") -> Value:
    """f32[r,s,width]: one of the graph, made to that width if need be."""
    found = [v for v in g.env if v.type == Type("f32", ("r", length, width))]
    if found and g.random.random() < 0.7:
        return g.random.choice(found)
    return g.leaf(Type("f32", ("r", length, width)), weight=False)


def _heads(g: Grow):
    kv = g.random.choice((1, 2))
    return kv * g.random.choice((1, 2)), kv, g.random.choice((2, 4, 8))


SLOTS = 8  # of a cache


def past(g: Grow) -> Value:
    """Filled slots: as many in every row as a loop has, or different ones."""
    return _one(g, Type("i32", ("r",)), f"below{SLOTS - g.sizes['s'] + 1}")


def _one(g: Grow, t: Type, stem: str) -> Value:
    """An input of that type and name, the same one if there is one."""
    found = [v for v in g.b.params if v.type == t and v.name.startswith(stem + "_")]
    return found[0] if found else g.leaf(t, stem, weight=False)


def _tables(g: Grow, half: int):
    return [g.leaf(Type("f32", (SLOTS + 2, half)), "share", weight=True) for _ in range(2)]


@recipe("rope")
def rope(g: Grow, op: str) -> None:
    heads, _, e = _heads(g)
    at = past(g) if g.random.random() < 0.7 else _one(g, Type("i64", ("r", "s")), f"below{SLOTS}")
    g.emit(op, rows(g, heads * e), *_tables(g, e // 2), at, heads=heads,
           interleaved=g.random.random() < 0.5)


def _cache(g: Grow, heads: int, e: int) -> Value:
    return g.leaf(Type("f32", ("r", heads, SLOTS, e)), "cache", weight=False)


@recipe("cache_append")
def cache_append(g: Grow, op: str) -> None:
    _, kv, e = _heads(g)
    g.emit(op, _cache(g, kv, e), rows(g, kv * e), past(g))


@recipe("attention")
def attention(g: Grow, op: str) -> None:
    heads, kv, e = _heads(g)
    q, at, extra = rows(g, heads * e), past(g), {}
    cached = g.random.random() < 0.5
    if cached:
        k, v = (g.emit("cache_append", _cache(g, kv, e), rows(g, kv * e), at)[0] for _ in "kv")
        extra["past"] = at
    else:
        length = g.random.choice(("s", "t"))
        k, v = rows(g, kv * e, length), rows(g, kv * e, length)
    keys = SLOTS if cached else length
    masks = ("causal", "full", "prefix") if cached else ("causal", "full")
    mask = g.random.choice(masks)
    if g.random.random() < 0.3 and (cached or mask == "full"):
        extra["keep"] = g.leaf(Type("bool", ("r", keys)), weight=False)
    elif g.random.random() < 0.3:
        mask = "full"
        shape = g.random.choice((("r", heads, "s", keys), (1, heads, "s", keys), ("s", keys)))
        extra["bias"] = g.leaf(Type("f32", shape), weight=False)
    g.emit(op, q, k, v, *extra.values(), heads=heads, kv_heads=kv, mask=mask, extra=tuple(extra),
           scale=g.random.choice((0.25, 0.5, 1.0)))


@recipe("decode_attention")
def decode_attention(g: Grow, op: str) -> None:
    heads, kv, e = _heads(g)
    caches = [_cache(g, kv, e) for _ in "kv"]
    keep = [g.leaf(Type("bool", ("r", SLOTS)), weight=False)] if g.random.random() < 0.3 else []
    g.emit(op, rows(g, heads * e), rows(g, kv * e), rows(g, kv * e), *caches, past(g),
           *_tables(g, e // 2), *keep, heads=heads, kv_heads=kv, scale=0.5,
           mask=g.random.choice(("causal", "causal", "full", "prefix")),
           interleaved=g.random.random() < 0.5)


# --- sampling and drafts -------------------------------------------------------------------------


def logits(g: Grow) -> Value:
    found = [v for v in g.env if v.type.dtype == "f32" and v.type.shape[:2] == ("b", "c")
             and v.type.rank == 3 and isinstance(v.type.shape[2], int) and v.type.shape[2] > 2]
    if found and g.random.random() < 0.6:
        return g.random.choice(found)
    return g.leaf(Type("f32", ("b", "c", g.random.choice((3, 16, 128, 130, 300)))), weight=False)


def noise(g: Grow, width: int = 2) -> Value:
    return g.leaf(Type("f32", ("b", "c", width)), "noise", weight=False)


def knob(g: Grow) -> Value:
    return _one(g, Type("f32", ("b",)), g.random.choice(("share", "above", "below2")))


@recipe("filter_logits")
def filter_logits(g: Grow, op: str) -> None:
    x = logits(g)
    size = x.type.shape[2]
    most = _one(g, Type("i64", (1,)), f"most{size}")
    top_k = _one(g, Type("i64", ("b",)), f"below{size}")
    g.emit(op, x, knob(g), top_k, _one(g, Type("f32", ("b",)), "share"), most)


@recipe("draw")
def draw(g: Grow, op: str) -> None:
    g.emit(op, logits(g), noise(g), knob(g))


def _law(g: Grow) -> Value:
    return g.emit("law", logits(g), knob(g))[0]


@recipe("law")
def law(g: Grow, op: str) -> None:
    _law(g)


@recipe("draw_from")
def draw_from(g: Grow, op: str) -> None:
    g.emit(op, _law(g), noise(g))


@recipe("slide")
def slide(g: Grow, op: str) -> None:
    x = logits(g)
    shift = _one(g, Type("i64", ("b",)), "below3")
    fill = g.leaf(Type("f32", x.type.shape), weight=False)
    g.emit(op, x, shift, fill)


@recipe("verify")
def verify(g: Grow, op: str) -> None:
    p = _law(g)
    coupling = g.random.choice(("independent", "maximal", "gumbel"))
    cells, size = ("b", "c"), p.type.shape[2]
    gumbel = [g.leaf(p.type, weight=False)] if coupling == "gumbel" else []
    g.emit(op, p, g.random.choice((p, g.leaf(p.type, "share", weight=False))),
           g.leaf(Type("f32", cells), "share", weight=False),
           g.leaf(Type("i64", cells), f"below{size}", weight=False), noise(g, 1), noise(g),
           _one(g, Type("i64", ("b",)), f"below{g.sizes['c']}"), *gumbel, coupling=coupling)


@recipe("agree")
def agree(g: Grow, op: str) -> None:
    token, draft = (g.leaf(Type("i64", ("b", "c")), "below3", weight=False) for _ in "12")
    g.emit(op, token, draft, _one(g, Type("i64", ("b",)), f"below{g.sizes['c']}"))


@recipe("nearest")
def nearest(g: Grow, op: str) -> None:
    g.emit(op, g.leaf(Type("f32", (8, 4)), weight=True), k=g.random.choice((1, 3)))


# --- quantised -----------------------------------------------------------------------------------


@recipe("quantize_rows", "matmul_int8", "quantize_channels")
def int8(g: Grow, op: str) -> None:
    x = g.pick("f32", fits=lambda v: v.type.rank >= 2 and isinstance(v.type.shape[-1], int))
    q, scale = g.emit("quantize_rows", x)
    if op != "quantize_rows":
        w = g.leaf(Type("f32", (x.type.shape[-1], g.random.choice((1, 4, 16)))), weight=True)
        g.emit("matmul_int8", q, scale, *g.emit("quantize_channels", w, axis=1))


@recipe("quantize_blocks", "matmul_blocks")
def blocks(g: Grow, op: str) -> None:
    x = g.pick("f32", fits=lambda v: v.type.rank >= 2 and v.type.shape[-1] == 16)
    w = g.leaf(Type("f32", (16, g.random.choice((8, 16)))), weight=True)
    how = {"bits": g.random.choice((4, 8)), "block": 16}
    g.emit("matmul_blocks", x, *g.emit("quantize_blocks", w, **how), **how)


@recipe("quantize_fp8", "matmul_columns", "fake_quantize")
def columns(g: Grow, op: str) -> None:
    x = g.pick("f32", fits=lambda v: v.type.rank >= 2 and isinstance(v.type.shape[-1], int))
    if op == "fake_quantize":
        g.emit(op, x, step=g.random.choice((0.0625, 0.5)), form=g.random.choice(("int8", "fp8")))
        return
    w = g.leaf(Type("f32", (x.type.shape[-1], g.random.choice((1, 4, 16)))), weight=True)
    parts = g.emit("quantize_fp8", w) if op == "quantize_fp8" or g.random.random() < 0.5 else (
        g.emit("quantize_channels", w, axis=1))
    if op == "matmul_columns":
        g.emit(op, x, *parts)


@recipe("conv2d_int8")
def conv2d_int8(g: Grow, op: str) -> None:
    x = g.leaf(Type("f32", ("b", 4, 4, 4)), "share", weight=False)
    w, scale = g.emit("quantize_channels", g.leaf(Type("f32", (4, 4, 3, 3)), weight=True), axis=0)
    g.emit(op, x, w, scale, ranges=(0.0, 1.0, -8.0, 8.0), pads=(1, 1, 1, 1))


__all__ = ["Reject"]
