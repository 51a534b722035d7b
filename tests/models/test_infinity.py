"""Infinity against what upstream computes: greedy bits and pixels; texts, schedules, refusals.

Encoding, and cells of 2x2 (8B), against plain torch written from the published facts.
"""

from __future__ import annotations

import json

import numpy as np
import plain
import pytest
import torch
from torch.nn import functional as F

import arcompile
from arcompile.checkpoint import Weights, open_checkpoint
from arcompile.errors import ArcError
from arcompile.family import FAMILIES, Source
from arcompile.models import ldm
from arcompile.models.infinity import VAE, Config, Infinity, Net, Transformer, _plain
from arcompile.models.infinity_scales import COUNT, PUBLISHED, full_grid, rope, schedule
from arcompile.models.parts import state
from arcompile.models.random import weights

TARGETS = ("ort-cpu", "reference")


@pytest.fixture(scope="module")
def scales(goldens):
    return json.loads((goldens / "infinity" / "about.json").read_text())["scales"]


@pytest.fixture(scope="module")
def engines(goldens, scales, tmp_path_factory):
    """target, number of scales -> engine."""
    made, root = {}, tmp_path_factory.mktemp("infinity")

    def get(target: str = "ort-cpu", count: int = 7):
        if (target, count) not in made:
            folder = goldens / "infinity"
            made[target, count] = arcompile.build(
                folder / "infinity_tiny.pth", decoder=folder / "infinity_vae_d16_tiny.pth",
                target=target, options={"scales": scales[:count]}, out=root / f"{target}-{count}")
        return made[target, count]

    return get


@pytest.fixture(scope="module")
def expected(goldens):
    return np.load(goldens / "infinity" / "expected.npz")


@pytest.fixture(scope="module")
def source(goldens):
    folder = goldens / "infinity"
    return Source(open_checkpoint(folder / "infinity_tiny.pth").weights(),
                  open_checkpoint(folder / "infinity_vae_d16_tiny.pth").weights("vae"))


@pytest.mark.parametrize("target", TARGETS)
def test_greedy_bits_and_pixels_are_upstreams(engines, expected, target):
    out = engines(target).generate({"features": expected["text_features"][None]}, guidance=3.0,
                                   temperature=0)
    bits = [expected[f"bits_scale{i}"].reshape(1, -1) for i in range(7)]
    assert (out.tokens == np.concatenate(bits, 1)).all()
    levels = (np.clip(out.pixels, -1, 1) + 1)[:, ::-1].transpose(0, 2, 3, 1) * 127.5
    low, high = (np.trunc(levels + d) for d in (-0.05, 0.05))  # upstream truncates to uint8
    assert ((low <= expected["image"]) & (expected["image"] <= high)).all()


def texts(expected):
    """Two texts, of which the second is shorter and has anything in its padding."""
    features = np.stack([expected["text_features"]] * 2)
    features[1] = features[1, ::-1] * 0.5
    mask = np.ones(features.shape[:2], bool)
    mask[1, 5:] = False
    return {"features": features, "mask": mask}


def test_a_short_text_in_a_mixed_batch_equals_its_solo_run(engines, expected):
    cond, engine = texts(expected), engines(count=4)
    mixed = {"seed": [5, 9], "guidance": [3.0, 1.0], "temperature": [1.0, 0.5],
             "top_p": [0.9, 1.0]}
    together = engine.generate(cond, **mixed)
    for i, length in enumerate((9, 5)):
        one = {"features": cond["features"][i : i + 1, :length]}
        alone = engine.generate(one, **{k: v[i] for k, v in mixed.items()})
        assert (together.tokens[i] == alone.tokens[0]).all()
        assert np.allclose(together.pixels[i], alone.pixels[0], atol=1e-4)


def test_targets_draw_the_same_bits(engines, expected):
    cond = texts(expected)
    drawn = [engines(t, 4).generate(cond, seed=[1, 2], guidance=2.0).tokens for t in TARGETS]
    assert (drawn[0] == drawn[1]).all()
    assert 0.1 < drawn[0].mean() < 0.9


def test_a_text_longer_than_trained_for_is_refused(engines):
    with pytest.raises(ArcError, match="features of 65 tokens; this engine takes 64"):
        engines(count=4).generate({"features": np.zeros((1, 65, 256), np.float32)})


def test_only_infinity_claims_its_tensors(source):
    assert [k for k, f in FAMILIES.all().items() if f.claims(source.tensors)] == ["infinity"]


