"""The rest of the table: indexing, reductions, products and nets, and our `arc::` ops."""

from __future__ import annotations

import math
from typing import Any

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.export.aten import ATEN, aten, axis, reshape, scalar, to, unsqueeze
from arcompile.ir import Builder, Value

# --- indexing ------------------------------------------------------------------------------------


@aten("embedding.default")
def embedding(b: Builder, w: Value, index: Value, *_: Any) -> Value:
    return b.gather(w, index, axis=0)


@aten("index_select.default")
def index_select(b: Builder, x: Value, dim: int, index: Value) -> Value:
    return b.gather(x, index, axis=axis(x, dim))


@aten("index.Tensor")
def index(b: Builder, x: Value, indices: Any) -> Value:
    used = [(i, v) for i, v in enumerate(indices) if v is not None]
    if len(used) != 1 or used[0][1].type.dtype == "bool":
        raise ArcError("indexing by several tensors, or by a mask, has no meaning here",
                       hint="use index_select or gather")
    return b.gather(x, used[0][1], axis=used[0][0])


@aten("gather.default")
def gather(b: Builder, x: Value, dim: int, ind: Value) -> Value:
    return b.take_along(x, ind, axis=axis(x, dim))


@aten("scatter.src")
def scatter(b: Builder, x: Value, dim: int, ind: Value, src: Value) -> Value:
    return b.put_along(x, ind, src, axis=axis(x, dim))


# --- reductions ----------------------------------------------------------------------------------


def _axes(x: Value, dim: Any) -> tuple[int, ...]:
    if dim is None or dim == []:
        return tuple(range(x.type.rank))
    return tuple(axis(x, d) for d in (dim if isinstance(dim, list) else [dim]))


for _n, _op in {"sum.dim_IntList": "sum", "mean.dim": "mean", "amax.default": "max",
                "amin.default": "min", "sum.default": "sum", "mean.default": "mean"}.items():

    def _reduce(b: Builder, x: Value, dim: Any = None, keepdim: bool = False, op: str = _op,
                dtype: str | None = None) -> Value:
        x = to(b, x, dtype) if dtype else x
        return b.emit(op, x, axes=_axes(x, dim), keepdims=keepdim)[0]

    aten(_n)(_reduce)


@aten("argmax.default")
def argmax(b: Builder, x: Value, dim: int = -1, keepdim: bool = False) -> Value:
    out = b.argmax(x, axis=axis(x, dim))
    return unsqueeze(b, out, axis(x, dim)) if keepdim else out


@aten("topk.default")
def topk(b: Builder, x: Value, k: int, dim: int = -1, largest: bool = True,
         *_: Any) -> tuple[Value, Value]:
    if not largest:
        raise ArcError("topk of the smallest has no meaning here", hint="negate the operand")
    return b.topk(x, k=k, axis=axis(x, dim))


@aten("cumsum.default")
def cumsum(b: Builder, x: Value, dim: int, **_: Any) -> Value:
    return b.cumsum(x, axis=axis(x, dim))


@aten("softmax.int", "_softmax.default")
def softmax(b: Builder, x: Value, dim: int, *rest: Any, **_: Any) -> Value:
    x = to(b, x, next((r for r in rest if isinstance(r, str)), x.type.dtype))
    return b.softmax(x, axis=axis(x, dim))


@aten("log_softmax.int")
def log_softmax(b: Builder, x: Value, dim: int, *_: Any) -> Value:
    axes = (axis(x, dim),)
    x = b.sub(x, b.max(x, axes=axes, keepdims=True))
    return b.sub(x, b.log(b.sum(b.exp(x), axes=axes, keepdims=True)))


@aten("linalg_vector_norm.default", "norm.ScalarOpt_dim")
def vector_norm(b: Builder, x: Value, ord: float = 2, dim: Any = None, keepdim: bool = False,
                **_: Any) -> Value:
    if ord not in (2, None):
        raise ArcError(f"a norm of order {ord} has no meaning here", hint="use order 2")
    return b.sqrt(b.sum(b.mul(x, x), axes=_axes(x, dim), keepdims=keepdim))


