"""xAR against a plain transcription of its description: no caches, every pass over all cells."""

import dataclasses
import math

import numpy as np
import plain
import pytest
import torch
from plain import F

from arcompile.family import FAMILIES, Source
from arcompile.models import kl, xar
from arcompile.models.parts import state
from arcompile.program_text import from_data, parse_program, to_data
from arcompile.runtime import rng

C = xar.Config(dim=32, encoder=2, decoder=1, heads=2, hidden=40, classes=6, channels=4,
               positions=64, steps=4)


@pytest.fixture(scope="module")
def source():
    """A model of 8 x 8 tokens with all that a published file holds."""
    with torch.device("meta"):
        names = state(xar.Transformer(C), skip=xar.TABLES)
    made = plain.shaken(plain.held({k: np.zeros(s) for k, s in names.items()}), scale=0.15)
    extra = {"mask": np.zeros((1, 1, 64, 64))}
    for part, layers in (("encoder", 2), ("decoder", 1)):
        for i in range(layers):
            at = f"{part}_blocks.{i}.attn.rope"
            extra |= {f"{at}.freqs": np.zeros(4), f"{at}.freqs_cos": np.zeros((64, 16)),
                      f"{at}.freqs_sin": np.zeros((64, 16))}
    whole = plain.held({**{k: made.load(k) for k in made}, **extra})
    vae = plain.held({k: np.zeros(s) for k, s in kl.published(4).items()})
    return Source(whole, plain.shaken(vae, scale=0.1))


