"""Where our kernels take over from torch, and the patterns of nodes that one kernel is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arcompile import debug
from arcompile.errors import ArcError
from arcompile.ir import Graph, Node, Value
from arcompile.kernel import KERNELS, case
from arcompile.targets import patterns
from arcompile.targets.torch_attention import cache_append, rope
from arcompile.targets.torch_feed import feed
from arcompile.targets.torch_ops import TORCH

if TYPE_CHECKING:  # it brings Triton, 85 MB that other targets do without
    from arcompile.kernels.tune import Choices

NAMES = {"torch.float32": "f32", "torch.float16": "f16", "torch.bfloat16": "bf16"}
KERNEL: dict[str, Callable[..., Any]] = {}
CHOICES: dict[str, Choices] = {}  # the one in use, by "now"


@dataclass(frozen=True)
class Fused:
    """One call of a plan: a node, or several that `run` is."""

    run: Callable[..., Any] | None
    args: tuple[Value, ...]
    outs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    op: str


def takes_over(*names: str) -> Callable[[Any], Any]:
    def declare(fn: Callable[..., Any]) -> Callable[..., Any]:
        KERNEL.update(dict.fromkeys(names, fn))
        return fn

    return declare


def best(name: str, x: Any, **sizes: Any) -> Callable[..., Any] | None:
    """What to call, or None (and a line in the debug log) when no version takes it."""
    try:
        kind = case(NAMES.get(str(x.dtype), str(x.dtype)), **sizes)
        return _choices().pick(KERNELS[name], kind)
    except ArcError as e:
        debug.log(4, f"miss {name}: {e.hint}")
        return None


def _choices() -> Choices:
    if "now" not in CHOICES:
        choose("")  # of no device: the last version of each that takes a case
    return CHOICES["now"]


def choose(device: str, *files: Path) -> None:
    """From now on, versions as measured on this device; later files win."""
    from arcompile.kernels.tune import Choices

    CHOICES["now"] = made = Choices(device)
    for path in files:
        if reason := made.read(path):
            debug.log(1, reason)


@takes_over("residual_norm")
def residual_norm(t: Any, x: Any, y: Any, *affine: Any, eps: float) -> Any:
    d = x.shape[-1]
    v = best("add_norm", x, n=x.numel() // d, d=d)
    if v is None:
        return TORCH["residual_norm"](t, x, y, *affine, eps=eps)
    more = dict(zip(("weight", "bias"), affine, strict=False))
    out, total = v(x.reshape(-1, d).contiguous(), kind="rms", eps=eps,
                       y=y.reshape(-1, d).contiguous(), **more)
    return out.reshape(x.shape), total.reshape(x.shape)


@takes_over("rms_norm")
def rms_norm(t: Any, x: Any, *affine: Any, eps: float) -> Any:
    d = x.shape[-1]
    v = best("add_norm", x, n=x.numel() // d, d=d, has="weight") if len(affine) == 1 else None
    if v is None:
        return TORCH["rms_norm"](t, x, *affine, eps=eps)
    out, _ = v(x.reshape(-1, d).contiguous(), kind="rms", eps=eps, weight=affine[0])
    return out.reshape(x.shape)


@takes_over("group_norm", "group_norm_silu")
def group_norm(t: Any, x: Any, w: Any, b: Any, groups: int, eps: float, silu: bool = True) -> Any:
    n, c = x.shape[:2]
    flat = x.reshape(n, c, -1).contiguous()
    v = best("group_norm_silu", x, n=n, c=c, hw=flat.shape[2], groups=groups)
    if v is None:
        return TORCH["group_norm_silu" if silu else "group_norm"](t, x, w, b, groups, eps)
    return v(flat, w, b, groups=groups, eps=eps, silu=silu).reshape(x.shape)


KERNEL["group_norm"] = lambda t, *x, **how: group_norm(t, *x, silu=False, **how)


@takes_over("verify")
def verify(t: Any, p: Any, *more: Any, coupling: str) -> Any:
    b, c, vocabulary = p.shape
    v = best("verify", p, b=b, c=c, v=vocabulary, coupling=coupling)
    if v is None:
        return TORCH["verify"](t, p, *more, coupling=coupling)
    names = ("rest", "weight", "draft", "chance", "noise", "done", "gumbel")
    held = {k: x.contiguous() for k, x in zip(names, more, strict=False)}
    return v(p.contiguous(), coupling=coupling, **held)


@takes_over("attention")
def attention(t: Any, q: Any, k: Any, v: Any, *more: Any, heads: int, kv_heads: int, scale: float,
              mask: str = "full", extra: tuple[str, ...] = ()) -> Any:
    """Over a cache, by ranges; what has a bias, kept slots or no cache stays torch's."""
    e = q.shape[2] // heads
    found = None
    if extra == ("past",) and k.ndim == 4 and v.shape == k.shape:
        found = best("range_attention", q, r=q.shape[0], s=q.shape[1], t=k.shape[2], h=heads,
                     g=kv_heads, e=e, mask=mask)
    if found is None:
        return TORCH["attention"](t, q, k, v, *more, heads=heads, kv_heads=kv_heads, scale=scale,
                                  mask=mask, extra=extra)
    start, end = ranges(t, q.shape[1], more[0], mask)
    return found(q.contiguous(), k, v, start, end, heads=heads, kv_heads=kv_heads, scale=scale)


