"""What the demos' training stages share: drawings, a resumable run, the files it ends in."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from arcompile.models.demo import drawings
from arcompile.models.demo.nets import VQ

SEED = 20
PICTURES = 36 * 1500


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
    """Batch number `step`: `n` pictures, each cut to a window, more often a central one."""
    rng = np.random.default_rng((SEED, step))
    rows = rng.integers(len(data), size=n)
    at = rng.integers(drawings.SIZE - crop + 1, size=(2, n, 2)).mean(0).astype(int)
    cut = [data[i, y:y + crop, x:x + crop] for i, (y, x) in zip(rows, at, strict=True)]
    return to_signed(np.stack(cut))


def batch_rows(n: int, batch: int, step: int, hard: int = 0) -> Tensor:
    """The rows of batch number `step`, i64 [batch]; the first `hard` show stars and crosses."""
    rng = torch.Generator().manual_seed(step)
    rows = torch.randint(n, (batch,), generator=rng)
    label = 18 + torch.randint(12, (hard,), generator=rng)
    rows[:hard] = rows[:hard] // 36 * 36 % (n - 36) + label
    return rows


def hide(label: Tensor, share: float = 0.1) -> Tensor:
    """Some labels become "no class", for guidance."""
    return label.masked_fill(torch.rand(label.shape) < share, len(drawings.CLASS_NAMES))


def first_vq(out: Path) -> VQ:
    """The first demo's tokenizer, whose encoder all demos share."""
    vq = VQ()
    vq.load_state_dict(load_file(out / "demo_vq.safetensors"))
    return vq.float().eval()


def latents(work: Path, out: Path) -> Tensor:
    """What the first demo's encoder makes of the drawings, made once; f16 [n, 8, 8, 8], c first.

    The cells are vectors of unit length.
    """
    path = work / "latents.npy"
    if not path.exists():
        data, vq = pictures(work), first_vq(out)
        log("encoding", len(data), "pictures")
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = [vq.latent(to_signed(data[i:i + 48])).half() for i in range(0, len(data), 48)]
        np.save(path, torch.cat(parts).numpy())
    return torch.from_numpy(np.load(path)).permute(0, 3, 1, 2).contiguous()


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


# ------------------------------------------------------------------ results


def edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def likeness(y: Tensor, x: Tensor) -> Tensor:
    """L1 + L2 + L1 of the edges, which keeps outlines crisp."""
    sharp = sum((a - b).abs().mean() for a, b in zip(edges(y), edges(x), strict=True))
    return (y - x).abs().mean() + (y - x).square().mean() + sharp


def ldm_names(tensors: dict[str, Tensor], fused: bool = False) -> dict[str, Tensor]:
    """Tensors of our decoder under latent diffusion's names: level 0 is the highest resolution.

    fused: the three matrices of an attention as one.
    """
    levels = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("decoder.conv_blocks."))
    middle, made = ("block_1", "attn_1", "block_2"), {}
    for name, tensor in tensors.items():
        name = re.sub(r"^decoder\.conv_blocks\.(\d+)\.",
                      lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
        name = re.sub(r"^decoder\.mid\.(\d)\.", lambda m: f"decoder.mid.{middle[int(m[1])]}.", name)
        made[name.replace(".res.", ".block.")] = tensor
    for name in [k for k in made if fused and ".q." in k]:
        parts = [made.pop(name.replace(".q.", f".{p}.")) for p in "qkv"]
        made[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    return made


def write(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Store the weights as f16 with `notes` in the header."""
    tensors = {k: v.half().contiguous() for k, v in tensors.items()}
    save_file(tensors, path, {"licence": "Apache-2.0", "seed": str(SEED), **notes})
    log("wrote", path.name, path.stat().st_size, "bytes")
