"""Every op means what torch means by it, and its type rule says what its numpy meaning makes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from elsewhere import ELSEWHERE

from arcompile.errors import IRError
from arcompile.ir import OPS, Builder, Type, evaluate, verify
from arcompile.ops.tensor import NUMPY
from arcompile.pipeline import PASSES
from arcompile.runtime import rng
from arcompile.text import parse_graph

torch = pytest.importorskip("torch")
F = torch.nn.functional
RANDOM = np.random.default_rng(0)
KINDS = {np.dtype(v): k for k, v in NUMPY.items() if k != "bf16"}


def f32(*shape: int, lo: float = -2.0, hi: float = 2.0):
    return RANDOM.uniform(lo, hi, shape).astype(np.float32)


def ints(n: int, *shape: int, dtype: Any = np.int64):
    return RANDOM.integers(0, n, shape).astype(dtype)


def bools(*shape: int):
    return RANDOM.random(shape) < 0.5


def apply(op: str, *arrays: Any, **attrs: Any) -> list[Any]:
    """Run one op as a graph that verifies and survives its text; its types are those promised."""
    b = Builder("g")
    params = [b.param(f"p{i}", Type(KINDS[a.dtype], a.shape)) for i, a in enumerate(arrays)]
    outs = b.emit(op, *params, **attrs)
    g = parse_graph(str(b.graph(**{f"o{i}": v for i, v in enumerate(outs)})))
    verify(g)
    found = evaluate(g, {f"p{i}": a for i, a in enumerate(arrays)})
    for (_, v), a in zip(g.results, found.values(), strict=True):
        assert str(Type(KINDS[a.dtype], a.shape)) == str(v.type)
    return list(found.values())


@dataclass
class Case:
    """attrs, operands, and the torch function of the operands that must agree."""

    op: str
    args: tuple[Any, ...]
    torch: Callable[..., Any]
    attrs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.op


CASES: list[Case] = []


def case(op: str, *args: Any, of: Callable[..., Any], **attrs: Any) -> None:
    CASES.append(Case(op, args, of, attrs))


for _n in ("neg", "exp", "tanh", "sin", "cos", "floor", "erf", "silu", "relu", "sigmoid", "abs"):
    case(_n, f32(3, 4), of=getattr(torch, _n, None) or getattr(F, _n))
for _n in ("log", "sqrt", "rsqrt", "reciprocal"):
    case(_n, f32(3, 4, lo=0.1), of=getattr(torch, _n))
for _n in ("silu", "sigmoid"):  # far out, without overflow
    case(_n, f32(9, lo=-200, hi=200), of=getattr(torch, _n, None) or getattr(F, _n))
case("swiglu", f32(3, 4), f32(3, 4), of=lambda g, x: F.silu(g) * x)
case("gelu", f32(3, 4), of=lambda x: F.gelu(x, approximate="tanh"), approximate=True)
case("gelu", f32(3, 4), of=F.gelu, approximate=False)
for _n in ("add", "sub", "mul", "div", "maximum", "minimum"):
    case(_n, f32(2, 3, 4), f32(3, 1), of=getattr(torch, _n))
    case(_n, ints(9, 4), 1 + ints(9, 4), of=torch.floor_divide if _n == "div" else
         getattr(torch, _n))
case("div", ints(9, 8) - 4, 1 + ints(3, 8), of=lambda x, y: torch.div(x, y, rounding_mode="floor"))
case("pow", f32(3, 4, lo=0.1), f32(4), of=torch.pow)
case("mod", f32(3, 4), f32(4, lo=0.5), of=torch.remainder)
case("mod", ints(99, 8) - 50, 1 + ints(9, 8), of=torch.remainder)
case("not", bools(5), of=torch.logical_not)
case("and", bools(4, 1), bools(5), of=torch.logical_and)
case("or", bools(4, 1), bools(5), of=torch.logical_or)
for _n, _of in {"equal": torch.eq, "less": torch.lt, "greater": torch.gt, "less_equal": torch.le,
                "greater_equal": torch.ge}.items():
    case(_n, ints(3, 20), ints(3, 20), of=_of)
case("where", bools(3, 1), f32(4), f32(3, 4), of=torch.where)
case("cast", f32(6), of=lambda x: x.to(torch.int64), dtype="i64")
case("cast", f32(6), of=lambda x: x.half(), dtype="f16")
case("cast", ints(2, 6), of=lambda x: x.bool(), dtype="bool")
case("clip", f32(3, 4), of=lambda x: x.clamp(-0.5, 1.0), lo=-0.5, hi=1.0)
case("clip", ints(9, 8), of=lambda x: x.clamp(min=3), lo=3)

case("const", of=lambda: torch.tensor([[1, 2], [3, 4]]), dtype="i64", value=[[1, 2], [3, 4]])
case("const", of=lambda: torch.tensor(-float("inf")), dtype="f32", value=-float("inf"))
case("arange", of=lambda: torch.arange(5), dtype="i64", shape=(5,))
case("full", of=lambda: torch.full((2, 3), 0.5), dtype="f32", shape=(2, 3), value=0.5)
case("reshape", f32(2, 6), of=lambda x: x.reshape(3, 4), shape=(3, 4))
case("transpose", f32(2, 3, 4), of=lambda x: x.permute(2, 0, 1), perm=(2, 0, 1))
case("expand", f32(3, 1), of=lambda x: x.expand(2, 3, 4), shape=(2, 3, 4))
case("concat", f32(2, 3), f32(2, 1), f32(2, 2), of=lambda *x: torch.cat(x, 1), axis=-1)
for _s in ((0, None, 1), (1, 3, 1), (-2, None, 1), (1, -1, 1), (0, None, 2), (-3, -1, 1), (9, 9, 1),
           (-3, 5, 1)):
    case("slice", f32(5, 6), of=lambda x, s=_s: x[:, s[0] : s[1] : s[2]], axis=1, start=_s[0],
         stop=_s[1], step=_s[2])
case("split", f32(2, 6), of=lambda x: x.split((1, 2, 3), 1), axis=1, sizes=(1, 2, 3))
case("pad", f32(2, 3), of=lambda x: F.pad(x, (1, 2, 0, 1), value=0.5), pads=((0, 1), (1, 2)),
     value=0.5)
case("tail", f32(2, 5, 3), f32(9, 2), of=lambda x, like: x[:, -2:], axis=1)
case("gather", f32(5, 3), ints(5, 2, 4), of=lambda x, i: x[i], axis=0)
case("gather", f32(5, 3), ints(3, 2, dtype=np.int32), of=lambda x, i: x[:, i.long()], axis=-1)
case("take_along", f32(3, 5), ints(5, 3, 2), of=lambda x, i: x.gather(1, i), axis=1)
case("put_along", f32(2, 5), np.array([[0, 3], [4, 1]]), f32(2, 2),
     of=lambda x, i, new: x.scatter(1, i, new), axis=1)
for _n, _of in {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}.items():
    case(_n, f32(2, 3, 4), of=lambda x, f=_of: f(x, (0, 2)), axes=(0, -1))
    case(_n, f32(2, 3, 4), of=lambda x, f=_of: f(x, (1,), keepdim=True), axes=(1,), keepdims=True)
case("sum", ints(9, 4, 4), of=lambda x: x.sum(1), axes=(1,))
case("argmax", f32(3, 5), of=lambda x: x.argmax(1), axis=1)
case("topk", f32(3, 7), of=lambda x: tuple(x.topk(3, 1)), k=3)
case("topk", f32(7, 3), of=lambda x: tuple(x.topk(2, 0)), k=2, axis=0)
case("cumsum", f32(3, 5), of=lambda x: x.cumsum(1), axis=1)
case("cumsum", f32(3, 5), of=lambda x: x.cumsum(0) - x, axis=0, exclusive=True)
case("softmax", f32(3, 5), of=lambda x: x.softmax(0), axis=0)

case("matmul", f32(2, 3, 4), f32(4, 5), of=torch.matmul)
case("matmul", f32(2, 1, 3, 4), f32(3, 4, 5), of=torch.matmul)
case("layer_norm", f32(2, 3, 4), of=lambda x: F.layer_norm(x, (4,), eps=1e-6), eps=1e-6)
case("layer_norm", f32(3, 4), f32(4), f32(4), of=lambda x, w, b: F.layer_norm(x, (4,), w, b, 1e-5),
     eps=1e-5)
case("rms_norm", f32(3, 4), f32(4), of=lambda x, w: F.rms_norm(x, (4,), w, 1e-5), eps=1e-5)
case("rms_norm", f32(3, 4), of=lambda x: F.rms_norm(x, (4,), eps=1e-5), eps=1e-5)
case("residual_norm", f32(3, 4), f32(3, 4), f32(4),
     of=lambda x, y, w: (F.rms_norm(x + y, (4,), w, 1e-5), x + y), eps=1e-5)
case("group_norm", f32(2, 6, 3, 3), f32(6), f32(6),
     of=lambda x, w, b: F.group_norm(x, 3, w, b, 1e-6), groups=3, eps=1e-6)
case("group_norm_silu", f32(2, 6, 3, 3), f32(6), f32(6),
     of=lambda x, w, b: F.silu(F.group_norm(x, 3, w, b, 1e-6)), groups=3, eps=1e-6)
case("group_norm", f32(2, 6, 5), f32(6), f32(6),
     of=lambda x, w, b: F.group_norm(x, 2, w, b, 1e-6), groups=2, eps=1e-6)
for _ax in (-1, 1):
    case("l2_norm", f32(2, 3, 4), of=lambda x, a=_ax: F.normalize(x, dim=a), axis=_ax, eps=1e-12)
case("l2_norm", np.zeros((2, 3), np.float32), of=lambda x: F.normalize(x), axis=1, eps=1e-12)
case("upsample", f32(2, 3, 2, 4), of=lambda x: F.interpolate(x, scale_factor=3), factor=3)
for _m, (_h, _w) in itertools.product(("bicubic", "bilinear", "area"),
                                      ((8, 5), (3, 3), (4, 6), (1, 1), (7, 2))):
    flat = {} if _m == "area" else {"align_corners": False}
    case("resize", f32(2, 3, 4, 6), of=lambda x, h=_h, w=_w, m=_m, k=flat: F.interpolate(
        x, (h, w), mode=m, **k), size=(_h, _w), mode=_m)
for _stride, _pads, _groups in ((1, (0, 0, 0, 0), 1), (1, (1, 1, 1, 1), 2), (2, (0, 0, 1, 1), 1),
                                (2, (2, 0, 1, 3), 4), (3, (1, 2, 0, 1), 2)):
    for _bias in ((), (f32(8),)):
        case("conv2d", f32(2, 4, 7, 6), f32(8, 4 // _groups, 3, 2), *_bias,
             of=lambda x, w, *b, s=_stride, p=_pads, g=_groups: F.conv2d(
                 F.pad(x, (p[1], p[3], p[0], p[2])), w, *b, stride=s, groups=g),
             stride=_stride, pads=_pads, groups=_groups)


def close(ours: Any, theirs: Any, tolerance: float = 2e-6) -> None:
    theirs = theirs.numpy()
    assert str(Type(KINDS[ours.dtype], ours.shape)) == str(Type(KINDS[theirs.dtype], theirs.shape))
    if ours.dtype.kind == "f":
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=tolerance)
    else:
        assert (ours == theirs).all()


@pytest.mark.parametrize("c", CASES, ids=str)
def test_op(c):
    found = apply(c.op, *c.args, **c.attrs)
    want = c.torch(*(torch.from_numpy(a) for a in c.args))
    want = want if isinstance(want, tuple) else (want,)
    assert len(found) == len(want)
    for ours, theirs in zip(found, want, strict=True):
        close(ours, theirs)


def test_every_op_has_a_case():
    PASSES.all()  # passes may bring ops of their own
    missing = {*OPS} - {c.op for c in CASES} - ELSEWHERE
    assert not missing, f"write a case for {sorted(missing)}"


# --- attention -----------------------------------------------------------------------------------


def split_heads(x: Any, n: int) -> Any:
    return torch.from_numpy(x).unflatten(2, (n, -1)).transpose(1, 2)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_is_a_complex_turn(interleaved):
    r, s, heads, e, rows = 2, 3, 2, 8, 10
    x, angle, past = f32(r, s, heads * e), f32(rows, e // 2), np.array([0, 5], np.int32)
    (out,) = apply("rope", x, np.cos(angle), np.sin(angle), past, heads=heads,
                   interleaved=interleaved)
    y = x.reshape(r, s, heads, e)
    a, b = (y[..., ::2], y[..., 1::2]) if interleaved else (y[..., : e // 2], y[..., e // 2 :])
    at = past[:, None] + np.arange(s)
    z = (a + 1j * b) * np.exp(1j * angle[at])[:, :, None]
    parts = (z.real, z.imag)
    want = np.stack(parts, -1).reshape(y.shape) if interleaved else np.concatenate(parts, -1)
    np.testing.assert_allclose(out, want.reshape(x.shape), atol=1e-6)
    (same,) = apply("rope", x, np.cos(angle), np.sin(angle), at.astype(np.int64), heads=heads,
                    interleaved=interleaved)
    assert (same == out).all()


def test_cache_append():
    cache, new, past = f32(2, 3, 6, 4), f32(2, 2, 12), np.array([0, 4], np.int32)
    (out,) = apply("cache_append", cache, new, past)
    want = cache.copy()
    for i, at in enumerate(past):
        want[i, :, at : at + 2] = new[i].reshape(2, 3, 4).transpose(1, 0, 2)
    assert (out == want).all()
    with pytest.raises(IRError, match="2 slots at 5 overflow a cache of 6"):
        apply("cache_append", cache, new, np.array([0, 5], np.int32))


MASKS = [m for n in range(4) for m in itertools.combinations(("past", "keep", "bias"), n)]


@pytest.mark.parametrize("mask", ["causal", "full"])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("extra", MASKS, ids="-".join)
def test_attention(mask, groups, extra):
    """Against SDPA with the mask written out, pair by pair."""
    r, s, t, heads, e = 2, 3, 7, 4, 8
    q, k, v = f32(r, s, heads * e), f32(r, t, groups * e), f32(r, t, groups * 6)
    more = {"past": np.array([1, 4], np.int32), "bias": f32(r, 1, s, t),
            "keep": bools(r, t) | (np.arange(t) == 0)}  # all see something
    start = more["past"] if "past" in extra else np.full(r, t - s)
    add = torch.zeros(r, 1, s, t)
    for i, j, slot in itertools.product(range(r), range(s), range(t)):
        own = start[i] + j
        seen = slot <= (own if mask == "causal" else start[i] + s - 1)
        if "keep" in extra and not (more["keep"][i, slot] or ("past" in extra and slot == own)):
            seen = False
        add[i, 0, j, slot] = 0 if seen else -torch.inf
    if "bias" in extra:
        add = add + torch.from_numpy(more["bias"])
    want = F.scaled_dot_product_attention(
        split_heads(q, heads), split_heads(k, groups), split_heads(v, groups), attn_mask=add,
        scale=0.3, enable_gqa=True)
    options = {"heads": heads, "kv_heads": groups, "scale": 0.3, "mask": mask, "extra": extra}
    (out,) = apply("attention", q, k, v, *(more[n] for n in extra), **options)
    close(out, want.transpose(1, 2).reshape(r, s, heads * 6))
    cached = [np.ascontiguousarray(split_heads(x, groups).numpy()) for x in (k, v)]
    (again,) = apply("attention", q, *cached, *(more[n] for n in extra), **options)
    assert (again == out).all()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_decode_attention_is_its_parts(interleaved, keep):
    r, s, heads, groups, e, slots = 2, 2, 4, 2, 8, 9
    q, k, v = f32(r, s, heads * e), f32(r, s, groups * e), f32(r, s, groups * e)
    kc, vc = f32(r, groups, slots, e), f32(r, groups, slots, e)
    past, cos, sin = np.array([0, 6], np.int32), f32(slots, e // 2), f32(slots, e // 2)
    more = (bools(r, slots),) if keep else ()
    spin = {"interleaved": interleaved}
    out, k1, v1 = apply("decode_attention", q, k, v, kc, vc, past, cos, sin, *more, heads=heads,
                        kv_heads=groups, scale=0.3, mask="causal", **spin)
    (turned,) = apply("rope", k, cos, sin, past, heads=groups, **spin)
    (query,) = apply("rope", q, cos, sin, past, heads=heads, **spin)
    (want_k,) = apply("cache_append", kc, turned, past)
    (want_v,) = apply("cache_append", vc, v, past)
    (want,) = apply("attention", query, want_k, want_v, past, *more, heads=heads, kv_heads=groups,
                    scale=0.3, mask="causal", extra=("past", "keep")[: 1 + keep])
    assert (out == want).all()
    assert (k1 == want_k).all()
    assert (v1 == want_v).all()


# --- sampling ------------------------------------------------------------------------------------


def upstream(x: Any, temperature: float, top_k: int, top_p: float) -> Any:
    """LlamaGen's `top_k_top_p_filtering` for one row, step by step."""
    x = torch.from_numpy(x) / max(temperature, 1e-5)
    if top_k > 0:
        k = min(top_k, len(x))
        x = torch.where(x < x.topk(k).values[-1], -torch.inf, x)
    if top_p < 1.0:
        best, order = x.sort(descending=True)
        gone = best.softmax(-1).cumsum(-1) > top_p
        gone[1:] = gone[:-1].clone()
        gone[0] = False
        x[order[gone]] = -torch.inf
    return x.numpy()


