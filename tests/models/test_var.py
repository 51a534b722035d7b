"""VAR against what upstream computes: greedy tokens, logits, pixels, encoding; and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plain
import pytest
import torch

import arcompile
from arcompile.checkpoint import Entry, Weights, open_checkpoint
from arcompile.errors import ArcError
from arcompile.family import FAMILIES, Source
from arcompile.models.adaln import Attention, Block
from arcompile.models.parts import state
from arcompile.models.random import weights
from arcompile.models.scales import from_tables, sides
from arcompile.models.var import Config, Transformer, Var, config, program

TARGETS = ("ort-cpu", "reference")
MIXED = {"seed": [5, 2**63 + 9], "guidance": [3.0, 0.0], "temperature": [1.0, 0.7],
         "top_k": [0, 20], "top_p": [0.9, 1.0]}


@pytest.fixture(scope="module")
def engines(goldens, tmp_path_factory):
    made, root = {}, tmp_path_factory.mktemp("var")

    def get(target: str = "ort-cpu"):
        if target not in made:
            made[target] = arcompile.build(goldens / "var" / "var_tiny.pth", target=target,
                                           decoder=goldens / "var" / "vae_tiny.pth",
                                           out=root / target)
        return made[target]

    return get


@pytest.fixture(scope="module")
def expected(goldens):
    return np.load(goldens / "var" / "expected.npz")


@pytest.fixture(scope="module")
def source(goldens):
    """The golden checkpoint's tensors."""
    return Source(open_checkpoint(goldens / "var" / "var_tiny.pth").weights(*Var.containers),
                  open_checkpoint(goldens / "var" / "vae_tiny.pth").weights())


def distance(x, y):
    return np.linalg.norm(np.float64(x) - y) / np.linalg.norm(y)


@pytest.mark.parametrize("target", TARGETS)
def test_greedy_tokens_and_pixels_are_upstreams(engines, expected, target):
    out = engines(target).generate(expected["cond"], guidance=4.0, temperature=0)
    assert (out.tokens == expected["greedy_tokens"]).all()
    assert distance((np.clip(out.pixels, -1, 1) + 1) / 2, expected["image"]) < 1e-4


@pytest.mark.parametrize("target", TARGETS)
def test_teacher_forced_logits_are_upstreams(engines, expected, target):
    cond, uncond = engines(target).logits(expected["cond"], expected["teacher_tokens"])
    assert distance(cond, expected["teacher_logits_cond"]) < 1e-4
    assert distance(uncond, expected["teacher_logits_uncond"]) < 1e-4


def test_encoding_is_upstreams(engines, expected):
    tokens = engines().encode(expected["encode_image"])
    assert (tokens == expected["encode_tokens"]).all()


def test_each_row_of_a_mixed_batch_equals_its_solo_run(engines, expected):
    together = engines().generate(expected["cond"], **MIXED)
    for i in range(2):
        alone = engines().generate(expected["cond"][i], **{k: v[i] for k, v in MIXED.items()})
        assert (together.tokens[i] == alone.tokens[0]).all()
        assert (together.pixels[i] == alone.pixels[0]).all()


def test_targets_draw_the_same_tokens(engines, expected):
    ours, oracle = (engines(t).generate(expected["cond"], **MIXED).tokens for t in TARGETS)
    assert (ours == oracle).all()


def test_guidance_grows_with_the_scale(source):
    p = program(config(source, {}))
    assert [s.guide for s in p.steps] == [(1.0, s / 4) for s in range(5)]
    assert [len(s.commit) for s in p.steps] == [1, 4, 9, 16, 36]
    assert [s.append for s in p.steps] == [1, 4, 9, 16, 36]


def test_only_var_claims_its_tensors(source):
    claims = [name for name, f in FAMILIES.all().items() if f.claims(source.tensors)]
    assert claims == ["var"]


def without(t, *names):
    return Weights(t.source, {k: e for k, e in t.items() if k not in names})