def test_decoder_names_may_be_wrapped_or_plain(source):
    bare = _plain(source.decoder)
    assert "decoder.up.0.block.0.norm1.weight" in bare
    assert "decoder.up.1.upsample.conv.weight" in bare
    assert _plain(bare).keys() == bare.keys()


def test_published_schedules():
    assert len(PUBLISHED) == 15
    for ratio, rows in PUBLISHED.items():
        assert len(rows) == 13
        assert abs(rows[-1][0] / rows[-1][1] - ratio) < 0.01
    assert PUBLISHED[0.75] == tuple((w, h) for h, w in PUBLISHED[1.333])
    assert schedule({"h_div_w": 0.7, "pn": "0.25M"}) == PUBLISHED[0.666][: COUNT["0.25M"]]
    assert schedule({})[-1] == (64, 64)
    assert full_grid(PUBLISHED[2.0][:7]) == (90, 45)


def test_rope_is_of_the_full_grid():
    made = rope(PUBLISHED[1.0][:3], 8)  # scales 1, 2, 4 of a grid of 64; two frequencies an axis
    freq = np.array([1.0, 1e-2])
    row, col = 48, 16  # cell (3, 1) of the third scale
    want = np.concatenate((row * freq, col * freq))
    assert made["cos"].shape == (1 + 4 + 16, 4)
    assert np.allclose(made["cos"][5 + 3 * 4 + 1], np.cos(want), atol=1e-5)
    assert np.allclose(made["sin"][5 + 3 * 4 + 1], np.sin(want), atol=1e-5)


def test_patches_are_shuffled_as_torch_does():
    """The 8B model: four decoder cells a cell."""
    c = Config(16, 0, 2, 16, 0, 8, 4, 4, 1, ((1, 1), (2, 3)), patchify=True)
    net, bits = Net(c, None), torch.randint(0, 2, (2, 2 * 3 * 8))
    code = (bits.view(2, 2, 3, 8).permute(0, 3, 1, 2).float() * 2 - 1) / 2**0.5
    assert torch.allclose(net.map(bits, 1), torch.nn.functional.pixel_shuffle(code, 2))
    f = torch.randn(2, 2, 4, 6)
    flat = torch.nn.functional.pixel_unshuffle(f, 2).flatten(2).transpose(1, 2)
    want = net.gpt.word_embed(flat) + net.gpt.lvl_embed.weight[1]
    assert torch.allclose(net.input(f, 1), want, atol=1e-5)


@pytest.mark.parametrize(("options", "message"), [
    ({"scales": [[1, 1], [0, 2]]}, "must list"),
    ({"scales": [[2, 1, 1]]}, "must list"),
    ({"scales": [[1, 1]] * 16}, "16 scales, but the checkpoint has embeddings for 15"),
    ({"h_div_w": "wide"}, "h_div_w must be a height by width"),
    ({"pn": "2M"}, "pn must be one of 0.06M"),
    ({"n_head": 3}, "n_head=3, but"),
    ({"patchify": True}, "the decoder takes 16 channels, but the transformer draws 16 bits a cell"),
    ({"patchify": "yes"}, "patchify must be true or false"),
])
def test_impossible_options_are_refused(source, options, message):
    with pytest.raises(ArcError, match=message):
        Infinity().model(source, options)


def test_a_strange_decoder_is_refused(source, goldens):
    other = open_checkpoint(goldens / "flexvar" / "FlexVAE_tiny.pth").weights("model")
    with pytest.raises(ArcError, match="the decoder file has no"):
        Infinity().model(Source(source.tensors, other), {"pn": "0.06M"})
    other = open_checkpoint(goldens / "var" / "vae_tiny.pth").weights()
    with pytest.raises(ArcError, match="is not Infinity's tokenizer"):
        Infinity().model(Source(source.tensors, other), {"pn": "0.06M"})


def test_it_draws_bits_without_a_decoder(source):
    made = Infinity().model(Source(source.tensors), {"pn": "0.06M"})
    assert not made.program.finish
    assert made.program.positions == 16 * (1 + 4 + 16 + 36 + 64 + 144 + 256)


def eager(source, **options):
    """Our modules in torch, with the checkpoint's weights: the parts that goldens have shown."""
    m = Infinity().model(source, options)
    net = m.module.to_empty(device="cpu")
    net.load_state_dict({k: torch.from_numpy(m.weights[f"@{k}"].copy()) for k in net.state_dict()})
    return net.eval()


