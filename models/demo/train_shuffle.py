"""The shuffled demo: the first demo's transformer, taught to read and draw 2 x 2 codes a step.

Its module is plain torch, with the names of family token-shuffle. https://arxiv.org/abs/2504.17789
A window's codes are drawn apart from each other, so they may not agree. Both parts are taught to
live with that: the transformer reads windows of which some codes are another picture's, and the
image decoder is the first demo's, taught on to make the true picture of windows drawn apart.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets import GPT, VQ
from arcompile.models.demo.training import (
    SEED,
    Run,
    batch_rows,
    first_vq,
    hide,
    latents,
    likeness,
    pictures,
    to_signed,
    write,
)

WINDOW, HIDDEN, GRID = 2, 256, 8
SIDE = GRID // WINDOW
STEPS, BATCH = 20_000, 32
WORN = 0.25  # of the codes that are read, in half of the pictures and on average
DECODER_STEPS, DECODER_BATCH = 400, 16
FIRST = 0.9  # how often the decoder sees the first window, of which least is known, drawn apart
SAMPLING = {"guidance": 1.6, "temperature": 0.3, "top_k": 0}
FILES = ("demo_shuffle.safetensors", "demo_shuffle_vq.safetensors")


class Residual(nn.Module):
    """x + fc2(gelu(fc1(norm(x)))); starts as x."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, 1e-5)
        self.fc1, self.fc2 = nn.Linear(dim, HIDDEN), nn.Linear(HIDDEN, dim)
        nn.init.zeros_(self.fc2.weight)
        nn.init.zeros_(self.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Shuffle(nn.Module):
    """Windows of embedded codes [b, n, 4, dim] -> [b, n, dim]"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.compress = nn.Linear(dim, dim // WINDOW**2)
        self.blocks = nn.ModuleList(Residual(dim) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.compress(x).flatten(-2)
        for block in self.blocks:
            x = block(x)
        return x


class Unshuffle(nn.Module):
    """What is said of windows [b, n, dim] -> of their codes [b, n, 4, dim]; starts as copies."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(dim) for _ in range(2))
        self.expand = nn.Linear(dim, WINDOW**2 * dim)
        with torch.no_grad():
            self.expand.weight.mul_(0.3).add_(torch.eye(dim).repeat(WINDOW**2, 1))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.expand(x).unflatten(-1, (WINDOW**2, -1))


def windows(codes: Tensor) -> Tensor:
    """Codes [b, 64] in raster order -> [b, 16, 4], a window's row by row."""
    x = codes.view(-1, SIDE, WINDOW, SIDE, WINDOW)
    return x.transpose(2, 3).reshape(len(codes), SIDE * SIDE, WINDOW**2)


class Shuffled(GPT):
    """`GPT` between `shuffle` and `unshuffle`; a window turns by the place of its first code."""

    def __init__(self) -> None:
        super().__init__()
        dim = self.norm.weight.shape[0]
        self.shuffle, self.unshuffle = Shuffle(dim), Unshuffle(dim)
        corners = windows(torch.arange(GRID * GRID)[None])[0, :, 0]
        self.table = self.table[torch.cat([torch.zeros(1, dtype=torch.long), 1 + corners])]

    def forward(self, label: Tensor, codes: Tensor) -> Tensor:
        """Teacher forcing: label [b], windows of codes [b, 16, 4] -> logits [b, 16, 4, codes]."""
        x = self.shuffle(self.tok_embeddings(codes[:, :-1]))
        x = torch.cat([self.cls_embedding(label)[:, None], x], 1)
        for layer in self.layers:
            x = layer(x, self.table[:x.shape[1]], None)
        return self.output(self.norm(self.unshuffle(x)))


def worn(codes: Tensor, rows: Tensor, rng: torch.Generator) -> Tensor:
    """What is read of these pictures: codes, of which some are of others of their class."""
    classes, n = len(drawings.CLASS_NAMES), len(codes)
    other = (rows + classes * torch.randint(1, n // classes, (BATCH,), generator=rng)) % n
    share = 2 * WORN * torch.rand(BATCH, 1, 1, generator=rng)
    share = share * (torch.rand(BATCH, 1, 1, generator=rng) < 0.5)
    wrong = torch.rand(codes[rows].shape, generator=rng) < share
    return torch.where(wrong, codes[other], codes[rows])


def shuffle_loss(model: nn.Module, codes: Tensor, step: int) -> tuple[Tensor, str]:
    """Cross-entropy of every code; a tenth of the labels are hidden."""
    torch.manual_seed(SEED + step)
    rows = batch_rows(len(codes), BATCH, step)
    given = worn(codes, rows, torch.Generator().manual_seed(step))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(hide(rows % len(drawings.CLASS_NAMES)), given)
    return F.cross_entropy(logits.flatten(0, 2).float(), codes[rows].flatten()), ""


def windowed_codes(work: Path, out: Path) -> Tensor:
    """The first demo's codes of the drawings, by windows; i64 [n, 16, 4]."""
    book, cells = first_vq(out).quantize, latents(work, out).permute(0, 2, 3, 1)
    parts = [book.nearest(z.float()) for z in cells.split(512)]
    return windows(torch.cat(parts).flatten(1))


def train_shuffle(work: Path, out: Path) -> None:
    """The transformer starts as the first demo's; the layers around it as near to nothing."""
    torch.manual_seed(SEED)
    model = Shuffled()
    model.load_state_dict(load_file(out / "demo_gpt.safetensors"), strict=False)
    codes = windowed_codes(work, out)
    run = Run(work / "shuffle.pt", model.float(), lr=1.5e-3, decay=0.995)
    run.train(STEPS, lambda step: shuffle_loss(model, codes, step))
    finish_shuffle(run, out)


def finish_shuffle(run: Run, out: Path) -> None:
    write(out / FILES[0], run.average.state_dict(), {
        "family": "token-shuffle", "n_head": "6", "grid": str(GRID),
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{run.seconds:.0f}"})


# ------------------------------------------------------------ image decoder


def raster(codes: Tensor) -> Tensor:
    """Windows [b, 16, 4] -> codes [b, 8, 8]."""
    x = codes.view(-1, SIDE, SIDE, WINDOW, WINDOW)
    return x.transpose(2, 3).reshape(-1, GRID, GRID)


@torch.no_grad()
def drawn_apart(model: nn.Module, codes: Tensor, label: Tensor, rng: torch.Generator) -> Tensor:
    """The same windows, of which a share is drawn by what the model says of each code alone."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(label, codes).float()
    b = len(codes)
    temperature = 0.4 + 0.5 * torch.rand(b, 1, 1, 1, generator=rng)
    chance = (logits / temperature).softmax(-1).flatten(0, 2)
    drawn = torch.multinomial(chance, 1, generator=rng).view_as(codes)
    share = torch.rand(b, 1, 1, generator=rng).repeat(1, codes.shape[1], 1)
    share[:, 0] = FIRST
    return torch.where(torch.rand(*codes.shape[:2], 1, generator=rng) < share, drawn, codes)


def decoder_loss(vq: VQ, model: nn.Module, codes: Tensor, data: np.ndarray,
                 step: int) -> tuple[Tensor, str]:
    """Likeness of what is made of windows drawn apart, and the true picture."""
    rng = torch.Generator().manual_seed(step)
    rows = torch.randint(len(codes), (DECODER_BATCH,), generator=rng)
    given = drawn_apart(model, codes[rows], rows % len(drawings.CLASS_NAMES), rng)
    with torch.autocast("cpu", torch.bfloat16):
        y = vq.decode(raster(given)).float()
    return likeness(y, to_signed(np.stack([data[i] for i in rows.tolist()]))), ""


def train_windows(work: Path, out: Path) -> None:
    """The image decoder; the codes stay the first demo's."""
    torch.manual_seed(SEED)
    model, vq = Shuffled().eval(), first_vq(out)
    model.load_state_dict(torch.load(work / "shuffle.pt", weights_only=True)["average"])
    codes, data = windowed_codes(work, out), pictures(work)
    for part in (vq.encoder, vq.quant_conv, vq.quantize):
        part.requires_grad_(False)
    run = Run(work / "shuffle_vq.pt", vq, lr=6e-4, decay=0.98)
    run.train(DECODER_STEPS, lambda step: decoder_loss(vq, model, codes, data, step))
    finish_windows(run.average, run.seconds, out)


def finish_windows(vq: nn.Module, seconds: float, out: Path) -> None:
    """The half that draws; the first demo's file has the one that encodes."""
    parts = ("quantize.", "post_quant_conv.", "decoder.")
    write(out / FILES[1], {k: v for k, v in vq.state_dict().items() if k.startswith(parts)},
          {"seconds": f"{seconds:.0f}"})
