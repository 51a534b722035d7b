"""The `arc::` ops that model code calls: torch custom ops that survive torch.export whole.

Each has the numpy meaning of the op of the same name in `arcompile.ops`, so that a model runs
eagerly in torch exactly as the oracle says. Needs torch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op


@custom_op("arc::rope", mutates_args=())
def rope(x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, heads: int,
         interleaved: bool) -> Tensor:
    """Rotate x [r,s,heads*e] by rows of cos, sin [P,e/2]; at: past i32[r] or rows i64[r,s]."""
    r, s, _ = x.shape
    rows = at if at.ndim == 2 else at[:, None].long() + torch.arange(s)
    c, n = cos[rows][:, :, None], sin[rows][:, :, None]
    y = x.view(r, s, heads, -1)
    if interleaved:
        a, b = y[..., ::2], y[..., 1::2]
        return torch.stack((a * c - b * n, a * n + b * c), -1).reshape(x.shape)
    a, b = y.chunk(2, -1)
    return torch.cat((a * c - b * n, a * n + b * c), -1).reshape(x.shape)


@rope.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, heads: int, interleaved: bool) -> Tensor:
    return torch.empty_like(x)


@custom_op("arc::cache_append", mutates_args=())
def cache_append(cache: Tensor, new: Tensor, past: Tensor) -> Tensor:
    """Write new [r,s,g*e] into cache [r,g,S,e] at slots past[r]..."""
    r, g, _, e = cache.shape
    rows = new.view(r, -1, g, e).transpose(1, 2)
    out = cache.clone()
    for i, at in enumerate(past.tolist()):
        out[i, :, at : at + rows.shape[2]] = rows[i]
    return out


@cache_append.register_fake
def _(cache: Tensor, new: Tensor, past: Tensor) -> Tensor:
    return torch.empty_like(cache)


@custom_op("arc::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, scale: float, mask: str,
              past: Tensor | None = None, keep: Tensor | None = None,
              bias: Tensor | None = None) -> Tensor:
    """See arcompile.ops.attention.attention."""
    r, s, _ = q.shape

    def split(x: Tensor, n: int) -> Tensor:
        return x if x.ndim == 4 else x.view(r, x.shape[1], n, -1).transpose(1, 2)

    qh, kh, vh = split(q, heads), split(k, kv_heads), split(v, kv_heads)
    slot = torch.arange(kh.shape[2])
    start = torch.tensor([kh.shape[2] - s]) if past is None else past.long()
    at = start[:, None] + torch.arange(s)
    last = at if mask == "causal" else at[:, -1:].expand_as(at)
    if mask == "prefix":
        last = torch.where(at[:, :1] > 0, last, at)
    seen = slot <= last[:, :, None]
    if keep is not None:
        own = slot == at[:, :, None]
        seen = seen & (keep[:, None, :] if past is None else keep[:, None, :] | own)
    add = torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, float("-inf"))[:, None]
    if bias is not None:
        add = add + bias
    out = torch.nn.functional.scaled_dot_product_attention(
        qh, kh, vh, attn_mask=add, scale=scale, enable_gqa=heads != kv_heads
    )
    return out.transpose(1, 2).reshape(r, s, -1)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, heads: int, kv_heads: int, scale: float, mask: str,
      past: Tensor | None = None, keep: Tensor | None = None,
      bias: Tensor | None = None) -> Tensor:
    ev = v.shape[3] if v.ndim == 4 else v.shape[2] // kv_heads
    return q.new_empty((q.shape[0], q.shape[1], heads * ev))


@custom_op("arc::tail", mutates_args=())
def tail(x: Tensor, like: Tensor) -> Tensor:
    """The last n entries of x on axis 1, n being the size of `like` there."""
    return x[:, x.shape[1] - like.shape[1] :].clone()


@tail.register_fake
def _(x: Tensor, like: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], like.shape[1], *x.shape[2:]))


@custom_op("arc::resize", mutates_args=())
def resize(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    """[n,c,h,w] to [n,c,height,width] by bicubic, bilinear or area."""
    flat = {} if mode == "area" else {"align_corners": False}
    return torch.nn.functional.interpolate(x, (height, width), mode=mode, **flat)


@resize.register_fake
def _(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    return x.new_empty((*x.shape[:2], height, width))


@custom_op("arc::l2_norm", mutates_args=())
def l2_norm(x: Tensor, axis: int, eps: float = 1e-12) -> Tensor:
    """x / max(|x|, eps) along one axis."""
    return torch.nn.functional.normalize(x, dim=axis, eps=eps)


@l2_norm.register_fake
def _(x: Tensor, axis: int, eps: float = 1e-12) -> Tensor:
    return torch.empty_like(x)


class RMSNorm(torch.nn.Module):
    """x / rms(x) * weight. https://arxiv.org/abs/1910.07467"""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.empty(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
