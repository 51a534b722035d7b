"""The shuffled demo: the first demo's transformer, taught to read and draw 2 x 2 codes a step.

Its module is plain torch, with the names of family token-shuffle. https://arxiv.org/abs/2504.17789
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets import GPT
from arcompile.models.demo.training import SEED, Run, batch_rows, first_vq, hide, latents, write

WINDOW, HIDDEN, GRID = 2, 256, 8
SIDE = GRID // WINDOW
STEPS, BATCH = 2400, 64
SAMPLING = {"guidance": 1.3, "temperature": 0.6, "top_k": 0}
FILE = "demo_shuffle.safetensors"


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


def shuffle_loss(model: nn.Module, codes: Tensor, step: int) -> tuple[Tensor, str]:
    """Cross-entropy of every code; a tenth of the labels are hidden."""
    torch.manual_seed(SEED + step)
    rows = batch_rows(len(codes), BATCH, step)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(hide(rows % len(drawings.CLASS_NAMES)), codes[rows])
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
    write(out / FILE, run.average.state_dict(), {
        "family": "token-shuffle", "n_head": "6", "grid": str(GRID),
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{run.seconds:.0f}"})
