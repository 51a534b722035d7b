"""Attention as ONNX nodes: GroupQueryAttention, or TensorScatter and Attention, by the step.

GroupQueryAttention rotates, appends and attends in one kernel, but on the CPU takes one query slot
a row once there is a past; graphs whose steps query more use the standard pair.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.ir import Node
from arcompile.targets.onnx_emit import DTYPES, Emitter, Nodes, lowers

MASKS = ("full", "causal", "prefix")  # as kernels/csrc/cpu/ops.cpp numbers them


def _sizes(e: Emitter, past: str, query: str) -> tuple[str, str, str]:
    """(slots, filled i64[r] after this call, the most of them i64[1]) for queries [r,s,..]."""

    def slots() -> str:
        return e.op("Shape", query, start=1, end=2)

    s = e.once(("slots", past), slots)
    filled = e.once(("filled", past), lambda: e.op(
        "Add", e.op("Cast", past, to=DTYPES["i64"]), s))
    total = e.once(("total", past), lambda: e.op("ReduceMax", filled, e.const([0]), keepdims=1))
    return s, filled, total


def _own(e: Emitter, past: str, s: str, slots: str, than: str = "Equal") -> str:
    """bool [r,1,s,t]: is key slot t the query's own? Or one before it, by LessOrEqual."""
    at = e.op("Add", e.op("Unsqueeze", e.op("Cast", past, to=DTYPES["i64"]), e.const([1])),
              _range(e, s))
    return e.op(than, _range(e, slots), e.op("Unsqueeze", at, e.const([1, 3])))


def _hide(e: Nodes, n: Node) -> tuple[str, str]:
    """What is added to the scores of keys that are seen, and of others."""
    dtype = n.args[0].type.dtype
    return e.number(0.0, dtype), e.number(-6e4 if dtype == "f16" else -1e30, dtype)


def _range(e: Nodes, n: str) -> str:
    return e.op("Range", e.const(0), e.op("Squeeze", n, e.const([0])), e.const(1))


def _seen(e: Emitter, keep: str, past: str, s: str, slots: str, mask: str) -> str:
    """The mask operand of Attention, all of it: TensorRT takes none beside `is_causal`."""
    kept = _keep(e, keep, past, s, slots)
    if mask == "full":
        return kept
    early = _prefix(e, past, s, slots) if mask == "prefix" else (
        _own(e, past, s, slots, "LessOrEqual"))
    return e.op("And", kept, early)


def _prefix(e: Nodes, past: str, s: str, slots: str) -> str:
    """bool [r,1,s,t]: causal where nothing is past, else every slot (those filled, that is)."""
    start = e.op("Unsqueeze", e.op("Cast", past, to=DTYPES["i64"]), e.const([1, 2, 3]))
    at = e.op("Unsqueeze", _range(e, s), e.const([0, 1, 3]))
    before = e.op("LessOrEqual", _range(e, slots), at)
    return e.op("Or", before, e.op("Greater", start, e.const(0)))


def _keep(e: Emitter, keep: str, past: str, s: str, slots: str) -> str:
    """bool [r,1,s,t] from keep bool[r,S]: kept slots, and always the query's own."""
    kept = e.op("Slice", keep, e.const([0]), slots, e.const([1]))
    return e.op("Or", e.op("Unsqueeze", kept, e.const([1, 2])), _own(e, past, s, slots))


@lowers("decode_attention")
def decode_attention(e: Emitter, n: Node, x: list[str]) -> list[str]:
    size = n.args[3].type.shape[3]  # of a head: GroupQueryAttention rotates multiples of 16 only
    whole = isinstance(size, int) and size % 16 == 0
    causal = n.attrs["mask"] == "causal"
    if causal and whole and not e.wide:
        return _grouped(e, n, x)
    if causal and e.wide and e.kernels and (packed := _kernel_reads(e, n)):
        return _kernel(e, n, x, packed, partial(_apart, **_told(n)))
    return scatter(e, n, x)


