"""xAR: next-cell prediction by flow matching. https://arxiv.org/abs/2502.20388

The image is 2 x 2 cells. Each is drawn from noise by an Euler-Maruyama loop through the whole
transformer, which sees the finished cells in its caches and the noisy cell at the end of them; a
last pass over the clean cell, at time 0, leaves its keys and values behind.
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
from arcompile.models.diffusion import TRAINED, TimeEmbed, annealed, loops, sinusoid
from arcompile.models.llama import RopeTable, grid_rope
from arcompile.models.mar_schedule import falling
from arcompile.models.parts import bind, count, shape, state, told
from arcompile.models.random import weights
from arcompile.models.xar_flow import COLUMNS, flow, times
from arcompile.program import Call, Draw, Program, Step

# name -> (width, layers of the encoder and of the decoder, heads)
SIZES = {"B": (768, 8, 12), "L": (1024, 16, 16), "H": (1280, 20, 16)}
EVALUATED = {768: (2.7, 40), 1024: (2.3, 50), 1280: (2.2, 50)}  # width -> (guidance, flow steps)
CELLS = 2  # a side
Cache = tuple[Tensor, Tensor]


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
    steps: int  # of the flow of a cell
    least: int = 0  # of the last cell, if fewer
    annealing: str = "linear"

    @property
    def flows(self) -> list[int]:
        """Flow steps of each cell."""
        return annealed(self.steps, self.least or self.steps, self.annealing, CELLS**2)

    @property
    def lengths(self) -> list[int]:
        return sorted(set(self.flows), reverse=True)

    @property
    def turns(self) -> int:
        """Rows of the tables: every flow's, and the clean one."""
        return sum(self.lengths) + 1

    @property
    def grid(self) -> int:
        return math.isqrt(self.positions)

    @property
    def cell(self) -> int:
        """Tokens of a cell."""
        return self.positions // CELLS**2

    @property
    def layers(self) -> int:
        return self.encoder + self.decoder


