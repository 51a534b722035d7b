"""Stages of the next-scale demo: its residual codes, its decoder, its transformer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets_mar import KL
from arcompile.models.demo.nets_var import PATCH_NUMS, VAR, Tokenizer
from arcompile.models.demo.train_mar import trained_kl
from arcompile.models.demo.training import (
    SEED,
    Run,
    batch_rows,
    hide,
    latents,
    ldm_names,
    likeness,
    pictures,
    to_signed,
    write,
)

CODES_STEPS, CODES_BATCH = 800, 128
STEPS, BATCH, HARD = 4000, 48, 20  # hard: how many of a batch are stars or crosses
SLIP = 0.06  # most noise under which the codes that are seen were taken
DECODER_STEPS, DECODER_BATCH, DRAWN = 400, 16, 2  # drawn: how many of the last scales may be drawn
SAMPLING = {"guidance": 1.0, "temperature": 0.5, "top_k": 0, "top_p": 1.0}
FILES = ("demo_var.safetensors", "demo_var_vq.safetensors")
SMALL, SMALL_FILE = (96, 3, 3, 256), "demo_var_small.safetensors"  # width, layers, heads, hidden


def decoder(kl: KL) -> Tokenizer:
    """A tokenizer with this decoder; the 1x1 convolution before conv_in is merged into it."""
    model, own = Tokenizer(), kl.decoder.state_dict()
    before, first = kl.post_quant_conv, own["conv_in.weight"]
    own["conv_in.weight"] = torch.einsum("omhw,mi->oihw", first, before.weight[:, :, 0, 0])
    own["conv_in.bias"] = own["conv_in.bias"] + first.sum((2, 3)) @ before.bias
    model.decoder.load_state_dict(own)
    return model


def start_codes(model: Tokenizer, f: Tensor) -> None:
    """Codes start as what there is to code, a fifth of them from each scale."""
    book = model.quantize.embedding.weight
    rest, parts = f, []
    for scale in range(len(PATCH_NUMS)):
        z = model.quantize.down(rest, scale)
        up = getattr(model.quantize, f"up{scale}")
        rest = rest - (z.mT @ up).unflatten(2, (PATCH_NUMS[-1],) * 2)
        parts.append(z.flatten(0, 1))
    share = -(-len(book) // len(parts))
    parts = [z[torch.randint(len(z), (share,))] for z in parts]
    book.copy_(torch.cat(parts)[:len(book)])


def codes_loss(model: Tokenizer, data: Tensor, step: int) -> tuple[Tensor, str]:
    """How far the latents of each scale are from the whole; moves the codes besides."""
    f = data[batch_rows(len(data), CODES_BATCH, step)].float()
    if step == 0:
        start_codes(model, f)
    wanted, codes, maps = model.quantize(f)
    model.quantize.learn(torch.cat(wanted, 1).detach().flatten(0, 1),
                         torch.cat(codes, 1).flatten())
    far = [(f_hat - f).square().sum(1).mean() for f_hat in maps]
    return sum(far), " ".join(f"{x.item():.4f}" for x in far)


def train_codes(work: Path, out: Path) -> None:
    """Residual codes of the latents; the decoder is the masked demo's, which forgives errors."""
    torch.manual_seed(SEED)
    data, model = latents(work, out), decoder(trained_kl(work))
    run = Run(work / "var_codes.pt", model.quantize, lr=2e-3, decay=0.98)
    run.train(CODES_STEPS, lambda step: codes_loss(model, data, step))
    model.quantize.load_state_dict(
        {**run.average.state_dict(), "embedding.weight": run.model.embedding.weight})
    torch.save(model.state_dict(), work / "var_tokenizer.pt")
    finish_codes(model, run.seconds, out)


def finish_codes(model: nn.Module, seconds: float, out: Path) -> None:
    write(out / FILES[1], ldm_names(model.state_dict(), fused=True), {"seconds": f"{seconds:.0f}"})


def words(model: Tokenizer, maps: list[Tensor]) -> Tensor:
    """What the earlier scales say at each later cell, [b, L - 1, c]."""
    parts = [model.quantize.down(f, scale + 1) for scale, f in enumerate(maps[:-1])]
    return torch.cat(parts, 1)


