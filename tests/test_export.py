"""A user's own torch module becomes a graph that computes what torch computes."""

from __future__ import annotations

import numpy as np
import pytest

from arcompile.errors import ArcError
from arcompile.ir import evaluate, verify
from arcompile.text import parse_graph

torch = pytest.importorskip("torch")
from arcompile import nn as arc  # noqa: E402
from arcompile.export import Entry, call, export  # noqa: E402

nn, F = torch.nn, torch.nn.functional


def weights(module) -> dict:
    return {f"@{k}": v.detach().numpy() for k, v in module.state_dict().items()}


def same(module, inputs: dict, *arrays, tolerance: float = 1e-5) -> None:
    """Exported once, the graph agrees with torch at several batch sizes, and survives its text."""
    g = export(module, inputs)
    verify(g)
    assert str(parse_graph(str(g))) == str(g)
    for n in (1, 2):
        given = [a[:n] for a in arrays]
        with torch.no_grad():
            want = module(*map(torch.from_numpy, given))
        got = evaluate(g, dict(zip(inputs, given, strict=True)), weights(module))
        want = want if isinstance(want, tuple) else (want,)
        for ours, theirs in zip(got.values(), want, strict=True):
            assert ours.shape == tuple(theirs.shape)
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=tolerance)


def f32(*shape: int):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def ints(n: int, *shape: int):
    return np.random.default_rng(0).integers(0, n, shape)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, x):
        gate, y = self.up(self.norm(x)).chunk(2, -1)
        y = self.down(F.silu(gate) * y + F.gelu(gate, approximate="tanh"))
        return x + y * (1 + self.scale), y.mean(-1, keepdim=True)


