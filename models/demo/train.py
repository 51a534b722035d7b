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

from arcompile.models.demo import drawings, flaws
from arcompile.models.demo.nets import GPT, VQ, JudgeNet

HERE = Path(__file__).parent
SEED = 20
PICTURES = 36 * 1500
VQ_PLAIN = 200      # steps before the codes come in
VQ_CROPS = 1000     # steps on 32x32 crops; whole pictures after
VQ_FROZEN = 2000    # steps after which codes are final and only the decoder learns
VQ_STEPS = 2300
JUDGE_STEPS = 2500
GPT_PICTURES = 36 * 1000
GPT_STEPS, GPT_BATCH = 6000, 48
GRID = 8
SAMPLING = {"guidance": 1.3, "temperature": 0.8, "top_k": 0}


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


def quantise(model: VQ, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Unit vectors -> (what the decoder sees, commitment loss); codes move until VQ_FROZEN.

    The first steps are a plain autoencoder, to give the codes a place.
    """
    flat, book = z.detach().flatten(0, 2), model.quantize
    if step == VQ_PLAIN:
        book.embedding.weight.copy_(flat[torch.randint(len(flat), (len(book.count),))])
    if step < VQ_PLAIN:
        return z, torch.zeros(())
    index = book.nearest(flat)
    code = book.unit()[index].view(z.shape)
    if step < VQ_FROZEN:
        book.learn(flat, index)
    return z + (code - z).detach(), (z - code).square().sum(-1).mean()


def vq_loss(model: VQ, x: Tensor, step: int) -> tuple[Tensor, str]:
    """Likeness of the picture that comes back, and how far cells lie from their codes."""
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(step < VQ_FROZEN):
        z = model.latent(x)
    code, commit = quantise(model, z, step)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.picture(code).float()
    like = likeness(y, x)
    return like + 0.1 * commit, f"like {like.item():.4f} commit {commit.item():.4f}"


def freeze(run: Run, out: Path) -> None:
    """Fix encoder and codes at their running averages; the transformer may start from here."""
    model, mean = run.model, run.average
    for part in ("encoder", "quant_conv", "quantize"):
        getattr(model, part).load_state_dict(getattr(mean, part).state_dict())
    write(out / "demo_vq.safetensors", mean, {"grid": str(GRID), "state": "unfinished"})


def train_vq(work: Path, out: Path) -> None:
    """The tokenizer: cheap crops first, whole pictures after, the decoder alone at the end."""
    torch.manual_seed(SEED)
    data, model = pictures(work), VQ()
    run = Run(work / "vq.pt", model, lr=2e-3, decay=0.99)

    def loss_at(step: int) -> tuple[Tensor, str]:
        if step == VQ_FROZEN:
            freeze(run, out)
        n, crop = (16, 32) if step < VQ_CROPS else (8, 64)
        return vq_loss(model, pick(data, step, n, crop), step)

    run.train(VQ_STEPS, loss_at)
    write(out / "demo_vq.safetensors", run.average,
          {"grid": str(GRID), "seconds": f"{run.seconds:.0f}"})


# -------------------------------------------------------------------- judge


def judge_loss(model: JudgeNet, data: np.ndarray, step: int) -> tuple[Tensor, str]:
    """Two thirds drawings, half of them worn; one third flawed pictures of shape "none"."""
    n, spoilt = 96, 48
    rng = np.random.default_rng((SEED, 1, step))
    noise = torch.Generator().manual_seed(step)
    rows = np.sort(rng.choice(len(data), n + spoilt, replace=False))
    rng.shuffle(rows)
    x = to_signed(data[rows])
    fine, worn, bad = x[:n // 2], flaws.wear(x[n // 2:n], noise), flaws.flawed(x[n:], noise)
    y = model(torch.cat([fine, worn, bad]))
    shape, colour = (torch.from_numpy(v) for v in np.divmod(rows % len(drawings.CLASS_NAMES), 6))
    shape[n:] = 6
    loss = F.cross_entropy(y[:, :7], shape) + F.cross_entropy(y[:n, 7:], colour[:n])
    return loss, f"right {(y[:, :7].argmax(1) == shape).float().mean().item():.3f}"


def train_judge(work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    data, model = pictures(work), JudgeNet()
    run = Run(work / "judge.pt", model, lr=2e-3, decay=0.995)
    run.train(JUDGE_STEPS, lambda step: judge_loss(model, data, step))
    write(out / "demo_judge.safetensors", run.average, {"seconds": f"{run.seconds:.0f}"})


# ------------------------------------------------------------- transformer


def tokens(work: Path, vq: VQ) -> Tensor:
    """The codes of the first GPT_PICTURES drawings, made once; int64 [n, 64]."""
    path = work / "tokens.npy"
    if not path.exists():
        log("encoding", GPT_PICTURES, "pictures")
        data = pictures(work)[:GPT_PICTURES]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = [vq.encode(to_signed(data[i:i + 64])) for i in range(0, len(data), 64)]
        np.save(path, torch.cat(parts).flatten(1).numpy().astype(np.int16))
    return torch.from_numpy(np.load(path)).long()


def gpt_loss(model: nn.Module, codes: Tensor, step: int) -> tuple[Tensor, str]:
    """Next-code cross-entropy; a tenth of the labels are hidden, for guidance."""
    rng = torch.Generator().manual_seed(step)
    rows = torch.randint(len(codes), (GPT_BATCH,), generator=rng)
    null = len(drawings.CLASS_NAMES)
    hidden = torch.rand(GPT_BATCH, generator=rng) < 0.1
    label = (rows % null).masked_fill(hidden, null)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(label, codes[rows])
    return F.cross_entropy(logits.flatten(0, 1).float(), codes[rows].flatten()), ""


def train_gpt(work: Path, out: Path) -> None:
    torch.manual_seed(SEED)
    vq = VQ()
    vq.load_state_dict(load_file(out / "demo_vq.safetensors"))
    codes, model = tokens(work, vq.float()), GPT()
    run = Run(work / "gpt.pt", model, lr=2e-3, decay=0.998)
    fast = torch.compile(model)
    run.train(GPT_STEPS, lambda step: gpt_loss(fast, codes, step))
    write(out / "demo_gpt.safetensors", run.average, {
        "family": "llamagen", "n_head": "6", "grid": str(GRID),
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{run.seconds:.0f}"})


# -------------------------------------------------------------------- files


def write(path: Path, model: nn.Module, notes: dict[str, str]) -> None:
    """Store the weights as f16 with `notes` in the header."""
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, path, {"licence": "Apache-2.0", "seed": str(SEED), **notes})
    log("wrote", path.name, path.stat().st_size, "bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("judge", "vq", "gpt", "all"))
    parser.add_argument("--work", type=Path, default=Path("out/demo"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = {"judge": train_judge, "vq": train_vq, "gpt": train_gpt}
    for name, stage in stages.items():
        if args.stage in (name, "all"):
            stage(args.work, args.out)


if __name__ == "__main__":
    main()
