"""Train the demo model from nothing: `python -m arcompile.models.demo.train judge|vq|gpt|all`.

Every stage keeps a checkpoint in --work and resumes from it; the finished files go to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets import GPT, VQ

HERE = Path(__file__).parent
SEED = 20
PICTURES = 36 * 1500
VQ_CROPS, VQ_STEPS = 1600, 2800  # steps on 32x32 crops, steps in all
VQ_PLAIN = 200                   # steps before the codes come in
GRID = 8


def log(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


# -------------------------------------------------------------------- data


def pictures(work: Path) -> np.ndarray:
    """The training drawings, drawn once; uint8 [n, 64, 64, 3]; the label of i is i % 36."""
    path = work / "pictures.npy"
    if not path.exists():
        log("drawing", PICTURES, "pictures")
        np.save(path, drawings.batch(PICTURES, SEED)[0])
    return np.load(path, mmap_mode="r")


def to_signed(x: np.ndarray) -> Tensor:
    """uint8 [b, h, w, 3] -> f32 [b, 3, h, w] in -1..1."""
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1


def to_bytes(x: Tensor) -> np.ndarray:
    """f32 [b, 3, h, w] in -1..1 -> uint8 [b, h, w, 3]."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def pick(data: np.ndarray, step: int, n: int, crop: int) -> Tensor:
    """Batch number `step`: `n` pictures, each cut to a random crop x crop window."""
    rng = np.random.default_rng((SEED, step))
    rows = rng.integers(len(data), size=n)
    at = rng.integers(drawings.SIZE - crop + 1, size=(n, 2))
    cut = [data[i, y:y + crop, x:x + crop] for i, (y, x) in zip(rows, at, strict=True)]
    return to_signed(np.stack(cut))


# ------------------------------------------------------------ a training run


class Run:
    """A model with its optimiser, running average and checkpoint: what it takes to resume."""

    def __init__(self, path: Path, model: nn.Module, lr: float, decay: float) -> None:
        self.path, self.model, self.lr, self.decay = path, model, lr, decay
        self.average = deepcopy(model).requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(trained, lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.seconds = 0, 0.0
        if path.exists():
            self._load(torch.load(path, weights_only=True))

    def _load(self, saved: dict) -> None:
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        log("resumed", self.path.name, "at step", self.step)

    def save(self) -> None:
        part = self.path.with_suffix(".part")
        torch.save({"model": self.model.state_dict(), "average": self.average.state_dict(),
                    "optimiser": self.optimiser.state_dict(), "step": self.step,
                    "seconds": self.seconds}, part)
        part.replace(self.path)

    def update(self, loss: Tensor, steps: int) -> None:
        """One optimiser step: warm-up, then a cosine down to 2 % of the rate."""
        warm = min(1.0, (self.step + 1) / 100)
        rate = self.lr * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * self.step / steps)) / 2)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.decay, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.state_dict().values(),
                                 self.model.state_dict().values(), strict=True):
                mean.lerp_(now, 1 - decay)

    def train(self, steps: int, loss_at: Callable[[int], tuple[Tensor, str]]) -> None:
        """Run to `steps`; loss_at(step) is the loss and a word on it."""
        while self.step < steps:
            start = time.perf_counter()
            loss, word = loss_at(self.step)
            self.update(loss, steps)
            self.seconds += time.perf_counter() - start
            if self.step % 50 == 0:
                log(self.path.stem, self.step, f"loss {loss.item():.4f}", word,
                    f"{self.seconds:.0f}s")
            if self.step % 250 == 0 or self.step == steps:
                self.save()


# --------------------------------------------------------------- tokenizer


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def likeness(y: Tensor, x: Tensor) -> Tensor:
    """L1 + L2 + L1 of the edges, which keeps outlines crisp."""
    sharp = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    return (y - x).abs().mean() + (y - x).square().mean() + sharp


def vq_loss(model: VQ, x: Tensor, step: int) -> tuple[Tensor, str]:
    """Straight-through loss; the first steps are a plain autoencoder, to give codes a place."""
    with torch.autocast("cpu", torch.bfloat16):
        z = model.latent(x)
    flat = z.detach().flatten(0, 2)
    book = model.quantize
    if step == VQ_PLAIN:
        book.embedding.weight.copy_(flat[torch.randint(len(flat), (len(book.count),))])
    commit, used, code = torch.zeros(()), 0, z
    if step >= VQ_PLAIN:
        index = book.nearest(flat)
        code = book.unit()[index].view(z.shape)
        commit, used = (z - code).square().sum(-1).mean(), len(index.unique())
        code = z + (code - z).detach()
        book.learn(flat, index)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.picture(code).float()
    return likeness(y, x) + 0.25 * commit, f"commit {commit.item():.4f} used {used}"


def train_vq(work: Path) -> VQ:
    """The tokenizer: cheap 32x32 crops first, whole pictures after."""
    torch.manual_seed(SEED)
    data, model = pictures(work), VQ()
    run = Run(work / "vq.pt", model, lr=1.5e-3, decay=0.995)

    def loss_at(step: int) -> tuple[Tensor, str]:
        n, crop = (24, 32) if step < VQ_CROPS else (12, 64)
        return vq_loss(model, pick(data, step, n, crop), step)

    run.train(VQ_STEPS, loss_at)
    return run.average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("judge", "vq", "gpt", "all"))
    parser.add_argument("--work", type=Path, default=Path("out/demo"))
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train_vq(args.work)


if __name__ == "__main__":
    main()