def _grouped(e: Emitter, n: Node, x: list[str]) -> list[str]:
    q, k, v, kc, vc, past, cos, sin, *keep = x
    packed, a = _packed(e, n), n.attrs
    grouped = partial(_group_query, num_heads=a["heads"], kv_num_heads=a["kv_heads"], do_rotary=1,
                      rotary_interleaved=int(a["interleaved"]), scale=a["scale"])
    if packed and _kernel_reads(e, n):
        return _kernel(e, n, x, packed, lambda e, packed, *rest: grouped(
            e, packed, "", "", *rest[:6]))
    last, most, total, s = _ends(e, past, packed or q)
    more = []
    if keep:
        bias = e.once(("bias", keep[0]), lambda: e.op(
            "Where", _keep(e, keep[0], past, s, total), *_hide(e, n)))
        more = ["", bias]
    given = (packed, "", "") if packed else (q, k, v)
    return grouped(e, *given, kc, vc, last, most, cos, sin, *more)


def _ends(e: Emitter, past: str, query: str) -> tuple[str, str, str, str]:
    """(slot of the last query i32[r], slots filled at most i32[] and i64[1], queries i64[1])"""
    s, filled, total = _sizes(e, past, query)
    last = e.once(("last", past), lambda: e.op(
        "Cast", e.op("Sub", filled, e.const([1])), to=DTYPES["i32"]))
    most = e.once(("most", past), lambda: e.op(
        "Squeeze", e.op("Cast", total, to=DTYPES["i32"]), e.const([0])))
    return last, most, total, s


def _kernel_reads(e: Emitter, n: Node) -> str:
    """The packed product, where our kernel may take it; else ""."""
    keeps = len(n.args) > 8
    return _packed(e, n) if n.args[0].type.dtype == "f32" and not keeps else ""


def _kernel(e: Emitter, n: Node, x: list[str], packed: str, body: Any) -> list[str]:
    """Rotary, caches and attention in one kernel, or what `body` says."""
    kc, vc, past, cos, sin = x[3:8]
    last, most, *_ = _ends(e, past, packed)
    a = n.attrs
    how = e.const([a["heads"], a["kv_heads"], int(a["interleaved"])])
    return list(e.kernel("DecodeAttention", body, packed, kc, vc, last, most, cos, sin, how,
                         e.float([a["scale"]])))


def _told(n: Node) -> dict[str, Any]:
    a = n.attrs
    widths = [v.type.shape[-1] for v in n.args[:3]]
    return {"widths": widths, **{k: a[k] for k in ("heads", "kv_heads", "interleaved", "scale")}}


def _apart(e: Nodes, packed: str, kc: str, vc: str, last: str, most: str, cos: str, sin: str,
           how: str, factor: str, *, widths: list[int], heads: int, kv_heads: int,
           interleaved: bool, scale: float, mask: str = "causal") -> list[str]:
    """The same in ops that take several queries over a past."""
    q, k, v = e.op("Split", packed, e.const(widths), axis=-1, outs=3)
    s = e.op("Shape", packed, start=1, end=2)
    filled = e.op("Add", e.op("Cast", last, to=DTYPES["i64"]), e.const([1]))
    past = e.op("Sub", filled, s)
    rows = e.op("Add", e.op("Unsqueeze", past, e.const([1])), _range(e, s))
    turned = [e.op("RotaryEmbedding", y, cos, sin, rows, num_heads=count,
                   interleaved=int(interleaved)) for y, count in ((q, heads), (k, kv_heads))]
    caches = [e.op("TensorScatter", cache, _split(e, new, kv_heads), past, axis=2)
              for cache, new in ((kc, turned[1]), (vc, v))]
    return [_attend(e, turned[0], *caches, filled, heads=heads, scale=scale, mask=mask), *caches]


def _group_query(e: Nodes, *x: str, **attrs: Any) -> list[str]:
    return list(e.ms("GroupQueryAttention", *x, outs=3, **attrs))


def _packed(e: Emitter, n: Node) -> str:
    """The product that query, key and value were split from, in that order; "" if they were not:
    the kernel reads it as it is."""
    made = e.g.producer.get(n.args[0])
    if made is None or made.op != "split" or made.outs != n.args[:3]:
        return ""
    return e.names[made.args[0]]


def scatter(e: Emitter, n: Node, x: list[str]) -> list[str]:
    """decode_attention in standard ops."""
    q, k, v, kc, vc, past, cos, sin, *keep = x
    a = n.attrs
    q = _rotate(e, q, cos, sin, past, a["heads"], a["interleaved"])
    k = _rotate(e, k, cos, sin, past, a["kv_heads"], a["interleaved"])
    kc, vc = _append(e, kc, k, past, a["kv_heads"]), _append(e, vc, v, past, a["kv_heads"])
    out = _cached(e, n, q, kc, vc, past, keep, n.args[3].type.shape[2])
    return [out, kc, vc]