def var_loss(model: nn.Module, vq: Tokenizer, data: Tensor, step: int) -> tuple[Tensor, str]:
    """Cross-entropy, each scale weighted by its side; a tenth of the labels are hidden."""
    torch.manual_seed(SEED + step)
    rows = batch_rows(len(data), BATCH, step, HARD)
    with torch.no_grad():
        slip = SLIP * torch.rand(BATCH) * (torch.rand(BATCH) < 0.7)
        _, codes, maps = vq.quantize(data[rows].float(), slip)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(hide(rows % len(drawings.CLASS_NAMES)), words(vq, maps))
    miss = F.cross_entropy(logits.float().flatten(0, 1), torch.cat(codes, 1).flatten(),
                           reduction="none").view(BATCH, -1).mean(0)
    each = [part.mean() for part in miss.split([n * n for n in PATCH_NUMS])]
    loss = sum(n * x for n, x in zip(PATCH_NUMS, each, strict=True)) / sum(PATCH_NUMS)
    return loss, " ".join(f"{x.item():.2f}" for x in each)


def train_var(work: Path, out: Path) -> None:
    """The transformer. It sees wrong codes now and then, as it will when it draws."""
    _train_var(work, out, VAR(), "var.pt", FILES[0])


def train_var_small(work: Path, out: Path) -> None:
    """A fifth of its size, over the same codes: for scales that ask little of a model."""
    _train_var(work, out, VAR(*SMALL), "var_small.pt", SMALL_FILE)


def _train_var(work: Path, out: Path, model: VAR, state: str, file: str) -> None:
    torch.manual_seed(SEED)
    vq = Tokenizer()
    vq.quantize.load_state_dict({
        k.removeprefix("quantize."): v for k, v in load_file(out / FILES[1]).items()
        if k.startswith("quantize.")})
    data = latents(work, out)
    run = Run(work / state, model, lr=2e-3, decay=0.995)
    fast = torch.compile(model)
    run.train(STEPS, lambda step: var_loss(fast, vq.float(), data, step))
    finish_var(run, out / file)


def finish_var(run: Run, file: Path) -> None:
    write(file, run.average.state_dict(), {
        "family": "var", "patch_nums": ",".join(map(str, PATCH_NUMS)),
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{run.seconds:.0f}"})


# ------------------------------------------------------------ image decoder


@torch.no_grad()
def drawn_apart(vq: Tokenizer, model: nn.Module, f: Tensor, label: Tensor,
                rng: torch.Generator) -> Tensor:
    """f_hat of codes, of which a share at the last scales is drawn by what the model says of each
    alone, as it is when a scale is drawn at once."""
    _, codes, maps = vq.quantize(f)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(label, words(vq, maps)).float()
    b, own = len(f), torch.cat(codes, 1)
    temperature = 0.3 + 0.5 * torch.rand(b, 1, 1, generator=rng)
    chance = (logits / temperature).softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(chance, 1, generator=rng).view(b, -1)
    swap = torch.rand(own.shape, generator=rng) < torch.rand(b, 1, generator=rng)
    swap[:, :sum(n * n for n in PATCH_NUMS[:-DRAWN])] = False
    parts = torch.where(swap, drawn, own).split([n * n for n in PATCH_NUMS], 1)
    return torch.stack([vq.quantize.map(c, i) for i, c in enumerate(parts)]).sum(0)


def decoder_loss(vq: Tokenizer, model: nn.Module, data: Tensor, drawn: np.ndarray,
                 step: int) -> tuple[Tensor, str]:
    """Likeness of what is made of codes drawn apart, and the true picture."""
    rng = torch.Generator().manual_seed(step)
    rows = torch.randint(len(data), (DECODER_BATCH,), generator=rng)
    f_hat = drawn_apart(vq, model, data[rows].float(), rows % len(drawings.CLASS_NAMES), rng)
    with torch.autocast("cpu", torch.bfloat16):
        y = vq.picture(f_hat).float()
    return likeness(y, to_signed(np.stack([drawn[i] for i in rows.tolist()]))), ""


def train_var_decoder(work: Path, out: Path) -> None:
    """The decoder goes on, on codes that do not quite agree; the codes stay."""
    torch.manual_seed(SEED)
    vq, model = Tokenizer(), VAR().eval()
    vq.load_state_dict(torch.load(work / "var_tokenizer.pt", weights_only=True))
    model.load_state_dict(torch.load(work / "var.pt", weights_only=True)["average"])
    vq.quantize.requires_grad_(False)
    run = Run(work / "var_decoder.pt", vq, lr=6e-4, decay=0.98)
    data, drawn = latents(work, out), pictures(work)
    run.train(DECODER_STEPS, lambda step: decoder_loss(vq, model, data, drawn, step))
    finish_codes(run.average, run.seconds, out)