@pytest.fixture(scope="module", params=plain.BOTH)
def engine(request, source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("xar")
    return plain.engine("xar", source, folder / "engine", request.param, flow_steps=C.steps)


# --- the transcription ---------------------------------------------------------------------------

# token (row, column) in cell-major order: 2 x 2 cells, raster inside
ORDER = [(4 * h + p, 4 * w + q) for h in (0, 1) for w in (0, 1) for p in range(4) for q in range(4)]


def time_embedding(w, t):
    freqs = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    waves = torch.cat((torch.cos(t * freqs), torch.sin(t * freqs))).double()  # f32 until here
    hidden = F.silu(w["time_embed.mlp.0.weight"] @ waves + w["time_embed.mlp.0.bias"])
    return w["time_embed.mlp.2.weight"] @ hidden + w["time_embed.mlp.2.bias"]


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def block(w, p, x, cond):
    """x [b,n,d]; cond [b,n,d] is constant over each cell."""
    b, n, d = x.shape
    g1, g2, s1, s2, t1, t2 = linear(w, f"{p}.ada_lin.1", F.silu(cond)).chunk(6, -1)
    h = plain.rms(x, 1, 1e-6) * (1 + s1) + t1
    q, k, v = (y.view(b, n, 2, d // 2).transpose(1, 2)
               for y in linear(w, f"{p}.attn.qkv", h).chunk(3, -1))
    angles, live = plain.grid_angles(ORDER[:n], d // 2), torch.ones(n)
    score = plain.turned(q, angles, live) @ plain.turned(k, angles, live).transpose(-1, -2)
    cell = torch.arange(n) // 16
    hidden = cell[None] > cell[:, None]  # a cell does not see later ones
    a = (score / math.sqrt(d // 2)).masked_fill(hidden, float("-inf")).softmax(-1) @ v
    x = x + g1 * linear(w, f"{p}.attn.proj", a.transpose(1, 2).reshape(b, n, d))
    h = plain.rms(x, 1, 1e-6) * (1 + s2) + t2
    gate = F.gelu(linear(w, f"{p}.mlp.fc1_g", h))
    return x + g2 * linear(w, f"{p}.mlp.fc2", gate * linear(w, f"{p}.mlp.fc1_x", h))


def velocity(w, cells, label, t):
    """Of the last cell, at time t in thousandths; the cells before it are clean. [b,16,C]"""
    n = 16 * len(cells)
    times = torch.stack([time_embedding(w, float(k)) for k in (*[0] * (len(cells) - 1), t)])
    cond = w["class_emb.weight"][label][:, None] + times.repeat_interleave(16, 0)
    x = linear(w, "z_proj", torch.cat(cells, 1)) + w["encoder_pos_embed_learned"][:, :n]
    x = plain.rms(x, w["z_proj_ln.weight"], 1e-6)
    for i in (0, 1):
        x = block(w, f"encoder_blocks.{i}", x, cond)
    x = linear(w, "decoder_embed", plain.rms(x, w["encoder_norm.weight"], 1e-6))
    x = block(w, "decoder_blocks.0", x + w["decoder_pos_embed_learned"][:, :n], cond)
    return linear(w, "pred", plain.rms(x, w["decoder_norm.weight"], 1e-6))[:, -16:]


def draw(w, label, guidance, heat, noise):
    """Latents [b,64,C] in cell-major order; noise(cell, turn), turn -1 being the initial one."""
    t = [*torch.linspace(1, 0.04, C.steps, dtype=torch.float64).tolist(), 0.0]
    done, null = [], torch.full_like(label, C.classes)
    for k in range(4):
        scale = 1 + (guidance - 1) * k / 3
        x = noise(k, -1)
        for i in range(C.steps):
            at, dt = int(np.float32(t[i]) * np.float32(1000)), t[i + 1] - t[i]
            drifts = []
            for who in (label, null):
                v = velocity(w, [*done, x], who, at)
                score = -((1 - t[i]) * v + x) / t[i]
                drifts.append(v - t[i] * score)
            drift = drifts[1] + scale * (drifts[0] - drifts[1])
            x = x + drift * dt
            if i < C.steps - 1:
                x = x + math.sqrt(2 * t[i] * -dt) * heat * noise(k, i)
        done.append(x)
    return torch.cat(done, 1)


def test_transcription(engine, source):
    w = {k: v.double() for k, v in plain.torches(source.tensors).items()}
    out = engine.generate([3, 5], seed=[5, 9], guidance=[3.0, 1.0], temperature=[1.0, 0.7])
    place = np.array([r * 8 + c for r, c in ORDER])
    draws = engine.program.draws

    def noise(cell, turn):
        which, at = int(turn >= 0), place[16 * cell : 16 * cell + 16]
        seeds, images = np.array([5, 9], np.uint64), np.zeros(2, int)
        return torch.from_numpy(
            rng.draw(draws[which], which, seeds, images, at, max(turn, 0))).double()

    each = [torch.tensor(x).double()[:, None, None] for x in ([3.0, 1.0], [1.0, 0.7])]
    found = draw(w, torch.tensor([3, 5]), *each, noise)
    plain.near(out.latents[:, place], found, 1e-5)
    assert out.pixels.shape == (2, 3, 16, 16)
    assert out.tokens.shape == (2, 0)


def test_batches_and_seeds(engine):
    plain.latents_are_solo(engine, [1, 4])


def test_given_noise(engine):
    """With the noise given and no heat, the seed has no say."""
    given = np.random.default_rng(0).standard_normal((1, 64, 4)).astype(np.float32)
    a, b = (engine.generate(2, seed=s, temperature=0, initial_noise=given) for s in (1, 2))
    assert (a.latents == b.latents).all()
    assert (a.latents != engine.generate(2, seed=1, temperature=0).latents).any()


# --- family --------------------------------------------------------------------------------------


def test_claims_and_sizes(source):
    assert plain.claimants(source) == ["xar"]
    assert plain.claimants(FAMILIES["xar"].random("tiny")) == ["xar"]
    for size, millions in {"B": 172.6, "L": 608.4, "H": 1186.0}.items():
        with torch.device("meta"):
            names = state(xar.Transformer(xar.of_size(size)), skip=xar.TABLES)
        assert round(sum(map(math.prod, names.values())) / 1e6, 1) == millions


def test_tables():
    assert [tuple(x) for x in xar.cells(C)[:, [0, 1, 4, 15]].tolist()] == [
        (0, 1, 8, 27), (4, 5, 12, 31), (32, 33, 40, 59), (36, 37, 44, 63)]
    table = xar.flow(50)
    assert np.isclose(table[:50, 1].sum(), -1, atol=1e-6)
    assert table[0, 0] == 1
    assert table[49, 2] == 0
    assert len(table) == 50


def test_program_reads_back(source):
    p = FAMILIES["xar"].model(source, {}).program
    assert from_data(to_data(p)) == p
    assert parse_program(str(p)) == p
    assert [len(t["turn"]) for t in p.tables.values()] == [51, 50]


def test_refusals(source):
    def model(s=source, **options):
        return lambda: FAMILIES["xar"].model(s, options)

    plain.refuses("does not divide", model(num_heads=3))
    plain.refuses("more than 1000", model(flow_steps=1001))
    bare = dataclasses.replace(source, tensors=source.tensors.drop(
        *(k for k in source.tensors if ".rope." in k)))
    assert "num_heads" in plain.refuses("number of heads", model(bare)).hint
    model(bare, num_heads=2)()
    plain.refuses("pred.weight", model(
        dataclasses.replace(source, tensors=source.tensors.drop("pred.weight"))))
    other = plain.held({k: np.zeros(s) for k, s in kl.published(6).items()})
    plain.refuses("6 channels", model(dataclasses.replace(source, decoder=other)))
