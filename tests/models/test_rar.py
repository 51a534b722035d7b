"""RAR and MaskGIT-VQGAN against plain forward passes, written from their published facts."""

import dataclasses
import math

import numpy as np
import plain
import pytest
import torch
from torch.nn import functional as F

from arcompile.family import FAMILIES
from arcompile.models import maskgit_vq, rar
from arcompile.program_text import from_data, parse_program, to_data

SOURCE = FAMILIES["rar"].random("tiny")
SHAKEN = dataclasses.replace(SOURCE, tensors=plain.shaken(SOURCE.tensors, scale=0.2),
                             decoder=plain.shaken(SOURCE.decoder, scale=0.2))


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x, weight=1.0, bias=0.0):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def forward(w, label, tokens, heads=4, codes=64):
    """Logits [b,N,V] over the whole sequence cls, class, tokens."""
    b, n = tokens.shape
    known = w["embeddings.weight"][codes + 1 + torch.tensor(label)]
    x = torch.cat((w["cls_token"].expand(b, -1, -1), known[:, None],
                   w["embeddings.weight"][tokens[:, :-1]]), 1)
    s, d = x.shape[1:]
    x = x + w["pos_embed"][:, :s]
    x[:, 1:] += w["target_aware_pos_embed"][:, 2 : s + 1]
    cond = F.silu(known[:, None] + w["timesteps_embeddings"][:, :s])
    for i in range(2):
        at = f"blocks.{i}."

        def norm(x, name, at=at):
            return layer_norm(x, w[f"{at}{name}.weight"], w[f"{at}{name}.bias"])

        shift, scale, gate, shift2, scale2, gate2 = linear(
            w, at + "adaLN_modulation.1", cond).split(d, -1)
        h = linear(w, at + "attn.qkv", norm(x, "norm1") * (1 + scale) + shift)
        q, k, v = h.view(b, s, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
        score = norm(q, "attn.q_norm") @ norm(k, "attn.k_norm").transpose(-1, -2)
        score = score * (d // heads) ** -0.5
        score = score.masked_fill(~torch.ones(s, s).tril().bool(), float("-inf"))
        a = (score.softmax(-1) @ v).transpose(1, 2).reshape(b, s, d)
        x = x + gate * linear(w, at + "attn.proj", a)
        h = linear(w, at + "mlp.fc1", norm(x, "norm2") * (1 + scale2) + shift2)
        x = x + gate2 * linear(w, at + "mlp.fc2", F.gelu(h))
    scale, shift = linear(w, "adaln_before_head.adaLN_modulation.1", cond).split(d, -1)
    x = layer_norm(x) * (1 + scale) + shift
    assert x.shape[1] == n + 1
    return linear(w, "lm_head", x[:, 1:])


def decoded(w, tokens, grid):
    """Pixels in [0,1] of MaskGIT-VQGAN's decoder: two levels."""

    def group(x, name):
        b, c, h, v = x.shape
        y = x.reshape(b, 32, -1)
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return (y.reshape(b, c, h, v) * w[f"{name}.weight"].view(1, c, 1, 1)
                + w[f"{name}.bias"].view(1, c, 1, 1))

    def conv(x, name):
        kernel = w[f"{name}.weight"]
        return F.conv2d(x, kernel, w.get(f"{name}.bias"), padding=kernel.shape[-1] // 2)

    def res(x, name):
        h = conv(F.silu(group(x, f"{name}.norm1")), f"{name}.conv1")
        h = conv(F.silu(group(h, f"{name}.norm2")), f"{name}.conv2")
        wide = f"{name}.nin_shortcut.weight" in w
        return h + (conv(h, f"{name}.nin_shortcut") if wide else x)

    z = w["quantize.embedding.weight"][tokens].view(len(tokens), grid, grid, -1)
    x = conv(z.permute(0, 3, 1, 2), "decoder.conv_in")
    for name in ("mid.0", "mid.1", "up.1.block.0", "up.1.block.1"):
        x = res(x, f"decoder.{name}")
    x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), "decoder.up.1.upsample_conv")
    for name in ("up.0.block.0", "up.0.block.1"):
        x = res(x, f"decoder.{name}")
    return conv(F.silu(group(x, "decoder.norm_out")), "decoder.conv_out")


@pytest.fixture(scope="module", params=plain.BOTH)
def tiny(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rar")
    return plain.engine("rar", SHAKEN, folder, request.param, guidance_pow=1.5)


def test_forward(tiny):
    tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
    w = plain.torches(SHAKEN.tensors)
    for label, out in zip(([2, 4], [5, 5]), tiny.logits([2, 4], tokens), strict=True):
        plain.near(out, forward(w, label, torch.from_numpy(tokens)), 1e-5)


def test_greedy(tiny):
    """With guidance that rises: tokens one by one, and the pixels they make."""
    w = plain.torches(SHAKEN.tensors)
    tokens = torch.zeros(2, 16, dtype=torch.long)
    for step in range(16):
        cond, null = (forward(w, label, tokens)[:, step] for label in ([2, 4], [5, 5]))
        scale = 1 + 5.0 * (1 - math.cos(math.pi * (step / 16) ** 1.5)) / 2
        tokens[:, step] = (null + scale * (cond - null)).argmax(-1)
    out = tiny.generate([2, 4], guidance=6.0, temperature=0)
    assert (out.tokens == tokens.numpy()).all()
    want = decoded(plain.torches(SHAKEN.decoder), tokens, 4)
    plain.near((out.pixels + 1) / 2, want)


def test_rows(tiny):
    plain.mixed_is_solo(tiny, [1, 3], [1, 3])


def test_encode(tiny):
    """The nearest code of what the encoder makes of pixels in [0,1]."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 8, 8)).astype(np.float32)
    with torch.device("meta"):
        vq = maskgit_vq.VQ({k: SHAKEN.decoder.shape(k) for k in SHAKEN.decoder}, 4)
    vq.load_state_dict(plain.torches(SHAKEN.decoder), assign=True)
    with torch.no_grad():
        z = vq.encoder(torch.from_numpy((pixels + 1) / 2)).flatten(2).transpose(1, 2)
    far = torch.cdist(z, vq.quantize.embedding.weight[None].expand(2, -1, -1))
    assert (tiny.encode(pixels) == far.argmin(-1).numpy()).all()


def test_guidance():
    """1 at the first step, towards g at the last; power 0 is constant."""
    for g, power in ((16.0, 2.75), (6.9, 1.5)):
        at = [a + b * g for a, b in (rar.guide(i / 256, power) for i in range(256))]
        want = [1 + (g - 1) * (1 - math.cos((i / 256) ** power * math.pi)) / 2 for i in range(256)]
        assert np.allclose(at, want)
        assert at[0] == 1
    assert {rar.guide(i / 256, 0.0) for i in range(256)} == {(0.0, 1.0)}
    p = rar.program(rar.config(SOURCE.tensors), 2.75, True)
    assert parse_program(str(p)).steps == p.steps == from_data(to_data(p)).steps


def test_defaults():
    """A published size brings its authors' settings."""
    shapes = FAMILIES["rar"].random("B").tensors
    c = rar.config(shapes)
    assert (c.size, c.positions, c.classes, c.slots) == ("B", 256, 1000, 257)
    assert rar.power(c, {}) == 2.75
    assert sum(math.prod(shapes.shape(k)) for k in shapes) == pytest.approx(261e6, rel=0.03)


def test_claims():
    assert plain.claimants(SOURCE) == ["rar"]


def test_refusals():
    family = FAMILIES["rar"]

    def model(source=SOURCE, **options):
        return lambda: family.model(source, options)

    def changed(part, **arrays):
        t = getattr(SOURCE, part)
        held = {k: t.load(k) for k in t} | arrays
        return dataclasses.replace(SOURCE, **{part: plain.held(held)})

    plain.refuses("guidance_pow must be a number", model(guidance_pow=-1))
    plain.refuses("not 1024 and a square",
                  model(changed("tensors", pos_embed=np.ones((1, 1041, 64)))))
    plain.refuses("heads of 24 do not divide", model(
        changed("tensors", **{"blocks.0.attn.q_norm.weight": np.ones(24)})))
    plain.refuses("has 16 rows for 17 slots", model(
        changed("tensors", timesteps_embeddings=np.ones((1, 16, 64)))))
    other = FAMILIES["llamagen"].random("tiny").decoder
    plain.refuses("the decoder file has no decoder.mid.1.conv1.weight", model(
        dataclasses.replace(SOURCE, decoder=other)))
    fewer = changed("decoder", **{"quantize.embedding.weight": np.ones((32, 32))})
    plain.refuses("codebook has 32 codes", model(fewer))
    lost = dataclasses.replace(SOURCE, tensors=SOURCE.tensors.drop("cls_token"))
    plain.refuses("1 missing", model(lost))
