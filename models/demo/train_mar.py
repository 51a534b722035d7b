"""Stages of the masked demo: a decoder that forgives, and the transformer with its head."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets_mar import CELLS, KL, MAR, TIMES
from arcompile.models.demo.training import (
    SEED,
    Run,
    batch_rows,
    first_vq,
    hide,
    latents,
    ldm_names,
    likeness,
    pictures,
    to_signed,
    write,
)
from arcompile.models.diffusion import COLUMNS, ddpm
from arcompile.models.kl import SCALE

DECODER_STEPS, DECODER_BATCH, NOISE = 300, 8, 0.15
STEPS, BATCH, DRAWS = 2500, 48, 48  # draws: denoised cells an image
CODES = 0.2  # weight of the codes' cross-entropy
SPREAD = 8 ** -0.5  # of a unit vector's 8 numbers
SAMPLING = {"guidance": 1.0, "temperature": 1.0}
FILES = ("demo_mar.safetensors", "demo_mar_kl.safetensors")


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
    write(out / FILES[1], stored(run.average), {"seconds": f"{run.seconds:.0f}"})


def trained_kl(work: Path) -> KL:
    """What `train_decoder` ended in."""
    model = KL()
    model.load_state_dict(torch.load(work / "kl.pt", weights_only=True)["average"])
    return model


def stored(model: KL) -> dict[str, Tensor]:
    """The decoder as MAR's layout has it: it takes tokens / 0.2325, and tokens are f / SPREAD."""
    tensors = ldm_names(model.state_dict())
    tensors["post_quant_conv.weight"] = tensors["post_quant_conv.weight"] * SPREAD * SCALE
    return tensors


# -------------------------------------------------------------- transformer


def some_known(n: int, rng: torch.Generator) -> Tensor:
    """Random cells, as many as are known after a random step of generation; bool [n, cells]."""
    left = torch.cos(torch.rand((n, 1), generator=rng) * math.pi / 2) * CELLS
    place = torch.rand((n, CELLS), generator=rng).argsort(1)
    return place >= left.ceil().clamp(min=1)


class Diffusion:
    """Noising of tokens at TIMES steps, and the loss of what the head makes of them."""

    def __init__(self) -> None:
        table = torch.from_numpy(ddpm(TIMES)[::-1].copy())  # row t is time t
        self.at = dict(zip(COLUMNS, table.unbind(1), strict=True))
        self.signal = 1 / self.at["x0_x"]
        # as if the velocity were predicted: noisy times, which decide the shape, count as much as
        # the others; the sampler multiplies errors of the very noisiest by 20,000, hence up to 3000
        self.weight = self.signal.pow(-2).clamp(max=3000)

    def noised(self, x: Tensor, time: Tensor, eps: Tensor) -> Tensor:
        signal = self.signal[time][..., None]
        return signal * x + (1 - signal.square()).sqrt() * eps

    def bound(self, x: Tensor, noisy: Tensor, time: Tensor, eps: Tensor, share: Tensor) -> Tensor:
        """KL of the predicted step from the true one, for the variance alone; nats a number."""
        a = {k: v[time][..., None] for k, v in self.at.items()}
        x0 = a["x0_x"] * noisy - a["x0_eps"] * eps.detach()
        f = (share + 1) / 2
        log_var = f * a["log_most"] + (1 - f) * a["log_least"]
        gap = a["log_least"] - log_var
        far = (a["mean_x0"] * (x0 - x)).square()
        kl = 0.5 * (gap.exp() - gap - 1 + far * torch.exp(-log_var))
        return kl * a["noisy"]


def times(n: int, rng: torch.Generator) -> Tensor:
    """Random times, i64 [n]; one in twenty is the noisiest, where errors cost most."""
    time = torch.randint(TIMES, (n,), generator=rng)
    return torch.where(torch.rand(n, generator=rng) < 0.05, TIMES - 1, time)


def head_loss(net: nn.Module, rule: Diffusion, x: Tensor, cond: Tensor,
              rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """x [n, channels], cond [n, dim] -> squared error of the noise, bound of the variance."""
    time = times(len(x), rng)
    eps = torch.randn(x.shape, generator=rng)
    noisy = rule.noised(x, time, eps)
    guess, share = net(noisy, time, cond.float())  # bf16 is too coarse for the noisiest times
    error = (guess - eps).square().mean(1) * rule.weight[time]
    return error.mean(), rule.bound(x, noisy, time, guess, share).mean()


def code_loss(guess: nn.Linear, book: Tensor, z: Tensor, known: Tensor, told: Tensor) -> Tensor:
    """Cross-entropy of the first demo's codes of the unknown cells.

    Guessing codes teaches the transformer where shapes go, long before noise alone would.
    """
    with torch.autocast("cpu", torch.bfloat16):
        logits = guess(told[~known])
    return F.cross_entropy(logits.float(), (z[~known] @ book.mT).argmax(-1))


def mar_loss(body: nn.Module, model: MAR, head: nn.Module, rule: Diffusion, book: Tensor,
             data: Tensor, step: int) -> tuple[Tensor, str]:
    """Error of the noise on random unknown cells; a tenth of the labels are hidden."""
    rng = torch.Generator().manual_seed(SEED + step)
    torch.manual_seed(SEED + step)
    rows = batch_rows(len(data), BATCH, step)
    z = data[rows].float().flatten(2).mT / SPREAD
    known = some_known(BATCH, rng)
    cells = torch.multinomial((~known).float(), DRAWS, True, generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        told = body(hide(rows % len(drawings.CLASS_NAMES)), z, known)
    x, cond = (t.gather(1, cells[..., None].expand(-1, -1, t.shape[-1])).flatten(0, 1)
               for t in (z, told))
    error, bound = head_loss(head, rule, x, cond, rng)
    codes = code_loss(model.codes, book, z, known, told)
    word = f"error {error.item():.4f} bound {bound.item():.4f} codes {codes.item():.3f}"
    return error + bound + CODES * codes, word


def train_mar(work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    data, model, rule = latents(work, out), MAR(), Diffusion()
    run = Run(work / "mar.pt", model, lr=1e-3, decay=0.998)
    body, head = torch.compile(model), torch.compile(model.diffloss.net)
    book = first_vq(out).quantize.unit()
    run.train(STEPS, lambda step: mar_loss(body, model, head, rule, book, data, step))
    finish_mar(run, out)


def finish_mar(run: Run, out: Path) -> None:
    tensors = {k: v for k, v in run.average.state_dict().items() if not k.startswith("codes.")}
    write(out / FILES[0], tensors, {
        "family": "mar", "num_heads": "6", "num_iter": "16", "diffusion_steps": "25",
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{run.seconds:.0f}"})
