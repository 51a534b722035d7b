"""Lowerings to our CUDA kernels, as custom ops of ONNX Runtime: see kernels/ort_cuda.py.

Each op is a function of the model too, which says the same in standard ops.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from arcompile.ir import Node
from arcompile.targets import onnx_attention, patterns
from arcompile.targets.onnx_emit import DTYPES, LOWER, Emitter, Lower, Nodes, fill, overlay
from arcompile.targets.onnx_ops import _group_norm, ones
from arcompile.targets.onnx_sampling import _draw, _filter, column

CUDA: dict[str, Lower] = {}
cuda = overlay(CUDA)
SUFFIX = {"f32": "", "f16": "F16", "bf16": "BF16"}
MOST = 50_000  # numbers that the shared memory of a block holds
HEADS = {"f32": 256, "f16": 128, "bf16": 128}  # the largest that attention takes; multiples of 8


def table() -> dict[str, Lower]:
    """Every op's lowering, to kernels of ours where there is one."""
    fill()
    return {**LOWER, **CUDA}


@cuda("draw")
def draw(e: Emitter, n: Node, x: list[str]) -> str | list[str]:
    found, size = patterns.chain(e.g, n), n.args[0].type.shape[-1]
    if found is None or not isinstance(size, int) or size > MOST or (
            found.args[0].type.dtype != "f32"):
        return LOWER["draw"](e, n, x)
    return str(e.own("LogitsChain", partial(_chain, size=size), *(e.names[a] for a in found.args)))


def _chain(e: Nodes, logits: str, row: str, null_row: str, scale: str, temperature: str,
           top_k: str, top_p: str, most: str, noise: str, size: int) -> str:
    mine, null = (e.op("Gather", logits, x, axis=0) for x in (row, null_row))
    more = column(e, e.op("Sub", scale, e.float(1.0)))
    guided = e.op("Add", mine, e.op("Mul", more, e.op("Sub", mine, null)))
    return _draw(e, _filter(e, guided, temperature, top_k, top_p, most), noise, temperature, size)


@cuda("add")
def add(e: Emitter, n: Node, x: list[str]) -> str | list[str]:
    found = patterns.modulated(e.g, n)
    if found is None:
        return LOWER["add"](e, n, x)
    norm, scale, shift = found.args
    rows, width = norm.type.shape[0], norm.type.shape[-1]
    alike = all(v.type.shape[0] == rows for v in (scale, shift))
    if not alike or norm.type.dtype not in SUFFIX or not isinstance(width, int) or width > MOST:
        return LOWER["add"](e, n, x)
    one, eps = ones(e, n), e.float([found.attrs["eps"]])
    return str(e.own(f"AdaNorm{SUFFIX[norm.type.dtype]}", partial(_ada, epsilon=found.attrs["eps"]),
                     e.names[norm], one, e.names[scale], e.names[shift], eps))


def _ada(e: Nodes, x: str, one: str, scale: str, shift: str, eps: str, *, epsilon: float) -> str:
    norm = e.op("LayerNormalization", x, one, axis=-1, epsilon=epsilon)
    return str(e.op("Add", e.op("Mul", norm, scale), shift))


@cuda("group_norm", "group_norm_silu")
def group_norm(e: Emitter, n: Node, x: list[str]) -> str | list[str]:
    t, silu = n.args[0].type, n.op == "group_norm_silu"
    if {v.type.dtype for v in n.args} != {t.dtype} or t.dtype not in SUFFIX:
        return LOWER[n.op](e, n, x)
    body = partial(_grouped, shape=t.shape, dtype=t.dtype, groups=n.attrs["groups"],
                   epsilon=n.attrs["eps"], silu=silu)
    name = f"GroupNorm{'Silu' if silu else ''}{SUFFIX[t.dtype]}"
    made = e.own(name, body, *x, e.const([n.attrs["groups"]]), e.float([n.attrs["eps"]]))
    return str(made[0])  # the second is what the kernel works in


def _grouped(e: Nodes, *x: str, **how: Any) -> list[str]:
    return [_group_norm(e, *x, **how), e.float([0])]


