"""RAR: randomized autoregressive generation, raster when it draws. https://arxiv.org/abs/2411.00776

Each slot knows by a second position embedding which position it foretells, and is modulated by the
class and its number (AdaLN). Guidance rises along a power of a cosine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import match
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family
from arcompile.ir import Type
from arcompile.models.maskgit_vq import VQ, published
from arcompile.models.parts import bind, coder, state
from arcompile.models.random import weights
from arcompile.program import Call, Draw, Program, Step

# name -> (width, layers, heads)
SIZES = {"B": (768, 24, 16), "L": (1024, 24, 16), "XL": (1280, 32, 16), "XXL": (1408, 40, 16)}
HIDDEN = {"B": 3072, "L": 4096, "XL": 5120, "XXL": 6144, "tiny": 96}
# name -> guidance, its power and temperature, as its authors evaluated it
DRAWN = {"B": (16.0, 2.75, 1.0), "L": (15.5, 2.5, 1.02), "XL": (6.9, 1.5, 1.02),
         "XXL": (8.0, 1.2, 1.02), "custom": (4.0, 0.0, 1.0)}
_SPARE = 1024  # rows of the position embeddings beyond the image's
_TOP = {"cls_token", "embeddings", "pos_embed", "target_aware_pos_embed", "timesteps_embeddings",
        "blocks", "adaln_before_head", "lm_head"}


@dataclass(frozen=True)
class Config:
    dim: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    classes: int
    grid: int
    steps: int  # rows of the step embedding

    @property
    def positions(self) -> int:
        return self.grid * self.grid

    @property
    def slots(self) -> int:
        return self.positions + 1  # cls, class, and every token but the last

    @property
    def size(self) -> str:
        shape = (self.dim, self.layers, self.heads)
        return next((k for k, v in SIZES.items() if v == shape), "custom")


class Attention(nn.Module):
    """Queries and keys are normalised per head."""

    def __init__(self, c: Config):
        super().__init__()
        self.heads, self.head = c.heads, c.dim // c.heads
        self.qkv = nn.Linear(c.dim, 3 * c.dim)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head, eps=1e-6) for _ in "qk")
        self.proj = nn.Linear(c.dim, c.dim)

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor],
                past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k = self.apart(q, self.q_norm), self.apart(k, self.k_norm)
        kc, vc = arc.cache_append(cache[0], k, past), arc.cache_append(cache[1], v, past)
        h, scale = self.heads, self.head**-0.5
        return self.proj(arc.attention(q, kc, vc, h, h, scale, "causal", past)), kc, vc

    def apart(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x.unflatten(-1, (self.heads, self.head))).flatten(-2)


class MLP(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c.dim, c.hidden), nn.Linear(c.hidden, c.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


def modulation(dim: int, times: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(dim, times * dim))


class Block(nn.Module):
    """Shift, scale and gate of the attention, then of the MLP, from the condition of the slot."""

    def __init__(self, c: Config):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(c.dim, eps=1e-6) for _ in "12")
        self.attn, self.mlp = Attention(c), MLP(c)
        self.adaLN_modulation = modulation(c.dim, 6)

    def forward(self, x: Tensor, cond: Tensor, cache: tuple[Tensor, Tensor],
                past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(cond).chunk(6, -1)
        out, kc, vc = self.attn(self.norm1(x) * (1 + scale) + shift, cache, past)
        x = x + gate * out
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2), kc, vc


class Final(nn.Module):
    """Here the scale comes before the shift."""

    def __init__(self, c: Config):
        super().__init__()
        self.norm_final = nn.LayerNorm(c.dim, eps=1e-6, elementwise_affine=False)
        self.adaLN_modulation = modulation(c.dim, 2)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(cond).chunk(2, -1)
        return self.norm_final(x) * (1 + scale) + shift


class Transformer(nn.Module):
    """`embeddings` holds the codes, a mask, the classes and the null class."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.dim))
        self.embeddings = nn.Embedding(c.vocabulary + 1 + c.classes + 1, c.dim)
        self.pos_embed, self.target_aware_pos_embed = (
            nn.Parameter(torch.empty(1, c.positions + _SPARE, c.dim)) for _ in "12")
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, c.steps, c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.adaln_before_head = Final(c)
        self.lm_head = nn.Linear(c.dim, c.vocabulary)

    def prompt(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        null = torch.full_like(image, self.c.classes)
        row = torch.where(is_null, null, cond.index_select(0, image)) + (self.c.vocabulary + 1)
        label = self.embeddings(row)
        first = self.cls_token[0].expand(label.shape[0], -1)
        return {"x": torch.stack((first, label), 1), "label": label}

    def feed(self, token: Tensor, image: Tensor) -> dict[str, Tensor]:
        return {"x": self.embeddings(token).index_select(0, image)}

    def places(self) -> Tensor:
        """[slots, dim]: where each slot is, and for all but the first the position it foretells."""
        n = self.c.slots
        aim = nn.functional.pad(self.target_aware_pos_embed[0, 2 : n + 1], (0, 0, 1, 0))
        return self.pos_embed[0, :n] + aim

    def step(self, x: Tensor, label: Tensor, past: Tensor, noise: Tensor,
             **cache: Tensor) -> dict[str, Tensor]:
        """x [r,s,dim], label [r,dim] -> logits of the last c slots: c of `noise` [b,c,2]."""
        slot, out = past[:, None].long() + torch.arange(x.shape[1]), {}
        x = x + nn.functional.embedding(slot, self.places())
        cond = label[:, None] + nn.functional.embedding(slot, self.timesteps_embeddings[0])
        for i, block in enumerate(self.blocks):
            kv = (cache[f"k{i}"], cache[f"v{i}"])
            x, out[f"k{i}"], out[f"v{i}"] = block(x, cond, kv, past)
        x = self.adaln_before_head(arc.tail(x, noise), arc.tail(cond, noise))
        return {"logits": self.lm_head(x), **out}


class Net(nn.Module):
    def __init__(self, gpt: Transformer, vq: VQ | None):
        super().__init__()
        self.gpt = gpt
        if vq is not None:
            self.vq = vq


@family("rar")
class RAR(Family):
    """Raster order, causal, with guidance that rises step by step. Pixels: 2 x upstream's - 1."""

    order = "raster"
    licence = "Apache-2.0"
    verified = "logits and pixels of a plain transcription of upstream's facts, on random weights"
    sizes = SIZES
    options: ClassVar = {
        "guidance_pow": "power of the guidance's cosine, 0 for constant guidance; each published "
                        "size has its own",
    }

    def claims(self, t: Tensors) -> bool:
        own = {"target_aware_pos_embed", "timesteps_embeddings", "lm_head.weight"} <= t.keys()
        return own and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, with the MaskGIT-VQGAN; or "tiny"."""
        c = Config(64, 2, 4, HIDDEN["tiny"], 64, 5, 4, 116)
        vq = published((1, 2), ch=32, z=32, codes=64)
        if size != "tiny":
            c = Config(*SIZES[size], HIDDEN[size], 1024, 1000, 16, 356)
            vq = published((1, 1, 2, 2, 4))
        with torch.device("meta"):
            names = state(Transformer(c))
        return Source(weights(names, seed), weights(vq, seed))

    def model(self, source: Source, options: Options) -> Model:
        c, t = config(source.tensors), source.tensors
        second = source.decoder
        with torch.device("meta"):
            vq = VQ({k: second.shape(k) for k in second}, c.grid) if second is not None else None
            net = Net(Transformer(c), vq)
        if vq is not None and vq.codes != c.vocabulary:
            raise ArcError(f"the decoder's codebook has {vq.codes} codes but the transformer draws "
                           f"from {c.vocabulary}",
                           hint="give maskgit-vqgan-imagenet-f16-256.bin")
        match(t, state(net.gpt), ignore=("attn_mask",), what=self.name)
        if vq is not None and second is not None:
            match(second, state(vq), what="MaskGIT-VQGAN")
        bound = bind({"gpt.": t, "vq.": second or {}}, state(net))
        scale, _, temperature = DRAWN[c.size]
        run = program(c, power(c, options), vq is not None)
        return Model(net, entries(net, c), run, bound, info(net, c),
                     defaults={"guidance": scale, "temperature": temperature})


def power(c: Config, options: Options) -> float:
    value = options.get("guidance_pow", DRAWN[c.size][1])
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ArcError(f"option guidance_pow must be a number from 0 to 100, got {value!r}",
                       hint="0 keeps the guidance constant")
    return float(value)


def config(t: Tensors) -> Config:
    """Every size from the tensors."""
    rows, dim = sized(t, "embeddings.weight", 2)
    vocabulary = sized(t, "lm_head.weight", 2)[0]
    head = sized(t, "blocks.0.attn.q_norm.weight", 1)[0]
    hidden = sized(t, "blocks.0.mlp.fc1.weight", 2)[0]
    n = sized(t, "pos_embed", 3)[1] - _SPARE
    layers = 1 + max(int(k.split(".")[1]) for k in t if k.startswith("blocks."))
    if dim % head or head % 2:
        raise ArcError(f"heads of {head} do not divide a width of {dim}",
                       hint="is it a RAR checkpoint?")
    if n < 1 or isqrt(n) ** 2 != n:
        raise ArcError(f"pos_embed has {n + _SPARE} rows, which is not {_SPARE} and a square",
                       hint="is it a RAR checkpoint?")
    classes = rows - vocabulary - 2
    if classes < 1:
        raise ArcError(f"embeddings has {rows} rows, too few for {vocabulary} codes and classes",
                       hint="is it a RAR checkpoint?")
    steps = sized(t, "timesteps_embeddings", 3)[1]
    if steps < n + 1:
        raise ArcError(f"timesteps_embeddings has {steps} rows for {n + 1} slots",
                       hint="is it a RAR checkpoint?")
    return Config(dim, layers, dim // head, hidden, vocabulary, classes, isqrt(n), steps)


def sized(t: Tensors, name: str, rank: int) -> tuple[int, ...]:
    if name not in t or len(t.shape(name)) != rank:
        raise ArcError(f"not a RAR transformer: {name} is missing or not of rank {rank}",
                       hint="name the family with --family")
    return t.shape(name)


def entries(net: Net, c: Config) -> list[Entry]:
    x = f"f32[r,s,{c.dim}]"
    found = [
        Entry("prompt", net.gpt.prompt, {"cond": "i64[b]", "image": "i64[r]",
                                         "is_null": "bool[r]"}),
        Entry("step", net.gpt.step, {"x": x, "label": f"f32[r,{c.dim}]", "past": "i32[r]",
                                     "noise": "f32[b,c,2]",
                                     **{k: str(t) for k, t in caches(c).items()}}),
        Entry("feed", net.gpt.feed, {"token": "i64[b,c]", "image": "i64[r]"}),
    ]
    if hasattr(net, "vq"):
        found += coder(net.vq, {"tokens": f"i64[b,{c.positions}]"}, c.grid, c.grid)
    return found


def caches(c: Config) -> Mapping[str, Type]:
    t = Type("f32", ("r", c.heads, c.slots, c.dim // c.heads))
    return {f"{k}{i}": t for i in range(c.layers) for k in "kv"}


def program(c: Config, power: float, decodes: bool) -> Program:
    """Two slots of prompt, then one token a step."""
    more = (Call("step"), Call("sample"), Call("feed"))
    n = c.positions
    steps = [Step((i,), (i,), more if i < n - 1 else more[:2], guide(i / n, power),
                  append=1 if i else 2) for i in range(n)]
    return Program(
        "rar", n, tuple(steps), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),) if decodes else (),
        inputs=(("cond", Type.parse("i64[b]")),), state=tuple(caches(c).items()),
        draws=(Draw("noise", "uniform", 2),),
    )


def guide(done: float, power: float) -> tuple[float, float]:
    """1 + (g - 1) w with w = (1 - cos(pi done^power)) / 2, as a constant and a multiple of g."""
    w = (1 - math.cos(math.pi * done**power)) / 2
    return 1 - w, w


def info(net: Net, c: Config) -> dict[str, Any]:
    found = {"dim": c.dim, "layers": c.layers, "heads": c.heads, "grid": c.grid,
             "vocabulary": c.vocabulary, "size": c.size, "classes": c.classes}
    return found | ({"pixels": c.grid * net.vq.factor} if hasattr(net, "vq") else {})