def ranges(t: Any, s: int, past: Any, mask: str) -> tuple[Any, Any]:
    """i32 [r,s] each: the slots that every query sees."""
    at = past.int()[:, None] + t.arange(1, s + 1, dtype=t.int32, device=past.device)
    end = at if mask == "causal" else at[:, -1:].expand_as(at)
    if mask == "prefix":
        end = t.where(past[:, None] > 0, end, at)
    return t.zeros_like(at), end.contiguous()


@takes_over("decode_attention")
def decode_attention(t: Any, q: Any, k: Any, v: Any, kc: Any, vc: Any, past: Any, cos: Any,
                     sin: Any, *keep: Any, heads: int, kv_heads: int, scale: float, mask: str,
                     interleaved: bool) -> Any:
    how = {"heads": heads, "kv_heads": kv_heads, "scale": scale}
    found = None
    if q.shape[1] == 1:
        found = best("flash_decode", q, r=q.shape[0], h=heads, g=kv_heads,
                     e=q.shape[2] // heads, slots=kc.shape[2], mask=mask, keep=bool(keep))
    if found is not None:
        return found(q, k, v, kc, vc, past, cos, sin, interleaved=interleaved, **how)
    kc = cache_append(t, kc, rope(t, k, cos, sin, past, kv_heads, interleaved), past)
    vc = cache_append(t, vc, v, past)
    turned = rope(t, q, cos, sin, past, heads, interleaved)
    return attention(t, turned, kc, vc, past, *keep, mask=mask,
                     extra=("past", "keep")[: 1 + len(keep)], **how), kc, vc


# --- patterns ------------------------------------------------------------------------------------


def fused(g: Graph, nodes: Sequence[Node]) -> list[Fused]:
    """The nodes, those that one kernel is as one call where the last of them stands."""
    from arcompile.targets import torch_products  # it calls what is here

    joined: dict[Node, Fused] = {}
    gone: set[Node] = set()
    for n in nodes:
        for pattern in (_chain, _modulated, _feed, torch_products.pattern):
            found = pattern(g, n)
            if found is not None and not gone & {n, *found[1]}:
                joined[n] = found[0]
                gone |= found[1]
    return [joined.get(n) or Fused(None, n.args, n.outs, n.attrs, n.op)
            for n in nodes if n not in gone]


Found = tuple[Fused, set[Node]]


def _chain(g: Graph, n: Node) -> Found | None:
    if (found := patterns.chain(g, n)) is None:
        return None
    return Fused(_logits_chain, found.args, n.outs, {}, "logits_chain"), found.inside


def _modulated(g: Graph, n: Node) -> Found | None:
    if (found := patterns.modulated(g, n)) is None:
        return None
    return Fused(_adaln, found.args, n.outs, found.attrs, "add_norm"), found.inside


def _logits_chain(t: Any, logits: Any, row: Any, null_row: Any, scale: Any, temperature: Any,
                  top_k: Any, top_p: Any, most: Any, noise: Any) -> Any:
    b, c = noise.shape[:2]
    v = best("logits_chain", logits, b=b, c=c, v=logits.shape[-1])
    if v is not None:
        return v(logits=logits.contiguous(), row=row, null_row=null_row, scale=scale,
                     temperature=temperature, top_k=top_k, top_p=top_p, most=most, noise=noise)
    own, null = (logits.index_select(0, x) for x in (row, null_row))
    law = TORCH["filter_logits"](t, own + (scale - 1)[:, None, None] * (own - null), temperature,
                                 top_k, top_p, most)
    return TORCH["draw"](t, law, noise, temperature)


def _adaln(t: Any, x: Any, scale: Any, shift: Any, eps: float) -> Any:
    r, s, d = x.shape
    v = best("add_norm", x, n=r * s, d=d, rows=s)
    if v is None or scale.shape[0] != r:
        return TORCH["layer_norm"](t, x, eps=eps) * scale + shift
    out, _ = v(x.reshape(-1, d).contiguous(), kind="layer", eps=eps, rows=s, one=0.0,
                   scale=scale.reshape(r, d).contiguous(), shift=shift.reshape(r, d).contiguous())
    return out.reshape(x.shape)


def _feed(g: Graph, n: Node) -> Found | None:
    """What a scale adds to the picture so far: kernel var_feed."""
    found = feed(g, n)
    if found is None:
        return None
    parts, inside = found
    args = tuple(parts[k] for k in ("token", "codebook", "weight", "bias", "f_hat"))
    attrs = {"side": parts["side"], "share": parts["share"]}
    return Fused(_var_feed, args, n.outs, attrs, "var_feed"), inside


def _var_feed(t: Any, token: Any, codebook: Any, weight: Any, bias: Any, f_hat: Any, side: int,
              share: float) -> Any:
    b, c, size, _ = f_hat.shape
    v = best("var_feed", codebook, b=b, c=c, v=codebook.shape[0], n=side, size=size)
    if v is not None and weight.dtype == codebook.dtype and f_hat.dtype == t.float32:
        return v(token=token, codebook=codebook, weight=weight, bias=bias, f_hat=f_hat, side=side,
                 share=share)
    h = codebook[token].transpose(1, 2).reshape(b, c, side, side)
    if side != size:
        h = TORCH["resize"](t, h, size=(size, size), mode="bicubic")
    mixed = TORCH["conv2d"](t, h.to(weight.dtype), weight, bias, pads=(1, 1, 1, 1))
    return f_hat.add_(h * (1 - share) + mixed * share)
