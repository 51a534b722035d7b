"""MAR against upstream's golden: the whole loop through both targets, and its parts in torch."""

import dataclasses
import math

import numpy as np
import plain
import pytest
import torch

import arcompile
from arcompile.checkpoint import open_checkpoint
from arcompile.family import FAMILIES, Source
from arcompile.models import diffusion, kl, mar
from arcompile.models.parts import state
from arcompile.program_text import from_data, parse_program, to_data

OPTIONS = {"num_heads": 4, "num_iter": 6, "diffusion_steps": 20}


@pytest.fixture(scope="module")
def files(goldens):
    if not (goldens / "mar").is_dir():
        pytest.skip(f"no MAR golden at {goldens}")
    return goldens / "mar" / "checkpoint-last.pth", goldens / "mar" / "kl16.ckpt"


@pytest.fixture(scope="module")
def want(files):
    return np.load(files[0].parent / "expected.npz")


@pytest.fixture(scope="module", params=plain.BOTH)
def engine(request, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("mar") / "engine"
    return arcompile.build(files[0], decoder=files[1], options=OPTIONS, target=request.param,
                           out=out)


def test_golden(engine, want):
    given = {"orders": want["orders"], "initial_noise": want["initial_noise"]}
    out = engine.generate(want["cond"], guidance=3.0, temperature=0, **given)
    plain.near(out.latents, want["tokens"].reshape(2, 8, 36).transpose(0, 2, 1))
    plain.near(out.pixels, want["image"])
    assert out.tokens.shape == (2, 0)
    assert out.images.shape == (2, 96, 96, 3)


@pytest.mark.parametrize("engine", plain.BOTH[:1], indirect=True)
def test_batches_and_seeds(engine):
    plain.latents_are_solo(engine, [1, 7])


def test_requests(engine):
    plain.refuses("no logits", lambda: engine.logits([1], np.zeros((1, 36), int)))
    order = np.zeros((1, 36), int)
    plain.refuses("permutation", lambda: engine.generate(1, orders=order))
    plain.refuses("expected [1, 36, 20, 8]",
                  lambda: engine.generate(1, noise=np.zeros((1, 36, 8))))
    plain.refuses("out of range", lambda: engine.generate(9))


# --- parts, in torch -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(files):
    """The model with upstream's weights, and our tables."""
    source = Source(*(open_checkpoint(f).weights("model_ema", "model") for f in files))
    m = FAMILIES["mar"].model(source, OPTIONS)
    made = m.module.to_empty(device="cpu")
    names = made.state_dict()
    made.load_state_dict({k: torch.from_numpy(m.weights[f"@{k}"].copy()) for k in names})
    return made.eval()


def test_steps_take_what_upstream_takes(net, want):
    """Slots of our steps against the cells that upstream predicts in each iteration."""
    for step, masks in zip(mar.steps(net.mar.c), want["predicted_masks"], strict=True):
        cells = np.sort(want["orders"][:, 35 - np.array(step.commit)], 1)
        assert (cells == np.stack([np.flatnonzero(m) for m in masks])).all()


@pytest.mark.parametrize(("null", "key"), [(False, "teacher_z_cond"), (True, "teacher_z_uncond")])
def test_features(net, want, null, key):
    c, known = net.mar.c, want["teacher_mask"] == 0
    seen = [[*range(c.buffer), *(c.buffer + np.flatnonzero(row))] for row in known]
    source = np.zeros((2, c.slots), int)
    np.put_along_axis(source, np.array(seen), 1 + np.arange(len(seen[0]))[None], 1)
    cells = torch.arange(36).expand(2, -1)
    cond = torch.from_numpy(want["cond"])
    label = net.mar.prompt(cond, torch.arange(2), torch.tensor([null] * 2))["label"]
    with torch.no_grad():
        z = net.mar.features(label, torch.from_numpy(want["teacher_x"]), torch.tensor(seen),
                             torch.from_numpy(source), cells)
    plain.near(z, want[key], 1e-6)


def test_head(net, want):
    """At times of its own, one for each row."""
    head = net.mar.diffloss.net
    rows, head.time_embed.rows = head.time_embed.rows, torch.from_numpy(
        diffusion.sinusoid(want["net_t"]))
    x, c = (torch.from_numpy(want[k])[:, None] for k in ("net_x", "net_c"))
    with torch.no_grad():
        made = [torch.cat(head(x[i : i + 1], head.cond_embed(c[i : i + 1]), torch.tensor(i)), -1)
                for i in range(len(x))]
    head.time_embed.rows = rows
    plain.near(torch.cat(made)[:, 0], want["net_out"], 1e-6)


# --- the sampler's numbers -----------------------------------------------------------------------


def alpha_bar(i):
    """Of a thousand steps, as a plain product."""
    left = [math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(1001)]
    return math.prod(1 - min(1 - left[k + 1] / left[k], 0.999) for k in range(i + 1))


@pytest.mark.parametrize("n", [2, 7, 100])
def test_ddpm(n):
    kept = [round(i * 999 / (n - 1)) for i in range(n)]
    assert diffusion.respaced(n) == kept
    table = diffusion.ddpm(n)
    bars = [1.0, *map(alpha_bar, kept)]
    for t in range(n):
        before, bar = bars[t], bars[t + 1]
        beta = 1 - bar / before
        first = max(t, 1)  # the first posterior variance is 0: upstream takes the second
        last = (1 - bars[first + 1] / bars[first]) * (1 - bars[first]) / (1 - bars[first + 1])
        row = [bar**-0.5, (1 / bar - 1) ** 0.5, beta * before**0.5 / (1 - bar),
               (1 - before) * (1 - beta) ** 0.5 / (1 - bar), math.log(beta), math.log(last),
               t > 0]
        assert np.allclose(table[n - 1 - t], row, rtol=1e-5, atol=1e-7)


def test_denoise_mixes_log_variances():
    """Noise enters with a standard deviation between the two, times the temperature."""
    table = torch.from_numpy(diffusion.ddpm(10))
    zero, one = torch.zeros(3, 1, 4), torch.ones(3, 1, 4)
    share = torch.tensor([-1.0, 0.0, 1.0])[:, None, None].expand(-1, 1, 4)
    heat = torch.tensor([1.0, 2.0, 0.5])
    got = diffusion.denoise(table[2:3], zero, zero, share, one, heat)[:, 0, 0]
    most, least = table[2, 4], table[2, 5]
    logs = torch.stack((least, (most + least) / 2, most))
    assert torch.allclose(got, torch.exp(logs / 2) * heat)
    assert (diffusion.denoise(table[9:], zero, zero, share, one, heat) == 0).all()


# --- family --------------------------------------------------------------------------------------


def tiny():
    return FAMILIES["mar"].random("tiny")


def test_published():
    counts = {"base": 207.9, "large": 478.3, "huge": 942.4}
    for size, millions in counts.items():
        with torch.device("meta"):
            names = state(mar.Transformer(mar.of_size(size)), skip=mar.TABLES)
        assert round(sum(map(math.prod, names.values())) / 1e6, 1) == millions
    assert plain.claimants(tiny()) == ["mar"]


def test_iterations():
    def counts(n, k):
        c = dataclasses.replace(mar.of_size("base"), iterations=k)
        return [len(s.commit) for s in mar.steps(c)]

    assert counts(256, 256) == [1] * 256
    assert sum(counts(256, 64)) == 256
    assert max(counts(256, 64)) == 7
    assert counts(256, 1) == [256]


def test_guidance_schedules():
    c = mar.of_size("base")
    ramp = [s.guide for s in mar.steps(c)]
    assert ramp[0] == (255 / 256, 1 / 256)
    assert ramp[-1] == (1 / 256, 255 / 256)
    flat = mar.steps(dataclasses.replace(c, schedule="constant"))
    assert {s.guide for s in flat} == {(0.0, 1.0)}


def test_program_reads_back():
    p = FAMILIES["mar"].model(tiny(), {}).program
    assert from_data(to_data(p)) == p
    assert parse_program(str(p)) == p


def test_refusals():
    source, family = tiny(), FAMILIES["mar"]
    no_heads = dataclasses.replace(source, metadata={})

    def model(s=source, **options):
        return lambda: family.model(s, options)

    assert "num_heads" in plain.refuses("heads", model(no_heads)).hint
    plain.refuses("does not divide", model(num_heads=5))
    plain.refuses("more than the 16 tokens", model(num_iter=17))
    plain.refuses("between 2 and 1000", model(diffusion_steps=1))
    plain.refuses("no cfg_schedule", model(cfg_schedule="cosine"))
    other = plain.held({k: np.zeros(s) for k, s in kl.published(6).items()})
    plain.refuses("6 channels", model(dataclasses.replace(source, decoder=other)))
    short = dataclasses.replace(source, tensors=source.tensors.drop("mask_token"))
    plain.refuses("mask_token", model(short))
    short = dataclasses.replace(source, tensors=source.tensors.drop("decoder_norm.bias"))
    plain.refuses("1 missing", model(short))
    assert plain.claimants(short) == ["mar"]
    more = plain.held({**{k: source.tensors.load(k) for k in source.tensors},
                       "hires_blocks.0.weight": np.zeros(2)})
    assert plain.claimants(Source(more)) == []
