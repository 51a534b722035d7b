"""HMAR against a plain transcription of its loop, which shares no code with the family.

There is no upstream golden: this checks the graphs, the order of steps and the masks, on random
weights, through the same noise.
"""

from __future__ import annotations

import math

import numpy as np
import plain
import pytest
import torch
from torch.nn import functional as F

from arcompile.errors import ArcError
from arcompile.family import FAMILIES, Source
from arcompile.models.hmar import Hmar, config, program

TARGETS = ("ort-cpu", "reference")
SIDES, ROWS = (1, 2, 3), ((1,), (1, 3), (1, 1, 2, 5))
HEADS, CLASSES, VOCABULARY = 2, 5, 32
LABELS, GUIDANCE = [3, 1], 2.0
SAMPLING = {"temperature": 1.0, "top_k": 12, "top_p": 0.9}


@pytest.fixture(scope="module")
def arrays():
    """(transformer, tokenizer): every tensor random, biases and gains too."""
    rng, source = np.random.default_rng(7), Hmar().random("tiny")

    def fill(t):
        made = {}
        for k, e in t.items():
            fan = math.sqrt(np.prod(e.shape[1:])) if len(e.shape) > 1 and "embed" not in k else 2
            made[k] = rng.standard_normal(e.shape, np.float32) / np.float32(fan)
            if "norm" in k and k.endswith("weight"):
                made[k] += 1
        return made

    return fill(source.tensors), fill(source.decoder)


@pytest.fixture(scope="module")
def source(arrays):
    return Source(plain.held(arrays[0]), plain.held(arrays[1]), metadata={"patch_nums": "1,2,3"})


@pytest.fixture(scope="module")
def engines(source, tmp_path_factory):
    made, root = {}, tmp_path_factory.mktemp("hmar")

    def get(target: str = "ort-cpu"):
        if target not in made:
            made[target] = plain.engine("hmar", source, root / target, target)
        return made[target]

    return get


