"""What each op of the table is in torch: `TORCH[name](torch, *tensors, **attrs)`.

Ops that a kernel of ours may take over stand in torch_kernels.py; here is what runs without.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from arcompile.ops.nn import resize_matrix
from arcompile.ops.sampling import BLOCK

DTYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "i64": "int64",
          "i32": "int32", "i8": "int8", "u8": "uint8", "bool": "bool"}
TORCH: dict[str, Callable[..., Any]] = {}


def means(*names: str) -> Callable[[Any], Any]:
    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        TORCH.update(dict.fromkeys(names, fn))
        return fn

    return declare


def _same(*names: str) -> None:
    for name in names:
        TORCH[name] = lambda t, *x, _name=name: getattr(t, _name)(*x)


_same("neg", "exp", "log", "sqrt", "tanh", "sin", "cos", "floor", "erf", "reciprocal", "relu",
      "rsqrt", "sigmoid", "abs", "add", "sub", "mul", "pow", "maximum", "minimum", "less",
      "greater", "less_equal", "greater_equal", "where", "matmul")
TORCH["equal"] = lambda t, x, y: t.eq(x, y)
TORCH["not"] = lambda t, x: t.logical_not(x)
TORCH["and"] = lambda t, x, y: t.logical_and(x, y)
TORCH["or"] = lambda t, x, y: t.logical_or(x, y)
TORCH["silu"] = lambda t, x: t.nn.functional.silu(x)
TORCH["swiglu"] = lambda t, gate, x: t.nn.functional.silu(gate) * x


@means("gelu")
def gelu(t: Any, x: Any, approximate: bool = True) -> Any:
    return t.nn.functional.gelu(x, approximate="tanh" if approximate else "none")


@means("div")
def div(t: Any, x: Any, y: Any) -> Any:
    return t.div(x, y) if x.is_floating_point() else t.div(x, y, rounding_mode="floor")


@means("mod")
def mod(t: Any, x: Any, y: Any) -> Any:
    return t.remainder(x, y)


@means("cast")
def cast(t: Any, x: Any, dtype: str) -> Any:
    return x.to(getattr(t, DTYPES[dtype]))


@means("clip")
def clip(t: Any, x: Any, lo: float | None = None, hi: float | None = None) -> Any:
    return t.clamp(x, lo, hi)


# --- shape ---------------------------------------------------------------------------------------


@means("reshape")
def reshape(t: Any, x: Any, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape)


@means("transpose")
def transpose(t: Any, x: Any, perm: tuple[int, ...]) -> Any:
    return x.permute(perm)


@means("expand")
def expand(t: Any, x: Any, shape: tuple[int, ...]) -> Any:
    return x.expand(shape)


@means("concat")
def concat(t: Any, *xs: Any, axis: int) -> Any:
    return t.cat(xs, axis)


@means("slice")
def slice_(t: Any, x: Any, axis: int, start: int, stop: int | None = None, step: int = 1) -> Any:
    if step < 0:  # torch has no such views
        bounds = slice(start, stop, step).indices(x.shape[axis])
        return x.index_select(axis, t.arange(*bounds, device=x.device))
    index: list[Any] = [slice(None)] * x.ndim
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


@means("split")
def split(t: Any, x: Any, axis: int, sizes: tuple[int, ...]) -> Any:
    return t.split(x, list(sizes), axis)


@means("pad")
def pad(t: Any, x: Any, pads: tuple[tuple[int, int], ...], value: float = 0) -> Any:
    flat = [n for pair in reversed(pads) for n in pair]
    return t.nn.functional.pad(x, flat, value=value)


@means("tail")
def tail(t: Any, x: Any, like: Any, axis: int) -> Any:
    n = like.shape[axis]
    return x.narrow(axis, x.shape[axis] - n, n)


# --- indexing and reductions ---------------------------------------------------------------------


@means("gather")
def gather(t: Any, x: Any, index: Any, axis: int) -> Any:
    axis %= x.ndim
    made = x.index_select(axis, index.reshape(-1))
    return made.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@means("take_along")
def take_along(t: Any, x: Any, index: Any, axis: int) -> Any:
    return t.gather(x, axis, index.long())


@means("put_along")
def put_along(t: Any, x: Any, index: Any, new: Any, axis: int) -> Any:
    return t.scatter(x, axis, index.long(), new)


@means("sum")
def sum_(t: Any, x: Any, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    return x.sum(axes, keepdim=keepdims, dtype=x.dtype)


@means("mean")
def mean(t: Any, x: Any, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    return x.mean(axes, keepdim=keepdims)


@means("max")
def max_(t: Any, x: Any, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    return x.amax(axes, keepdim=keepdims)


@means("min")
def min_(t: Any, x: Any, axes: tuple[int, ...], keepdims: bool = False) -> Any:
    return x.amin(axes, keepdim=keepdims)


@means("argmax")
def argmax(t: Any, x: Any, axis: int) -> Any:
    """The first of equals, which torch does not promise."""
    n = x.shape[axis]
    shape = [1] * x.ndim
    shape[axis] = n
    at = t.arange(n, device=x.device).reshape(shape)
    return t.where(x == x.amax(axis, keepdim=True), at, n).amin(axis)


@means("topk")
def topk(t: Any, x: Any, k: int, axis: int = -1) -> Any:
    values, index = t.sort(x, dim=axis, descending=True, stable=True)
    return values.narrow(axis, 0, k), index.narrow(axis, 0, k)


@means("cumsum")
def cumsum(t: Any, x: Any, axis: int, exclusive: bool = False) -> Any:
    out = t.cumsum(x, axis, dtype=x.dtype)
    return out - x if exclusive else out


@means("softmax")
def softmax(t: Any, x: Any, axis: int) -> Any:
    return t.softmax(x, axis)


# --- nets ----------------------------------------------------------------------------------------


@means("conv2d")
def conv2d(t: Any, x: Any, w: Any, *bias: Any, stride: int = 1,
           pads: tuple[int, ...] = (0, 0, 0, 0), groups: int = 1) -> Any:
    top, left, bottom, right = pads
    if (top, left) != (bottom, right):
        x, top, left = t.nn.functional.pad(x, (left, right, top, bottom)), 0, 0
    return t.nn.functional.conv2d(x, w, *bias, stride=stride, padding=(top, left), groups=groups)


@means("layer_norm")
def layer_norm(t: Any, x: Any, *affine: Any, eps: float) -> Any:
    affine = tuple(a.to(x.dtype) for a in affine)
    return t.nn.functional.layer_norm(x, x.shape[-1:], *affine, eps=eps)


@means("rms_norm")
def rms_norm(t: Any, x: Any, *affine: Any, eps: float) -> Any:
    wide = x.float()
    y = wide * t.rsqrt((wide * wide).mean(-1, keepdim=True) + eps)
    for a, apply in zip(affine, (t.mul, t.add), strict=False):
        y = apply(y, a)
    return y.to(x.dtype)


@means("residual_norm")
def residual_norm(t: Any, x: Any, y: Any, *affine: Any, eps: float) -> Any:
    total = x + y
    return rms_norm(t, total, *affine, eps=eps), total


@means("group_norm")
def group_norm(t: Any, x: Any, w: Any, b: Any, groups: int, eps: float) -> Any:
    return t.nn.functional.group_norm(x, groups, w.to(x.dtype), b.to(x.dtype), eps)


@means("group_norm_silu")
def group_norm_silu(t: Any, x: Any, w: Any, b: Any, groups: int, eps: float) -> Any:
    return t.nn.functional.silu(group_norm(t, x, w, b, groups, eps))


@means("l2_norm")
def l2_norm(t: Any, x: Any, axis: int, eps: float) -> Any:
    return t.nn.functional.normalize(x, dim=axis, eps=eps)


@means("upsample")
def upsample(t: Any, x: Any, factor: int) -> Any:
    return t.nn.functional.interpolate(x, scale_factor=factor, mode="nearest")


@means("resize")
def resize(t: Any, x: Any, size: tuple[int, int], mode: str) -> Any:
    """Two products by the matrices of the table's meaning: the same numbers on every target."""
    rows, columns = (_matrix(n, m, mode, x.dtype, x.device) for n, m in
                     zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.T


@cache
def _matrix(n: int, m: int, mode: str, dtype: Any, device: Any) -> Any:
    import torch

    return torch.from_numpy(resize_matrix(n, m, mode)).to(device, dtype)


# --- sampling ------------------------------------------------------------------------------------


@means("filter_logits")
def filter_logits(t: Any, x: Any, temperature: Any, top_k: Any, top_p: Any, most: Any) -> Any:
    """See ops.sampling; sorts all, since how many are needed is not known on the device."""
    x = x / t.clamp(temperature, min=1e-5)[:, None, None].to(x.dtype)
    best = t.sort(x, -1, descending=True).values
    v, k = x.shape[-1], top_k[:, None, None]
    at = t.minimum(t.clamp(k - 1, min=0), most - 1).expand(*x.shape[:2], 1)
    kth = t.gather(best, -1, at)
    floor = t.where(k > 0, kth, float("-inf"))
    real = t.arange(v, device=x.device) < most
    inside = (best >= floor) & real
    p = t.where(inside, t.exp(best - best[..., :1]), 0.0)
    p = p / p.sum(-1, keepdim=True)
    kept = (t.cumsum(p, -1) - p <= top_p[:, None, None]) & inside
    edge = t.where(kept, best, float("inf")).amin(-1, keepdim=True)
    floor = t.where(top_p[:, None, None] < 1, t.maximum(floor, edge), floor)
    return t.where(x >= floor, x, float("-inf"))


def _pick(t: Any, p: Any, u: Any) -> Any:
    total = t.cumsum(p, -1)
    return argmax(t, (total > u * total[..., -1:]).to(t.int8), -1)


@means("draw_from")
def draw_from(t: Any, p: Any, noise: Any) -> Any:
    b, c, v = p.shape
    size = min(BLOCK, v)
    p = t.nn.functional.pad(p, (0, -v % size)).reshape(b, c, -1, size)
    block = _pick(t, p.sum(-1), noise[..., :1])
    inner = t.gather(p, 2, block[..., None, None].expand(b, c, 1, size))[:, :, 0]
    return block * size + _pick(t, inner, noise[..., 1:])


@means("draw")
def draw(t: Any, x: Any, noise: Any, temperature: Any) -> Any:
    token = draw_from(t, t.exp(x - x.amax(-1, keepdim=True)), noise)
    return t.where(temperature[:, None] > 0, token, argmax(t, x, -1))


@means("law")
def law(t: Any, x: Any, temperature: Any) -> Any:
    p = t.softmax(x, -1)
    best = t.arange(x.shape[-1], device=x.device) == argmax(t, x, -1)[..., None]
    return t.where(temperature[:, None, None] > 0, p, best.to(x.dtype))


@means("slide")
def slide(t: Any, x: Any, shift: Any, fill: Any) -> Any:
    at = t.arange(fill.shape[1], device=x.device) + shift[:, None]
    here = at < x.shape[1]
    moved = x[t.arange(len(x), device=x.device)[:, None], t.where(here, at, 0)]
    return t.where(here.reshape(here.shape + (1,) * (x.ndim - 2)), moved, fill)


@means("verify")
def verify(t: Any, p: Any, rest: Any, weight: Any, draft: Any, chance: Any, noise: Any, done: Any,
           *gumbel: Any, coupling: str) -> Any:
    c = p.shape[1]
    slot = t.arange(c, device=p.device)
    kept = (chance[..., 0] < weight) | (slot < done[:, None])
    first = t.cumprod(kept.long(), 1).sum(1)
    rest = t.where(rest.sum(-1, keepdim=True) > 0, rest, p)
    before, here = slot < first[:, None], slot == first[:, None]
    if coupling == "independent":
        token = t.where(before, draft, draw_from(t, t.where(here[..., None], rest, p), noise))
    else:
        token = draw_from(t, rest, noise)
        if coupling == "maximal":
            token = t.where(kept, draft, token)
        else:
            shared = argmax(t, t.log(p) + gumbel[0], -1)
            token = t.where(before, draft, t.where(here, token, shared))
    return token, t.clamp(first + 1, max=c)


@means("agree")
def agree(t: Any, token: Any, draft: Any, done: Any) -> Any:
    slot = t.arange(token.shape[1], device=token.device)
    token = t.where(slot < done[:, None], draft, token)
    first = t.cumprod((token == draft).long(), 1).sum(1)
    return token, t.clamp(first + 1, max=len(slot))
