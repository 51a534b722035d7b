"""Janus and Janus-Pro: a Llama that draws LlamaGen's codes after a text prompt.

https://arxiv.org/abs/2410.13848, https://arxiv.org/abs/2501.17811. A folder of Hugging Face, in
DeepSeek's names of tensors or in those of transformers; understanding of images is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
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
from arcompile.models.hf_llama import Decoder, Shape, kept, rope
from arcompile.models.llama import RopeTable
from arcompile.models.parts import bind, coder, settings, state
from arcompile.models.random import weights
from arcompile.models.scales import MOST
from arcompile.models.vq import IGNORE, VQ, published
from arcompile.program import Call, Draw, Program, Step

# name -> (width, layers, heads)
SIZES = {"1.3B": (2048, 24, 16), "Pro-1B": (2048, 24, 16), "Pro-7B": (4096, 30, 32)}
TEMPLATE = "<|User|>: {prompt}\n\n<|Assistant|>:"
MOST_IDS = 512  # of a prompt, unless option max_prompt says otherwise

# DeepSeek's names -> ours, which are those of transformers without `model.`
_OURS = (
    ("language_model.model.", "language_model."),
    ("gen_embed.", "generation_embeddings."),
    ("gen_aligner.layers.0.", "generation_aligner.fc1."),
    *((f"gen_aligner.layers.{2 * i + 2}.", f"generation_aligner.hidden_layers.{i}.")
      for i in range(8)),
    ("gen_head.output_mlp_projector.", "generation_head.proj_out."),
    ("gen_head.vision_head.", "generation_head.vision_head."),
    ("gen_vision_model.", "vq."),
)
# of its VQ tokenizer in transformers -> LlamaGen's
_VQ = ((r"\b(?:down|up)\.(\d+)\.", r"conv_blocks.\1."), (r"\.block\.(\d+)\.", r".res.\1."),
       (r"\bmid\.block_1\.", "mid.0."), (r"\bmid\.attn_1\.", "mid.1."),
       (r"\bmid\.block_2\.", "mid.2."))
_UNUSED = ("vision_model.", "aligner.", "lm_head.", "language_model.lm_head.")


@dataclass(frozen=True)
class Config:
    text: Shape
    words: int  # the text vocabulary
    codes: int
    width: int  # of a code's embedding
    aligner: int  # layers of the aligner
    head: int  # width of the head
    grid: int
    most: int  # ids of a prompt
    pad: int

    @property
    def positions(self) -> int:
        return self.grid * self.grid


class Aligner(nn.Module):
    """A code's embedding becomes an input of the language model."""

    def __init__(self, c: Config):
        super().__init__()
        dim = c.text.dim
        self.fc1 = nn.Linear(c.width, dim)
        self.hidden_layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(c.aligner - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for layer in self.hidden_layers:
            x = layer(nn.functional.gelu(x))
        return x


class Head(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.proj_out = nn.Linear(c.text.dim, c.head)
        self.vision_head = nn.Linear(c.head, c.codes)

    def forward(self, x: Tensor) -> Tensor:
        return self.vision_head(nn.functional.gelu(self.proj_out(x)))


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.language_model = Decoder(c.text, c.words)
        self.generation_embeddings = nn.Embedding(c.codes, c.width)
        self.generation_aligner, self.generation_head = Aligner(c), Head(c)
        self.rope = RopeTable(c.most + c.positions, c.text.head)

    def prompt(self, input_ids: Tensor, mask: Tensor, image: Tensor,
               is_null: Tensor) -> dict[str, Tensor]:
        """All but the first and the last id of an unconditional row are pads, which it sees."""
        ids, seen = input_ids.index_select(0, image), mask.index_select(0, image)
        count = seen.long().cumsum(1)
        ends = (count == 1) | (count == count.amax(1, keepdim=True))
        pads = torch.full_like(ids, self.c.pad)
        ids = torch.where(is_null[:, None] & ~ends, pads, ids)
        return {"x": self.language_model.embed_tokens(ids), "keep": kept(seen, self.c.positions)}

    def feed(self, token: Tensor, image: Tensor) -> dict[str, Tensor]:
        x = self.generation_aligner(self.generation_embeddings(token))
        return {"x": x.index_select(0, image)}

    def step(self, x: Tensor, past: Tensor, noise: Tensor, keep: Tensor,
             **cache: Tensor) -> dict[str, Tensor]:
        """x [r,s,dim] -> logits of the last c slots, c being the size of `noise` [b,c,2]."""
        x, out = self.language_model(x, past, self.rope, cache, keep)
        x = self.language_model.norm(arc.tail(x, noise))
        return {"logits": self.generation_head(x), **out}


class Net(nn.Module):
    def __init__(self, gpt: Transformer, vq: VQ):
        super().__init__()
        self.gpt, self.vq = gpt, vq


@family("janus")
class Janus(Family):
    """Raster order after a prompt of any length; prompts of a batch are padded on the left."""

    order = "raster"
    licence = "MIT code, DeepSeek Model License weights"
    verified = "greedy tokens and pixels of transformers on a tiny checkpoint"
    sizes = SIZES
    options: ClassVar = {
        "grid": "tokens per side; told by config.json, else 24",
        "max_prompt": f"longest prompt in ids (default {MOST_IDS})",
        "pad_id": "the padding id; told by the folder's json files",
        "template": "what stands around a prompt in words, with {prompt} in it",
    }
    containers = ("",)

    def claims(self, t: Tensors) -> bool:
        own = ours(t)
        needed = {"generation_embeddings.weight", "generation_head.vision_head.weight",
                  "language_model.embed_tokens.weight"}
        return needed <= own.keys() and {k.split(".")[0] for k in own} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size, with the VQ-16 tokenizer; or "tiny", or "small": its
        shape an eighth as large."""
        c = Config(Shape(64, 2, 4, 2, 16, 96), 50, 64, 8, 2, 64, 4, 20, 0)
        vq = published((1, 1), ch=32, z=32, codes=64)
        if size != "tiny":
            dim, layers, heads = (1024, 12, 16) if size == "small" else SIZES[size]
            hidden = {1024: 2816, 2048: 5632}.get(dim, 11008)
            text, words = Shape(dim, layers, heads, heads, dim // heads, hidden), 102400
            if size == "small":
                words = 8192
            c = Config(text, words, 16384, 8, 2, dim, 24, MOST_IDS, min(100015, words - 1))
            vq = published((1, 1, 2, 2, 4))
        with torch.device("meta"):
            names = {theirs(k): s for k, s in state(Transformer(c), skip=("rope.",)).items()}
        names |= {f"gen_vision_model.{k}": s for k, s in vq.items()}
        return Source(weights(names, seed), metadata={"config.json": written(c)})

    def model(self, source: Source, options: Options) -> Model:
        if source.decoder is not None:
            raise ArcError("a Janus checkpoint holds its own image decoder",
                           hint="leave --decoder out")
        t = ours(source.tensors)
        gpt, vq = (Tensors(t.source, {k.removeprefix("vq."): e for k, e in t.items()
                                      if k.startswith("vq.") is is_vq})
                   for is_vq in (False, True))
        facts = Facts(source)
        c = config(gpt, facts, options)
        with torch.device("meta"):
            net = Net(Transformer(c), VQ({k: vq.shape(k) for k in vq}, c.grid))
        if net.vq.codes != c.codes:
            raise ArcError(f"the decoder's codebook has {net.vq.codes} codes but the transformer "
                           f"draws from {c.codes}", hint="is the folder of one model?")
        match(gpt, state(net.gpt, skip=("rope.",)), ignore=("*.rotary_emb.inv_freq",),
              what="Janus")
        match(vq, state(net.vq), ignore=IGNORE, what="Janus' VQ tokenizer")
        bound = bind({"gpt.": gpt, "vq.": vq}, state(net, skip=("gpt.rope.",)))
        table = rope(c.most + c.positions, c.text.head, c.text.theta)
        bound = bound.plus({f"@gpt.rope.{k}": (lambda a=v: a) for k, v in table.items()})
        return Model(net, entries(net, c), program(c), bound, info(net, c),
                     defaults={"guidance": facts.guidance}, prompt=facts.prompt(c, options),
                     files=facts.files)


_TOP = {"language_model", "generation_embeddings", "generation_aligner", "generation_head", "vq"}


def ours(t: Tensors) -> Tensors:
    """The tensors that generation needs, by the names of our modules; VQ's begin with `vq.`."""
    return Tensors(t.source, {_our(k): e for k, e in t.items()
                              if not k.removeprefix("model.").startswith(_UNUSED)})


def _our(name: str) -> str:
    name = name.removeprefix("model.")
    if name.startswith("vqmodel."):
        name = "vq." + name.removeprefix("vqmodel.")
        for pattern, new in _VQ:
            name = re.sub(pattern, new, name)
        return name
    for old, new in _OURS:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def theirs(name: str) -> str:
    """DeepSeek's name of one of our parameters."""
    old, new = next(pair for pair in _OURS if name.startswith(pair[1]))
    return old + name.removeprefix(new)


def written(c: Config) -> str:
    """The config.json of a made-up model."""
    return json.dumps({"pad_token_id": c.pad, "vq_config": {"num_patches": c.grid}, "text_config": {
        "num_attention_heads": c.text.heads, "head_dim": c.text.head,
        "max_position_embeddings": c.most + c.positions}})


class Facts:
    """What the json files beside the weights say."""

    def __init__(self, source: Source):
        self.config = settings(source, "config.json")
        self.generation = settings(source, "generation_config.json")
        held = source.folder / "tokenizer.json" if source.folder else None
        self.files: dict[str, Path] = {held.name: held} if held and held.is_file() else {}
        tokens = settings(source, "tokenizer.json").get("added_tokens") or []
        self.added = {t.get("content"): t.get("id") for t in tokens if isinstance(t, dict)}
        self.text = self.config.get("text_config") or self.config.get("language_config") or {}
        if not isinstance(self.text, dict) or not self.text:
            raise ArcError("Janus needs the config.json of its folder: it has no text_config",
                           hint="give the folder, with its json files")

    @property
    def guidance(self) -> float:
        return float(self.generation.get("guidance_scale") or 5.0)

    def token(self, name: str, content: str) -> int | None:
        """The id of a special token, by its name in configurations or by what stands for it."""
        more = self.generation.get("generation_kwargs") or {}
        for where in (self.generation, more, self.config, self.text):
            if isinstance(where.get(name), int):
                return int(where[name])
        return self.added.get(content)

    def prompt(self, c: Config, options: Options) -> dict[str, Any]:
        template = str(options.get("template", TEMPLATE))
        if "{prompt}" not in template:
            raise ArcError(f"option template has no {{prompt}} in it: {template!r}",
                           hint=f"the usual one is {TEMPLATE!r}")
        return {"max": c.most, "vocabulary": c.words, "pad": c.pad, "template": template,
                "bos": self.token("bos_token_id", "<｜begin▁of▁sentence｜>"),
                "boi": self.token("boi_token_id", "<begin_of_image>")}


def config(t: Tensors, facts: Facts, options: Options) -> Config:
    """Widths from the tensors, the rest from the json files."""
    words, dim = matrix(t, "language_model.embed_tokens.weight")
    layers = count(t, r"language_model\.layers\.(\d+)\.")
    at = "language_model.layers.0."
    text = shape(facts.text, dim, layers, [matrix(t, at + k)[0] for k in (
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.gate_proj.weight")])
    codes, width = matrix(t, "generation_embeddings.weight")
    vq = facts.config.get("vq_config") or {}
    grid = positive(options, "grid", vq.get("num_patches") or 24, "the number of tokens per side",
                    MOST)
    slots = facts.text.get("max_position_embeddings") or 16384
    if (room := slots - grid * grid) < 2:
        raise ArcError(f"{grid} x {grid} tokens leave no room for a prompt in the model's "
                       f"{slots} positions", hint="give a smaller grid")
    most = positive(options, "max_prompt", min(MOST_IDS, room), "the longest prompt")
    if most > room:
        raise ArcError(f"a prompt of {most} ids and {grid * grid} tokens exceed the model's "
                       f"{slots} positions", hint=f"max_prompt may be {room}")
    aligner = 1 + count(t, r"generation_aligner\.hidden_layers\.(\d+)\.")
    head = matrix(t, "generation_head.proj_out.weight")[0]
    pad = options.get("pad_id", facts.token("pad_token_id", "<｜▁pad▁｜>"))
    if isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad < words:
        raise ArcError(f"the padding id cannot be told: {pad!r}", hint="give --option pad_id=N")
    return Config(text, words, codes, width, aligner, head, grid, most, pad)


def count(t: Tensors, pattern: str) -> int:
    """How many layers there are, by the largest number in their names."""
    return 1 + max((int(m[1]) for k in t if (m := re.match(pattern, k))), default=-1)


def matrix(t: Tensors, name: str) -> tuple[int, int]:
    if name not in t or len(t.shape(name)) != 2:
        raise ArcError(f"not a Janus model: {name} is missing or not a matrix",
                       hint="name the family with --family")
    rows, columns = t.shape(name)
    return rows, columns


def shape(text: Mapping[str, Any], dim: int, layers: int, rows: list[int]) -> Shape:
    """The language model: heads, base and eps from its configuration, with Llama's defaults."""
    q, k, hidden = rows
    usual = {(d, n): h for d, n, h in SIZES.values()}.get((dim, layers), 32)
    heads = text.get("num_attention_heads") or usual
    head = text.get("head_dim") or dim // heads
    if q != heads * head or k % head or heads % (k // head) or head % 2:
        raise ArcError(f"{heads} heads of {head} do not fit projections of {q} and {k} rows",
                       hint="config.json must be of these weights")
    turn = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kind = turn.get("rope_type", turn.get("type", "default"))
    if kind != "default":
        raise ArcError(f"rotary embedding of type {kind!r} is not supported",
                       hint="published Janus models have the default one")
    theta = float(turn.get("rope_theta") or text.get("rope_theta") or 10000.0)
    return Shape(dim, layers, heads, k // head, head, hidden,
                 float(text.get("rms_norm_eps") or 1e-6), theta)


def entries(net: Net, c: Config) -> list[Entry]:
    cache = f"f32[r,{c.text.kv},t,{c.text.head}]"
    return [
        Entry("prompt", net.gpt.prompt, {"input_ids": "i64[b,p]", "mask": "bool[b,p]",
                                         "image": "i64[r]", "is_null": "bool[r]"}),
        Entry("step", net.gpt.step, {"x": f"f32[r,s,{c.text.dim}]", "past": "i32[r]",
                                     "noise": "f32[b,c,2]", "keep": "bool[r,t]",
                                     **dict.fromkeys(names(c), cache)}),
        Entry("feed", net.gpt.feed, {"token": "i64[b,c]", "image": "i64[r]"}),
        *coder(net.vq, {"tokens": f"i64[b,{c.positions}]"}, c.grid, c.grid),
    ]


def names(c: Config) -> list[str]:
    return [f"{k}{i}" for i in range(c.text.layers) for k in "kv"]


def program(c: Config) -> Program:
    """The prompt's p ids, then one token a step; caches are as long as the request needs."""
    more = (Call("step"), Call("sample"), Call("feed"))
    n = c.positions
    steps = [Step((i,), (i,), more if i < n - 1 else more[:2], append=1 if i else "p")
             for i in range(n)]
    cache = Type.parse(f"f32[r,{c.text.kv},p+{n},{c.text.head}]")
    return Program(
        "janus", n, tuple(steps), prompt=(Call("prompt"),), finish=(Call("decode", each=True),),
        inputs=(("input_ids", Type.parse("i64[b,p]")), ("mask", Type.parse("bool[b,p]"))),
        state=tuple((k, cache) for k in names(c)), draws=(Draw("noise", "uniform", 2),),
    )


def info(net: Net, c: Config) -> dict[str, Any]:
    size = (c.text.dim, c.text.layers, c.text.heads)
    return {"dim": c.text.dim, "layers": c.text.layers, "heads": c.text.heads,
            "kv_heads": c.text.kv, "grid": c.grid, "vocabulary": c.codes, "max_prompt": c.most,
            "size": next((k for k, v in reversed(SIZES.items()) if v == size), "custom"),
            "pixels": c.grid * net.vq.factor}
