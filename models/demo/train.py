"""Train the demos from nothing: `python -m arcompile.models.demo.train STAGE|all`.

Stages, in order: judge, vq and gpt (the first demo); kl, codes, var and var-decoder (the
next-scale one); ae and mar (the masked one); shuffle and windows (the shuffled one). Every stage
keeps a checkpoint in --work and resumes from it; the finished files go to --out. The later demos
start from the first one's tokenizer.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from arcompile.models.demo import drawings, flaws
from arcompile.models.demo.nets import GPT, VQ, JudgeNet
from arcompile.models.demo.train_mar import train_autoencoder, train_decoder, train_mar
from arcompile.models.demo.train_shuffle import train_shuffle, train_windows
from arcompile.models.demo.train_var import (
    train_codes,
    train_var,
    train_var_decoder,
    train_var_small,
)
from arcompile.models.demo.training import (
    SEED,
    Run,
    likeness,
    log,
    pick,
    pictures,
    to_signed,
    write,
)

HERE = Path(__file__).parent
VQ_PLAIN = 200      # steps before the codes come in
VQ_CROPS = 1000     # steps on 32x32 crops; whole pictures after
VQ_FROZEN = 2000    # steps after which codes are final and only the decoder learns
VQ_STEPS = 2300
JUDGE_STEPS = 2500
GPT_PICTURES = 36 * 1000
GPT_STEPS, GPT_BATCH = 6000, 48
GRID = 8
SAMPLING = {"guidance": 1.3, "temperature": 0.8, "top_k": 0}


# --------------------------------------------------------------- tokenizer


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
    write(out / "demo_vq.safetensors", mean.state_dict(),
          {"grid": str(GRID), "state": "unfinished"})


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
    write(out / "demo_vq.safetensors", run.average.state_dict(),
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
    write(out / "demo_judge.safetensors", run.average.state_dict(),
          {"seconds": f"{run.seconds:.0f}"})


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
    write(out / "demo_gpt.safetensors", run.average.state_dict(), {
        "family": "llamagen", "n_head": "6", "grid": str(GRID),
        "class_names": json.dumps(drawings.CLASS_NAMES), "sampling": json.dumps(SAMPLING),
        "seconds": f"{run.seconds:.0f}"})


# ------------------------------------------------------------------- stages

STAGES = {"judge": train_judge, "vq": train_vq, "gpt": train_gpt, "kl": train_decoder,
          "codes": train_codes, "var": train_var, "var-decoder": train_var_decoder,
          "var-small": train_var_small, "ae": train_autoencoder, "mar": train_mar,
          "shuffle": train_shuffle, "windows": train_windows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=(*STAGES, "all"))
    parser.add_argument("--work", type=Path, default=Path("out/demo"))
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    for name, stage in STAGES.items():
        if args.stage in (name, "all"):
            stage(args.work, args.out)


if __name__ == "__main__":
    main()
