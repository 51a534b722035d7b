"""Caches that drop slots as ONNX nodes: see ops.kv for what they mean.

Whether anything is dropped is a branch, so a step that keeps all neither scores nor sorts.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from arcompile.ir import Node
from arcompile.ops.kv import FIRST, RECENT
from arcompile.targets.onnx_attention import MASKS, _attend, _split
from arcompile.targets.onnx_emit import DTYPES, Emitter, lowers


def _joined(e: Emitter, cache: str, new: str, held: str, heads: int) -> str:
    """[r,g,held+s,e]: what is held, and the new slots behind it."""
    return e.once(("joined", cache, new), lambda: e.op(
        "Concat", e.op("Slice", cache, e.const([0]), _one(e, held), e.const([2])),
        _split(e, new, heads), axis=2))


def _one(e: Emitter, scalar: str) -> str:
    """i64[] -> i64[1]"""
    return e.once(("one", scalar), lambda: e.op("Unsqueeze", scalar, e.const([0])))


def _slots(e: Emitter, q: str) -> str:
    return e.once(("slots of", q), lambda: e.op("Shape", q, start=1, end=2))


def _rows(e: Emitter, q: str, value: str) -> str:
    """i64[1] -> i64[r]"""
    return e.once(("rows of", q, value), lambda: e.op(
        "Expand", value, e.op("Shape", q, start=0, end=1)))


@lowers("kv_attend")
def kv_attend(e: Emitter, n: Node, x: list[str]) -> str:
    q, k, v, kc, vc, held = x
    a = n.attrs
    keys, values = (_joined(e, c, new, held, a["kv_heads"]) for c, new in ((kc, k), (vc, v)))
    count = e.once(("filled by", held, q), lambda: e.op("Add", _one(e, held), _slots(e, q)))
    filled = e.op("Expand", count, _updated(e, q, kc, vc))
    mask = a.get("mask", "full")
    body = partial(_attend, heads=a["heads"], scale=a["scale"], mask=mask)
    if n.args[0].type.dtype != "f32":
        return body(e, q, keys, values, filled)
    how = e.const([a["heads"], MASKS.index(mask)])
    return str(e.kernel("CachedAttention", body, q, keys, values, filled, how,
                        e.float([a["scale"]])))


def _updated(e: Emitter, q: str, kc: str, vc: str) -> str:
    """The number of rows, i64[1], read off the new caches where they are made already: ONNX Runtime
    would put their making off to the end, and keep what every layer joined until then."""
    made = e.memo.get(("updated", kc, vc), "")
    if not made:
        return e.op("Shape", q, start=0, end=1)
    stored = [e.memo.get(("stored", c), c) for c in made.split("\n")]
    return e.op("Max", *(e.op("Shape", c, start=0, end=1) for c in stored))


@lowers("kv_update")
def kv_update(e: Emitter, n: Node, x: list[str]) -> list[str]:
    made = _update(e, n, x)
    e.memo["updated", x[3], x[4]] = "\n".join(made[:2])
    return made


def _update(e: Emitter, n: Node, x: list[str]) -> list[str]:
    q, k, v, kc, vc, held, keep, *more = x
    a = n.attrs
    opt = dict(zip(a.get("extra", ()), more, strict=True))
    keys, values = (_joined(e, c, new, held, a["kv_heads"]) for c, new in ((kc, k), (vc, v)))
    t = e.op("Add", _one(e, held), _slots(e, q))
    all_kept = e.op("GreaterOrEqual", keep, e.op("Squeeze", t, e.const([0])))
    none = e.op("LessOrEqual", keep, e.const(0))

    def plain() -> list[str]:
        stop = _one(e, keep)
        return [e.op("Slice", y, e.const([0]), stop, e.const([2])) for y in (keys, values)]

    def dropping() -> list[str]:
        worth = _worth(e, n, q, keys, t, opt)
        return _kept(e, n, worth, keys, values, t, keep)

    at = _rows(e, q, e.const([0]))
    if "seen" not in opt:
        kept = e.branch(e.op("Or", all_kept, none), plain, dropping, 2)
        return [e.op("TensorScatter", c, y, at, axis=2)
                for c, y in zip((kc, vc), kept, strict=True)]
    total = _added(e, _worth(e, n, q, keys, t, {}), opt["seen"], held)

    def keeping() -> list[str]:
        return [*plain(), e.op("Slice", total, e.const([0]), _one(e, keep), e.const([2]))]

    def chosen() -> list[str]:
        most = e.op("Max", e.op("ReduceMax", total, e.const([-1]), keepdims=1), e.float(1e-12))
        slots = _order(e, n, _shared(e, e.op("Div", total, most), opt), t, _one(e, keep))
        sums = e.op("GatherElements", total, slots, axis=2)
        return [*(_take(e, y, slots) for y in (keys, values)), sums]

    *kept, sums = e.branch(e.op("Or", all_kept, none), keeping, chosen, 3)
    size = n.args[3].type.shape[2]
    have = e.op("Shape", sums, start=2, end=3)
    seen = e.op("Pad", sums, e.op("Concat", e.const([0] * 5), e.op(
        "Sub", e.const([size]), have), axis=0))
    return [*(e.op("TensorScatter", c, y, at, axis=2)
              for c, y in zip((kc, vc), kept, strict=True)), seen]


def _worth(e: Emitter, n: Node, q: str, keys: str, t: str, opt: dict[str, str]) -> str:
    """What each slot is worth, [r,g,t]."""
    a = n.attrs
    if a.get("score", "attention") == "recency":
        slot = e.op("Cast", _range(e, t), to=DTYPES["f32"])
        share = e.op("Div", slot, e.op("Cast", t, to=DTYPES["f32"]))
        shape = e.op("Concat", e.op("Shape", keys, start=0, end=2), t, axis=0)
        return e.op("Expand", share, shape)
    many = a.get("observe", 32)
    at = e.op("Div", e.op("Mul", e.const(2 * np.arange(many) + 1), _slots(e, q)),
              e.const([2 * many]))
    return _shared(e, _watched(e, e.op("Gather", q, at, axis=1), keys, a["heads"], a["kv_heads"],
                               a["scale"]), opt)


def _shared(e: Emitter, worth: str, opt: dict[str, str]) -> str:
    return e.op("Gather", worth, opt["image"], axis=0) if "image" in opt else worth


def _added(e: Emitter, worth: str, seen: str, held: str) -> str:
    """worth [r,g,t], and what was seen [r,g,C] of the slots that were held."""
    old = e.op("Slice", seen, e.const([0]), _one(e, held), e.const([2]))
    more = e.op("Sub", e.op("Shape", worth, start=2, end=3), _one(e, held))
    return e.op("Add", worth, e.op("Pad", old, e.op(
        "Concat", e.const([0] * 5), more, axis=0)))


def _watched(e: Emitter, q: str, keys: str, heads: int, kv_heads: int, scale: float,
             mask: str = "") -> str:
    """Mean attention of queries [r,n,h*e] to keys [r,g,t,e], [r,g,t]."""
    group = heads // kv_heads
    four = _split(e, q, heads)  # [r,h,n,e]
    if group > 1:  # the queries of a group one after the other
        four = e.op("Reshape", four, e.op("Concat", e.const([0, kv_heads, -1]), e.op(
            "Shape", four, start=3, end=4), axis=0))
    scores = e.op("Mul", e.op("MatMul", four, e.op("Transpose", keys, perm=[0, 1, 3, 2])),
                  e.float(scale))
    if mask:
        scores = e.op("Add", scores, mask)
    return e.op("ReduceMean", e.op("Softmax", scores, axis=-1), e.const([2]), keepdims=0)


def _order(e: Emitter, n: Node, worth: str, t: str, count: str) -> str:
    """The best `count` slots, in order: i64[r,g,count]."""
    best = _best(e, n, worth, t, count)
    return e.op("TopK", best, count, axis=-1, largest=0, sorted=1, outs=2)[0]


def _best(e: Emitter, n: Node, worth: str, t: str, count: str) -> str:
    a = n.attrs
    if (pool := a.get("pool", 1)) > 1:
        worth = e.op("AveragePool", worth, kernel_shape=[pool], pads=[pool // 2] * 2,
                     count_include_pad=0)
    slot = _range(e, t)
    recent = a.get("recent", 0)
    late = _slots(e, e.names[n.args[0]]) if recent < 0 else e.const([recent])
    early = e.op("Cast", e.op("Less", slot, e.const(a.get("first", 0))), to=DTYPES["f32"])
    new = e.op("Cast", e.op("GreaterOrEqual", slot, e.op("Sub", t, late)), to=DTYPES["f32"])
    extra = e.op("Add", e.op("Mul", early, e.float(FIRST)), e.op("Mul", new, e.float(RECENT)))
    return e.op("TopK", e.op("Add", worth, extra), count, axis=-1, largest=1, sorted=1, outs=2)[1]


def _range(e: Emitter, t: str) -> str:
    return e.op("Range", e.const(0), e.op("Squeeze", t, e.const([0])), e.const(1))


def _take(e: Emitter, cache: str, slots: str) -> str:
    """Slots [r,g,n] of [r,g,t,e]."""
    return e.op("GatherND", cache, e.op("Unsqueeze", slots, e.const([-1])), batch_dims=2)


def _kept(e: Emitter, n: Node, worth: str, keys: str, values: str, t: str,
          keep: str) -> list[str]:
    least = n.attrs.get("merge", 0)
    if not least:
        slots = _order(e, n, worth, t, _one(e, keep))
        return [_take(e, y, slots) for y in (keys, values)]
    every = _best(e, n, worth, t, t)
    kept = e.op("Slice", every, e.const([0]), _one(e, keep), e.const([2]))
    slots = e.op("TopK", kept, _one(e, keep), axis=-1, largest=0, sorted=1, outs=2)[0]
    gone = e.op("Slice", every, _one(e, keep), t, e.const([2]))
    enough = e.op("Cast", e.op("GreaterOrEqual", t, e.const([least])), to=DTYPES["f32"])
    return _merged(e, keys, values, slots, gone, enough)


def _merged(e: Emitter, keys: str, values: str, slots: str, gone: str, weight: str) -> list[str]:
    """weight f32[1]: 1, or 0 where the dropped ones count nothing. (A branch in a branch costs ONNX
    Runtime ten times what it saves.)"""
    length = e.op("Max", e.op("ReduceL2", keys, e.const([-1]), keepdims=1), e.float(1e-12))
    unit = e.op("Div", keys, length)
    alike = e.op("MatMul", _take(e, unit, gone),
                 e.op("Transpose", _take(e, unit, slots), perm=[0, 1, 3, 2]))
    near = e.op("ArgMax", alike, axis=-1, keepdims=0)  # [r,g,gone]
    count = e.op("Shape", slots, start=2, end=3)
    to = e.op("Unsqueeze", _range(e, count), e.const([1]))
    goes = e.op("Cast", e.op("Equal", e.op("Unsqueeze", near, e.const([2])), to),
                to=DTYPES["f32"])  # [r,g,kept,gone]
    goes = e.op("Mul", goes, weight)
    many = e.op("Add", e.op("ReduceSum", goes, e.const([-1]), keepdims=1), e.float(1.0))
    return [e.op("Div", e.op("Add", _take(e, y, slots), e.op(
        "MatMul", goes, _take(e, y, gone))), many) for y in (keys, values)]


@lowers("kv_watch")
def kv_watch(e: Emitter, n: Node, x: list[str]) -> str:
    seen, q, keys, held = x
    _, g, size, _ = n.args[2].type.shape
    assert isinstance(g, int)
    assert isinstance(size, int)
    filled = e.once(("end", held, q), lambda: e.op("Add", _one(e, held), _slots(e, q)))
    mask = e.once(("empty", held, q, size), lambda: e.op(
        "Where", e.op("Less", e.const(np.arange(size)), filled), e.float(0.0), e.float(-1e30)))
    return e.op("Add", seen, _watched(e, q, keys, n.attrs["heads"], g, n.attrs["scale"], mask))


@lowers("kv_drop")
def kv_drop(e: Emitter, n: Node, x: list[str]) -> list[str]:
    kc, vc, *seen = x
    a = n.attrs
    _, g, size, _ = n.args[0].type.shape
    assert isinstance(size, int)
    t, keep = e.const([size]), e.const([a["keep"]])
    if seen:
        worth = _by_row(e, seen[0], size, g, a.get("first", 0), a.get("row", 1))
    else:
        worth = e.op("Expand", e.float(np.arange(size) / size), e.op("Shape", kc, start=0, end=3))
    slots = _order(e, n, worth, t, keep)
    at = _rows(e, kc, e.const([0]))
    made = [e.op("TensorScatter", c, _take(e, c, slots), at, axis=2) for c in (kc, vc)]
    if seen:
        left = e.op("GatherElements", seen[0], slots, axis=2)
        if a.get("forget", False):
            left = e.op("Mul", left, e.float(0.0))
        made.append(e.op("Pad", left, e.const([0] * 5 + [size - a["keep"]])))
    return made


def _by_row(e: Emitter, seen: str, size: int, heads: object, first: int, row: int) -> str:
    most = e.op("Max", e.op("ReduceMax", seen, e.const([-1]), keepdims=1), e.float(1e-12))
    worth = e.op("Div", seen, most)
    if row == 1:
        return worth
    parts = [e.op("Slice", worth, e.const([0]), e.const([first]), e.const([2]))] if first else []
    behind = e.op("Slice", worth, e.const([first]), e.const([size]), e.const([2]))
    rows = (size - first) // row
    apart = e.op("Reshape", behind, e.const([0, 0, rows, row]))
    mean = e.op("Expand", e.op("ReduceMean", apart, e.const([-1]), keepdims=1),
                e.const([1, 1, 1, row]))
    parts.append(e.op("Reshape", mean, e.const([0, 0, size - first])))
    return e.op("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
