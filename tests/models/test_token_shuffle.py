"""Token-Shuffle against a plain forward pass over the whole sequence, written from the paper."""

import dataclasses

import numpy as np
import plain
import pytest
import torch
from torch.nn import functional as F

from arcompile.compile import exported
from arcompile.family import FAMILIES, Source
from arcompile.models import llamagen, token_shuffle
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program

FAMILY = FAMILIES["token-shuffle"]
SOURCE = FAMILY.random("tiny")
SHAKEN = dataclasses.replace(SOURCE, tensors=plain.shaken(SOURCE.tensors))
NINE = llamagen.invent(
    token_shuffle.Config(36, 1, 3, 40, 32, 6, classes=5, window=3, mlp=20, blocks=(1, 2)),
    token_shuffle.Transformer, 3)
CAPTION = llamagen.invent(
    token_shuffle.Config(32, 1, 2, 40, 32, 4, features=12, prompt=3, window=2, mlp=20),
    token_shuffle.Transformer, 4)


def windows(grid, s):
    """The raster cells of each window, row by row: a list of lists."""
    return [[(s * i + y) * grid + s * j + x for y in range(s) for x in range(s)]
            for i in range(grid // s) for j in range(grid // s)]


def mixed(w, part, x):
    i = 0
    while f"{part}.blocks.{i}.fc1.weight" in w:
        p = f"{part}.blocks.{i}."
        y = plain.rms(x, w[p + "norm.weight"])
        y = F.gelu(F.linear(y, w[p + "fc1.weight"], w[p + "fc1.bias"]))
        x, i = x + F.linear(y, w[p + "fc2.weight"], w[p + "fc2.bias"]), i + 1
    return x


def forward(w, prompt, tokens, grid, s, heads):
    """Logits [b,N,V] in raster order of raster tokens [b,N], after prompt slots [b,p,d]."""
    b, n, d, p = len(tokens), grid * grid, prompt.shape[2], prompt.shape[1]
    cells = windows(grid, s)
    embed = w["tok_embeddings.weight"][tokens]
    merged = []
    for window in cells:
        squeezed = [F.linear(embed[:, c], w["shuffle.compress.weight"],
                             w["shuffle.compress.bias"]) for c in window]
        merged.append(mixed(w, "shuffle", torch.cat(squeezed, -1)))
    x = torch.cat((prompt, torch.stack(merged[:-1], 1)), 1)
    seen = torch.ones(x.shape[1], x.shape[1]).tril().bool().expand(b, -1, -1)
    at = [(0, 0)] * p + [divmod(window[0], grid) for window in cells[:-1]]
    live = torch.tensor([0.0] * p + [1.0] * (len(cells) - 1))
    angles = plain.grid_angles(at, d // heads)
    for i in range(sum(k.endswith("wqkv.weight") for k in w)):
        x = plain.llamagen_layer(w, i, x, heads, angles, live, seen)
    x = mixed(w, "unshuffle", x[:, p - 1:])
    x = F.linear(x, w["unshuffle.expand.weight"], w["unshuffle.expand.bias"])
    logits = torch.empty(b, n, w["output.weight"].shape[0])
    for k, window in enumerate(cells):
        for c, hidden in zip(window, x[:, k].split(d, -1), strict=True):
            logits[:, c] = plain.rms(hidden, w["norm.weight"]) @ w["output.weight"].T
    return logits


def check(e, source, grid, s, heads):
    w, rng = plain.torches(source.tensors), np.random.default_rng(0)
    tokens = rng.integers(0, w["output.weight"].shape[0], (2, grid * grid))
    for labels, got in zip(([2, 4], [5, 5]), e.logits([2, 4], tokens), strict=True):
        prompt = w["cls_embedding.embedding_table.weight"][labels][:, None]
        want = forward(w, prompt, torch.from_numpy(tokens), grid, s, heads)
        plain.near(got, want, 1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return plain.engine("token-shuffle", SHAKEN, tmp_path_factory.mktemp("shuffle"))


@pytest.mark.ort
def test_forward(tiny):
    assert len(tiny.program.steps) == 16 // 4
    assert tiny.manifest["passes"][0] == "token-shuffle{window=2}"
    assert dict(tiny.program.state)["k0"].shape[2] == 1 + 16 // 4  # a slot a window
    check(tiny, SHAKEN, 4, 2, 2)


def test_windows_of_nine(tmp_path):
    e = plain.engine("token-shuffle", NINE, tmp_path, "reference")
    assert len(e.program.steps) == 4
    check(e, NINE, 6, 3, 3)


def test_captions_pass_by(tmp_path):
    """Text tokens meet neither shuffle nor unshuffle; the null caption is a learned one."""
    e = plain.engine("token-shuffle", CAPTION, tmp_path, "reference")
    w, rng = plain.torches(CAPTION.tensors), np.random.default_rng(0)
    given = rng.standard_normal((2, 3, 12)).astype(np.float32)
    tokens = rng.integers(0, 32, (2, 16))
    asked = {"features": given, "mask": np.ones((2, 3), bool)}
    null = w["cls_embedding.uncond_embedding"].expand(2, -1, -1)
    for x, got in zip((torch.from_numpy(given), null), e.logits(asked, tokens), strict=True):
        x = F.gelu(x @ w["cls_embedding.cap_proj.fc1.weight"].T, approximate="tanh")
        want = forward(w, x @ w["cls_embedding.cap_proj.fc2.weight"].T, torch.from_numpy(tokens),
                       4, 2, 2)
        plain.near(got, want, 1e-5)


@pytest.mark.ort
def test_greedy_tokens_with_half_linear_guidance(tiny):
    """The scale of window k is 1 at the first and what is asked from the middle on."""
    w, labels, scale = plain.torches(SHAKEN.tensors), [1, 3], 4.0
    table = w["cls_embedding.embedding_table.weight"]
    tokens, cells = torch.zeros(2, 16, dtype=torch.long), windows(4, 2)
    for k, window in enumerate(cells):
        cond, null = (forward(w, table[x][:, None], tokens, 4, 2, 2)[:, window]
                      for x in (labels, [5, 5]))
        s = 1 + (scale - 1) * min(1.0, 2 * k / len(cells))
        tokens[:, window] = (null + s * (cond - null)).argmax(-1)
    got = tiny.generate(labels, guidance=scale, temperature=0.0).tokens
    assert (got == tokens.numpy()).all()


@pytest.mark.ort
def test_a_mixed_batch(tiny):
    plain.mixed_is_solo(tiny, [1, 3], ([1], [3]))


def test_plain_model_and_pass_are_the_default():
    """`window=1` leaves the plain model, whose law is LlamaGen's; the pass makes the rest."""
    plain_one = exported(FAMILY.model(SOURCE, {"window": 1}))
    assert len(plain_one.steps) == 16
    assert run(plain_one, parse_pipeline("token-shuffle")) is plain_one
    whole = exported(FAMILY.model(SOURCE, {}))
    assert str(run(plain_one, parse_pipeline("token-shuffle{window=2}"))) == str(whole)
    assert str(parse_program(str(whole))) == str(whole)


def test_the_plain_model_is_llamagen(tmp_path):
    own = ("shuffle.", "unshuffle.")
    t = {k: SHAKEN.tensors.load(k) for k in SHAKEN.tensors if not k.startswith(own)}
    other = plain.engine("llamagen", Source(plain.held(t), metadata=SOURCE.metadata),
                         tmp_path / "a", "reference")
    e = plain.engine("token-shuffle", dataclasses.replace(SHAKEN, decoder=None), tmp_path / "b",
                     "reference", window=1)
    tokens = np.random.default_rng(0).integers(0, 64, (1, 16))
    for ours, theirs in zip(e.logits([2], tokens), other.logits([2], tokens), strict=True):
        assert (ours == theirs).all()


def test_only_it_claims_its_tensors():
    assert plain.claimants(SOURCE) == ["token-shuffle"]


def tensors(**swapped):
    return dataclasses.replace(SOURCE, tensors=plain.held(
        {**{k: SOURCE.tensors.load(k) for k in SOURCE.tensors}, **swapped}))


@pytest.mark.parametrize(("said", "source", "options"), [
    ("take windows of 2, not 4", SOURCE, {"window": 4}),
    ("must be a positive integer", SOURCE, {"window": 0}),
    ("a grid of 5 tokens does not divide into windows of 2", SOURCE, {"grid": 5}),
    ("does not squeeze 64 numbers", tensors(**{"shuffle.compress.weight": np.zeros((20, 64))}), {}),
    ("does not squeeze 64 numbers", tensors(**{"shuffle.compress.weight": np.zeros((0, 64))}), {}),
])
def test_refusals(said, source, options):
    e = plain.refuses(said, lambda: FAMILY.model(source, options))
    assert e.hint
