"""Stages of the masked demo: its autoencoder, the transformer with its head; and the decoder that
the next-scale demo starts from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets import VQ
from arcompile.models.demo.nets_kl import Autoencoder, wanted
from arcompile.models.demo.nets_mar import KL
from arcompile.models.demo.nets_masked import CELLS, CHANNELS, CLASSES, KNOWN_TIMES, MAR, stored
from arcompile.models.demo.training import (
    SEED,
    Run,
    batch_rows,
    first_vq,
    latents,
    ldm_names,
    likeness,
    pictures,
    to_signed,
    write,
)
from arcompile.models.diffusion import cosine_betas
from arcompile.models.kl import SCALE

DECODER_STEPS, DECODER_BATCH, NOISE = 300, 8, 0.15
LOWER_STEPS, LOWER_BATCH, LOWER_NOISE = 480, 48, 0.35
STEPS, BATCH, DRAWS = 35_000, 32, 24  # draws: denoised cells an image
BLUR = 0.15  # noise on the latents that the transformer learns: they need not be exact
GUESS = 0.3  # weight of the guess at unknown cells, which teaches the transformer
MOST = 50.0  # weight of the noisiest times
SHARE = -1.0  # the sampler's variance is the true posterior's
SAMPLING = {"guidance": 3.0, "temperature": 0.6}
FILES = ("demo_mar.safetensors", "demo_mar_kl.safetensors")


# -------------------------------------------------- the next-scale demo's decoder


def decoder_loss(model: KL, data: Tensor, images: np.ndarray, step: int) -> tuple[Tensor, str]:
    """Likeness of what comes back from latents with noise, more on some pictures than on others."""
    rng = torch.Generator().manual_seed(step)
    rows = batch_rows(len(data), DECODER_BATCH, step)
    f = data[rows].float()
    amount = NOISE * torch.rand((len(f), 1, 1, 1), generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.picture(f + amount * torch.randn(f.shape, generator=rng)).float()
    return likeness(y, to_signed(images[rows.numpy()])), ""


def train_decoder(work: Path, out: Path) -> None:
    """The first demo's decoder, until it forgives small errors in its latents."""
    torch.manual_seed(SEED)
    data, images, model, vq = latents(work, out), pictures(work), KL(), first_vq(out)
    model.decoder.load_state_dict(vq.decoder.state_dict())
    model.post_quant_conv.load_state_dict(vq.post_quant_conv.state_dict())
    run = Run(work / "kl.pt", model, lr=3e-4, decay=0.98)
    run.train(DECODER_STEPS, lambda step: decoder_loss(model, data, images, step))


def trained_kl(work: Path) -> KL:
    """What `train_decoder` ended in."""
    model = KL()
    model.load_state_dict(torch.load(work / "kl.pt", weights_only=True)["average"])
    return model


# ------------------------------------------------------------- autoencoder


def lower_loss(model: Autoencoder, vq: VQ, data: Tensor, step: int) -> tuple[Tensor, str]:
    """How far the features of 8 x 8 cells are from the first demo's, from latents with noise."""
    rng = torch.Generator().manual_seed(step)
    f = data[batch_rows(len(data), LOWER_BATCH, step)].float()
    with torch.autocast("cpu", torch.bfloat16):
        aims, z = wanted(vq, f), model.encoder(f)
        amount = LOWER_NOISE * torch.rand((len(z), 1, 1, 1), generator=rng)
        made = model.lower(z + amount * torch.randn(z.shape, generator=rng))
    miss = [(a.float() - b.float()).square().mean() / b.float().var()
            for a, b in zip(made, aims, strict=True)]
    return miss[0] + miss[1], " ".join(f"{x.item():.4f}" for x in miss)


def train_autoencoder(work: Path, out: Path) -> None:
    """A narrower latent below the first demo's: taught by its features, never by pixels."""
    torch.manual_seed(SEED)
    data, vq, model = latents(work, out), first_vq(out), Autoencoder()
    model.start(vq)
    run = Run(work / "ae.pt", model, lr=2e-3, decay=0.98)
    run.train(LOWER_STEPS, lambda step: lower_loss(model, vq, data, step))
    finish_autoencoder(run, out)