def test_the_schedule_is_told_by_tables_or_published_sizes(source):
    shapes = {"pos_1LC": (1, 680, 8), "lvl_embed.weight": (10, 8)}
    bare = Weights("x", {k: Entry(s, "f32", lambda s=s: np.zeros(s)) for k, s in shapes.items()})
    assert from_tables(bare, None) == (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    assert from_tables(source.tensors, None) == (1, 2, 3, 4, 6)
    assert from_tables(without(source.tensors, "lvl_1L"), "1,2,3,4,6") == (1, 2, 3, 4, 6)
    assert sides("1_2_3") == (1, 2, 3)
    with pytest.raises(ArcError, match="no published schedule has 5 scales and 66 positions"):
        from_tables(without(source.tensors, "lvl_1L"), None)


@pytest.mark.parametrize(("options", "message"), [
    ({"patch_nums": [1, 2, 3, 4, 5]}, "makes 5 scales and 55 positions, but the checkpoint has 5"),
    ({"patch_nums": [1, 2, 3, 7]}, "makes 4 scales"),
    ({"patch_nums": "big"}, "must list grid sides"),
    ({"patch_nums": [1, 3, 2]}, "must not shrink"),
    ({"n_head": 3}, "n_head=3, but blocks.0.attn.scale_mul_1H11 has 2 heads"),
])
def test_impossible_options_are_refused(source, options, message):
    with pytest.raises(ArcError, match=message) as e:
        Var().model(source, options)
    assert e.value.hint or "shrink" in message


def test_heads_must_divide_the_width(source):
    names = [k for k in source.tensors if "scale_mul" in k]
    with pytest.raises(ArcError, match="n_head=3 does not divide the width 128"):
        Var().model(Source(without(source.tensors, *names), source.decoder), {"n_head": 3})


def test_a_strange_decoder_is_refused(source, goldens):
    with pytest.raises(ArcError, match="image tokenizer, and none is given"):
        Var().model(Source(source.tensors), {})
    other = open_checkpoint(goldens / "flexvar" / "FlexVAE_tiny.pth").weights("model")
    with pytest.raises(ArcError, match="no multi-scale codebook"):
        Var().model(Source(source.tensors, other), {})
    book = Entry((64, 16), "f32", lambda: np.zeros((64, 16), np.float32))
    small = Weights("x", {**source.decoder, "quantize.embedding.weight": book})
    with pytest.raises(ArcError, match="64 codes of 16, but the transformer draws from 128 of 16"):
        Var().model(Source(source.tensors, small), {})


def test_shared_modulation_adds_a_blocks_own_constants():
    """d36 has one linear for all blocks, and six vectors a block."""
    torch.manual_seed(0)
    block, shared = Block(8, 2, 16, shared=True), torch.randn(3, 6, 8)
    torch.nn.init.normal_(block.ada_gss)
    made, sums = block.vectors(None, shared), shared + block.ada_gss[0]
    assert torch.equal(made[:, 2:4], sums[:, 2:4] + 1)
    assert torch.equal(made[:, [0, 1, 4, 5]], sums[:, [0, 1, 4, 5]])


def test_one_modulation_for_all_blocks_equals_one_each(tmp_path):
    """d36, small: constants of a block are as good as a bias of its own."""
    c = Config(64, 2, 2, 128, 32, 8, 5, (1, 2, 3), shared=True)
    with torch.device("meta"):
        names = state(Transformer(c))
    shared = plain.shaken(weights(names), scale=0.2)
    arrays = {k: shared.load(k) for k in shared if "shared" not in k and "gss" not in k}
    for i in range(2):
        at = f"blocks.{i}.ada_lin.1"
        arrays[f"{at}.weight"] = shared.load("shared_ada_lin.1.weight")
        own = shared.load(f"blocks.{i}.ada_gss").ravel()
        arrays[f"{at}.bias"] = shared.load("shared_ada_lin.1.bias") + own
    tiny = Var().random("tiny")
    drawn = []
    for i, tensors in enumerate((shared, plain.held(arrays))):
        e = plain.engine("var", replace(tiny, tensors=tensors), tmp_path / str(i))
        out = e.generate([1, 4], seed=[5, 9], guidance=3.0)
        drawn.append((out, e.logits([1, 4], out.tokens)[0]))
    (a, x), (b, y) = drawn
    assert (a.tokens == b.tokens).all()
    assert (a.pixels == b.pixels).all()
    plain.near(x, y, 1e-5)


def test_attention_without_normalisation_has_upstreams_scale():
    torch.manual_seed(0)
    a = Attention(8, 2, cosine=False)
    for p in (*a.parameters(), a.zero_k_bias):
        torch.nn.init.normal_(p) if p.ndim else None
    torch.nn.init.zeros_(a.zero_k_bias)
    x = torch.randn(1, 5, 8)
    bias = torch.cat((a.q_bias, a.zero_k_bias, a.v_bias))
    qkv = (x @ a.mat_qkv.weight.T + bias).view(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    share = (qkv[0] @ qkv[1].transpose(-1, -2) * 0.25 / 4**0.5).softmax(-1)
    want = (share @ qkv[2]).transpose(1, 2).reshape(1, 5, 8) @ a.proj.weight.T + a.proj.bias
    assert torch.allclose(a(x)[0], want, atol=1e-5)