@aten("var.correction")
def var(b: Builder, x: Value, dim: Any = None, correction: Any = 1,
        keepdim: bool = False) -> Value:
    axes = _axes(x, dim)
    n = dims.product(x.type.shape[a] for a in axes)
    d = b.sub(x, b.mean(x, axes=axes, keepdims=True))
    total = b.sum(b.mul(d, d), axes=axes, keepdims=keepdim)
    return b.div(total, scalar(b, float(n - (correction or 0)), x))  # type: ignore[operator]


# --- linear algebra and nets ---------------------------------------------------------------------


@aten("matmul.default", "mm.default", "bmm.default")
def matmul(b: Builder, x: Value, w: Value) -> Value:
    if x.type.rank == 1 or w.type.rank == 1:
        raise ArcError(f"matmul of {x.type} by {w.type} has no meaning here",
                       hint="unsqueeze the vector")
    return b.matmul(x, w)


@aten("linear.default")
def linear(b: Builder, x: Value, w: Value, bias: Value | None = None) -> Value:
    lead = x.type.rank == 1
    x = unsqueeze(b, x, 0) if lead else x
    out = b.matmul(x, b.transpose(w, perm=(1, 0)))
    out = b.add(out, bias) if bias else out
    return reshape(b, out, out.type.shape[1:]) if lead else out


@aten("addmm.default")
def addmm(b: Builder, bias: Value, x: Value, w: Value) -> Value:
    return b.add(b.matmul(x, w), bias)


@aten("conv2d.default")
def conv2d(b: Builder, x: Value, w: Value, bias: Value | None = None, stride: Any = (1, 1),
           padding: Any = (0, 0), dilation: Any = (1, 1), groups: int = 1) -> Value:
    if len(set(stride)) > 1 or set(dilation) != {1}:
        raise ArcError(f"conv2d with stride {stride}, dilation {dilation} has no meaning here",
                       hint="use one stride and no dilation")
    more = (bias,) if bias else ()
    pads = (padding[0], padding[-1]) * 2
    return b.conv2d(x, w, *more, stride=stride[0], pads=pads, groups=groups)