class Attention(nn.Module):
    """A conv net with group norm and self-attention over its pixels."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GroupNorm(2, 8)
        self.qkv, self.out = nn.Conv2d(8, 24, 1), nn.Conv2d(8, 8, 3, padding=1, groups=2)

    def forward(self, x):
        x = self.stem(x)
        b, c, h, w = x.shape
        q, k, v = self.qkv(F.silu(self.norm(x))).reshape(b, 3, 2, c // 2, h * w).unbind(1)
        y = F.scaled_dot_product_attention(*(t.transpose(-1, -2) for t in (q, k, v)))
        x = x + self.out(y.transpose(-1, -2).reshape(b, c, h, w))
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Causal(nn.Module):
    """Tokens in, logits out; grouped keys, a causal mask, a buffer, a tied head."""

    def __init__(self):
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 8), nn.RMSNorm(8, eps=1e-5)
        self.place = nn.Parameter(torch.rand(5, 8))
        self.register_buffer("order", torch.tensor([3, 0, 4, 1, 2]))
        self.q, self.kv = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)

    def forward(self, tokens):
        x = self.table(tokens) + self.place[self.order]
        b, s, d = x.shape
        q = self.q(x).view(b, s, 4, 2).transpose(1, 2)
        k, v = self.kv(self.norm(x)).view(b, s, 2, 2, 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + y.transpose(1, 2).reshape(b, s, d)
        return x[:, -1] @ self.table.weight.t()


class Indexing(nn.Module):
    def forward(self, x, i):
        first, last, every = x[:, 0], x[:, -2:], x[:, ::2]
        picked = x.gather(1, i[:, :, None].expand(-1, -1, 4))
        row = x.index_select(1, torch.arange(1, 3))
        masked = torch.where(i > 2, i.float(), 0.0).masked_fill(i == 4, -float("inf"))
        top = x.sum(-1).topk(2, -1).indices
        both = torch.cat((every, picked, row, last), 1)
        return both, first.amax(-1), masked.clamp(min=-9.0), top.float(), both.var(1, correction=0)


def test_mlp():
    same(MLP(), {"x": "f32[b,3,4]"}, f32(2, 3, 4))


def test_conv_and_attention():
    same(Attention(), {"x": "f32[b,3,6,6]"}, f32(2, 3, 6, 6))


def test_embedding_and_causal_attention():
    same(Causal(), {"tokens": "i64[b,5]"}, ints(11, 2, 5))


def test_indexing():
    same(Indexing(), {"x": "f32[b,5,4]", "i": "i64[b,3]"}, f32(2, 5, 4), ints(5, 2, 3))


class Mask(nn.Module):
    def forward(self, x, keep):
        y = x[:, None]
        return F.scaled_dot_product_attention(y, y, y, attn_mask=keep[None, None], scale=0.5)


def test_a_boolean_mask_that_is_no_batch():
    keep = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1]], bool)
    g = export(Mask(), {"x": "f32[b,3,4]", "keep": "bool[3,3]"})
    x = f32(2, 3, 4)
    want = Mask()(torch.from_numpy(x), torch.from_numpy(keep)).numpy()
    np.testing.assert_allclose(evaluate(g, {"x": x, "keep": keep})["out"], want, atol=1e-6)


def test_several_symbolic_sizes():
    class Sizes(nn.Module):
        def forward(self, x, y):
            z = torch.cat((x, y), 1)
            return z.flatten(0, 1), torch.arange(z.shape[1]), torch.zeros(()) + 1

    g = export(Sizes(), {"x": "f32[b,s,4]", "y": "f32[b,t,4]"})
    assert [str(v.type) for _, v in g.results] == ["f32[b*s+b*t,4]", "i64[s+t]", "f32[]"]
    out = evaluate(g, {"x": f32(2, 1, 4), "y": f32(2, 3, 4)})
    assert out["out0"].shape == (8, 4)
    assert out["out1"].tolist() == [0, 1, 2, 3]


# --- refusals ------------------------------------------------------------------------------------


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs()


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(4, 4), Spectrum(), nn.Linear(3, 3))

    def forward(self, x):
        return self.blocks(x)


def test_unknown_op_is_named_with_its_module():
    with pytest.raises(ArcError) as e:
        export(Blocks(), {"x": "f32[b,4]"})
    assert "torch ops have no meaning here: aten.fft_rfft" in e.value.what
    assert "aten.fft_rfft in blocks.1" in e.value.details


def test_data_dependent_control_flow():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ArcError, match=r"torch\.export cannot trace Branch"):
        export(Branch(), {"x": "f32[b,4]"})


def test_an_op_we_know_used_in_a_way_we_do_not():
    class Dilated(nn.Module):
        def __init__(self):
            super().__init__()
            self.deep = nn.Sequential(nn.Conv2d(3, 3, 3, dilation=2))

        def forward(self, x):
            return self.deep(x)

    with pytest.raises(ArcError, match="dilation"):
        export(Dilated(), {"x": "f32[b,3,9,9]"})


RIGHT = {  # what is easy to get wrong, and comes out right
    "log_softmax": lambda x: F.log_softmax(x * 200, -1),
    "alpha": lambda x: torch.rsub(x, 2.0, alpha=3) + torch.sub(x, x, alpha=2),
    "floor": lambda x: torch.div(x * 3, 0.7, rounding_mode="floor") + (x * 9).long() // 2,
    "literal": lambda x: x[:, torch.tensor([2, 0])] * torch.tensor([1.0, 2, 3, -torch.inf]),
    "in place": lambda x: x.clone().mul_(2).add_(1),
    "slices": lambda x: x[:, -2:, 1:-1].sum(-1) + x[..., None, 1].amax(1, keepdim=True)[..., 0],
}
WRONG = {  # what has no meaning here, and says so
    "reflect": lambda x: F.pad(x, (1, 1), mode="reflect"),
    "crop": lambda x: F.pad(x, (-1, 1)),
    "smallest": lambda x: x.topk(2, largest=False).values,
    "trunc": lambda x: torch.div(x, 0.7, rounding_mode="trunc"),
    "bias alone": lambda x: F.layer_norm(x, (4,), None, x[0, 0]),
    "two axes": lambda x: F.rms_norm(x, (3, 4)),
    "dropout": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    "small index": lambda x: x.gather(2, (x[:, :1] > 9).long()),
    "size as number": lambda x: x * x.shape[0],
    "unknown pair": lambda x: x.sort(-1).values,
    "keyword": lambda x: torch.addmm(x[0, 0], x[0], x[0].t() @ x[0], alpha=2),
}


class Lambda(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x)


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    same(Lambda(RIGHT[name]), {"x": "f32[b,3,4]"}, f32(2, 3, 4))


@pytest.mark.parametrize("name", WRONG)
def test_wrong(name):
    with pytest.raises(ArcError) as e:
        export(Lambda(WRONG[name]), {"x": "f32[b,3,4]"})
    assert "(top)" in "\n".join((e.value.what, *e.value.__notes__))  # says where


# --- arc:: ops -----------------------------------------------------------------------------------


class Ours(nn.Module):
    """Every arc:: op, by a method that takes and returns names."""

    def __init__(self):
        super().__init__()
        self.cos, self.sin = (nn.Buffer(torch.rand(9, 2)) for _ in range(2))
        self.norm = arc.RMSNorm(8, 1e-5)

    def step(self, x, past, k, v, keep, image, like):
        q = arc.rope(self.norm(x), self.cos, self.sin, past, 2, True)
        rows = past[:, None].long() + torch.arange(x.shape[1])
        q2 = arc.rope(x, self.cos, self.sin, rows, 2, False)
        k, v = arc.cache_append(k, q2[..., :4], past), arc.cache_append(v, x[..., 4:], past)
        bias = torch.zeros(1, 2, 1, 1)
        y = arc.attention(q, k, v, 2, 1, 0.5, "causal", past, keep, bias + 0.25)
        z = arc.attention(q, x, x, 2, 2, 0.5, "full")
        return {"y": arc.tail(y + z, like), "k": k, "v": v, "n": arc.l2_norm(image, 1),
                **{m: arc.resize(image, 3, 5, m) for m in ("bicubic", "bilinear", "area")}}


def test_arc_ops_mean_the_same_in_torch_and_numpy():
    m = Ours()
    nn.init.normal_(m.norm.weight)
    cache = "f32[r,1,9,4]"
    g = call(m, Entry("step", m.step, {
        "x": "f32[r,s,8]", "past": "i32[r]", "k": cache, "v": cache, "keep": "bool[r,9]",
        "image": "f32[b,3,4,4]", "like": "f32[b,c]"}))
    used = {n.op for n in g.nodes}
    assert {"rope", "cache_append", "attention", "tail", "l2_norm", "resize", "rms_norm"} <= used
    keep = np.random.default_rng(1).random((2, 9)) < 0.5
    given = {"x": f32(2, 3, 8), "past": np.array([0, 5], np.int32), "k": f32(2, 1, 9, 4),
             "v": f32(2, 1, 9, 4), "keep": keep, "image": f32(1, 3, 4, 4), "like": f32(1, 2)}
    with torch.no_grad():
        want = m.step(**{k: torch.from_numpy(v) for k, v in given.items()})
    got = evaluate(g, given, weights(m))
    assert list(got) == list(want)
    for name, theirs in want.items():
        np.testing.assert_allclose(got[name], theirs.numpy(), rtol=1e-5, atol=1e-5)


def test_every_arc_op_is_covered():
    """An op added to arcompile.nn must be added to `Ours`."""
    import inspect

    ops = {n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n[:5] == "arc::"}
    body = inspect.getsource(Ours)
    assert not {op for op in ops if f"arc.{op.split('.')[0]}(" not in body}