# --- attention over caches -----------------------------------------------------------------------


@cuda("decode_attention")
def decode_attention(e: Emitter, n: Node, x: list[str]) -> list[str]:
    """ONNX Runtime's own GroupQueryAttention has no f32 and no bias on a GPU."""
    t, a, cache = n.args[0].type, n.attrs, n.args[3].type
    grouped = t.dtype != "f32" and len(x) == 8
    if len(x) > 8 or not _takes(t.dtype, cache.shape[3]) or (
            {v.type.dtype for v in (*n.args[3:5], *n.args[6:8])} != {t.dtype}):
        made = LOWER["decode_attention"](e, n, x) if grouped else onnx_attention.scatter(e, n, x)
        return list(made)
    packed = onnx_attention._packed(e, n) or e.op("Concat", *x[:3], axis=-1)
    grouped = grouped and a["mask"] == "causal" and cache.shape[3] % 16 == 0 and not e.wide
    how = e.const([a["heads"], a["kv_heads"], int(a["interleaved"]),
                   onnx_attention.MASKS.index(a["mask"])])
    body = partial(_decoded, grouped=grouped, mask=a["mask"], **onnx_attention._told(n))
    made = e.own(f"FlashDecode{SUFFIX[t.dtype]}", body, packed, *x[3:8], how, e.float([a["scale"]]))
    return list(made)[:3]  # the fourth is what the kernel works in


def _takes(dtype: str, size: Any) -> bool:
    return isinstance(size, int) and size % 8 == 0 and size <= HEADS.get(dtype, 0)


def _filled(e: Nodes, past: str, query: str) -> str:
    """i64[r]: the slots that are filled after this call."""
    s = e.op("Shape", query, start=1, end=2)
    return str(e.op("Add", e.op("Cast", past, to=DTYPES["i64"]), s))


def _decoded(e: Nodes, packed: str, kc: str, vc: str, past: str, cos: str, sin: str, how: str,
             factor: str, *, grouped: bool, mask: str, **told: Any) -> list[str]:
    filled = _filled(e, past, packed)
    last = e.op("Cast", e.op("Sub", filled, e.const([1])), to=DTYPES["i32"])
    if not grouped:
        made = onnx_attention._apart(e, packed, kc, vc, last, "", cos, sin, how, factor, mask=mask,
                                     **told)
        return [*made, e.float([0])]
    most = e.op("Cast", e.op("ReduceMax", filled, e.const([0]), keepdims=0), to=DTYPES["i32"])
    made = onnx_attention._group_query(
        e, packed, "", "", kc, vc, last, most, cos, sin, num_heads=told["heads"],
        kv_num_heads=told["kv_heads"], do_rotary=1, rotary_interleaved=int(told["interleaved"]),
        scale=told["scale"])
    return [*made, e.float([0])]


@cuda("attention")
def attention(e: Emitter, n: Node, x: list[str]) -> str | list[str]:
    """Over a cache, by what is filled; a bias, kept slots, or no cache: ONNX Runtime's own."""
    t, a, k = n.args[0].type, n.attrs, n.args[1].type
    cached = tuple(a.get("extra", ())) == ("past",) and k.rank == 4 and n.args[2].type == k
    if not cached or k.dtype != t.dtype or not _takes(t.dtype, k.shape[3]):
        return LOWER["attention"](e, n, x)
    mask = a.get("mask", "full")
    how = e.const([a["heads"], onnx_attention.MASKS.index(mask)])
    body = partial(_ranged, heads=a["heads"], scale=a["scale"], mask=mask)
    return str(e.own(f"RangeAttention{SUFFIX[t.dtype]}", body, *x, how, e.float([a["scale"]])))


def _ranged(e: Nodes, q: str, k: str, v: str, past: str, how: str, factor: str, *, heads: int,
            scale: float, mask: str) -> str:
    return onnx_attention._attend(e, q, k, v, _filled(e, past, q), how, heads=heads, scale=scale,
                                  mask=mask)
