"""VAR: next-scale prediction over residual VQ codes. https://arxiv.org/abs/2404.02905

A step draws all cells of one scale, after every earlier scale and freely inside its own; what is
drawn so far is carried as a latent, from which the next scale's input is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import match
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family, positive
from arcompile.ir import Type
from arcompile.models import multiscale_vq
from arcompile.models.adaln import Block, HeadNorm, linear
from arcompile.models.multiscale_vq import MultiScaleVQ, cells
from arcompile.models.parts import bind, coder, state, view
from arcompile.models.random import weights
from arcompile.models.scales import PUBLISHED, from_tables, starts
from arcompile.program import Call, Draw, Program, scales
from arcompile.weights import Weights

# name -> (width, layers, heads)
SIZES = {"d16": (1024, 16, 16), "d20": (1280, 20, 20), "d24": (1536, 24, 24),
         "d30": (1920, 30, 30), "d36": (2304, 36, 36)}
OPTIONS = {
    "patch_nums": "grid sides, coarse to fine; told by the checkpoint's own tables",
    "n_head": "attention heads; told by the tensors unless attention is not normalised",
}
IGNORE = ("lvl_1L", "attn_bias_for_masking")  # tables of training


@dataclass(frozen=True)
class Config:
    dim: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    width: int  # of a code
    classes: int
    patch_nums: tuple[int, ...]
    shared: bool = False  # one modulation linear for all blocks
    cosine: bool = True

    @property
    def positions(self) -> int:
        return starts(self.patch_nums)[-1]


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.pos_start = nn.Parameter(torch.empty(1, c.patch_nums[0] ** 2, c.dim))
        self.tables(c)
        self.class_emb = nn.Embedding(c.classes + 1, c.dim)
        self.word_embed = nn.Linear(c.width, c.dim)
        if c.shared:
            self.shared_ada_lin = linear(c.dim, 6)
        self.blocks = nn.ModuleList(
            Block(c.dim, c.heads, c.hidden, c.shared, c.cosine) for _ in range(c.layers))
        self.head_nm = HeadNorm(c.dim)
        self.head = nn.Linear(c.dim, c.vocabulary)

    def tables(self, c: Config) -> None:
        self.pos_1LC = nn.Parameter(torch.empty(1, c.positions, c.dim))
        self.lvl_embed = nn.Embedding(len(c.patch_nums), c.dim)

    def place(self, scale: int) -> Tensor:
        """Position and level embedding of a scale's cells, [1,n*n,dim]."""
        at = starts(self.c.patch_nums)
        return self.pos_1LC[:, at[scale] : at[scale + 1]] + self.lvl_embed.weight[scale]

    def prompt(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        null = torch.full_like(image, self.c.classes)
        c = self.class_emb(torch.where(is_null, null, cond.index_select(0, image)))
        return {"x": c[:, None] + self.pos_start + self.place(0), "ada": self.vectors(c)}

    def vectors(self, c: Tensor) -> Tensor:
        """Modulation vectors of all blocks and the head, [r, 6*layers + 2, dim]."""
        shared = self.shared_ada_lin(c).unflatten(-1, (6, self.c.dim)) if self.c.shared else None
        made = [block.vectors(c, shared) for block in self.blocks]
        return torch.cat((*made, self.head_nm.vectors(c)), 1)

    def step(self, x: Tensor, ada: Tensor, past: Tensor, noise: Tensor,
             **cache: Tensor) -> dict[str, Tensor]:
        """x [r,s,dim] -> logits of the cells of this scale."""
        out, rows = {}, ada.split(1, 1)
        for i, block in enumerate(self.blocks):
            x, (out[f"k{i}"], out[f"v{i}"]) = block(
                x, rows[6 * i : 6 * i + 6], (cache[f"k{i}"], cache[f"v{i}"]), past)
        x = self.head_nm(arc.tail(x, noise), rows[-2:])
        return {"logits": self.head(x), **out}


_FEED = ("gpt.word_embed", "gpt.pos_1LC", "gpt.lvl_embed", "vae.quantize")


class Net(nn.Module):
    """The transformer and the tokenizer, which makes its inputs too."""

    def __init__(self, c: Config, vae: MultiScaleVQ):
        super().__init__()
        self.gpt, self.vae = Transformer(c), vae

    def feed(self, scale: int) -> Callable[..., dict[str, Tensor]]:
        """The graph after a scale's draw: add its map; the next scale's input, if there is one."""

        def feed(net: Net, token: Tensor, f_hat: Tensor, image: Tensor) -> dict[str, Tensor]:
            f_hat = f_hat + net.vae.map(token, scale)
            n = net.gpt.c.patch_nums[scale + 1]
            x = net.gpt.word_embed(cells(arc.resize(f_hat, n, n, "area")))
            x = x + net.gpt.place(scale + 1)
            return {"f_hat": f_hat, "x": x.index_select(0, image)}

        def last(net: Net, token: Tensor, f_hat: Tensor) -> dict[str, Tensor]:
            return {"f_hat": f_hat + net.vae.map(token, scale)}

        if scale + 1 == len(self.vae.patch_nums):
            return MethodType(last, view(self, "vae.quantize"))
        return MethodType(feed, view(self, *_FEED))


@family("var")
class Var(Family):
    """A step a scale; attention to all earlier scales; class-conditional."""

    order = "scales"
    licence = "MIT"
    verified = "greedy tokens, logits, pixels and encoding of upstream on tiny checkpoints"
    sizes: ClassVar = SIZES
    options: ClassVar = OPTIONS
    containers = ("", "trainer.var_wo_ddp", "model", "state_dict")
    decoder_containers = ("", "trainer.vae_local", "model", "state_dict")

    def claims(self, t: Tensors) -> bool:
        own = {"pos_1LC", "lvl_embed.weight", "blocks.0.attn.mat_qkv.weight"} <= t.keys()
        inner = {k.split(".", 2)[2] for k in t if k.startswith("blocks.0.")}
        return own and {k.split(".")[0] for k in t} <= _TOP and inner <= _BLOCK

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, or "tiny"."""
        if size == "tiny":
            c = Config(64, 2, 2, 128, 32, 8, 5, (1, 2, 3))
            make = {"ch": 32, "z": 8, "codes": 32, "mult": (1, 1)}
        else:
            dim, layers, heads = SIZES[size]
            c = Config(dim, layers, heads, 4 * dim, 4096, 32, 1000, PUBLISHED[size == "d36"],
                       shared=size == "d36")
            make = {}
        with torch.device("meta"):
            net = Net(c, multiscale_vq.published(c.patch_nums, **make))
        return invent(net, seed)

    def model(self, source: Source, options: Options) -> Model:
        if source.decoder is None:
            raise ArcError("VAR makes each scale's input with its image tokenizer, and none is "
                           "given", hint="give --decoder vae_ch160v4096z32.pth")
        c = config(source, options)
        with torch.device("meta"):
            net = Net(c, tokenizer(source.decoder, c))
        return Model(net, entries(net, c), program(c), bound(source, net, "VAR"), info(c, net.vae),
                     defaults={"guidance": 1.5, "top_k": 900, "top_p": 0.96})


_TOP = {"pos_start", "pos_1LC", "lvl_embed", "lvl_1L", "attn_bias_for_masking", "class_emb",
        "word_embed", "blocks", "shared_ada_lin", "head_nm", "head"}
_BLOCK = {f"attn.{k}" for k in ("mat_qkv.weight", "q_bias", "v_bias", "zero_k_bias", "proj.weight",
                                "proj.bias", "scale_mul_1H11")}
_BLOCK |= {f"{m}.{k}" for m in ("ffn.fc1", "ffn.fc2", "ada_lin.1") for k in ("weight", "bias")}
_BLOCK |= {"ada_gss"}


def invent(net: Any, seed: int) -> Source:
    """Random weights of a transformer and its multi-scale tokenizer."""
    facts = {"patch_nums": ",".join(map(str, net.vae.patch_nums))}
    return Source(weights(state(net.gpt), seed), weights(state(net.vae), seed), metadata=facts)


def bound(source: Source, net: Any, what: str) -> Weights:
    """The weights of a transformer and its multi-scale tokenizer, checked."""
    decoder = source.decoder or Tensors("no file", {})
    match(source.tensors, state(net.gpt), ignore=IGNORE, what=what)
    match(decoder, state(net.vae), ignore=multiscale_vq.IGNORE, what="VAR's tokenizer")
    return bind({"gpt.": source.tensors, "vae.": decoder}, state(net))


def config(source: Source, options: Options) -> Config:
    """Every size from the tensors; the schedule from its tables."""
    t, told = source.tensors, source.metadata.get("patch_nums")
    expect(t, {"pos_1LC": 3, "lvl_embed.weight": 2, "class_emb.weight": 2, "word_embed.weight": 2,
               "blocks.0.ffn.fc1.weight": 2, "head.weight": 2}, "VAR")
    dim, width = t.shape("word_embed.weight")
    return Config(
        dim, depth(t, "blocks"), heads(t, "blocks.0.attn", dim, options),
        t.shape("blocks.0.ffn.fc1.weight")[0], t.shape("head.weight")[0], width,
        t.shape("class_emb.weight")[0] - 1, from_tables(t, options.get("patch_nums", told)),
        "blocks.0.ada_gss" in t, "blocks.0.attn.scale_mul_1H11" in t,
    )


def expect(t: Tensors, ranks: dict[str, int], what: str) -> None:
    """Raise ArcError unless these tensors are there, with these ranks."""
    for key, rank in ranks.items():
        if key not in t or len(t.shape(key)) != rank or 0 in t.shape(key):
            found = f"has shape {t.shape(key)}" if key in t else "is missing"
            raise ArcError(f"not a {what} transformer: {key} {found}",
                           hint="name the family with --family")


def depth(t: Tensors, prefix: str) -> int:
    return len({m[1] for k in t if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", k))})


def heads(t: Tensors, attention: str, dim: int, options: Options) -> int:
    """From the learned scale per head; without it 64 wide, as all published sizes are."""
    key = f"{attention}.scale_mul_1H11"
    told = t.shape(key)[1] if key in t and len(t.shape(key)) == 4 else max(dim // 64, 1)
    found = positive(options, "n_head", told, "the number of heads")
    if key in t and found != told:
        raise ArcError(f"n_head={found}, but {key} has {told} heads", hint="leave n_head out")
    if dim % found:
        raise ArcError(f"n_head={found} does not divide the width {dim}",
                       hint="give --option n_head=N")
    return found


def tokenizer(decoder: Tensors, c: Config) -> MultiScaleVQ:
    vae = multiscale_vq.read({k: decoder.shape(k) for k in decoder}, c.patch_nums)
    if (vae.codes, vae.width) != (c.vocabulary, c.width):
        raise ArcError(
            f"the decoder's codebook is {vae.codes} codes of {vae.width}, but the transformer "
            f"draws from {c.vocabulary} of {c.width}",
            hint="give the tokenizer this checkpoint was trained with")
    return vae


def entries(net: Net, c: Config) -> list[Entry]:
    row = {"image": "i64[r]", "is_null": "bool[r]"}
    side = c.patch_nums[-1]
    f_hat = f"f32[b,{c.width},{side},{side}]"
    return [
        Entry("prompt", net.gpt.prompt, {"cond": "i64[b]", **row}),
        Entry("step", net.gpt.step, step_inputs(c)),
        *feeds(net, c.patch_nums, f_hat),
        *coder(net.vae, {"f_hat": f_hat}, side, side),
    ]


def step_inputs(c: Config) -> dict[str, str]:
    return {"x": f"f32[r,s,{c.dim}]", "ada": f"f32[r,{6 * c.layers + 2},{c.dim}]",
            "past": "i32[r]", "noise": "f32[b,c,2]",
            **{k: str(t) for k, t in caches(c).items()}}


def feeds(net: Any, patch_nums: tuple[int, ...], f_hat: str) -> list[Entry]:
    """A graph a scale: resizing is between fixed sizes."""
    last = len(patch_nums) - 1
    return [Entry(f"feed{s}", net.feed(s), {
        "token": f"i64[b,{n * n}]", "f_hat": f_hat, **({"image": "i64[r]"} if s < last else {})})
        for s, n in enumerate(patch_nums)]


def caches(c: Config) -> dict[str, Type]:
    t = Type("f32", ("r", c.heads, c.positions, c.dim // c.heads))
    return {f"{k}{i}": t for i in range(c.layers) for k in "kv"}


def program(c: Config) -> Program:
    """A step a scale; guidance grows from none at the first scale to all of it at the last."""
    last, side = len(c.patch_nums) - 1, c.patch_nums[-1]
    steps = tuple(
        replace(step, calls=(Call("step"), Call("sample"), Call(f"feed{s}")),
                guide=(1.0, s / max(last, 1)))
        for s, step in enumerate(scales(c.patch_nums)))
    return Program(
        "var", c.positions, steps, prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),), inputs=(("cond", Type("i64", ("b",))),),
        state=(*caches(c).items(), ("f_hat", Type("f32", ("b", c.width, side, side)))),
        draws=(Draw("noise", "uniform", 2),), mask="full",
    )


def info(c: Config, vae: MultiScaleVQ) -> dict[str, Any]:
    size = next((k for k, v in SIZES.items() if v == (c.dim, c.layers, c.heads)), "custom")
    return {"dim": c.dim, "layers": c.layers, "heads": c.heads, "vocabulary": c.vocabulary,
            "patch_nums": list(c.patch_nums), "size": size, "classes": c.classes,
            "pixels": c.patch_nums[-1] * vae.factor}
