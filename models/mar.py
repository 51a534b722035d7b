"""MAR: masked autoregression over continuous latents. https://arxiv.org/abs/2406.11838

Each step draws a few more cells of a random order: an encoder over the cells known so far, a
decoder over all, and for every new cell a denoising loop of a small network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import match
from arcompile.errors import ArcError, did_you_mean
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family, positive
from arcompile.ir import Type
from arcompile.models import kl
from arcompile.models.diffusion import COLUMNS, AdaMLP, annealed, denoise, loops, schedules, waves
from arcompile.models.mar_schedule import sampling, unknown
from arcompile.models.parts import bind, count, shape, state, told
from arcompile.models.random import weights
from arcompile.program import Call, Draw, Program, Step, masked

# name -> (width, layers of the encoder and of the decoder, heads, blocks and width of the head)
SIZES = {
    "base": (768, 12, 12, 6, 1024),
    "large": (1024, 16, 16, 8, 1280),
    "huge": (1280, 20, 16, 12, 1536),
}
GUIDANCE = {768: 2.9, 1024: 3.0, 1280: 3.2}  # what the authors evaluate with


@dataclass(frozen=True)
class Config:
    dim: int
    encoder: int
    decoder: int
    heads: int
    hidden: int
    classes: int
    channels: int
    positions: int
    buffer: int  # class tokens before the image
    width: int  # of the head
    depth: int
    iterations: int = 64
    steps: int = 100  # of denoising
    least: int = 0  # of the last iteration, if fewer
    annealing: str = "linear"
    schedule: str = "linear"

    @property
    def grid(self) -> int:
        return math.isqrt(self.positions)

    @property
    def slots(self) -> int:
        return self.buffer + self.positions

    @property
    def denoising(self) -> list[int]:
        """Denoising steps of each iteration."""
        return annealed(self.steps, self.least or self.steps, self.annealing, self.iterations)

    @property
    def lengths(self) -> list[int]:
        return sorted(set(self.denoising), reverse=True)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.dim, self.heads = dim, heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(self.dim, -1)
        scale = (self.dim // self.heads) ** -0.5
        return self.proj(arc.attention(q, k, v, self.heads, self.heads, scale, "full"))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm ViT block. https://arxiv.org/abs/2010.11929"""

    def __init__(self, c: Config):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(c.dim, eps=1e-6) for _ in range(2))
        self.attn = Attention(c.dim, c.heads)
        self.mlp = MLP(c.dim, c.hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x [r,n,d], index i64[r,k] -> [r,k,d]: out[i,j] = x[i, index[i,j]]"""
    first = torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2])[:, :1]
    return nn.functional.embedding(index + first, x.flatten(0, 1))


class Head(nn.Module):
    """`diffloss`: draws the fresh cells by denoising them from noise."""

    schedule: Tensor

    def __init__(self, c: Config):
        super().__init__()
        self.net = AdaMLP(c.channels, c.dim, c.width, c.depth, sum(c.lengths))
        self.register_buffer("schedule", torch.empty(sum(c.lengths), len(COLUMNS)))

    def step(self, x: Tensor, z: Tensor, turn: Tensor, image: Tensor, row: Tensor,
             null_row: Tensor, scale: Tensor, temperature: Tensor,
             noise: Tensor) -> dict[str, Tensor]:
        """One turn of x [b,c,C]. Guidance mixes the noise; the variance is the conditional's."""
        eps, share = self.net(x.index_select(0, image), z, turn)
        cond, null = eps.index_select(0, row), eps.index_select(0, null_row)
        guided = cond + (scale - 1)[:, None, None] * (cond - null)
        at = self.schedule.index_select(0, turn.reshape(1))
        return {"x": denoise(at, x, guided, share.index_select(0, row), noise, temperature)}


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c, d = c, c.dim
        self.class_emb = nn.Embedding(c.classes, d)
        self.fake_latent = nn.Parameter(torch.empty(1, d))
        self.mask_token = nn.Parameter(torch.empty(1, 1, d))
        self.z_proj, self.z_proj_ln = nn.Linear(c.channels, d), nn.LayerNorm(d, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.slots, d))
        self.encoder_blocks = nn.ModuleList(Block(c) for _ in range(c.encoder))
        self.encoder_norm = nn.LayerNorm(d, eps=1e-6)
        self.decoder_embed = nn.Linear(d, d)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.slots, d))
        self.decoder_blocks = nn.ModuleList(Block(c) for _ in range(c.decoder))
        self.decoder_norm = nn.LayerNorm(d, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, c.positions, d))
        self.diffloss = Head(c)

    def prompt(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        """The condition of each row, and the slots each image knows: the class tokens."""
        given = self.class_emb(cond.index_select(0, image))
        own = torch.arange(self.c.buffer)[None].expand(cond.shape[0], -1)
        return {"label": torch.where(is_null[:, None], self.fake_latent, given), "seen": own}

    def encode(self, latents: Tensor, label: Tensor, seen: Tensor) -> Tensor:
        """latents [r,N,C], label [r,dim], seen i64[r,v] -> [r,v,dim], of the seen slots only."""
        prefix = label[:, None].expand(-1, self.c.buffer, -1)
        x = torch.cat((prefix, self.z_proj(latents)), 1) + self.encoder_pos_embed_learned
        x = rows(self.z_proj_ln(x), seen)
        for block in self.encoder_blocks:
            x = block(x)
        return self.encoder_norm(x)

    def decode(self, x: Tensor, source: Tensor) -> Tensor:
        """x [r,v,dim] of the encoder -> [r,slots,dim]; source: 1 + row of x of each slot, or 0."""
        mask = self.mask_token.expand(x.shape[0], -1, -1)
        x = rows(torch.cat((mask, self.decoder_embed(x)), 1), source)
        x = x + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return x

    def features(self, label: Tensor, latents: Tensor, seen: Tensor, source: Tensor,
                 cells: Tensor) -> Tensor:
        """What the head is told of `cells` i64[r,c]: [r,c,dim]."""
        x = self.decode(self.encode(latents, label, seen), source)
        at = nn.functional.embedding(cells, self.diffusion_pos_embed_learned[0])
        return self.decoder_norm(rows(x, cells + self.c.buffer)) + at

    def step(self, latents: Tensor, label: Tensor, seen: Tensor, orders: Tensor, fresh: Tensor,
             initial_noise: Tensor, image: Tensor) -> dict[str, Tensor]:
        """fresh i64[c]: places in the order, which is used from its end."""
        cells = orders.index_select(1, self.c.positions - 1 - fresh)
        nowhere = torch.zeros_like(orders[:, :1]).expand(-1, self.c.slots)
        count = torch.arange(seen.shape[1])[None].expand(seen.shape[0], -1) + 1
        source = nowhere.scatter(1, seen, count)
        each = (t.index_select(0, image) for t in (latents, seen, source, cells))
        z = self.features(label, *each)
        return {"z": self.diffloss.net.cond_embed(z), "x": rows(initial_noise, cells),
                "cells": cells}

    def place(self, latents: Tensor, x: Tensor, cells: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """Put the finished cells where they belong, and remember that they are known."""
        at = cells[:, :, None].expand(-1, -1, self.c.channels)
        return {"latents": latents.scatter(1, at, x),
                "seen": torch.cat((seen, cells + self.c.buffer), 1)}


class Net(nn.Module):
    """The transformer and, when given, the image decoder."""

    def __init__(self, c: Config, vae: kl.KL | None):
        super().__init__()
        self.mar = Transformer(c)
        if vae is not None:
            self.vae = vae


@family("mar")
class Mar(Family):
    """Random order, bidirectional, continuous tokens drawn by a diffusion network each."""

    order = "random"
    licence = "MIT"
    verified = "latents, pixels, features and head of upstream on a tiny checkpoint"
    sizes = SIZES
    options: ClassVar = {
        "num_heads": "attention heads; told by the shapes for published sizes",
        "num_iter": "steps that fill the image, 64 by default; the authors evaluate with 256",
        "diffusion_steps": "denoising steps for each token, 100 by default",
        "diffusion_least": "denoising steps in the last iteration, if fewer (DiSA)",
        "annealing": "how they fall: linear (the default), cosine or two-stage",
        "cfg_schedule": "linear (guidance grows with the share that is drawn) or constant",
    }
    containers = ("model_ema", "model", "")
    decoder_containers = ("model", "")

    def claims(self, t: Tensors) -> bool:
        # Hi-MAR, Harmon and TokenBridge have further parts next to these
        return _OWN.issubset(t) and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, with KL-16; or "tiny".

        The head's last layer is zero, as before training: a random one lets variances overflow.
        """
        c, last = of_size(size), "diffloss.net.final_layer.linear.weight"
        with torch.device("meta"):
            names = state(Transformer(c), skip=TABLES)
        made = weights(names, seed)
        made[last] = replace(made[last], read=lambda: np.zeros(names[last], np.float32))
        facts = {"num_heads": str(c.heads), "num_iter": str(c.iterations),
                 "diffusion_steps": str(c.steps)}
        return Source(made, weights(kl.published(c.channels), seed), metadata=facts)

    def model(self, source: Source, options: Options) -> Model:
        t, c = source.tensors, config(source, options)
        with torch.device("meta"):
            vae = kl.read(source.decoder, c.channels, c.grid)
            net = Net(c, vae)
        match(t, state(net.mar, skip=TABLES), what="MAR")
        names = state(net, skip=[f"mar.{k}" for k in TABLES])
        bound = bind({"mar.": t, "vae.": source.decoder or {}}, names).plus(tables(c))
        return Model(net, entries(net, c), program(c, vae is not None), bound, info(c, vae),
                     defaults={"guidance": GUIDANCE.get(c.dim, 3.0)})


TABLES = ("diffloss.schedule", "diffloss.net.time_embed.rows")  # ours, not the checkpoint's
_OWN = {"fake_latent", "mask_token", "diffusion_pos_embed_learned", "class_emb.weight",
        "encoder_blocks.0.attn.qkv.weight", "diffloss.net.input_proj.weight"}
_TOP = {"fake_latent", "mask_token", "class_emb", "z_proj", "z_proj_ln", "encoder_blocks",
        "encoder_norm", "encoder_pos_embed_learned", "decoder_embed", "decoder_blocks",
        "decoder_norm", "decoder_pos_embed_learned", "diffusion_pos_embed_learned",
        "diffloss"}


def of_size(size: str) -> Config:
    if size == "tiny":
        return Config(32, 1, 1, 2, 64, 5, 4, 16, 4, 32, 1, iterations=4, steps=5)
    if size not in SIZES:
        raise ArcError(f"family mar has no size {size!r}", hint=did_you_mean(size, SIZES))
    dim, layers, heads, depth, width = SIZES[size]
    return Config(dim, layers, layers, heads, 4 * dim, 1000, 16, 256, 64, width, depth)


def tables(c: Config) -> dict[str, Any]:
    """What the loop knows of its turns: the sampler's numbers and the network's times."""
    return {"@mar.diffloss.schedule": lambda: schedules(c.lengths),
            "@mar.diffloss.net.time_embed.rows": lambda: waves(c.lengths)}


# --- what the checkpoint says --------------------------------------------------------------------


def config(source: Source, options: Options) -> Config:
    """Every size from the tensors; heads and schedules from options, metadata or shapes."""
    t = source.tensors
    if missing := sorted(_OWN - {*t}):
        raise ArcError(f"not a MAR transformer: {missing[0]} is missing",
                       hint="name the family with --family")
    classes, dim = shape(t, "class_emb.weight", 2)
    slots = shape(t, "encoder_pos_embed_learned", 3)[1]
    positions = shape(t, "diffusion_pos_embed_learned", 3)[1]
    if math.isqrt(positions) ** 2 != positions or slots <= positions:
        raise ArcError(f"{positions} cells of {slots} slots are not a square image and a prefix",
                       hint="is it a MAR checkpoint?")
    width, channels = shape(t, "diffloss.net.input_proj.weight", 2)
    layers = count(t, "encoder_blocks."), count(t, "decoder_blocks.")
    usual = {(d, n): h for d, n, h, _, _ in SIZES.values()}
    known = told(source, "num_heads") or usual.get((dim, layers[0]))
    what = f"the number of heads of a {dim}-wide, {layers[0]}+{layers[1]}-layer model"
    heads = positive(options, "num_heads", known, what)
    if dim % heads:
        raise ArcError(f"num_heads={heads} does not divide the width {dim}",
                       hint="give --option num_heads=N")
    return replace(
        Config(dim, *layers, heads, shape(t, "encoder_blocks.0.mlp.fc1.weight", 2)[0], classes,
               channels, positions, slots - positions, width, count(t, "diffloss.net.res_blocks.")),
        **sampling(source, options, positions))


# --- the loop ------------------------------------------------------------------------------------


def steps(c: Config) -> list[Step]:
    """The positions of a step are places in the random order. The last step takes what is left."""
    left = unknown(c.positions, c.iterations)
    counts = [a - b for a, b in zip([c.positions, *left], [*left[:-1], 0], strict=False)]
    found = []
    for step, after, n in zip(masked(c.positions, counts), left, c.denoising, strict=True):
        share = (c.positions - after) / c.positions if c.schedule == "linear" else 1.0
        calls = (Call("step"), Call("head", loop=f"ddpm{n}"), Call("place"))
        found.append(replace(step, calls=calls, guide=(1 - share, share),
                             set=(("fresh", step.commit),)))
    return found


def program(c: Config, decodes: bool) -> Program:
    n, latents = c.positions, Type("f32", ("b", c.positions, c.channels))
    draws = (Draw("orders", "order", when="start"),
             Draw("initial_noise", "normal", c.channels, "start"),
             Draw("noise", "normal", c.channels, "loop"))
    return Program(
        "mar", n, tuple(steps(c)), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),) if decodes else (),
        inputs=(("cond", Type("i64", ("b",))),), state=(("latents", latents),), draws=draws,
        tables={f"ddpm{n}": {"turn": rows} for n, rows in loops(c.lengths).items()}, mask="full",
    )


def entries(net: Net, c: Config) -> list[Entry]:
    image, label = {"image": "i64[r]"}, {"label": f"f32[r,{c.dim}]"}
    latents, seen = {"latents": f"f32[b,{c.positions},{c.channels}]"}, {"seen": "i64[b,v]"}
    x = {"x": f"f32[b,c,{c.channels}]"}
    found = [
        Entry("prompt", net.mar.prompt, {"cond": "i64[b]", **image, "is_null": "bool[r]"}),
        Entry("step", net.mar.step, {
            **latents, **label, **seen, "orders": f"i64[b,{c.positions}]", "fresh": "i64[c]",
            "initial_noise": f"f32[b,{c.positions},{c.channels}]", **image}),
        Entry("head", net.mar.diffloss.step, {
            **x, "z": f"f32[r,c,{c.width}]", "turn": "i64[]", **image, "row": "i64[b]",
            "null_row": "i64[b]", "scale": "f32[b]", "temperature": "f32[b]",
            "noise": f"f32[b,c,{c.channels}]"}),
        Entry("place", net.mar.place, {**latents, **x, "cells": "i64[b,c]", **seen}),
    ]
    if hasattr(net, "vae"):
        found.append(Entry("decode", net.vae.decode, latents))
    return found


def info(c: Config, vae: kl.KL | None) -> dict[str, Any]:
    size = next((k for k, v in SIZES.items() if v[:2] == (c.dim, c.encoder)), "custom")
    found = {"size": size, "dim": c.dim, "layers": [c.encoder, c.decoder], "heads": c.heads,
             "grid": c.grid, "classes": c.classes, "channels": c.channels, "buffer": c.buffer,
             "head": [c.depth, c.width], "num_iter": c.iterations,
             "diffusion_steps": c.steps, "cfg_schedule": c.schedule}
    if c.least not in (0, c.steps):
        found |= {"diffusion_least": c.least, "annealing": c.annealing}
    return found | ({"pixels": c.grid * vae.factor} if vae is not None else {})