def finish_autoencoder(run: Run, out: Path) -> None:
    """MAR's decoder takes tokens / SCALE."""
    tensors = {k: v for k, v in run.average.state_dict().items() if not k.startswith("encoder.")}
    tensors = ldm_names(tensors)
    tensors["post_quant_conv.weight"] = tensors["post_quant_conv.weight"] * SCALE
    write(out / FILES[1], tensors, {"seconds": f"{run.seconds:.0f}"})


@torch.no_grad()
def squeezed(work: Path, out: Path) -> Tensor:
    """The masked demo's latents of the drawings, f32 [n, 16 cells, 16]."""
    model = Autoencoder()
    model.load_state_dict(torch.load(work / "ae.pt", weights_only=True)["average"])
    with torch.autocast("cpu", torch.bfloat16):
        parts = [model.eval().encoder(f.float()) for f in latents(work, out).split(144)]
    return torch.cat(parts).flatten(2).mT.contiguous()


# -------------------------------------------------------------- transformer


class Noising:
    """Noisy cells at every time, and what an error of the noise weighs there: as if the velocity
    were predicted, since noisy times decide the shape."""

    def __init__(self) -> None:
        self.left = torch.from_numpy(np.cumprod(1 - cosine_betas())).float()
        self.weight = self.left.reciprocal().clamp(max=MOST)

    def at(self, x: Tensor, time: Tensor, eps: Tensor) -> Tensor:
        left = self.left[time][..., None]
        return left.sqrt() * x + (1 - left).sqrt() * eps


def some_known(rng: torch.Generator) -> Tensor:
    """Random cells, from none to all but one of each image; bool [BATCH, cells]."""
    count = torch.randint(CELLS, (BATCH, 1), generator=rng)
    return torch.rand(BATCH, CELLS, generator=rng).argsort(1).argsort(1) < count


def mar_loss(model: MAR, rule: Noising, data: Tensor, step: int) -> tuple[Tensor, str]:
    """Error of the noise on random unknown cells; a tenth of the labels are hidden."""
    rng = torch.Generator().manual_seed(step)
    rows = batch_rows(len(data), BATCH, step)
    x = data[rows]
    x = x + BLUR * torch.randn(x.shape, generator=rng)
    known = some_known(rng)
    hidden = torch.rand(BATCH, generator=rng) < 0.1
    label = (rows % CLASSES).masked_fill(hidden, CLASSES)
    time = torch.randint(KNOWN_TIMES, (BATCH, DRAWS), generator=rng)
    cells = torch.multinomial((~known).float(), DRAWS, True, generator=rng)[..., None]
    eps = torch.randn(BATCH, DRAWS, CHANNELS, generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        told = model(label, x, known)
        guess = model.guess(told)
        clean = x.gather(1, cells.expand(-1, -1, CHANNELS))
        cond = told.gather(1, cells.expand(-1, -1, told.shape[-1]))
        found = model.head(rule.at(clean, time, eps), time, cond)
    error = ((found.float() - eps).square().mean(-1) * rule.weight[time]).mean()
    far = (guess.float() - x).square().mean(-1)[~known].mean()
    return error + GUESS * far, f"error {error.item():.4f} guess {far.item():.4f}"


def train_mar(work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    data, model, rule = squeezed(work, out), MAR(), Noising()
    run = Run(work / "mar.pt", model, lr=1.2e-3, decay=0.995)
    run.train(STEPS, lambda step: mar_loss(model, rule, data, step))
    finish_mar(run.average, run.seconds, out)


def finish_mar(model: nn.Module, seconds: float, out: Path) -> None:
    assert isinstance(model, MAR)
    write(out / FILES[0], stored(model, SHARE), {
        "family": "mar", "num_heads": "6", "num_iter": str(CELLS), "diffusion_steps": "25",
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{seconds:.0f}"})