PARAMETERS = [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.5), (1.0, 9, 0.8), (0.0, 3, 0.9),
              (1.0, 1, 1.0), (1.0, 0, 0.0), (2.0, 500, 1.0), (1.0, 40, 0.95)]


def columns(rows: Any) -> tuple[Any, Any, Any]:
    t, k, p = zip(*rows, strict=True)
    return np.array(t, np.float32), np.array(k, np.int64), np.array(p, np.float32)


def test_filter_logits_mixes_parameters():
    x = f32(len(PARAMETERS), 2, 40, lo=-4, hi=4)
    (out,) = apply("filter_logits", x, *columns(PARAMETERS), np.array([40]))
    for i, j in itertools.product(range(len(x)), range(2)):
        want = upstream(x[i, j], *PARAMETERS[i])
        assert (np.isinf(out[i, j]) == np.isinf(want)).all(), PARAMETERS[i]
        np.testing.assert_allclose(out[i, j], want, rtol=1e-6)


@pytest.mark.parametrize("row", PARAMETERS, ids=str)
def test_filter_logits_alone_needs_only_most(row):
    """The least `most` that the doc allows gives what sorting everything gives."""
    _, k, p = row
    x = f32(1, 3, 40, lo=-4, hi=4)
    most = min(k, 40) if k > 0 else 40 if p < 1 else 1
    (out,) = apply("filter_logits", x, *columns([row]), np.array([most]))
    (full,) = apply("filter_logits", x, *columns([row]), np.array([40]))
    assert (out == full).all()