def _split(e: Nodes, x: str, heads: int) -> str:
    """[r,s,h*e] -> [r,h,s,e]"""
    four = e.op("Reshape", x, e.const([0, 0, heads, -1]))
    return e.op("Transpose", four, perm=[0, 2, 1, 3])


def _join(e: Nodes, x: str) -> str:
    """[r,h,s,e] -> [r,s,h*e]"""
    return e.op("Reshape", e.op("Transpose", x, perm=[0, 2, 1, 3]), e.const([0, 0, -1]))


def _rotate(e: Emitter, x: str, cos: str, sin: str, at: str, heads: int,
            interleaved: bool) -> str:
    """`at` is past i32[r] or rows i64[r,s]; the op takes rows."""
    rows = e.once(("rows", at), lambda: _rows(e, x, at))
    return e.op("RotaryEmbedding", x, cos, sin, rows, num_heads=heads,
                interleaved=int(interleaved))


def _rows(e: Emitter, x: str, past: str) -> str:
    s = e.op("Shape", x, start=1, end=2)
    start = e.op("Unsqueeze", e.op("Cast", past, to=DTYPES["i64"]), e.const([1]))
    return e.op("Add", start, _range(e, s))


def _append(e: Emitter, cache: str, new: str, past: str, heads: int) -> str:
    at = e.once(("at", past), lambda: e.op("Cast", past, to=DTYPES["i64"]))
    return e.op("TensorScatter", cache, _split(e, new, heads), at, axis=2)


def _cached(e: Emitter, n: Node, q: str, k: str, v: str, past: str, keep: list[str],
            slots: dims.Dim) -> str:
    """Queries [r,s,h*e] over caches that already hold their own slots."""
    a = n.attrs
    s, filled, _ = _sizes(e, past, q)
    if keep:
        seen = e.once(("mask", *keep, slots, a["mask"]),
                      lambda: _seen(e, keep[0], past, s, e.dim(slots), a["mask"]))
        out = e.op("Attention", _split(e, q, a["heads"]), k, v, seen, "", "", filled,
                   scale=a["scale"], is_causal=0)
        return _join(e, out)
    body = partial(_attend, heads=a["heads"], scale=a["scale"], mask=a["mask"])
    if n.args[0].type.dtype != "f32":
        return body(e, q, k, v, filled)
    how = e.const([a["heads"], MASKS.index(a["mask"])])
    return str(e.kernel("CachedAttention", body, q, k, v, filled, how, e.float([a["scale"]])))


def _attend(e: Nodes, q: str, k: str, v: str, filled: str, *told: str, heads: int, scale: float,
            mask: str) -> str:
    """`told` is what the kernel is told of the rest; the first of it is the number of heads."""
    more = [""]
    if told:  # layers of other numbers of heads are the same function
        number = e.op("Slice", told[0], e.const([0]), e.const([1]), e.const([0]))
        shape = e.op("Concat", e.const([0, 0]), number, e.const([-1]), axis=0)
        four = e.op("Transpose", e.op("Reshape", q, shape), perm=[0, 2, 1, 3])
    else:
        four = _split(e, q, heads)
    if mask == "prefix":
        s, slots = e.op("Shape", q, start=1, end=2), e.op("Shape", k, start=2, end=3)
        more = [_prefix(e, e.op("Sub", filled, s), s, slots)]
    out = e.op("Attention", four, k, v, *more, "", "", filled, scale=scale,
               is_causal=int(mask == "causal"))
    return _join(e, out)


@lowers("rope")
def rope(e: Emitter, n: Node, x: list[str]) -> str:
    at = n.args[3]
    if at.type.rank == 2:
        return e.op("RotaryEmbedding", *x, num_heads=n.attrs["heads"],
                    interleaved=int(n.attrs["interleaved"]))
    y, cos, sin, past = x
    return _rotate(e, y, cos, sin, past, n.attrs["heads"], n.attrs["interleaved"])


