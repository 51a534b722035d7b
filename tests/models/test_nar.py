"""NAR against upstream's golden, and against a plain forward pass over the whole sequence."""

import numpy as np
import plain
import pytest
import torch

import arcompile
from arcompile.family import FAMILIES, Source
from arcompile.models import llamagen, nar
from arcompile.program_text import from_data, parse_program, to_data
from arcompile.runtime.loop import Loop, Request


@pytest.fixture(scope="module")
def golden(goldens):
    if not (goldens / "nar").is_dir():
        pytest.skip(f"no NAR golden at {goldens}")
    return goldens / "nar" / "nar_tiny.pt", np.load(goldens / "nar" / "expected.npz")


@pytest.mark.parametrize("target", plain.BOTH)
def test_golden(golden, target, tmp_path):
    path, want = golden
    e = arcompile.build(path, options={"n_head": 4, "grid": 6}, target=target, out=tmp_path / "e")
    assert len(e.program.steps) == 11
    assert (e.generate(want["cond"], guidance=4.0, temperature=0).tokens
            == want["greedy_tokens"]).all()


def forward(w, heads, prompt, tokens, grid, keep):
    """Logits [b,N,V] of every cell, tokens given, in raster slots. prompt [b,T,d], keep [b,T]."""
    b, t, d = prompt.shape
    cells = [divmod(i, grid) for i in range(grid * grid)]
    diagonal = torch.tensor([r + c for r, c in cells])
    seen = torch.ones(t + len(cells), t + len(cells)).tril().bool()
    seen[t:, t:] = diagonal[None] <= diagonal[:, None]
    seen = seen[None].repeat(b, 1, 1)
    seen[:, :, :t] &= keep[:, None]
    seen |= torch.eye(t + len(cells)).bool()
    angles = plain.grid_angles([(0, 0)] * t + cells, d // heads)
    live = torch.arange(t + len(cells)) >= t
    x = torch.cat((prompt, w["tok_embeddings.weight"][tokens]), 1)
    layers = sum(k.endswith("wqkv.weight") for k in w)
    for i in range(layers):
        h, x = x, plain.llamagen_layer(w, i, x, heads, angles, live, seen)
    right = plain.rms(h, w["norm.weight"]) @ w["output.weight"].T
    below = plain.rms(x, w["medusa_norm.weight"]) @ w["medusa_output.weight"].T
    out = []
    for r, c in cells:
        said = [right[:, t + r * grid + c - 1]] if c else []
        said += [below[:, t + (r - 1) * grid + c]] if r else []
        out.append(sum(said) / len(said) if said else (right[:, t - 1] + below[:, t - 1]) / 2)
    return torch.stack(out, 1)


@pytest.fixture(scope="module")
def captioned():
    """A caption-conditional model: 5 prompt slots, 3 x 3 cells."""
    c = llamagen.Config(32, 3, 2, 48, 40, 3, features=12, prompt=5)
    source = llamagen.invent(c, nar.Transformer, 0)
    return Source(plain.shaken(source.tensors), metadata=source.metadata)


@pytest.mark.parametrize("target", plain.BOTH)
def test_captions(captioned, target, tmp_path):
    """The prompt is causal and masked, the diagonals are not causal inside."""
    e = plain.engine("nar", captioned, tmp_path, target)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 5, 12)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    tokens = rng.integers(0, 40, (2, 9))
    w = plain.torches(captioned.tensors)
    got = e.logits({"features": features, "mask": mask}, tokens)
    null = w["cls_embedding.uncond_embedding"].expand(2, -1, -1)
    for cond, out in zip((torch.from_numpy(features), null), got, strict=True):
        x = plain.F.gelu(cond @ w["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
        x = x @ w["cls_embedding.cap_proj.fc2.weight"].T
        want = forward(w, 2, x, torch.from_numpy(tokens), 3, torch.from_numpy(mask))
        plain.near(out, want, 1e-5)


def test_guidance_counts_tokens():
    """Upstream guides a diagonal when no more than cfg_interval tokens are drawn before it."""
    p = FAMILIES["nar"].model(FAMILIES["nar"].random("tiny"), {}).program
    one = np.ones(1)
    for cfg_interval in range(1, 16):
        q = Request({"cond": 0 * one}, one.astype(np.uint64), 0 * one, 3 * one, one, 0 * one, one,
                    interval=cfg_interval - 1)
        before = np.cumsum([0, 1, 2, 3, 4, 3, 2])
        assert ((Loop(p, None, q).scales[:, 0] > 1) == (before <= cfg_interval)).all()


def test_text_encoder(captioned, tmp_path):
    plain.refuses("it reads no text", lambda: FAMILIES["nar"].model(
        FAMILIES["nar"].random("tiny"), {"text_encoder": str(tmp_path)}))
    plain.refuses("config.json", lambda: FAMILIES["nar"].model(
        captioned, {"text_encoder": str(tmp_path)}))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    source = FAMILIES["nar"].random("tiny")
    return plain.engine("nar", source, tmp_path_factory.mktemp("nar"))


@pytest.mark.ort
def test_rows(tiny):
    plain.mixed_is_solo(tiny, [1, 3], [1, 3])
    out = tiny.generate([0, 1], n=2, seed=3)
    assert out.tokens.shape == (4, 16)
    assert out.images.shape == (4, 8, 8, 3)
    assert (out.tokens[0] != out.tokens[1]).any()


@pytest.mark.ort
def test_program_text(tiny):
    p = tiny.program
    assert from_data(to_data(p)).steps == p.steps
    assert parse_program(str(p)).steps == p.steps


def test_claims():
    assert plain.claimants(FAMILIES["nar"].random("tiny")) == ["nar"]
    assert plain.claimants(FAMILIES["llamagen"].random("tiny")) == ["llamagen"]


def test_refusals():
    family, source = FAMILIES["nar"], FAMILIES["nar"].random("tiny")

    def model(**options):
        return lambda: family.model(source, options)

    plain.refuses("n_head=3 does not divide 64", model(n_head=3))
    plain.refuses("grid must be a positive integer", model(grid=0))
    bare = Source(source.tensors)
    plain.refuses("number of heads", lambda: family.model(bare, {}))
    plain.refuses("number of tokens per side", lambda: family.model(bare, {"n_head": 2}))
    other = FAMILIES["llamagen"].random("tiny").decoder.drop("quantize.embedding.weight")
    plain.refuses("lacks quantize.embedding.weight", lambda: family.model(
        Source(source.tensors, other, metadata=source.metadata), {}))
    smaller = plain.held({**{k: source.decoder.load(k) for k in source.decoder},
                          "quantize.embedding.weight": np.ones((32, 8))})
    plain.refuses("codebook has 32 codes", lambda: family.model(
        Source(source.tensors, smaller, metadata=source.metadata), {}))
    lost = Source(source.tensors.drop("medusa_norm.weight"), metadata=source.metadata)
    plain.refuses("1 missing", lambda: family.model(lost, {}))