def test_filter_logits_keeps_ties_of_the_kth():
    x = np.array([[[3, 1, 2, 2, 2, 0]]], np.float32)
    (out,) = apply("filter_logits", x, *columns([(1.0, 2, 1.0)]), np.array([2]))
    assert np.isfinite(out).tolist() == [[[True, False, True, True, True, False]]]


def uniforms(n: int) -> Any:
    w = rng.words(np.array([7], np.uint64), np.array([0]), np.arange(n), 0, 2)
    return rng.uniform(w)


@pytest.mark.parametrize("vocabulary", [7, 128, 300])
def test_draw_follows_the_law(vocabulary):
    """20,000 draws against the softmax by chi-square; a masked token is never drawn."""
    n = 20_000
    x = np.random.default_rng(1).normal(size=vocabulary).astype(np.float32)
    x[::3] = -np.inf
    logits = np.broadcast_to(x, (1, n, vocabulary))
    out = OPS["draw"].eval(logits, uniforms(n), np.ones(1, np.float32))[0]
    seen = np.bincount(out[0], minlength=vocabulary)
    p = np.exp(x.astype(np.float64) - x.max())
    expected = n * p / p.sum()
    assert (seen[::3] == 0).all()
    live = expected > 0
    chi2, df = (((seen - expected)[live] ** 2) / expected[live]).sum(), live.sum() - 1
    assert abs(chi2 - df) < 4 * np.sqrt(2 * df)