class Plain:
    """The loop as upstream describes it, one function after the other."""

    def __init__(self, arrays):
        self.w, self.v = ({k: torch.from_numpy(a) for k, a in part.items()} for part in arrays)
        self.label = torch.tensor(LABELS + [CLASSES] * len(LABELS))
        self.cond = self.w["class_emb.weight"][self.label]

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def block(self, x, at):
        six = self.linear(F.silu(self.cond), f"{at}.ada_lin.1").view(len(x), 6, 1, -1).unbind(1)
        gain1, gain2, scale1, scale2, shift1, shift2 = six
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        x = x + gain1 * self.attention(h, f"{at}.attn")
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        h = F.gelu(self.linear(h, f"{at}.ffn.fc1"), approximate="tanh")
        return x + gain2 * self.linear(h, f"{at}.ffn.fc2")

    def attention(self, x, at):
        r, s, c = x.shape
        bias = torch.cat([self.w[f"{at}.{k}"] for k in ("q_bias", "zero_k_bias", "v_bias")])
        y = F.linear(x, self.w[f"{at}.mat_qkv.weight"], bias).view(r, s, 3, HEADS, c // HEADS)
        q, k, v = y.permute(2, 0, 3, 1, 4)
        gain = self.w[f"{at}.scale_mul_1H11"].clamp(max=math.log(100)).exp()
        share = (F.normalize(q, dim=-1) * gain @ F.normalize(k, dim=-1).transpose(2, 3)).softmax(-1)
        return self.linear((share @ v).transpose(1, 2).reshape(r, s, c), f"{at}.proj")

    def logits(self, x, stack):
        for at in ("base_blocks.0", f"{stack}_blocks.0"):
            x = self.block(x, at)
        scale, shift = self.linear(F.silu(self.cond), f"{stack}_head_nm.ada_lin.1").chunk(2, -1)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        return self.linear(h, f"{stack}_head")

    def place(self, s):
        at = sum(n * n for n in SIDES[:s])
        return self.w["pos_1LC"][:, at : at + SIDES[s] ** 2] + self.w["lvl_embed.weight"][s]

    def map(self, token, s):
        n = SIDES[s]
        h = self.v["quantize.embedding.weight"][token].transpose(1, 2).reshape(len(token), -1, n, n)
        if s < 2:
            h = F.interpolate(h, (3, 3), mode="bicubic")
        k = int(np.abs(np.linspace(1 / 12, 11 / 12, 4) - s / 2).argmin())
        at = f"quantize.quant_resi.qresi_ls.{k}"
        return 0.5 * h + 0.5 * F.conv2d(h, self.v[f"{at}.weight"], self.v[f"{at}.bias"], padding=1)

    def seen(self, f, s):
        small = F.interpolate(f, (SIDES[s],) * 2, mode="area").flatten(2).transpose(1, 2)
        return F.linear(small, self.w["word_embed.weight"])

    def draw(self, logits, t, noise):
        """Token and its probability, by inverse CDF after guidance, top-k and top-p."""
        c, u = logits.chunk(2)
        x = (1 + t) * c - t * u
        order = x.sort(-1, descending=True)
        kth = order.values[..., SAMPLING["top_k"] - 1 : SAMPLING["top_k"]]
        p = x.masked_fill(x < kth, -torch.inf).softmax(-1)
        sorted_p = p.gather(-1, order.indices)
        drop = sorted_p.cumsum(-1) - sorted_p > SAMPLING["top_p"]
        p = p.scatter(-1, order.indices, sorted_p.masked_fill(drop, 0))
        p = p / p.sum(-1, keepdim=True)
        token = (p.double().cumsum(-1) > noise[..., 1:]).int().argmax(-1)
        return token, p.gather(-1, token[..., None])[..., 0]

    def again(self, token, mask, f_hat, s):
        drawn = self.seen(self.map(token, s), s)
        drawn = torch.where(mask[..., None], self.w["mask_embed.weight"], drawn)
        x = self.seen(f_hat, s) + drawn + self.w["word_embed_bias"] + self.place(s)
        return self.logits(x.repeat(2, 1, 1), "mask")

    def run(self, noises):
        """noises: turn -> f64 [b,14,2]. Tokens of all scales, and the latent."""
        f_hat, found, at = torch.zeros(len(LABELS), 8, 3, 3), [], 0
        x = self.cond[:, None] + self.w["pos_start"] + self.place(0)
        for s, (n, row) in enumerate(zip(SIDES, ROWS, strict=True)):
            u = [torch.from_numpy(z[:, at : at + n * n]) for z in noises]
            token, sure = self.draw(self.logits(x, "ns"), GUIDANCE * s / 2, u[0])
            mask = torch.ones_like(token, dtype=torch.bool)
            for turn in range(1, len(row)):
                left = sum(row[turn:])
                low = sure.masked_fill(~mask, torch.inf).argsort(-1)[:, :left]
                mask = torch.zeros_like(mask).scatter(1, low, True)
                new, p = self.draw(self.again(token, mask, f_hat, s), GUIDANCE * 1e-6, u[turn])
                token, sure = torch.where(mask, new, token), torch.where(mask, p, sure)
            found.append(token)
            f_hat, at = f_hat + self.map(token, s), at + n * n
            if s < 2:
                x = self.seen(f_hat, s + 1) + self.w["word_embed_bias"] + self.place(s + 1)
                x = x.repeat(2, 1, 1)
        return torch.cat(found, 1), f_hat


@pytest.mark.parametrize("target", TARGETS)
def test_tokens_are_the_transcriptions(engines, arrays, target):
    noise = (np.random.default_rng(3).integers(0, 1 << 23, (2, 14, 2)) / 2**23).astype(np.float32)
    out = engines(target).generate(LABELS, guidance=GUIDANCE, noise=noise, **SAMPLING)
    tokens, _ = Plain(arrays).run([noise.astype(np.float64)] * 4)
    assert (out.tokens == tokens.numpy()).all()
    assert len(set(out.tokens.ravel().tolist())) > 8


def test_a_cell_drawn_again_takes_fresh_noise(engines, arrays):
    """Turn by turn, the generator's own draws."""
    from arcompile.program import Draw
    from arcompile.runtime import rng

    seeds, copies, where = np.array([11, 12], np.uint64), np.zeros(2, np.int64), np.arange(14)
    draws = [rng.draw(Draw("noise", "uniform", 2), 0, seeds, copies, where, turn)
             for turn in range(4)]
    tokens, _ = Plain(arrays).run([d.astype(np.float64) for d in draws])
    out = engines().generate(LABELS, seed=[11, 12], guidance=GUIDANCE, **SAMPLING)
    assert (out.tokens == tokens.numpy()).all()


def test_each_row_of_a_mixed_batch_equals_its_solo_run(engines):
    mixed = {"seed": [5, 9], "guidance": [3.0, 0.0], "top_k": [0, 20], "top_p": [0.9, 1.0]}
    together = engines().generate(LABELS, **mixed)
    for i in range(2):
        alone = engines().generate(LABELS[i], **{k: v[i] for k, v in mixed.items()})
        assert (together.tokens[i] == alone.tokens[0]).all()
        assert (together.pixels[i] == alone.pixels[0]).all()


def test_only_hmar_claims_its_tensors(source):
    assert [k for k, f in FAMILIES.all().items() if f.claims(source.tensors)] == ["hmar"]


def test_steps_follow_the_mask_schedule(source):
    p = program(config(source, {}))
    first = [s.calls[0].graph for s in p.steps]
    assert first == ["step", "step", "refine", "step", "refine", "refine", "refine"]
    assert not any(s.append for s in p.steps)
    flat = program(config(source, {"mask_schedule": [[1], [4], [9]]}))
    assert [s.guide for s in flat.steps] == [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0)]


@pytest.mark.parametrize("given", [[[1], [4]], [[1], [4], [8]], [[1], [0, 4], [9]], "half"])
def test_a_schedule_that_does_not_cover_is_refused(source, given):
    with pytest.raises(ArcError, match="mask_schedule must list counts that add up to 1, 4, 9"):
        Hmar().model(source, {"mask_schedule": given})


def test_the_tokenizer_is_needed(source):
    with pytest.raises(ArcError, match="image tokenizer, and none is given"):
        Hmar().model(Source(source.tensors, metadata=source.metadata), {})
