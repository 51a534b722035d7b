"""PAR against a plain forward pass over the whole sequence, written from its published facts."""

import dataclasses

import numpy as np
import plain
import pytest
import torch

from arcompile.family import FAMILIES, Source
from arcompile.models import llamagen, par
from arcompile.program_text import from_data, parse_program, to_data

SOURCE = FAMILIES["par"].random("tiny")
SHAKEN = dataclasses.replace(SOURCE, tensors=plain.shaken(SOURCE.tensors))


def upstream_order(tokens, side):
    """Raster tokens [b,N] in PAR's order: the inverse of its sampling script's permutation."""
    b, n = len(tokens), int(tokens.shape[1] ** 0.5)
    inner = n // side
    x = tokens.reshape(b, side, inner, side, inner)  # region row, row, region column, column
    return x.transpose(0, 2, 4, 1, 3).reshape(b, -1)


def forward(w, labels, tokens, grid, g, heads):
    """Logits [b,N,V] in PAR's order, tokens given in it."""
    b, n = tokens.shape
    side, d = int(g**0.5), w["norm.weight"].shape[0]
    embed = w["tok_embeddings.weight"][tokens]
    special = w["spe_tok_embeddings.special_embeddings.weight"].expand(b, -1, -1)
    first = w["cls_embedding.embedding_table.weight"][labels][:, None]
    x = torch.cat((first, embed[:, :g], special, embed[:, g:]), 1)
    s = x.shape[1]
    seen = torch.ones(s, s).tril().bool()
    for start in range(g, s, g):
        seen[start : start + g, : start + g] = True
    inner = grid // side
    raster = np.arange(grid * grid)[None]
    cells = [divmod(int(c), grid) for c in upstream_order(raster, side)[0]]
    assert cells[1] == (0, inner)  # the second token is the second region's first
    off = [(0, 0)]
    at = off + cells[:g] + off * (g - 1) + cells[g:]
    live = torch.ones(s)
    live[0] = 0
    live[1 + g : 2 * g] = 0
    angles = plain.grid_angles(at, d // heads)
    for i in range(sum(k.endswith("wqkv.weight") for k in w)):
        x = plain.llamagen_layer(w, i, x, heads, angles, live, seen.expand(b, -1, -1))
    return (plain.rms(x, w["norm.weight"]) @ w["output.weight"].T)[:, :n]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return plain.engine("par", SHAKEN, tmp_path_factory.mktemp("par"))


def check(e, source, grid, g, heads):
    raster = np.random.default_rng(0).integers(0, 64, (2, grid * grid))
    tokens = torch.from_numpy(np.ascontiguousarray(upstream_order(raster, int(g**0.5))))
    w, got = plain.torches(source.tensors), e.logits([2, 4], raster)
    for labels, out in zip(([2, 4], [5, 5]), got, strict=True):
        want = forward(w, labels, tokens, grid, g, heads)
        plain.near(upstream_order_of_logits(out, int(g**0.5)), want, 1e-5)


def upstream_order_of_logits(x, side):
    return np.stack([upstream_order(x[..., v], side) for v in range(x.shape[-1])], -1)


@pytest.mark.ort
def test_forward(tiny):
    assert len(tiny.program.steps) == 16 // 4 + 4 - 1
    check(tiny, SHAKEN, 4, 4, 2)


def test_nine_regions(tmp_path):
    """Nine regions of 2 x 2 cells, through numpy."""
    c = llamagen.Config(32, 2, 2, 48, 64, 6, classes=5, special=8)
    source = llamagen.invent(c, par.Transformer, 0)
    source = Source(plain.shaken(source.tensors), metadata=source.metadata)
    check(plain.engine("par", source, tmp_path, "reference"), source, 6, 9, 2)


@pytest.mark.ort
def test_rows(tiny):
    plain.mixed_is_solo(tiny, [1, 3], [1, 3])


@pytest.mark.ort
def test_pixels(tiny):
    """Tokens are in raster order: what the decoder is fed, and what an encoder finds again."""
    out = tiny.generate([3], seed=2)
    assert out.images.shape == (1, 8, 8, 3)
    decoded = tiny.models.runner().run("decode", {"tokens": out.tokens})["pixels"].numpy()
    plain.near(decoded, out.pixels)


def test_published():
    """147 steps for 24 x 24 tokens in 4 regions, 51 in 16; the order is a permutation."""
    for g, steps in ((4, 147), (16, 51)):
        c = llamagen.Config(64, 1, 1, 64, 64, 24, classes=5, special=g - 1)
        cells = par.order(24, g)
        assert sorted(cells) == list(range(576))
        p = par.program(c, cells, True)
        assert len(p.steps) == steps
        assert parse_program(str(p)).steps == p.steps == from_data(to_data(p)).steps


def test_claims():
    assert plain.claimants(SOURCE) == ["par"]


def test_refusals():
    family = FAMILIES["par"]

    def model(source=SOURCE, **options):
        return lambda: family.model(source, options)

    def changed(**arrays):
        held = {k: SOURCE.tensors.load(k) for k in SOURCE.tensors} | arrays
        return dataclasses.replace(SOURCE, tensors=plain.held(held))

    plain.refuses("grid of 5 does not divide into 2 x 2", model(grid=5))
    plain.refuses("n_head=5 does not divide 64", model(n_head=5))
    special = "spe_tok_embeddings.special_embeddings.weight"
    plain.refuses("4 special tokens", model(changed(**{special: np.ones((4, 64))})))
    plain.refuses("1 misshapen", model(changed(**{special: np.ones((3, 32))})))
    plain.refuses("codebook has", model(dataclasses.replace(
        SOURCE, decoder=plain.held({**{k: SOURCE.decoder.load(k) for k in SOURCE.decoder},
                                    "quantize.embedding.weight": np.ones((32, 8))}))))