def quantised(rest, grids, patch=False):
    """The bits of features [b,d,H,W], residual by residual; [b,N], channels of a cell inmost."""
    found = []
    for grid in grids:
        bit = (F.interpolate(rest, grid, mode="area") > 0).float()
        code = (2 * bit - 1) * rest.shape[1] ** -0.5
        rest = rest - F.interpolate(code, grids[-1], mode="bilinear")
        bit = F.pixel_unshuffle(bit, 2) if patch else bit
        found.append(bit.permute(0, 2, 3, 1).flatten(1))
    return torch.cat(found, 1).numpy()


def test_encoding(engines, source, scales):
    e, net = engines(count=4), eager(source, scales=scales[:4])
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 96, 96)).astype(np.float32)
    with torch.no_grad():
        features = net.vae.encoder(torch.from_numpy(pixels))
    assert (e.encode(pixels) == quantised(features, net.c.scales)).all()


PATCHED = ((1, 1), (2, 2), (2, 4))  # cells of 2x2, in a wide picture


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A small 8B: an engine, and its modules in torch."""
    c = Config(64, 2, 2, 256, 2, 32, 32, 16, 2, PATCHED)
    with torch.device("meta"):
        own = state(Transformer(c), skip=("rope.",))
        vae = state(VAE(ldm.encoder_plan((3, 8), 32, (1, 1), 2),
                        ldm.decoder_plan((8, 3), 32, (1, 1), 3)))
    source = Source(plain.shaken(weights(own), scale=0.2), weights(vae))
    e = plain.engine("infinity", source, tmp_path_factory.mktemp("patched"), scales=PATCHED)
    return e, eager(source, scales=PATCHED)


def test_cells_of_2x2(patched):
    """Logits, pixels and encoding, with torch's own shuffles around the transformer."""
    e, net = patched
    text = np.random.default_rng(1).standard_normal((2, 5, 32)).astype(np.float32)
    out = e.generate({"features": text}, seed=3)
    c, at, f_hat = net.c, 0, torch.zeros(2, 8, 4, 8)
    assert c.patchify
    assert e.manifest["info"]["pixels"] == [8, 16]
    grids, found = [(2 * h, 2 * w) for h, w in PATCHED], []
    rows, one = torch.arange(2), torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        env = net.gpt.prompt(torch.from_numpy(text), torch.ones(2, 5, dtype=torch.bool), rows, one)
        env |= {f"{k}{i}": torch.zeros(2, 2, sum(c.cells), 32) for i in range(2) for k in "kv"}
        for s, (h, w) in enumerate(PATCHED):
            if s:
                z = F.pixel_unshuffle(F.interpolate(f_hat, grids[s], mode="bilinear"), 2)
                x = net.gpt.word_embed(z.flatten(2).transpose(1, 2))
                env["x"] = x + net.gpt.lvl_embed.weight[s]
            past = torch.full((2,), sum(c.cells[:s]), dtype=torch.int32)
            env |= net.gpt.step(past=past, noise=torch.zeros(2, h * w * 32, 2),
                                **{k: v for k, v in env.items() if k != "logits"})
            found.append(env["logits"])
            bit = torch.from_numpy(out.tokens[:, at : at + h * w * 32]).view(2, h, w, 32)
            code = F.pixel_shuffle((2.0 * bit - 1).permute(0, 3, 1, 2), 2) * 8**-0.5
            f_hat, at = f_hat + F.interpolate(code, grids[-1], mode="bilinear"), at + h * w * 32
        pixels = net.vae.decode(f_hat)["pixels"]
        features = net.vae.encoder(pixels)
    plain.near(e.logits({"features": text}, out.tokens)[0], torch.cat(found, 1), 1e-5)
    plain.near(out.pixels, pixels, 1e-5)
    assert (e.encode(pixels.numpy()) == quantised(features, grids, patch=True)).all()
    plain.refuses("expected [B, 3, 8, 16]", lambda: e.encode(np.zeros((1, 3, 16, 8))))


def test_blocks_may_come_without_chunks(source):
    names = {}
    for k, e in source.tensors.items():
        chunk = k.startswith("block_chunks.")
        _, i, _, j, rest = k.split(".", 4) if chunk else ("", "", "", "", k)
        names[f"blocks.{2 * int(i) + int(j)}.{rest}" if chunk else k] = e
    made = Infinity().model(Source(Weights("x", names)), {"pn": "0.06M"})
    assert made.info["layers"] == 4
