"""Infinity: next-scale prediction of bits, from text, at any aspect ratio.

https://arxiv.org/abs/2412.04431. A position of the program is one bit: a cell of a scale has `bits`
of them, all drawn at once. What is drawn so far is carried as a sum of maps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
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
from arcompile.models import ldm, t5
from arcompile.models.adaln import HeadNorm, linear
from arcompile.models.adaln_text import Chunk, CrossAttention, TextBlock
from arcompile.models.infinity_scales import PUBLISHED, Scales, rope, schedule
from arcompile.models.llama import RopeTable
from arcompile.models.multiscale_vq import cells
from arcompile.models.parts import bind, state, view
from arcompile.models.random import weights
from arcompile.models.var import depth, expect, heads
from arcompile.program import Call, Draw, Program, Step

# name -> (width, layers, heads, chunks, bits)
SIZES = {
    "2B": (2048, 32, 16, 8, 32), "8B": (3584, 40, 28, 8, 56), "layer12": (768, 12, 8, 4, 32),
    "layer16": (1152, 16, 12, 4, 32), "layer24": (1536, 24, 16, 4, 32),
    "layer32": (2080, 32, 20, 4, 32), "layer40": (2688, 40, 24, 4, 32),
    "layer48": (3360, 48, 28, 4, 32),
}
IGNORE = ("lvl_1L", "attn_bias_for_masking", "*isible_kvlen", "*isible_qlen")  # of training
VAE_IGNORE = ("quantizer.lfq.mask", "quantize.lfq.mask")
_INNER = re.compile(r"((?:conv|norm)\w+|nin_shortcut|sample\.conv)\.(?:conv|norm)\.(weight|bias)$")


@dataclass(frozen=True)
class Config:
    dim: int
    layers: int
    heads: int
    hidden: int
    chunks: int  # 0: the blocks are not in chunks
    bits: int
    text: int  # width of a text feature
    null: int  # rows of the unconditional text
    pool: int  # heads of the pooling
    scales: Scales
    patchify: bool = False  # a cell of the transformer is 2x2 cells of the decoder

    @property
    def cells(self) -> list[int]:
        return [h * w for h, w in self.scales]

    @property
    def width(self) -> int:
        """Channels of the decoder's latent."""
        return self.bits // 4 if self.patchify else self.bits

    def grid(self, scale: int) -> tuple[int, int]:
        """Height and width of a scale in the decoder's cells."""
        h, w = self.scales[scale]
        return (2 * h, 2 * w) if self.patchify else (h, w)


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.cfg_uncond = nn.Parameter(torch.empty(c.null, c.text))
        self.text_norm = arc.RMSNorm(c.text, 1e-6)
        self.text_proj_for_sos = nn.Module()
        self.text_proj_for_sos.ca = CrossAttention(c.dim, c.pool, c.text, pool=True)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(c.text, c.dim), nn.GELU(approximate="tanh"), nn.Linear(c.dim, c.dim))
        self.pos_start = nn.Parameter(torch.empty(1, 1, c.dim))
        self.lvl_embed = nn.Embedding(15, c.dim)
        self.word_embed = nn.Linear(c.bits, c.dim)
        self.shared_ada_lin = linear(c.dim, 6)
        made = [TextBlock(c.dim, c.heads, c.hidden) for _ in range(c.layers)]
        if c.chunks:
            n = c.layers // c.chunks
            self.block_chunks = nn.ModuleList(
                Chunk(made[i * n : i * n + n]) for i in range(c.chunks))
        else:
            self.blocks = nn.ModuleList(made)
        self.head_nm = HeadNorm(c.dim)
        self.head = nn.Linear(c.dim, 2 * c.bits)
        self.rope = RopeTable(sum(c.cells), c.dim // c.heads)

    def layers(self) -> list[TextBlock]:
        if self.c.chunks:
            return [b for chunk in self.block_chunks for b in chunk.module]
        return list(self.blocks)

    def prompt(self, features: Tensor, mask: Tensor, image: Tensor,
               is_null: Tensor) -> dict[str, Tensor]:
        """Texts [b,t,C] -> the first input, and what all steps read of them.

        The unconditional text is the learned one, as long as the image's own.
        """
        text, bias = self._texts(features, mask, image, is_null)
        pooled = self.text_proj_for_sos.ca.pool(text, bias)
        shared = self.shared_ada_lin(pooled).unflatten(-1, (6, self.c.dim))
        ada = [b.vectors(pooled, shared) for b in self.layers()]
        seen = self.text_proj_for_ca(text)
        out = {"x": pooled[:, None] + self.pos_start + self.lvl_embed.weight[0],
               "ada": torch.cat((*ada, self.head_nm.vectors(pooled)), 1), "bias": bias}
        for i, b in enumerate(self.layers()):
            out[f"ck{i}"], out[f"cv{i}"] = b.ca.memory(seen)
        return out

    def _texts(self, features: Tensor, mask: Tensor, image: Tensor,
               is_null: Tensor) -> tuple[Tensor, Tensor]:
        at = torch.arange(features.shape[1])
        null = self.cfg_uncond.index_select(0, at)
        seen = mask.index_select(0, image)
        length = seen.long().sum(1, keepdim=True)
        seen = torch.where(is_null[:, None], at[None] < length, seen)
        text = torch.where(is_null[:, None, None], null[None], features.index_select(0, image))
        bias = torch.where(seen, 0.0, -1e30)[:, None, None]
        return self.text_norm(text), bias

    def step(self, x: Tensor, ada: Tensor, past: Tensor, noise: Tensor, bias: Tensor,
             **kept: Tensor) -> dict[str, Tensor]:
        """x [r,s,dim] -> logits of every bit of the s cells, [r,s*bits,2]."""
        out, rows = {}, ada.split(1, 1)
        for i, block in enumerate(self.layers()):
            x, (out[f"k{i}"], out[f"v{i}"]) = block(
                x, rows[6 * i : 6 * i + 6], (kept[f"k{i}"], kept[f"v{i}"]), past, self.rope,
                (kept[f"ck{i}"], kept[f"cv{i}"]), bias)
        y = self.head(self.head_nm(x, rows[-2:]))
        return {"logits": arc.tail(y.unflatten(-1, (self.c.bits, 2)).flatten(1, 2), noise), **out}


class VAE(nn.Module):
    """Codes are summed bits of +-1/sqrt(channels); there is no learned codebook."""

    def __init__(self, encoder: ldm.Plan | None, decoder: ldm.Plan):
        super().__init__()
        self.factor, self.width = decoder.factor, decoder.ends[0]
        self.decoder = ldm.Decoder(decoder)
        self.has_encoder = encoder is not None
        if encoder is not None:
            self.encoder = ldm.Encoder(encoder)

    def decode(self, f_hat: Tensor) -> dict[str, Tensor]:
        """f_hat f32[b,d,H,W] -> pixels f32[b,3,H*f,W*f], about [-1,1]."""
        return {"pixels": self.decoder(f_hat)}


_FEED = ("gpt.word_embed", "gpt.lvl_embed")


class Net(nn.Module):
    def __init__(self, c: Config, vae: VAE | None):
        super().__init__()
        self.c, self.gpt = c, Transformer(c)
        if vae is not None:
            self.vae = vae

    def map(self, token: Tensor, scale: int) -> Tensor:
        """Bits i64[b,cells*bits] -> the scale's share of the latent f32[b,d,H,W]."""
        c, full = self.c, self.c.grid(len(self.c.scales) - 1)
        h, w = c.scales[scale]
        z = (token.float() * 2.0 - 1.0) * c.width**-0.5
        z = z.unflatten(1, (h, w, c.bits)).permute(0, 3, 1, 2)
        if c.patchify:  # [b, d*2*2, h, w] -> [b, d, 2h, 2w]
            z = z.unflatten(1, (c.width, 2, 2)).permute(0, 1, 4, 2, 5, 3)
            z = z.flatten(4, 5).flatten(2, 3)
        return z if c.grid(scale) == full else arc.resize(z, *full, "bilinear")

    def input(self, f_hat: Tensor, scale: int) -> Tensor:
        """The latent, resized to a scale -> [b,cells,dim]."""
        z = self.patches(arc.resize(f_hat, *self.c.grid(scale), "bilinear"), scale)
        return self.gpt.word_embed(cells(z)) + self.gpt.lvl_embed.weight[scale]

    def patches(self, z: Tensor, scale: int) -> Tensor:
        """Of the decoder's cells of a scale, the transformer's: [b,d,2h,2w] -> [b,d*2*2,h,w]."""
        if not self.c.patchify:
            return z
        h, w = self.c.scales[scale]
        z = z.unflatten(3, (w, 2)).unflatten(2, (h, 2)).permute(0, 1, 3, 5, 2, 4)
        return z.flatten(1, 3)

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels f32[b,3,H,W] in [-1,1] -> bits of all scales i64[b,N]."""
        rest, found, last = self.vae.encoder(pixels), [], len(self.c.scales) - 1
        for scale in range(last + 1):
            z = rest if scale == last else arc.resize(rest, *self.c.grid(scale), "area")
            found.append((cells(self.patches(z, scale)) > 0).long().flatten(1))
            rest = rest - self.map(found[-1], scale)
        return {"tokens": torch.cat(found, 1)}

    def feed(self, scale: int) -> Callable[..., dict[str, Tensor]]:
        """The graph after a scale's draw: add its map; the next scale's input, if there is one."""

        def feed(net: Net, token: Tensor, f_hat: Tensor, image: Tensor) -> dict[str, Tensor]:
            f_hat = f_hat + net.map(token, scale)
            return {"f_hat": f_hat, "x": net.input(f_hat, scale + 1).index_select(0, image)}

        def last(net: Net, token: Tensor, f_hat: Tensor) -> dict[str, Tensor]:
            return {"f_hat": f_hat + net.map(token, scale)}

        return MethodType(feed if scale + 1 < len(self.c.scales) else last, view(self, *_FEED))


@family("infinity")
class Infinity(Family):
    """A step a scale; every bit of every cell at once; text-conditional."""

    order = "scales"
    licence = "MIT"
    verified = ("greedy bits and pixels of upstream on a tiny checkpoint; encoding and 8B's cells "
                "of a plain transcription")
    sizes: ClassVar = SIZES
    options: ClassVar = {
        "h_div_w": "height by width of the picture, to the nearest published (default 1.0)",
        "pn": "pixels: 0.06M, 0.25M, 0.60M or 1M (default)",
        "scales": "a schedule of one's own: a list of [height, width]; in place of h_div_w and pn",
        "n_head": "attention heads; told by the tensors",
        "patchify": "cells are 2x2 of the decoder's (8B); told by the decoder",
        **t5.OPTION,
    }
    containers = ("", "trainer.gpt_fsdp", "model", "state_dict")
    decoder_containers = ("vae", "ema", "")

    def claims(self, t: Tensors) -> bool:
        own = {"text_proj_for_sos.ca.mat_q", "shared_ada_lin.1.weight"} <= t.keys()
        return own and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, or "tiny"."""
        mult, ch, d = (1, 2, 4, 4, 4), 128, 32
        if size == "tiny":
            c = Config(64, 2, 2, 256, 2, 8, 32, 16, 2, PUBLISHED[1.0][:4])
            mult, ch, d = (1, 1), 32, 8
        else:
            dim, layers, n, chunks, bits = SIZES[size]
            hidden = round(4 * dim / 256) * 256
            c = Config(dim, layers, n, hidden, chunks, bits, 2048, 512, 16, PUBLISHED[1.0])
            mult, d = (mult, bits) if bits != 56 else (mult[:-1], 14)
        with torch.device("meta"):
            own = state(Transformer(c), skip=("rope.",))
            vae = state(VAE(ldm.encoder_plan((3, d), ch, mult, 2),
                            ldm.decoder_plan((d, 3), ch, mult, 3)))
        return Source(weights(own, seed), weights(vae, seed))

    def model(self, source: Source, options: Options) -> Model:
        t, decoder = source.tensors, _plain(source.decoder)
        with torch.device("meta"):
            vae = None if decoder is None else tokenizer(decoder)
            c = config(t, options, vae)
            net = Net(c, vae)
        match(t, state(net.gpt, skip=("rope.",)), ignore=IGNORE, what="Infinity")
        if decoder is not None:
            match(decoder, state(net.vae), ignore=VAE_IGNORE, what="Infinity's tokenizer")
        bound = bind({"gpt.": t, "vae.": decoder or {}}, state(net, skip=("gpt.rope.",)))
        tables = {f"@gpt.rope.{k}": (lambda a=v: a)
                  for k, v in rope(c.scales, c.dim // c.heads).items()}
        made = Model(net, entries(net, c), program(c, vae is not None), bound.plus(tables),
                     info(c, vae), defaults={"guidance": 3.0, "temperature": 1.0 if c.patchify
                                              else 0.5, "top_p": 0.97})
        return t5.with_text(made, options, width=c.text, tokens=c.null, pad="right", clean=False)


_TOP = {"cfg_uncond", "text_norm", "text_proj_for_sos", "text_proj_for_ca", "pos_start",
        "lvl_embed", "lvl_1L", "attn_bias_for_masking", "word_embed", "shared_ada_lin",
        "block_chunks", "blocks", "head_nm", "head"}


def _plain(t: Tensors | None) -> Tensors | None:
    """2-D names: published files wrap each convolution and norm once more."""
    return t and Tensors(t.source, {_INNER.sub(r"\1.\2", k): e for k, e in t.items()})


def tokenizer(t: Tensors) -> VAE:
    shapes = {k: t.shape(k) for k in t}
    encoder = ldm.read_plan(shapes, "encoder") if "encoder.conv_in.weight" in t else None
    return VAE(encoder, ldm.read_plan(shapes, "decoder"))


def config(t: Tensors, options: Options, vae: VAE | None) -> Config:
    """Every size from the tensors; the schedule from the options."""
    expect(t, {"cfg_uncond": 2, "word_embed.weight": 2, "text_proj_for_sos.ca.mat_q": 3,
               "lvl_embed.weight": 2}, "Infinity")
    dim, bits = t.shape("word_embed.weight")
    chunks = depth(t, "block_chunks")
    first = "block_chunks.0.module" if chunks else "blocks"
    layers = depth(t, first) * max(chunks, 1)
    expect(t, {f"{first}.0.ffn.fc1.weight": 2, f"{first}.0.sa.scale_mul_1H11": 4}, "Infinity")
    found = schedule(options)
    if len(found) > t.shape("lvl_embed.weight")[0]:
        raise ArcError(f"{len(found)} scales, but the checkpoint has embeddings for "
                       f"{t.shape('lvl_embed.weight')[0]}", hint="list fewer scales")
    n = heads(t, f"{first}.0.sa", dim, options)
    if dim // n % 4:
        raise ArcError(f"{n} heads of {dim // n} are not a multiple of 4 wide",
                       hint="2-D rotary embedding needs head sizes divisible by 4")
    return Config(
        dim, layers, n, t.shape(f"{first}.0.ffn.fc1.weight")[0], chunks, bits,
        t.shape("cfg_uncond")[1], t.shape("cfg_uncond")[0],
        t.shape("text_proj_for_sos.ca.mat_q")[1], found, patchify(bits, vae, options),
    )


def patchify(bits: int, vae: VAE | None, options: Options) -> bool:
    """Does the decoder have a quarter of the transformer's channels?"""
    told = vae is not None and 4 * vae.width == bits
    found = options.get("patchify", told)
    if not isinstance(found, bool):
        raise ArcError(f"option patchify must be true or false, got {found!r}",
                       hint="leave it out: the decoder tells")
    if vae is not None and vae.width * (4 if found else 1) != bits:
        raise ArcError(f"the decoder takes {vae.width} channels, but the transformer draws "
                       f"{bits} bits a cell" + (" of 2x2" if found else ""),
                       hint="give the VAE this checkpoint was trained with")
    if found and bits % 4:
        raise ArcError(f"{bits} bits are not 2x2 cells", hint="leave patchify out")
    return found


def entries(net: Net, c: Config) -> list[Entry]:
    row, text = {"image": "i64[r]"}, f"f32[r,t,{c.dim}]"
    last = len(c.scales) - 1
    h, w = c.grid(last)
    f_hat = f"f32[b,{c.width},{h},{w}]"
    memory = {f"{k}{i}": text for i in range(c.layers) for k in ("ck", "cv")}
    found = [
        Entry("prompt", net.gpt.prompt, {**inputs(c), **row, "is_null": "bool[r]"}),
        Entry("step", net.gpt.step, {
            "x": f"f32[r,s,{c.dim}]", "ada": f"f32[r,{6 * c.layers + 2},{c.dim}]",
            "past": "i32[r]", "noise": "f32[b,c,2]", "bias": "f32[r,1,1,t]", **memory,
            **{k: str(t) for k, t in caches(c).items()}}),
        *(Entry(f"feed{s}", net.feed(s), {
            "token": f"i64[b,{n * c.bits}]", "f_hat": f_hat, **(row if s < last else {})})
          for s, n in enumerate(c.cells)),
    ]
    if hasattr(net, "vae"):
        found.append(Entry("decode", net.vae.decode, {"f_hat": f_hat}))
        if net.vae.has_encoder:
            px = ",".join(str(n * net.vae.factor) for n in (h, w))
            encode = view(net, "vae.encoder").encode
            found.append(Entry("encode", encode, {"pixels": f"f32[b,3,{px}]"}))
    return found


def inputs(c: Config) -> dict[str, str]:
    return {"features": f"f32[b,t,{c.text}]", "mask": "bool[b,t]"}


def caches(c: Config) -> dict[str, Type]:
    t = Type("f32", ("r", c.heads, sum(c.cells), c.dim // c.heads))
    return {f"{k}{i}": t for i in range(c.layers) for k in "kv"}


def program(c: Config, decodes: bool) -> Program:
    steps, at = [], 0
    for s, n in enumerate(c.cells):
        here = tuple(range(at, at + n * c.bits))
        calls = (Call("step"), Call("sample"), Call(f"feed{s}"))
        steps.append(Step(here, here, calls, append=n))
        at += n * c.bits
    latent = Type("f32", ("b", c.width, *c.grid(len(c.scales) - 1)))
    return Program(
        "infinity", at, tuple(steps), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),) if decodes else (),
        inputs=tuple((k, Type.parse(v)) for k, v in inputs(c).items()),
        state=(*caches(c).items(), ("f_hat", latent)), draws=(Draw("noise", "uniform", 2),),
        mask="full",
    )


def info(c: Config, vae: VAE | None) -> dict[str, Any]:
    size = next((k for k, v in SIZES.items() if v[:3] == (c.dim, c.layers, c.heads)), "custom")
    found = {"dim": c.dim, "layers": c.layers, "heads": c.heads, "vocabulary": 2, "bits": c.bits,
             "scales": [list(s) for s in c.scales], "size": size,
             "caption": [c.null, c.text]}
    if vae is not None:
        h, w = (n * vae.factor for n in c.grid(len(c.scales) - 1))
        found["pixels"] = h if h == w else [h, w]
    return found
