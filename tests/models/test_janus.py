"""Janus against transformers' golden, and against a plain forward pass over the whole sequence."""

import dataclasses
import json
import sys
import types

import numpy as np
import plain
import pytest
import torch
from torch.nn import functional as F

import arcompile
from arcompile.cost import program_cost
from arcompile.family import FAMILIES
from arcompile.models import janus
from arcompile.program_text import from_data, parse_program, to_data


@pytest.fixture(scope="module")
def golden(goldens):
    if not (goldens / "janus").is_dir():
        pytest.skip(f"no Janus golden at {goldens}")
    return goldens / "janus", np.load(goldens / "janus" / "expected.npz")


@pytest.mark.parametrize("target", plain.BOTH)
def test_golden(golden, target, tmp_path):
    path, want = golden
    e = arcompile.build(path, target=target, out=tmp_path / "e")
    assert e.defaults["guidance"] == 5.0
    out = e.generate({"input_ids": want["input_ids"]}, temperature=0)
    assert (out.tokens == want["greedy_tokens"]).all()
    plain.near(out.pixels.transpose(0, 2, 3, 1), want["image"])


def forward(w, ids, tokens, heads=4, kv=2):
    """Logits [N,V] of one image, in DeepSeek's names: one unpadded sequence, plain GQA and rope."""
    p = "language_model.model."
    x = w["gen_embed.weight"][tokens]
    x = F.gelu(x @ w["gen_aligner.layers.0.weight"].T + w["gen_aligner.layers.0.bias"])
    x = x @ w["gen_aligner.layers.2.weight"].T + w["gen_aligner.layers.2.bias"]
    x = torch.cat((w[p + "embed_tokens.weight"][ids], x))[:-1]
    s, d = x.shape
    e = d // heads
    angle = torch.arange(s)[:, None] * 10000.0 ** (-torch.arange(0, e, 2) / e)
    cos, sin = (torch.cat((f(angle), f(angle)), -1) for f in (torch.cos, torch.sin))

    def split(y, n, turn):
        y = y.view(s, n, e).transpose(0, 1)
        half = torch.cat((-y[..., e // 2 :], y[..., : e // 2]), -1)
        return (y * cos + half * sin if turn else y).repeat_interleave(heads // n, 0)

    for i in range(2):
        at = f"{p}layers.{i}."
        h = plain.rms(x, w[at + "input_layernorm.weight"], 1e-6)
        q, k, v = (split(h @ w[f"{at}self_attn.{c}_proj.weight"].T, n, c != "v")
                   for c, n in (("q", heads), ("k", kv), ("v", kv)))
        score = q @ k.transpose(-1, -2) * e**-0.5
        score = score.masked_fill(~torch.ones(s, s).tril().bool(), float("-inf"))
        a = (score.softmax(-1) @ v).transpose(0, 1).reshape(s, d)
        x = x + a @ w[at + "self_attn.o_proj.weight"].T
        h = plain.rms(x, w[at + "post_attention_layernorm.weight"], 1e-6)
        gate, up, down = (w[f"{at}mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        x = x + (F.silu(h @ gate.T) * (h @ up.T)) @ down.T
    x = plain.rms(x, w[p + "norm.weight"], 1e-6)[len(ids) - 1 :]
    x = x @ w["gen_head.output_mlp_projector.weight"].T + w["gen_head.output_mlp_projector.bias"]
    return F.gelu(x) @ w["gen_head.vision_head.weight"].T + w["gen_head.vision_head.bias"]


SOURCE = FAMILIES["janus"].random("tiny")
SHAKEN = dataclasses.replace(SOURCE, tensors=plain.shaken(SOURCE.tensors))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return plain.engine("janus", SHAKEN, tmp_path_factory.mktemp("janus"))


@pytest.mark.ort
def test_forward(tiny):
    """Prompts of unequal length in one batch; pads inside the unconditional one are attended."""
    prompts = [[1, 7, 9, 4], [1, 30, 22, 17, 8, 41, 4]]
    tokens = np.random.default_rng(0).integers(0, 64, (2, 16))
    w = plain.torches(SHAKEN.tensors)
    cond, null = tiny.logits(prompts, tokens)
    for i, ids in enumerate(prompts):
        given = torch.from_numpy(tokens[i])
        plain.near(cond[i], forward(w, ids, given), 1e-5)
        bare = [ids[0], *[0] * (len(ids) - 2), ids[-1]]
        plain.near(null[i], forward(w, bare, given), 1e-5)


@pytest.mark.ort
def test_rows(tiny):
    prompts = [[1, 7, 9, 4], [1, 30, 22, 17, 8, 41, 4]]
    plain.mixed_is_solo(tiny, prompts, prompts)
    assert tiny.generate(prompts[0], n=2).images.shape == (2, 8, 8, 3)


@pytest.mark.ort
def test_program_text(tiny):
    p = tiny.program
    assert p.steps[0].append == "p"
    assert (p.state, p.steps) == (from_data(json.loads(json.dumps(to_data(p)))).state,
                                  from_data(json.loads(json.dumps(to_data(p)))).steps)
    assert parse_program(str(p)).steps == p.steps
    full = dataclasses.replace(p, graphs=parse_program((tiny.folder / "program.arc").read_text())
                               .graphs)
    cost = program_cost(full)
    assert cost.steps[1].context == 64  # a prompt of the usual length
    assert cost.steps[-1].context == 64 + 15


@pytest.mark.ort
def test_words(tiny, monkeypatch):
    """Words stand in the template, between the ids that begin text and image."""
    plain.refuses("has no tokenizer for words", lambda: tiny.generate("a red apple"))
    e = arcompile.load(tiny.folder)
    e.manifest["files"]["tokenizer.json"] = {"sha256": "of a fake"}
    e.manifest["prompt"].update(bos=1, boi=4)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    plain.refuses("tokenizers, which is not installed", lambda: e.generate("a red apple"))
    seen = []

    class Tokenizer:
        @staticmethod
        def from_file(path):
            assert path == str(e.folder / "tokenizer.json")
            return Tokenizer()

        def no_truncation(self):
            pass

        def no_padding(self):
            pass

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            seen.append(text)
            return types.SimpleNamespace(ids=[5 + ord(c) % 40 for c in text])

    monkeypatch.setitem(sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Tokenizer))
    e.manifest["prompt"]["template"] = "<{prompt}>"
    out = e.generate(["red ", "a red apple"], temperature=0)
    assert seen == ["<red>", "<a red apple>"]
    ids = [1, *[5 + ord(c) % 40 for c in seen[0]], 4]
    assert (tiny.generate(ids, temperature=0, guidance=5.0).tokens[0] == out.tokens[0]).all()


@pytest.mark.ort
def test_bad_prompts(tiny):
    def ask(cond):
        return lambda: tiny.generate(cond)

    plain.refuses("a prompt of 21 ids; this engine takes 2 to 20", ask([1] * 21))
    plain.refuses("token id 50 is out of range", ask([1, 50]))
    plain.refuses("token ids are out of range", ask({"input_ids": [[1, -1]]}))
    plain.refuses("a prompt is empty", ask([]))
    plain.refuses("got 1.5 in it", ask([1.5, 2]))
    plain.refuses("zeros, then ones", ask({"input_ids": [[1, 2, 0]], "mask": [[1, 1, 0]]}))
    plain.refuses("mask has shape [1, 2]", ask({"input_ids": [[1, 2, 0]], "mask": [[1, 1]]}))
    plain.refuses("inputs are missing: input_ids", ask({}))


def test_claims():
    assert plain.claimants(SOURCE) == ["janus"]


def test_transformers_names(golden):
    """The golden bears transformers' names; every one that generation needs finds its place."""
    from arcompile.checkpoint import open_checkpoint

    t = open_checkpoint(golden[0]).weights()
    assert FAMILIES["janus"].claims(t)
    own = janus.ours(t)
    assert "vq.decoder.conv_blocks.0.res.1.conv1.weight" in own
    assert "vq.encoder.mid.1.q.weight" in own
    assert not [k for k in own if "vision_model" in k]


def test_refusals():
    family = FAMILIES["janus"]

    def model(source=SOURCE, **options):
        return lambda: family.model(source, options)

    def config(**text):
        held = json.loads(SOURCE.metadata["config.json"])
        held["text_config"].update(text)
        return dataclasses.replace(SOURCE, metadata={"config.json": json.dumps(held)})

    def without(name):
        return dataclasses.replace(SOURCE, tensors=SOURCE.tensors.drop(name))

    plain.refuses("needs the config.json", model(dataclasses.replace(SOURCE, metadata={})))
    bad = {"config.json": "{"}
    plain.refuses("is not JSON", model(dataclasses.replace(SOURCE, metadata=bad)))
    plain.refuses("holds its own image decoder",
                  model(dataclasses.replace(SOURCE, decoder=SOURCE.tensors)))
    plain.refuses("3 heads of 16 do not fit", model(config(num_attention_heads=3)))
    plain.refuses("type 'yarn'", model(config(rope_parameters={"rope_type": "yarn"})))
    plain.refuses("exceed the model's 36 positions", model(max_prompt=21))
    plain.refuses("grid must be a positive integer", model(grid=-1))
    plain.refuses("padding id cannot be told", model(pad_id=50))
    plain.refuses("no {prompt} in it", model(template="x"))
    plain.refuses("1 missing", model(without("gen_head.vision_head.bias")))
    plain.refuses("is missing or not a matrix", model(without("gen_embed.weight")))
    fewer = dict(SOURCE.tensors) | plain.held(
        {"gen_vision_model.quantize.embedding.weight": np.ones((32, 8))})
    fewer = type(SOURCE.tensors)("test", fewer)
    plain.refuses("codebook has 32 codes", model(dataclasses.replace(SOURCE, tensors=fewer)))
