"""LlamaGen: raster next-token prediction over VQ codes. https://arxiv.org/abs/2406.06525

Class-conditional (c2i, one class token) or caption-conditional (t2i, 120 caption features).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import match
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family, positive
from arcompile.ir import Type
from arcompile.models import t5
from arcompile.models.llama import Block, RopeTable, grid_rope
from arcompile.models.parts import bind, coder, state
from arcompile.models.random import weights
from arcompile.models.scales import MOST
from arcompile.models.vq import IGNORE, VQ, published
from arcompile.program import Call, Draw, Program, Step
from arcompile.weights import Weights

# name -> (width, layers, heads, published file names)
SIZES = {
    "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1280, 36, 20), "XXL": (1536, 48, 24),
    "1B": (2048, 22, 32), "XXXL": (2560, 48, 40), "3B": (3200, 24, 32), "7B": (4096, 32, 32),
}
Sizes = Mapping[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Config:
    dim: int
    layers: int
    heads: int
    hidden: int
    vocabulary: int
    grid: int
    classes: int = 0  # c2i; 0 for t2i
    features: int = 0  # t2i: width of a caption feature
    prompt: int = 1  # condition slots
    special: int = 0  # learned slots among the tokens
    mask: str = "causal"

    @property
    def positions(self) -> int:
        return self.grid * self.grid

    @property
    def slots(self) -> int:
        return self.prompt + self.positions + self.special


class Condition(nn.Module):
    """`cls_embedding`: a class table whose last row is the null class, or a caption projection."""

    def __init__(self, c: Config):
        super().__init__()
        if c.classes:
            self.embedding_table = nn.Embedding(c.classes + 1, c.dim)
        else:
            self.uncond_embedding = nn.Parameter(torch.empty(c.prompt, c.features))
            self.cap_proj = nn.Module()
            self.cap_proj.fc1 = nn.Linear(c.features, c.dim, bias=False)
            self.cap_proj.fc2 = nn.Linear(c.dim, c.dim, bias=False)


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.cls_embedding = Condition(c)
        self.tok_embeddings = nn.Embedding(c.vocabulary, c.dim)
        self.layers = nn.ModuleList(
            Block(c.dim, c.heads, c.hidden, c.mask) for _ in range(c.layers)
        )
        self.norm = arc.RMSNorm(c.dim, 1e-5)
        self.output = nn.Linear(c.dim, c.vocabulary, bias=False)
        self.rope = RopeTable(c.slots, c.dim // c.heads)

    def prompt_class(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        null = torch.full_like(image, self.c.classes)
        label = torch.where(is_null, null, cond.index_select(0, image))
        return {"x": self.cls_embedding.embedding_table(label)[:, None]}

    def prompt_caption(self, features: Tensor, mask: Tensor, image: Tensor,
                       is_null: Tensor) -> dict[str, Tensor]:
        embed = self.cls_embedding
        given = features.index_select(0, image)
        x = torch.where(is_null[:, None, None], embed.uncond_embedding[None], given)
        x = nn.functional.gelu(embed.cap_proj.fc1(x), approximate="tanh")
        seen = mask.index_select(0, image)
        ones = torch.ones_like(is_null)[:, None].expand(-1, self.c.positions)
        return {"x": embed.cap_proj.fc2(x), "keep": torch.cat((seen, ones), 1)}

    def feed(self, token: Tensor, image: Tensor) -> dict[str, Tensor]:
        return {"x": self.tok_embeddings(token).index_select(0, image)}

    def step(self, x: Tensor, past: Tensor, noise: Tensor, keep: Tensor | None = None,
             **cache: Tensor) -> dict[str, Tensor]:
        """x [r,s,dim] -> logits of the last c slots, c being the size of `noise` [b,c,2]."""
        out = {}
        for i, block in enumerate(self.layers):
            kv = (cache[f"k{i}"], cache[f"v{i}"])
            x, out[f"k{i}"], out[f"v{i}"] = block(x, kv, past, self.rope, keep)
        return {"logits": self.output(self.norm(arc.tail(x, noise))), **out}


class Net(nn.Module):
    """The transformer and, when given, the image tokenizer."""

    def __init__(self, gpt: Transformer, vq: VQ | None):
        super().__init__()
        self.gpt = gpt
        if vq is not None:
            self.vq = vq


@family("llamagen")
class LlamaGen(Family):
    """Raster order, causal, one class or 120 caption slots before the image."""

    order = "raster"
    licence = "MIT"
    verified = "greedy tokens, logits, pixels and encoding of upstream on tiny checkpoints"
    sizes = SIZES
    options: ClassVar = {
        "n_head": "attention heads; told by the shapes for published sizes",
        "grid": "tokens per side; told by file names such as c2i_B_256.pt (16), _384 (24)",
        **t5.OPTION,
    }

    def claims(self, t: Tensors) -> bool:
        # NAR has a second head and PAR special tokens on top of the same keys
        own = "tok_embeddings.weight" in t and "layers.0.attention.wqkv.weight" in t
        return own and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size at 256 px, with the VQ-16 tokenizer; or "tiny"."""
        return invent(self.of_size(size), Transformer, seed)

    def of_size(self, size: str) -> Config:
        if size == "tiny":
            return Config(64, 2, 2, 128, 64, 4, classes=5)
        dim, layers, heads = SIZES[size]
        return Config(dim, layers, heads, hidden(dim), 16384, 16, classes=1000)

    def model(self, source: Source, options: Options) -> Model:
        c = config(source, options)
        net, bound = assemble(source, c, Transformer, self.name)
        made = Model(net, entries(net, c), program(c, hasattr(net, "vq")), bound, info(net, c))
        return t5.with_text(made, options, width=c.features, tokens=c.prompt, pad="left",
                            clean=True)


