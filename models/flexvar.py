"""FlexVAR: next-scale prediction without residuals. https://arxiv.org/abs/2502.20313

Every scale's codes describe the whole image, so the schedule is free and the last scale alone is
decoded. The blocks are VAR's, the tokenizer LlamaGen's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from arcompile.models import var, vq
from arcompile.models.multiscale_vq import cells
from arcompile.models.parts import bind, state, view
from arcompile.models.random import weights
from arcompile.models.scales import PUBLISHED, sides, starts
from arcompile.models.var import Config
from arcompile.program import Call, Draw, Program, scales

SIZES = {k: var.SIZES[k] for k in ("d16", "d20", "d24")}
OPTIONS = {
    "patch_nums": "grid sides, coarse to fine; any will do (default 1,2,3,4,5,6,8,10,13,16)",
    "infer_patch_nums": "upstream's name for patch_nums; wins over it",
    "max_pn": "sides above this take full guidance and no chance (default 16)",
    "guidance_form": "var (grows with the scale; default) or llamagen (constant)",
    "n_head": "attention heads; told by the tensors",
}
TRAINED = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 23, 24, 32)  # other sides are drawn greedily
_FEED = ("gpt.word_embed", "gpt.pos_1LC", "vq.quantize")


class Transformer(var.Transformer):
    """Positions are a 32x32 table, averaged down to each scale; there is no level embedding."""

    def tables(self, c: Config) -> None:
        self.pos_1LC = nn.Parameter(torch.empty(1, c.dim, 32, 32))

    def place(self, scale: int) -> Tensor:
        n = self.c.patch_nums[scale]
        return cells(arc.resize(self.pos_1LC, n, n, "area"))


class Net(nn.Module):
    """The transformer and the tokenizer, whose codebook makes its inputs too."""

    def __init__(self, c: Config, tokenizer: vq.VQ):
        super().__init__()
        self.gpt, self.vq, self.patch_nums = Transformer(c), tokenizer, c.patch_nums

    def feed(self, scale: int) -> Callable[..., dict[str, Tensor]]:
        """The graph after a scale's draw: its codes, resized to the next scale."""

        def feed(net: Net, token: Tensor, image: Tensor) -> dict[str, Tensor]:
            n, larger = net.patch_nums[scale : scale + 2]
            z = nn.functional.embedding(token, net.vq.codebook())
            z = z.transpose(1, 2).unflatten(2, (n, n))
            x = net.gpt.word_embed(cells(arc.resize(z, larger, larger, "bicubic")))
            return {"x": (x + net.gpt.place(scale + 1)).index_select(0, image)}

        return MethodType(feed, view(self, *_FEED))

    def decode(self, tokens: Tensor) -> dict[str, Tensor]:
        """tokens i64[b,L] -> pixels f32[b,3,H,W], about [-1,1], of the last scale."""
        return self.vq.decode(tokens[:, starts(self.patch_nums)[-2] :])

    def encode(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels f32[b,3,H,W] in [-1,1] -> tokens of all scales i64[b,L]."""
        z = self.vq.encoder(pixels)
        found = [self.vq.nearest(arc.resize(z, n, n, "area")) for n in self.patch_nums]
        return {"tokens": torch.cat(found, 1)}


@family("flexvar")
class FlexVar(Family):
    """A step a scale; attention to all earlier scales; any schedule. SAR's weights are alike."""

    order = "scales"
    licence = "MIT"
    verified = "greedy tokens and pixels of upstream on a tiny checkpoint"
    sizes: ClassVar = SIZES
    options: ClassVar = OPTIONS
    containers = ("", "trainer.var_wo_ddp", "model", "state_dict")
    decoder_containers = ("model", "", "state_dict")

    def claims(self, t: Tensors) -> bool:
        own = {"pos_1LC", "blocks.0.attn.mat_qkv.weight"} <= t.keys()
        return own and {k.split(".")[0] for k in t} <= _TOP and len(t.shape("pos_1LC")) == 4

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, or "tiny"."""
        if size == "tiny":
            c = Config(64, 2, 2, 128, 64, 8, 5, (1, 2, 3))
            names = vq.published((1, 1), ch=32, z=32, codes=64, width=8)
        else:
            dim, layers, heads = SIZES[size]
            c = Config(dim, layers, heads, 4 * dim, 8912, 32, 1000, PUBLISHED[0])
            names = vq.published((1, 1, 2, 2, 4), codes=8912, width=32)
        with torch.device("meta"):
            own = state(Transformer(c))
        facts = {"patch_nums": ",".join(map(str, c.patch_nums))}
        return Source(weights(own, seed), weights(names, seed), metadata=facts)

    def model(self, source: Source, options: Options) -> Model:
        t = source.tensors
        if source.decoder is None:
            raise ArcError("FlexVAR makes each scale's input with its image tokenizer, and none "
                           "is given", hint="give --decoder FlexVAE.pth")
        c = config(source, options)
        with torch.device("meta"):
            net = Net(c, tokenizer(source.decoder, c))
        match(t, state(net.gpt), ignore=var.IGNORE, what="FlexVAR")
        match(source.decoder, state(net.vq), ignore=vq.IGNORE, what="FlexVAR's tokenizer")
        bound = bind({"gpt.": t, "vq.": source.decoder}, state(net))
        return Model(net, entries(net, c), program(c, options), bound, info(c, net.vq),
                     defaults={"guidance": 2.5, "top_k": 900, "top_p": 0.95})


_TOP = {"pos_start", "pos_1LC", "attn_bias_for_masking", "class_emb", "word_embed", "blocks",
        "shared_ada_lin", "head_nm", "head"}


def config(source: Source, options: Options) -> Config:
    """Every size from the tensors; the schedule from the options."""
    t = source.tensors
    var.expect(t, {"pos_1LC": 4, "pos_start": 3, "class_emb.weight": 2, "word_embed.weight": 2,
                   "blocks.0.ffn.fc1.weight": 2, "head.weight": 2}, "FlexVAR")
    given = options.get("patch_nums", source.metadata.get("patch_nums", PUBLISHED[0]))
    schedule = sides(options.get("infer_patch_nums", given))
    if schedule[0] ** 2 != t.shape("pos_start")[1]:
        raise ArcError(f"patch_nums starts with {schedule[0]}x{schedule[0]} cells, but the "
                       f"checkpoint with {t.shape('pos_start')[1]}",
                       hint="published models start with 1")
    dim, width = t.shape("word_embed.weight")
    return Config(
        dim, var.depth(t, "blocks"), var.heads(t, "blocks.0.attn", dim, options),
        t.shape("blocks.0.ffn.fc1.weight")[0], t.shape("head.weight")[0], width,
        t.shape("class_emb.weight")[0] - 1, schedule, "blocks.0.ada_gss" in t,
        "blocks.0.attn.scale_mul_1H11" in t,
    )


def tokenizer(decoder: Tensors, c: Config) -> vq.VQ:
    found = vq.VQ({k: decoder.shape(k) for k in decoder}, c.patch_nums[-1])
    if (found.codes, found.width) != (c.vocabulary, c.width):
        raise ArcError(
            f"the decoder's codebook is {found.codes} codes of {found.width}, but the transformer "
            f"draws from {c.vocabulary} of {c.width}", hint="give FlexVAE.pth")
    return found


def entries(net: Net, c: Config) -> list[Entry]:
    rows = {"token": "i64[b,{}]", "image": "i64[r]"}
    found = [
        Entry("prompt", net.gpt.prompt, {"cond": "i64[b]", "image": "i64[r]",
                                         "is_null": "bool[r]"}),
        Entry("step", net.gpt.step, var.step_inputs(c)),
        *(Entry(f"feed{s}", net.feed(s), {k: t.format(n * n) for k, t in rows.items()})
          for s, n in enumerate(c.patch_nums[:-1])),
        Entry("decode", view(net, "vq").decode, {"tokens": f"i64[b,{c.positions}]"}),
    ]
    if net.vq.has_encoder:
        px = c.patch_nums[-1] * net.vq.factor
        found.append(Entry("encode", view(net, "vq").encode, {"pixels": f"f32[b,3,{px},{px}]"}))
    return found


def program(c: Config, options: Options) -> Program:
    """A step a scale. Guidance grows by a ninth a step; sides never trained on are greedy."""
    limit = positive(options, "max_pn", 16, "the largest side of the training")
    form = options.get("guidance_form", "var")
    if form not in ("var", "llamagen"):
        raise ArcError(f"option guidance_form must be var or llamagen, got {form!r}",
                       hint=OPTIONS["guidance_form"])
    steps, last = list(scales(c.patch_nums)), len(c.patch_nums) - 1
    for s, n in enumerate(c.patch_nums):
        ratio = 1.0 if n > limit else s / max(min(last, 9), 1)
        draw = Call("sample" if n <= limit and n in TRAINED else "greedy")
        calls = (Call("step"), draw, *([Call(f"feed{s}")] if s < last else []))
        guide = (1.0, ratio) if form == "var" else (0.0, 1.0)
        steps[s] = replace(steps[s], calls=calls, guide=guide)
    return Program(
        "flexvar", c.positions, tuple(steps), prompt=(Call("prompt"),),
        finish=(Call("decode", each=True),), inputs=(("cond", Type("i64", ("b",))),),
        state=tuple(var.caches(c).items()), draws=(Draw("noise", "uniform", 2),), mask="full",
    )


def info(c: Config, tokenizer: Any) -> dict[str, Any]:
    size = next((k for k, v in SIZES.items() if v == (c.dim, c.layers, c.heads)), "custom")
    return {"dim": c.dim, "layers": c.layers, "heads": c.heads, "vocabulary": c.vocabulary,
            "patch_nums": list(c.patch_nums), "size": size, "classes": c.classes,
            "pixels": c.patch_nums[-1] * tokenizer.factor}
