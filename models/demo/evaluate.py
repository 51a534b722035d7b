"""Sample the demo model, score it with the judge, and show it: `python -m
arcompile.models.demo.evaluate [--sheet sheet.png] [--guidance 2] [--temperature 1] [--top-k 0]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from arcompile.models.demo import drawings, judge
from arcompile.models.demo.nets import GPT, VQ
from arcompile.models.demo.train import GRID, HERE
from arcompile.models.demo.training import SEED, to_bytes, to_signed

FRESH = 1000 + SEED  # drawings nothing was trained on


def load(folder: Path = HERE) -> tuple[GPT, VQ, dict]:
    """The stored transformer, tokenizer and recommended sampling."""
    gpt, vq = GPT().eval(), VQ().eval()
    gpt.load_state_dict(load_file(folder / "demo_gpt.safetensors"))
    vq.load_state_dict(load_file(folder / "demo_vq.safetensors"))
    with safe_open(folder / "demo_gpt.safetensors", "pt") as file:
        sampling = json.loads(file.metadata()["sampling"])
    return gpt, vq, sampling


def choose(logits: Tensor, temperature: float, top_k: int, rng: torch.Generator) -> Tensor:
    """One code a row; logits [b, codes] -> [b]."""
    logits = logits / max(temperature, 1e-5)
    if top_k:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]


@torch.no_grad()
def sample(gpt: GPT, labels: Tensor, seed: int, guidance: float, temperature: float,
           top_k: int) -> Tensor:
    """Labels [b] -> codes [b, 64]: class row first, null row beside it, u + s (c - u)."""
    rng, heads = torch.Generator().manual_seed(seed), gpt.layers[0].attention.heads
    both = torch.cat([labels, torch.full_like(labels, len(drawings.CLASS_NAMES))])
    x = gpt.cls_embedding(both)[:, None]
    empty = x.new_zeros(len(both), heads, 0, x.shape[-1] // heads)
    past, codes = [[empty, empty] for _ in gpt.layers], []
    for slot in range(GRID * GRID):
        cond, null = gpt.step(x, slot, past).chunk(2)
        codes.append(choose(null + guidance * (cond - null), temperature, top_k, rng))
        x = gpt.tok_embeddings(codes[-1].repeat(2))[:, None]
    return torch.stack(codes, 1)


@torch.no_grad()
def paint(vq: VQ, codes: Tensor) -> np.ndarray:
    """Codes [b, 64] -> uint8 [b, 64, 64, 3]."""
    parts = [to_bytes(vq.decode(c.view(-1, GRID, GRID))) for c in codes.split(60)]
    return np.concatenate(parts)


def rebuilt(vq: VQ, images: np.ndarray) -> np.ndarray:
    """Pictures through the tokenizer and back; uint8 [b, 64, 64, 3]."""
    with torch.no_grad():
        codes = torch.cat([vq.encode(to_signed(part)) for part in np.split(images, 12)])
    return paint(vq, codes.flatten(1))


def sheet(images: np.ndarray, path: Path, columns: int = 18) -> None:
    """Write pictures side by side as one PNG."""
    rows = [np.concatenate(list(images[i:i + columns]), 1)
            for i in range(0, len(images) - columns + 1, columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def told(name: str, images: np.ndarray, labels: np.ndarray) -> None:
    s = judge.score(images, labels)
    low, high = s["ci"]
    print(f"{name:12} both {s['both']:.3f} [{low:.3f}, {high:.3f}]  shape {s['shape']:.3f}  "
          f"colour {s['colour']:.3f}  n {s['n']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--n", type=int, default=720)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    args = parser.parse_args()
    gpt, vq, settings = load()
    settings |= {k: v for k in settings if (v := getattr(args, k)) is not None}
    real, labels = drawings.batch(args.n, FRESH)
    told("real", real, labels)
    again = rebuilt(vq, real)
    told("rebuilt", again, labels)
    error = np.square(again.astype(float) - real).mean((1, 2, 3))
    print(f"rebuilt PSNR {np.mean(10 * np.log10(255 ** 2 / error)):.2f} dB")
    made = paint(vq, sample(gpt, torch.from_numpy(labels), args.seed, **settings))
    print(settings)
    told("generated", made, labels)
    if args.sheet:
        sheet(made, args.sheet)


if __name__ == "__main__":
    main()