_TOP = {"cls_embedding", "tok_embeddings", "layers", "norm", "output", "freqs_cis"}


def hidden(dim: int) -> int:
    """Width of the gated MLP of a published size."""
    return -(-int(8 * dim / 3) // 256) * 256


def invent(c: Config, kind: type[Transformer], seed: int) -> Source:
    """Random weights of a model and of a tokenizer: VQ-16, or a small one for a small model."""
    small = published((1, 1), ch=32, z=32, codes=c.vocabulary)
    vq = small if c.vocabulary < 16384 else published((1, 1, 2, 2, 4))
    with torch.device("meta"):
        names = state(kind(c), skip=("rope.",))
    facts = {"n_head": str(c.heads), "grid": str(c.grid)}
    return Source(weights(names, seed), weights(vq, seed), metadata=facts)


def shapes(t: Tensors) -> dict[str, tuple[int, ...]]:
    return {k: t.shape(k) for k in t}


def assemble(source: Source, c: Config, kind: type[Transformer], name: str,
             order: Sequence[int] | None = None) -> tuple[Net, Weights]:
    """The module and its weights, checked. order: the rope row of each cache slot, if not its own.

    Row -1 is one of zeros, as the rows of condition slots are.
    """
    with torch.device("meta"):
        vq = VQ(shapes(source.decoder), c.grid) if source.decoder is not None else None
        net = Net(kind(c), vq)
    if vq is not None and vq.codes != c.vocabulary:
        raise ArcError(f"the decoder's codebook has {vq.codes} codes but the transformer draws "
                       f"from {c.vocabulary}",
                       hint="give the tokenizer this checkpoint was trained with")
    match(source.tensors, state(net.gpt, skip=("rope.",)), ignore=("freqs_cis",), what=name)
    if vq is not None and source.decoder is not None:
        match(source.decoder, state(vq), ignore=IGNORE, what="LlamaGen's VQ tokenizer")
    bound = bind({"gpt.": source.tensors, "vq.": source.decoder or {}},
                 state(net, skip=("gpt.rope.",)))
    table = grid_rope(c.grid, c.grid, c.dim // c.heads, c.prompt)
    if order is not None:
        table = {k: np.concatenate((v, 0 * v[:1]))[list(order)] for k, v in table.items()}
    return net, bound.plus({f"@gpt.rope.{k}": (lambda a=v: a) for k, v in table.items()})


def config(source: Source, options: Options, sizes: Sizes = SIZES, extra: int = 0) -> Config:
    """Every size from the tensors; heads and grid from options, metadata, shapes or names.

    extra: layers beyond those of the published sizes.
    """
    t = source.tensors
    for key in ("tok_embeddings.weight", "layers.0.feed_forward.w1.weight"):
        if key not in t or len(t.shape(key)) != 2:
            raise ArcError(f"not a LlamaGen transformer: {key} is missing or not a matrix",
                           hint="name the family with --family")
    vocabulary, dim = t.shape("tok_embeddings.weight")
    layers = 1 + max(int(m[1]) for k in t if (m := re.match(r"layers\.(\d+)\.", k)))
    usual = {(d, n): heads for d, n, heads in sizes.values()}
    told = _int(source.metadata.get("n_head")) or usual.get((dim, layers - extra))
    heads = positive(options, "n_head", told,
                     f"the number of heads of a {dim}-wide, {layers}-layer model")
    if dim % heads or (dim // heads) % 4:
        raise ArcError(f"n_head={heads} does not divide {dim} into heads of a multiple of 4",
                       hint="2-D rotary embedding needs head sizes divisible by 4")
    base = Config(dim, layers, heads, t.shape("layers.0.feed_forward.w1.weight")[0], vocabulary,
                  grid(source, options))
    if "cls_embedding.embedding_table.weight" in t:
        return replace(base, classes=t.shape("cls_embedding.embedding_table.weight")[0] - 1)
    if "cls_embedding.uncond_embedding" not in t:
        raise ArcError("not a LlamaGen transformer: it has neither a class table nor a caption "
                       "embedding", hint="name the family with --family")
    prompt, features = t.shape("cls_embedding.uncond_embedding")
    return replace(base, prompt=prompt, features=features)


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def grid(source: Source, options: Options) -> int:
    """Tokens per side: an option, the header's, or from a name like c2i_B_256 (px / 16)."""
    told = _int(source.metadata.get("grid"))
    if told is None and (m := re.search(r"_(256|384|512)\b", source.names[0].split(".")[0])):
        factor = 8 if "ds8" in source.names[1] else 16
        told = int(m[1]) // factor
    return positive(options, "grid", told, "the number of tokens per side", MOST)


def entries(net: Net, c: Config) -> list[Entry]:
    row = {"image": "i64[r]", "is_null": "bool[r]"}
    x = f"f32[r,s,{c.dim}]"
    keep = {} if c.classes else {"keep": f"bool[r,{c.slots}]"}
    prompt = (
        Entry("prompt", net.gpt.prompt_class, {"cond": "i64[b]", **row})
        if c.classes
        else Entry("prompt", net.gpt.prompt_caption,
                   {"features": f"f32[b,{c.prompt},{c.features}]",
                    "mask": f"bool[b,{c.prompt}]", **row})
    )
    found = [
        prompt,
        Entry("step", net.gpt.step, {"x": x, "past": "i32[r]", "noise": "f32[b,c,2]", **keep,
                                     **{k: str(t) for k, t in caches(c).items()}}),
        Entry("feed", net.gpt.feed, {"token": "i64[b,c]", "image": "i64[r]"}),
    ]
    if hasattr(net, "vq"):
        found += coder(net.vq, {"tokens": f"i64[b,{c.positions}]"}, c.grid, c.grid)
    return found


def caches(c: Config) -> dict[str, Type]:
    t = Type("f32", ("r", c.heads, c.slots, c.dim // c.heads))
    return {f"{k}{i}": t for i in range(c.layers) for k in "kv"}


MORE = (Call("step"), Call("sample"), Call("feed"))


def program(c: Config, decodes: bool) -> Program:
    """Prompt, then one token a step; the last step needs no next input."""
    n = c.positions
    steps = [Step((i,), (i,), MORE if i < n - 1 else MORE[:2], append=1) for i in range(n)]
    steps[0] = replace(steps[0], append=c.prompt)
    return loop("llamagen", c, steps, decodes)


def loop(name: str, c: Config, steps: Sequence[Step], decodes: bool) -> Program:
    """The program of a LlamaGen-like model around its steps."""
    inputs: Mapping[str, str] = (
        {"cond": "i64[b]"} if c.classes else
        {"features": f"f32[b,{c.prompt},{c.features}]", "mask": f"bool[b,{c.prompt}]"}
    )
    return Program(
        name, c.positions, tuple(steps), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),) if decodes else (),
        inputs=tuple((k, Type.parse(v)) for k, v in inputs.items()),
        state=tuple(caches(c).items()), draws=(Draw("noise", "uniform", 2),),
    )


def info(net: Net, c: Config, sizes: Sizes = SIZES, extra: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = {"dim": c.dim, "layers": c.layers, "heads": c.heads, "grid": c.grid,
                             "vocabulary": c.vocabulary}
    shape = (c.dim, c.layers - extra, c.heads)
    found["size"] = next((k for k, v in sizes.items() if v == shape), "custom")
    found |= {"classes": c.classes} if c.classes else {"caption": [c.prompt, c.features]}
    return found | ({"pixels": c.grid * net.vq.factor} if hasattr(net, "vq") else {})