@pytest.mark.parametrize("vocabulary", [1, 5, 128, 129, 1000])
def test_draw_at_the_ends_of_the_noise(vocabulary):
    """The extreme uniforms give the first and the last token that may be drawn."""
    x = f32(1, 2, vocabulary, lo=-30, hi=30)
    x[..., vocabulary // 2 + 1 :] = -np.inf
    x[..., : vocabulary // 4] = -np.inf
    x[..., [vocabulary // 4, vocabulary // 2]] = 30  # both ends carry weight
    last = 1 - 2.0**-23
    noise = np.array([[[0, 0], [last, last]]], np.float32)
    (out,) = apply("draw", x, noise, np.ones(1, np.float32))
    assert out.tolist() == [[vocabulary // 4, vocabulary // 2]]


def test_draw_at_temperature_0_is_the_first_best():
    x = np.zeros((2, 1, 300), np.float32)
    x[:, 0, [40, 200]] = 5
    noise = np.full((2, 1, 2), 1 - 2.0**-23, np.float32)
    (out,) = apply("draw", x, noise, np.array([0.0, 1.0], np.float32))
    assert out[0, 0] == 40
    assert out[1, 0] == 299  # the other image is drawn, not argmaxed


def test_symbolic_types():
    """The rules that do arithmetic on named sizes."""
    b = Builder("g")
    x = b.param("x", "f32[b,past+s,8]")
    assert str(b.reshape(x, shape=("b", "past+s", 2, 4)).type) == "f32[b,past+s,2,4]"
    assert str(b.slice(x, axis=1, start=2).type) == "f32[b,past+s-2,8]"
    assert str(b.slice(x, axis=1, start=-2).type) == "f32[b,2,8]"
    assert str(b.slice(x, axis=1, start=1, stop=-1).type) == "f32[b,past+s-2,8]"
    assert str(b.concat(x, x, axis=0).type) == "f32[2*b,past+s,8]"
    assert str(b.pad(x, pads=((0, 0), (1, 2), (0, 0))).type) == "f32[b,past+s+3,8]"
    with pytest.raises(IRError, match="cannot slice"):
        b.slice(x, axis=1, start=-3, stop=5)
    image = b.param("i", "f32[b,3,h,w]")
    kernel = b.weight("k", "f32[5,3,3,3]")
    assert str(b.conv2d(image, kernel, pads=(1, 1, 1, 1)).type) == "f32[b,5,h,w]"
    assert str(b.upsample(image, factor=2).type) == "f32[b,3,2*h,2*w]"
    with pytest.raises(IRError, match="cannot stride over the symbolic size h"):
        b.conv2d(image, kernel, stride=2)