@aten("conv2d.padding")
def conv2d_same(b: Builder, x: Value, w: Value, bias: Value | None = None, stride: Any = (1, 1),
                padding: str = "valid", dilation: Any = (1, 1), groups: int = 1) -> Value:
    kh, kw = w.type.shape[2:]
    pad = (0, 0) if padding == "valid" else ((kh - 1) // 2, (kw - 1) // 2)  # type: ignore
    return conv2d(b, x, w, bias, stride, pad, dilation, groups)


@aten("layer_norm.default")
def layer_norm(b: Builder, x: Value, shape: Any, w: Value | None = None, bias: Value | None = None,
               eps: float = 1e-5, *_: Any) -> Value:
    if len(shape) != 1 or (w is None and bias is not None):
        raise ArcError(f"layer_norm over {shape}{'' if w else ' without weight'} has no meaning "
                       "here", hint="use the last axis, and a weight with a bias")
    return b.layer_norm(x, *(v for v in (w, bias) if v), eps=eps)


@aten("rms_norm.default")
def rms_norm(b: Builder, x: Value, shape: Any, w: Value | None = None,
             eps: float | None = None) -> Value:
    if len(shape) != 1:
        raise ArcError(f"rms_norm over {shape} has no meaning here", hint="use the last axis")
    return b.rms_norm(x, *([w] if w else []), eps=eps or 1.1920929e-07)


@aten("group_norm.default")
def group_norm(b: Builder, x: Value, groups: int, w: Value | None = None,
               bias: Value | None = None, eps: float = 1e-5, *_: Any) -> Value:
    if w is None or bias is None:
        c = x.type.shape[1]
        w = b.full(dtype=x.type.dtype, shape=(c,), value=1.0)
        bias = b.full(dtype=x.type.dtype, shape=(c,), value=0.0)
    return b.group_norm(x, w, bias, groups=groups, eps=eps)


@aten("upsample_nearest2d.vec")
def upsample(b: Builder, x: Value, size: Any = None, factors: Any = None) -> Value:
    if size is not None:
        factors = [dims.divide(s, d) for s, d in zip(size, x.type.shape[2:], strict=True)]
    if not factors or None in factors or factors[0] != factors[1] or factors[0] % 1:
        raise ArcError(f"nearest resize of {x.type} to {size or factors} has no meaning here",
                       hint="use one whole factor")
    return b.upsample(x, factor=int(factors[0]))


@aten("upsample_bicubic2d.vec", "upsample_bilinear2d.vec")
def upsample_smooth(b: Builder, x: Value, size: Any, align: bool, *_: Any) -> Value:
    raise ArcError("smooth interpolation has no meaning here", hint="use arc::resize")


@aten("scaled_dot_product_attention.default")
def sdpa(b: Builder, q: Value, k: Value, v: Value, attn_mask: Value | None = None,
         dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
         enable_gqa: bool = False, **_: Any) -> Value:
    """q [..,h,s,e]: flattened to rows, attended, and put back."""
    if dropout_p:
        raise ArcError("dropout at inference has no meaning here", hint="pass dropout_p=0")
    *lead, h, s, e = q.type.shape
    g = k.type.shape[-3]
    r = dims.product(lead)

    def flat(x: Value) -> Value:
        n, t_, w = x.type.shape[-3:]
        y = b.transpose(reshape(b, x, (r, n, t_, w)), perm=(0, 2, 1, 3))
        return reshape(b, y, (r, t_, dims.mul(n, w)))

    more: list[Value] = []
    if attn_mask is not None:
        if attn_mask.type.dtype == "bool":
            zero = b.const(dtype=q.type.dtype, value=0.0)
            attn_mask = b.where(attn_mask, zero, b.const(dtype=q.type.dtype, value=-1e30))
        shape = attn_mask.type.shape
        more = [reshape(b, attn_mask, (*[1] * (4 - len(shape)), *shape[-4:]))]
    if is_causal and s != k.type.shape[-2]:
        raise ArcError("a causal mask over unequal lengths has no meaning here",
                       hint="give the mask, or use arc::attention with past")
    out = b.attention(flat(q), flat(k), flat(v), *more, heads=h, kv_heads=g,
                      scale=scale if scale is not None else 1 / math.sqrt(e),  # type: ignore
                      mask="causal" if is_causal else "full",
                      extra=("bias",) if more else ())
    back = b.transpose(reshape(b, out, (r, s, h, v.type.shape[-1])), perm=(0, 2, 1, 3))
    return reshape(b, back, (*lead, h, s, v.type.shape[-1]))


# --- our own ops ---------------------------------------------------------------------------------


@aten("arc.rope.default")
def rope(b: Builder, x: Value, cos: Value, sin: Value, at: Value, heads: int,
         interleaved: bool) -> Value:
    return b.rope(x, cos, sin, at, heads=heads, interleaved=interleaved)


@aten("arc.cache_append.default")
def cache_append(b: Builder, cache: Value, new: Value, past: Value) -> Value:
    return b.cache_append(cache, new, past)


@aten("arc.attention.default")
def attention(b: Builder, q: Value, k: Value, v: Value, heads: int, kv_heads: int, scale: float,
              mask: str, past: Value | None = None, keep: Value | None = None,
              bias: Value | None = None) -> Value:
    given = {n: x for n, x in (("past", past), ("keep", keep), ("bias", bias)) if x is not None}
    return b.attention(q, k, v, *given.values(), heads=heads, kv_heads=kv_heads, scale=scale,
                       mask=mask, extra=tuple(given))


@aten("arc.tail.default")
def tail(b: Builder, x: Value, like: Value) -> Value:
    return b.tail(x, like, axis=1)


@aten("arc.resize.default")
def resize(b: Builder, x: Value, height: int, width: int, mode: str) -> Value:
    return b.resize(x, size=(height, width), mode=mode)


@aten("arc.l2_norm.default")
def l2_norm(b: Builder, x: Value, dim: int, eps: float = 1e-12) -> Value:
    return b.l2_norm(x, axis=axis(x, dim), eps=eps)


__all__ = ["ATEN"]