@lowers("cache_append")
def cache_append(e: Emitter, n: Node, x: list[str]) -> str:
    heads = n.args[0].type.shape[1]
    assert isinstance(heads, int)
    cache, new, past = x
    return _append(e, cache, new, past, heads)


def _biased(e: Emitter, n: Node, x: list[str], opt: dict[str, str]) -> str:
    """Over a cache by a bias alone. Empty slots are cut off, so that the bias need not."""
    _, filled, _ = _sizes(e, opt["past"], x[0])
    q = _split(e, x[0], n.attrs["heads"])
    out = e.op("Attention", q, x[1], x[2], _over_queries(e, n, opt["bias"]), "", "", filled,
               scale=n.attrs["scale"], is_causal=0)
    return _join(e, out)


def _over_queries(e: Emitter, n: Node, bias: str) -> str:
    """A bias that is the same for all queries, spread over them: Attention wants its full size."""
    t = n.args[3 + n.attrs["extra"].index("bias")].type
    s = n.args[0].type.shape[1]
    if t.rank < 2 or t.shape[-2] == s:
        return bias
    return _spread(e, bias, s, t.rank)


def _spread(e: Emitter, bias: str, s: dims.Dim, rank: int = 4) -> str:
    """[..,1,t] -> [..,s,t]"""
    return e.once(("over", bias, s), lambda: e.op("Expand", bias, e.op(
        "Concat", e.const([1] * (rank - 2)), e.dim(s), e.const([1]), axis=0)))


def _lengths(n: Node) -> tuple[dims.Dim, dims.Dim]:
    """Of queries and keys."""
    k = n.args[1].type
    return n.args[0].type.shape[1], k.shape[2 if k.rank == 4 else 1]


def _late(e: Emitter, n: Node, x: list[str]) -> str:
    """bool [s,t]: keys up to each query's own slot, the last query being at the last key."""
    s, t = (e.dim(d) for d in _lengths(n))
    at = e.op("Add", e.op("Unsqueeze", _range(e, s), e.const([1])), e.op("Sub", t, s))
    return e.op("LessOrEqual", _range(e, t), at)


@lowers("attention")
def attention(e: Emitter, n: Node, x: list[str]) -> str:
    return attend(e, n, x)


def attend(e: Emitter, n: Node, x: list[str], contrib: bool = True) -> str:
    """contrib: whether ONNX Runtime's own op may stand for it."""
    a = n.attrs
    opt = dict(zip(a.get("extra", ()), x[3:], strict=True))
    causal = a.get("mask", "full") == "causal"
    if "past" in opt and n.args[1].type.rank == 4:
        if "bias" in opt and ("keep" in opt or a["mask"] != "full"):
            raise ArcError("attention over a cache takes a bias or a mask on this target",
                           hint="say all of it by the bias")
        if "bias" in opt:
            return _biased(e, n, x, opt)
        keep = [opt["keep"]] if "keep" in opt else []
        q, k, v = x[:3]
        return _cached(e, n, q, k, v, opt["past"], keep, n.args[1].type.shape[2])
    same = a["heads"] == a["kv_heads"] and n.args[0].type.shape[1] == n.args[1].type.shape[1]
    if contrib and same and not opt and not causal:
        return e.ms("MultiHeadAttention", *x, num_heads=a["heads"], scale=a["scale"])
    bias = [_over_queries(e, n, opt["bias"])] if "bias" in opt else []
    if "keep" in opt:
        seen = e.op("Where", e.op("Unsqueeze", opt["keep"], e.const([1, 2])), *_hide(e, n))
        bias = [e.op("Add", bias[0], seen) if bias else _spread(e, seen, n.args[0].type.shape[1])]
    if causal and _lengths(n)[0] != _lengths(n)[1]:  # ONNX puts the first query at the first key
        late = e.op("Where", _late(e, n, x), *_hide(e, n))
        bias, causal = [e.op("Add", bias[0], late) if bias else late], False
    heads = {"q_num_heads": a["heads"], "kv_num_heads": a["kv_heads"]}
    if n.args[1].type.rank == 4:
        out = e.op("Attention", _split(e, x[0], a["heads"]), x[1], x[2], *bias, scale=a["scale"],
                   is_causal=int(causal))
        return _join(e, out)
    return e.op("Attention", *x[:3], *bias, scale=a["scale"], is_causal=int(causal), **heads)