class Attention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.dim, self.heads = c.dim, c.heads
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.proj = nn.Linear(c.dim, c.dim)

    def forward(self, x: Tensor, cache: Cache, past: Tensor,
                rope: RopeTable) -> tuple[Tensor, Cache]:
        q, k, v = self.qkv(x).split(self.dim, -1)
        q, k = (arc.rope(y, rope.cos, rope.sin, past, self.heads, True) for y in (q, k))
        kc, vc = arc.cache_append(cache[0], k, past), arc.cache_append(cache[1], v, past)
        scale = (self.dim // self.heads) ** -0.5
        out = arc.attention(q, kc, vc, self.heads, self.heads, scale, "full", past)
        return self.proj(out), (kc, vc)


class GeGLU(nn.Module):
    """fc2(gelu(fc1_g x) * fc1_x x); upstream's module is called SwiGLU but is given a GELU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1_g, self.fc1_x = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1_g(x)) * self.fc1_x(x))


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class Block(nn.Module):
    """Modulated by the class and the time; the norms have no weights of their own."""

    def __init__(self, c: Config):
        super().__init__()
        self.attn = Attention(c)
        self.mlp = GeGLU(c.dim, c.hidden)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))

    def forward(self, x: Tensor, y: Tensor, cache: Cache, past: Tensor,
                rope: RopeTable) -> tuple[Tensor, Cache]:
        """x [r,s,dim], y [r,1,dim]"""
        gain1, gain2, scale1, scale2, shift1, shift2 = self.ada_lin(y).chunk(6, -1)
        out, cache = self.attn(modulate(x, scale1, shift1), cache, past, rope)
        x = x + out * gain1
        return x + self.mlp(modulate(x, scale2, shift2)) * gain2, cache


class Transformer(nn.Module):
    schedule: Tensor

    def __init__(self, c: Config):
        super().__init__()
        self.c, d = c, c.dim
        self.class_emb = nn.Embedding(c.classes + 1, d)  # the last row is the null class
        self.time_embed = TimeEmbed(c.turns, d)
        self.z_proj, self.z_proj_ln = nn.Linear(c.channels, d), arc.RMSNorm(d, 1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.positions, d))
        self.encoder_blocks = nn.ModuleList(Block(c) for _ in range(c.encoder))
        self.encoder_norm = arc.RMSNorm(d, 1e-6)
        self.decoder_embed = nn.Linear(d, d)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, c.positions, d))
        self.decoder_blocks = nn.ModuleList(Block(c) for _ in range(c.decoder))
        self.decoder_norm = arc.RMSNorm(d, 1e-6)
        self.pred = nn.Linear(d, c.channels)
        self.rope = RopeTable(c.positions, d // c.heads)
        self.register_buffer("schedule", torch.empty(c.turns, len(COLUMNS)))

    def prompt(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        null = torch.full_like(image, self.c.classes)
        return {"label": self.class_emb(torch.where(is_null, null, cond.index_select(0, image)))}

    def begin(self, initial_noise: Tensor) -> dict[str, Tensor]:
        return {"x": initial_noise}

    def velocity(self, x: Tensor, y: Tensor, past: Tensor, caches: list[Cache]) -> Tensor:
        """Of x [r,cell,C], under the condition y [r,1,dim]; `caches` become those after it."""
        at = past[:, None].long() + torch.arange(self.c.cell)
        encoder, decoder = (nn.functional.embedding(at, p[0]) for p in (
            self.encoder_pos_embed_learned, self.decoder_pos_embed_learned))
        x = self.z_proj_ln(self.z_proj(x) + encoder)
        for i, block in enumerate(self.encoder_blocks):
            x, caches[i] = block(x, y, caches[i], past, self.rope)
        x = self.decoder_embed(self.encoder_norm(x)) + decoder
        for i, block in enumerate(self.decoder_blocks, len(self.encoder_blocks)):
            x, caches[i] = block(x, y, caches[i], past, self.rope)
        return self.pred(self.decoder_norm(x))

    def flow(self, x: Tensor, label: Tensor, past: Tensor, turn: Tensor, image: Tensor,
             row: Tensor, null_row: Tensor, scale: Tensor, temperature: Tensor, noise: Tensor,
             **cache: Tensor) -> dict[str, Tensor]:
        """One turn of x [b,cell,C]. The caches hold the noisy cell too, until it is clean."""
        caches = [(cache[f"k{i}"], cache[f"v{i}"]) for i in range(self.c.layers)]
        y = (label + self.time_embed(turn))[:, None]
        v = self.velocity(x.index_select(0, image), y, past, caches)
        cond, null = v.index_select(0, row), v.index_select(0, null_row)
        v = cond + (scale - 1)[:, None, None] * (cond - null)
        keep, dt, kick = self.schedule.index_select(0, turn.reshape(1)).split(1, 1)
        x = x + dt * (keep * v + x) + kick * noise * temperature[:, None, None]
        states = {f"k{i}": k for i, (k, _) in enumerate(caches)}
        return {"x": x, **states, **{f"v{i}": v for i, (_, v) in enumerate(caches)}}

    def place(self, latents: Tensor, x: Tensor, cells: Tensor) -> dict[str, Tensor]:
        at = cells[None, :, None].expand(x.shape[0], -1, self.c.channels)
        return {"latents": latents.scatter(1, at, x)}


class Net(nn.Module):
    """The transformer and, when given, the image decoder."""

    def __init__(self, c: Config, vae: kl.KL | None):
        super().__init__()
        self.xar = Transformer(c)
        if vae is not None:
            self.vae = vae


@family("xar")
class XAR(Family):
    """Cell by cell, block-causal, all tokens of a cell drawn together by flow matching."""

    order = "cells"
    licence = "none stated"
    verified = "latents of a plain transcription, on random weights"
    sizes = SIZES
    options: ClassVar = {
        "num_heads": "attention heads; told by the rotary tables of a checkpoint, if it has them",
        "flow_steps": "flow steps for each cell; 40 for B, 50 for the larger ones",
        "flow_least": "flow steps of the last cell, if fewer (DiSA)",
        "annealing": "how they fall: linear (the default), cosine or two-stage",
    }
    decoder_containers = ("model", "")

    def claims(self, t: Tensors) -> bool:
        return _OWN.issubset(t) and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, with KL-16; or "tiny"."""
        c = of_size(size)
        with torch.device("meta"):
            names = state(Transformer(c), skip=TABLES)
        facts = {"num_heads": str(c.heads), "flow_steps": str(c.steps)}
        return Source(weights(names, seed), weights(kl.published(c.channels), seed),
                      metadata=facts)

    def model(self, source: Source, options: Options) -> Model:
        t, c = source.tensors, config(source, options)
        with torch.device("meta"):
            vae = kl.read(source.decoder, c.channels, c.grid)
            net = Net(c, vae)
        match(t, state(net.xar, skip=TABLES), ignore=("mask", "*.attn.rope.*"), what="xAR")
        names = state(net, skip=[f"xar.{k}" for k in TABLES])
        bound = bind({"xar.": t, "vae.": source.decoder or {}}, names).plus(tables(c))
        return Model(net, entries(net, c), program(c, vae is not None), bound, info(c, vae),
                     defaults={"guidance": EVALUATED.get(c.dim, (2.5, 0))[0]})


TABLES = ("schedule", "time_embed.rows", "rope.")  # ours, not the checkpoint's
_OWN = {"z_proj_ln.weight", "time_embed.mlp.0.weight", "encoder_pos_embed_learned",
        "encoder_blocks.0.mlp.fc1_g.weight", "encoder_blocks.0.ada_lin.1.weight", "pred.weight",
        "class_emb.weight"}
_TOP = {"encoder_pos_embed_learned", "decoder_pos_embed_learned", "mask", "class_emb", "time_embed",
        "z_proj", "z_proj_ln", "encoder_blocks", "decoder_blocks", "encoder_norm", "decoder_norm",
        "decoder_embed", "pred"}


def of_size(size: str) -> Config:
    if size == "tiny":
        return Config(32, 1, 1, 2, 48, 5, 4, 16, steps=3)
    if size not in SIZES:
        raise ArcError(f"family xar has no size {size!r}", hint=did_you_mean(size, SIZES))
    dim, layers, heads = SIZES[size]
    return Config(dim, layers, layers, heads, 8 * dim // 3, 1000, 16, 256, EVALUATED[dim][1])


# --- what the checkpoint says --------------------------------------------------------------------


def config(source: Source, options: Options) -> Config:
    """Every size from the tensors; heads from an option, the rotary tables or the width."""
    t = source.tensors
    if missing := sorted(_OWN - {*t}):
        raise ArcError(f"not an xAR transformer: {missing[0]} is missing",
                       hint="name the family with --family")
    classes, dim = shape(t, "class_emb.weight", 2)
    positions = shape(t, "encoder_pos_embed_learned", 3)[1]
    side = math.isqrt(positions)
    if side**2 != positions or side % CELLS:
        raise ArcError(f"{positions} tokens are not a square of {CELLS} x {CELLS} cells",
                       hint="is it an xAR checkpoint?")
    steps = told(source, "flow_steps") or EVALUATED.get(dim, (0, 50))[1]
    steps = positive(options, "flow_steps", steps, "the number of flow steps", TRAINED)
    hidden = shape(t, "encoder_blocks.0.mlp.fc1_g.weight", 2)[0]
    return Config(dim, count(t, "encoder_blocks."), count(t, "decoder_blocks."),
                  heads(source, options, dim), hidden, classes - 1,
                  shape(t, "z_proj.weight", 2)[1], positions, steps,
                  **falling(options, "flow", steps))


def heads(source: Source, options: Options, dim: int) -> int:
    t, key = source.tensors, "encoder_blocks.0.attn.rope.freqs_cos"
    known = dim // shape(t, key, 2)[1] if key in t else told(source, "num_heads")
    known = known or {d: h for d, _, h in SIZES.values()}.get(dim)
    found = positive(options, "num_heads", known, f"the number of heads of a {dim}-wide model")
    if dim % found or (dim // found) % 4:
        raise ArcError(f"num_heads={found} does not divide {dim} into heads of a multiple of 4",
                       hint="2-D rotary embedding needs head sizes divisible by 4")
    return found


def cells(c: Config) -> np.ndarray:
    """i64 [4, cell]: the raster positions of each cell's tokens, raster order inside."""
    side = c.grid // CELLS
    at = np.arange(c.positions).reshape(CELLS, side, CELLS, side)
    return at.transpose(0, 2, 1, 3).reshape(CELLS**2, c.cell)


def tables(c: Config) -> dict[str, Any]:
    """What the loop knows of its turns and of the cells. The network is told whole thousandths.

    The last row is of the turn over a clean cell, which leaves it as it is.
    """

    def rope() -> dict[str, np.ndarray]:
        order = cells(c).ravel()
        found = grid_rope(c.grid, c.grid, c.dim // c.heads)
        return {k: np.ascontiguousarray(v[order]) for k, v in found.items()}

    told_times = np.concatenate([times(n) for n in c.lengths]).astype(np.float32)
    told_times = [*(told_times * np.float32(TRAINED)).astype(int), 0]
    clean = np.zeros((1, len(COLUMNS)), np.float32)
    return {"@xar.schedule": lambda: np.concatenate([*map(flow, c.lengths), clean]),
            "@xar.time_embed.rows": lambda: sinusoid(told_times),
            "@xar.rope.cos": lambda: rope()["cos"],
            "@xar.rope.sin": lambda: rope()["sin"]}


# --- the loop ------------------------------------------------------------------------------------


def steps(c: Config) -> list[Step]:
    """One a cell. The pass over the clean cell is one more turn, which the last cell spares."""
    found, last = [], CELLS**2 - 1
    for i, (cell, n) in enumerate(zip(cells(c), c.flows, strict=True)):
        share, at = i / last, tuple(int(p) for p in cell)
        calls = (Call("begin"), Call("flow", loop=_table(c, n)), Call("place"))
        found.append(Step(at, at, calls, (1 - share, share), c.cell, (("cells", at),)))
    ends = (Call("begin"), Call("flow", loop="last"), Call("place"))
    return [*found[:-1], replace(found[-1], calls=ends)]


def _table(c: Config, n: int) -> str:
    return "flow" if c.lengths == [n] else f"flow{n}"


def turns(c: Config) -> dict[str, dict[str, tuple[int, ...]]]:
    """The rows of each flow, and of the last cell's, whose clean pass nobody would read."""
    rows, clean = loops(c.lengths), (c.turns - 1,)
    found = {_table(c, n): {"turn": rows[n] + clean} for n in c.lengths}
    return {**found, "last": {"turn": rows[c.flows[-1]]}}


def caches(c: Config) -> dict[str, Type]:
    t = Type("f32", ("r", c.heads, c.positions, c.dim // c.heads))
    return {f"{k}{i}": t for i in range(c.layers) for k in "kv"}


def program(c: Config, decodes: bool) -> Program:
    latents = Type("f32", ("b", c.positions, c.channels))
    return Program(
        "xar", c.positions, tuple(steps(c)), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),) if decodes else (),
        inputs=(("cond", Type("i64", ("b",))),),
        state=(("latents", latents), *caches(c).items()),
        draws=(Draw("initial_noise", "normal", c.channels),
               Draw("noise", "normal", c.channels, "loop")),
        tables=turns(c), mask="full",
    )


def entries(net: Net, c: Config) -> list[Entry]:
    image, x = {"image": "i64[r]"}, f"f32[b,{c.cell},{c.channels}]"
    latents = {"latents": f"f32[b,{c.positions},{c.channels}]"}
    found = [
        Entry("prompt", net.xar.prompt, {"cond": "i64[b]", **image, "is_null": "bool[r]"}),
        Entry("begin", net.xar.begin, {"initial_noise": x}),
        Entry("flow", net.xar.flow, {
            "x": x, "label": f"f32[r,{c.dim}]", "past": "i32[r]", "turn": "i64[]", **image,
            "row": "i64[b]", "null_row": "i64[b]", "scale": "f32[b]", "temperature": "f32[b]",
            "noise": x, **{k: str(t) for k, t in caches(c).items()}}),
        Entry("place", net.xar.place, {**latents, "x": x, "cells": f"i64[{c.cell}]"}),
    ]
    if hasattr(net, "vae"):
        found.append(Entry("decode", net.vae.decode, latents))
    return found


def info(c: Config, vae: kl.KL | None) -> dict[str, Any]:
    size = next((k for k, v in SIZES.items() if v[:2] == (c.dim, c.encoder)), "custom")
    found = {"size": size, "dim": c.dim, "layers": [c.encoder, c.decoder], "heads": c.heads,
             "grid": c.grid, "classes": c.classes, "channels": c.channels, "cells": CELLS**2,
             "flow_steps": c.steps}
    if c.least not in (0, c.steps):
        found |= {"flow_least": c.least, "annealing": c.annealing}
    return found | ({"pixels": c.grid * vae.factor} if vae is not None else {})
