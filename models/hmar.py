"""HMAR: next-scale prediction without history, and masked refinement inside a scale.

A scale's cells see each other and nothing else; what came before reaches them through the latent.
At some scales the cells drawn with the least confidence are masked and drawn again, a few times, by
a second stack of blocks. https://arxiv.org/abs/2506.04421
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family
from arcompile.ir import Type
from arcompile.models import multiscale_vq, var
from arcompile.models.adaln import Block, HeadNorm
from arcompile.models.multiscale_vq import MultiScaleVQ, cells
from arcompile.models.parts import coder, view
from arcompile.models.scales import PUBLISHED, from_tables, starts
from arcompile.program import Call, Draw, Program, Step

# name -> (width, layers, heads)
SIZES = {k: var.SIZES[k] for k in ("d16", "d20", "d24", "d30")}
LAST = 8  # blocks of either stack that do not belong to both
# name -> guidance, top_k
DEFAULTS = {"d16": (1.7, 1000), "d20": (1.9, 950), "d24": (2.1, 900), "d30": (1.7, 1000)}
REFINED = {2: (1, 3), 3: (1, 1, 2, 5)}  # side -> cells kept at once, then by each refinement


@dataclass(frozen=True)
class Config(var.Config):
    base: int = 0  # blocks that both stacks share; `layers` counts those of the first stack
    refine: int = 0  # blocks of the second stack alone
    rows: tuple[tuple[int, ...], ...] = ()  # of each scale, how many cells each draw keeps


class Transformer(nn.Module):
    """Two stacks on one base: `ns` draws a scale, `mask` draws its masked cells again."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.pos_start = nn.Parameter(torch.empty(1, c.patch_nums[0] ** 2, c.dim))
        self.tables(c)
        self.class_emb = nn.Embedding(c.classes + 1, c.dim)
        self.word_embed = nn.Linear(c.width, c.dim, bias=False)
        self.word_embed_bias = nn.Parameter(torch.empty(c.dim))
        self.mask_embed = nn.Embedding(1, c.dim)
        for name, count in (("base", c.base), ("ns", c.layers - c.base), ("mask", c.refine)):
            made = [Block(c.dim, c.heads, c.hidden, c.shared, c.cosine) for _ in range(count)]
            self.add_module(f"{name}_blocks", nn.ModuleList(made))
        self.ns_head_nm, self.mask_head_nm = HeadNorm(c.dim), HeadNorm(c.dim)
        self.ns_head = nn.Linear(c.dim, c.vocabulary)
        self.mask_head = nn.Linear(c.dim, c.vocabulary)

    tables, place = var.Transformer.tables, var.Transformer.place

    def prompt(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        null = torch.full_like(image, self.c.classes)
        c = self.class_emb(torch.where(is_null, null, cond.index_select(0, image)))
        base, ns, mask = ([b.vectors(c, None) for b in blocks] for blocks in (
            self.base_blocks, self.ns_blocks, self.mask_blocks))
        return {
            "x": c[:, None] + self.pos_start + self.place(0),
            "ada": torch.cat((*base, *ns, self.ns_head_nm.vectors(c)), 1),
            "ada_mask": torch.cat((*base, *mask, self.mask_head_nm.vectors(c)), 1),
        }

    def _stack(self, x: Tensor, noise: Tensor, ada: Tensor, blocks: Sequence[nn.Module],
               norm: nn.Module, head: nn.Module) -> dict[str, Tensor]:
        rows = ada.split(1, 1)
        for i, block in enumerate((*self.base_blocks, *blocks)):
            x, _ = block(x, rows[6 * i : 6 * i + 6])
        return {"logits": head(norm(arc.tail(x, noise), rows[-2:]))}

    def step(self, x: Tensor, ada: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return self._stack(x, noise, ada, self.ns_blocks, self.ns_head_nm, self.ns_head)

    def refine(self, x: Tensor, ada_mask: Tensor, noise: Tensor) -> dict[str, Tensor]:
        return self._stack(x, noise, ada_mask, self.mask_blocks, self.mask_head_nm,
                           self.mask_head)


_FEED = ("gpt.word_embed", "gpt.word_embed_bias", "gpt.pos_1LC", "gpt.lvl_embed", "vae.quantize")
_MASK = (*_FEED, "gpt.mask_embed")


def lowest(confidence: Tensor, count: int) -> Tensor:
    """bool like confidence [b,c]: the `count` smallest of each row."""
    _, at = (-confidence).topk(count, 1)
    ones = torch.ones_like(at, dtype=torch.float32)
    return torch.zeros_like(confidence).scatter(1, at, ones) > 0.5


class Net(nn.Module):
    def __init__(self, c: Config, vae: MultiScaleVQ):
        super().__init__()
        self.gpt, self.vae = Transformer(c), vae

    def area(self, f: Tensor, scale: int) -> Tensor:
        """A latent at full size -> what a scale sees of it, [b,n*n,dim]."""
        n = self.gpt.c.patch_nums[scale]
        full = f.shape[2] == n
        return self.gpt.word_embed(cells(f if full else arc.resize(f, n, n, "area")))

    def feed(self, scale: int) -> Callable[..., dict[str, Tensor]]:
        """The graph after a scale: add its map; the next scale's input, if there is one."""

        def feed(net: Net, token: Tensor, f_hat: Tensor, image: Tensor) -> dict[str, Tensor]:
            f_hat = f_hat + net.vae.map(token, scale)
            x = net.area(f_hat, scale + 1) + net.gpt.word_embed_bias + net.gpt.place(scale + 1)
            return {"f_hat": f_hat, "x": x.index_select(0, image)}

        def last(net: Net, token: Tensor, f_hat: Tensor) -> dict[str, Tensor]:
            return {"f_hat": f_hat + net.vae.map(token, scale)}

        if scale + 1 == len(self.vae.patch_nums):
            return MethodType(last, view(self, "vae.quantize"))
        return MethodType(feed, view(self, *_FEED))

    def masked(self, draft: Tensor, mask: Tensor, f_hat: Tensor, image: Tensor,
               scale: int) -> Tensor:
        """The refinement's input: the latent, and the draft where it is not masked."""
        drawn = self.area(self.vae.map(draft, scale), scale)
        drawn = torch.where(mask[:, :, None], self.gpt.mask_embed.weight[None], drawn)
        x = self.area(f_hat, scale) + drawn + self.gpt.word_embed_bias + self.gpt.place(scale)
        return x.index_select(0, image)

    def doubt(self, scale: int, turn: int) -> Callable[..., dict[str, Tensor]]:
        """The graph after draw number `turn` of a scale: mask the cells to be drawn again."""
        left = sum(self.gpt.c.rows[scale][turn + 1 :])
        was, now = f"_{scale}_{turn - 1}", f"_{scale}_{turn}"

        def first(net: Net, token: Tensor, confidence: Tensor, f_hat: Tensor,
                  image: Tensor) -> dict[str, Tensor]:
            mask = lowest(confidence, left)
            x = net.masked(token, mask, f_hat, image, scale)
            return {f"draft{now}": token.clone(), f"mask{now}": mask, "x": x}

        def again(net: Net, token: Tensor, confidence: Tensor, f_hat: Tensor, image: Tensor,
                  **old: Tensor) -> dict[str, Tensor]:
            mask = old[f"mask{was}"]
            draft = torch.where(mask, token, old[f"draft{was}"])
            mask = lowest(torch.where(mask, confidence, torch.full_like(confidence, 2.0)), left)
            x = net.masked(draft, mask, f_hat, image, scale)
            return {"token": draft, f"draft{now}": draft, f"mask{now}": mask, "x": x}

        def settle(net: Net, token: Tensor, **old: Tensor) -> dict[str, Tensor]:
            return {"token": torch.where(old[f"mask{was}"], token, old[f"draft{was}"])}

        made = settle if not left else first if turn == 0 else again
        return MethodType(made, view(self, *_MASK))


@family("hmar")
class Hmar(Family):
    """Steps for each scale, of which the later ones redraw part of it; class-conditional."""

    order = "scales, refined"
    licence = "NVIDIA OneWay Noncommercial (weights and upstream code)"
    verified = "tokens of a plain transcription of upstream's facts, on random weights"
    sizes: ClassVar = SIZES
    options: ClassVar = {
        **var.OPTIONS,
        "mask_schedule": "of each scale, the cells its draws keep: [[1],[1,3],[1,1,2,5],[16],...]",
    }

    def claims(self, t: Tensors) -> bool:
        own = {"base_blocks.0.attn.mat_qkv.weight", "ns_blocks.0.attn.mat_qkv.weight",
               "mask_blocks.0.attn.mat_qkv.weight", "mask_embed.weight"}
        return own <= t.keys() and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, or "tiny"."""
        if size == "tiny":
            c = Config(64, 2, 2, 128, 32, 8, 5, (1, 2, 3), base=1, refine=1)
            make = {"ch": 32, "z": 8, "codes": 32, "mult": (1, 1)}
        else:
            dim, layers, heads = SIZES[size]
            c = Config(dim, layers, heads, 4 * dim, 4096, 32, 1000, PUBLISHED[0],
                       base=layers - LAST, refine=LAST)
            make = {}
        with torch.device("meta"):
            net = Net(c, multiscale_vq.published(c.patch_nums, **make))
        return var.invent(net, seed)

    def model(self, source: Source, options: Options) -> Model:
        if source.decoder is None:
            raise ArcError("HMAR makes each scale's input with VAR's image tokenizer, and none is "
                           "given", hint="give --decoder vae_ch160v4096z32.pth")
        c = config(source, options)
        with torch.device("meta"):
            net = Net(c, var.tokenizer(source.decoder, c))
        told = var.info(c, net.vae)
        guidance, top_k = DEFAULTS.get(told["size"], (1.7, 1000))
        return Model(net, entries(net, c), program(c), var.bound(source, net, "HMAR"), told,
                     defaults={"guidance": guidance, "top_k": top_k, "top_p": 0.99})


_TOP = {"pos_start", "pos_1LC", "lvl_embed", "lvl_1L", "attn_bias_for_masking", "class_emb",
        "word_embed", "word_embed_bias", "mask_embed", "base_blocks", "ns_blocks", "mask_blocks",
        "ns_head_nm", "ns_head", "mask_head_nm", "mask_head"}


def config(source: Source, options: Options) -> Config:
    """Every size from the tensors; which scales are refined from the options."""
    t, told = source.tensors, source.metadata.get("patch_nums")
    var.expect(t, {"pos_1LC": 3, "lvl_embed.weight": 2, "class_emb.weight": 2,
                   "word_embed.weight": 2, "base_blocks.0.ffn.fc1.weight": 2,
                   "ns_head.weight": 2}, "HMAR")
    dim, width = t.shape("word_embed.weight")
    base, refine = var.depth(t, "base_blocks"), var.depth(t, "mask_blocks")
    patch_nums = from_tables(t, options.get("patch_nums", told))
    return Config(
        dim, base + var.depth(t, "ns_blocks"),
        var.heads(t, "base_blocks.0.attn", dim, options),
        t.shape("base_blocks.0.ffn.fc1.weight")[0], t.shape("ns_head.weight")[0], width,
        t.shape("class_emb.weight")[0] - 1, patch_nums, False,
        "base_blocks.0.attn.scale_mul_1H11" in t, base, refine,
        rows(options.get("mask_schedule"), patch_nums),
    )


def rows(given: Any, patch_nums: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """How many cells each draw of each scale keeps; every row covers its scale."""
    if given is None:
        return tuple(REFINED.get(n, (n * n,)) for n in patch_nums)
    try:
        found = tuple(tuple(int(k) for k in row) for row in given)
    except (TypeError, ValueError):
        found = ()
    wanted = [n * n for n in patch_nums]
    if [sum(r) for r in found] != wanted or any(k < 1 for r in found for k in r):
        raise ArcError(f"option mask_schedule must list counts that add up to "
                       f"{', '.join(map(str, wanted))} cells, got {given!r}",
                       hint="for example [[1],[1,3],[1,1,2,5],[16],...]")
    return found


def entries(net: Net, c: Config) -> list[Entry]:
    side, row = c.patch_nums[-1], {"image": "i64[r]"}
    f_hat, x = f"f32[b,{c.width},{side},{side}]", {"x": f"f32[r,s,{c.dim}]", "noise": "f32[b,c,2]"}
    found = [
        Entry("prompt", net.gpt.prompt, {"cond": "i64[b]", **row, "is_null": "bool[r]"}),
        Entry("step", net.gpt.step, {**x, "ada": f"f32[r,{6 * c.layers + 2},{c.dim}]"}),
        *var.feeds(net, c.patch_nums, f_hat),
        *coder(net.vae, {"f_hat": f_hat}, side, side),
    ]
    if any(len(r) > 1 for r in c.rows):
        count = 6 * (c.base + c.refine) + 2
        found.append(Entry("refine", net.gpt.refine,
                           {**x, "ada_mask": f"f32[r,{count},{c.dim}]"}))
    for s, r in enumerate(c.rows):
        found += [_doubt(net, s, turn, f_hat) for turn in range(len(r) if len(r) > 1 else 0)]
    return found


def _doubt(net: Net, scale: int, turn: int, f_hat: str) -> Entry:
    cells_ = net.gpt.c.patch_nums[scale] ** 2
    token, was = f"i64[b,{cells_}]", f"_{scale}_{turn - 1}"
    old = {f"draft{was}": token, f"mask{was}": f"bool[b,{cells_}]"} if turn else {}
    more = {"confidence": f"f32[b,{cells_}]", "f_hat": f_hat, "image": "i64[r]"}
    last = turn + 1 == len(net.gpt.c.rows[scale])
    return Entry(f"doubt{scale}_{turn}", net.doubt(scale, turn),
                 {"token": token, **({} if last else more), **old})


def program(c: Config) -> Program:
    """A scale's first draw has VAR's guidance; upstream all but turns it off for the others."""
    at, last, steps = starts(c.patch_nums), max(len(c.patch_nums) - 1, 1), []
    for s, row in enumerate(c.rows):
        here = tuple(range(at[s], at[s + 1]))
        for turn in range(len(row)):
            calls = [Call("refine" if turn else "step"), Call("sample")]
            if len(row) > 1:
                calls += [Call("confidence")] if turn + 1 < len(row) else []
                calls += [Call(f"doubt{s}_{turn}")]
            calls += [Call(f"feed{s}")] if turn + 1 == len(row) else []
            steps.append(Step(here, here, tuple(calls), (1.0, 1e-6 if turn else s / last)))
    side = c.patch_nums[-1]
    return Program(
        "hmar", c.positions, tuple(steps), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),), inputs=(("cond", Type("i64", ("b",))),),
        state=(("f_hat", Type("f32", ("b", c.width, side, side))),),
        draws=(Draw("noise", "uniform", 2),), mask="full", accept="confident",
    )
