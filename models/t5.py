"""The encoder of T5: prompts become caption features. https://arxiv.org/abs/1910.10683

A family that takes features spreads OPTION into its options and passes its Model through
`with_text`; when a folder is given, the engine gets a graph `text` and the tokenizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import contained, match, open_checkpoint, outside, quote
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Model, Options
from arcompile.models.parts import bind, state
from arcompile.runtime.text import GRAPH, TOKENIZER
from arcompile.weights import Weights

KEY = "text_encoder"
OPTION = {KEY: "a local T5 folder, such as flan-t5-xl: generate then takes prompts"}
IGNORE = ("decoder.*", "lm_head.weight", "encoder.embed_tokens.weight")  # the last is `shared`
FORWARD = {"relu": False, "gated-gelu": True}  # feed_forward_proj -> is it gated?


@dataclass(frozen=True)
class Config:
    vocabulary: int
    dim: int
    layers: int
    heads: int
    head: int
    hidden: int
    gated: bool
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-6
    end: int = 1  # the token that ends a text


def buckets(count: int, distance: int) -> np.ndarray:
    """The bucket of each offset (key - query) from -distance to distance, i64 [2*distance+1].

    Half of the buckets are for keys to the right. Of a side's, half hold one offset each, the
    others ever more; all that is `distance` or further away is in the last one.
    """
    side, exact = count // 2, count // 4
    offset = np.arange(-distance, distance + 1)
    away = np.abs(offset)
    share = np.log(np.maximum(away, 1).astype(np.float32) / exact) / np.log(distance / exact)
    far = np.minimum(exact + (share * (side - exact)).astype(np.int64), side - 1)
    return np.where(away < exact, away, far) + side * (offset > 0)


class Attention(nn.Module):
    """Without biases and without scaling; the first one holds the position bias of all."""

    def __init__(self, c: Config, first: bool):
        super().__init__()
        self.heads = c.heads
        self.q = nn.Linear(c.dim, c.heads * c.head, bias=False)
        self.k = nn.Linear(c.dim, c.heads * c.head, bias=False)
        self.v = nn.Linear(c.dim, c.heads * c.head, bias=False)
        self.o = nn.Linear(c.heads * c.head, c.dim, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(c.buckets, c.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.o(arc.attention(self.q(x), self.k(x), self.v(x), self.heads, self.heads, 1.0,
                                    "full", None, None, bias))


class FeedForward(nn.Module):
    """wo relu(wi x), or wo (gelu(wi_0 x) * wi_1 x)."""

    def __init__(self, c: Config):
        super().__init__()
        for name in ("wi_0", "wi_1") if c.gated else ("wi",):
            self.add_module(name, nn.Linear(c.dim, c.hidden, bias=False))
        self.wo = nn.Linear(c.hidden, c.dim, bias=False)
        self.gated = c.gated

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.wo(nn.functional.relu(self.wi(x)))
        return self.wo(nn.functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class Residual(nn.Module):
    """x + inner(norm(x), ...); `inner` bears the name that checkpoints give it."""

    def __init__(self, c: Config, name: str, inner: nn.Module):
        super().__init__()
        self.inner = name
        self.add_module(name, inner)
        self.layer_norm = arc.RMSNorm(c.dim, c.eps)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        return x + getattr(self, self.inner)(self.layer_norm(x), *more)


class Block(nn.Module):
    def __init__(self, c: Config, first: bool):
        super().__init__()
        self.layer = nn.ModuleList((Residual(c, "SelfAttention", Attention(c, first)),
                                    Residual(c, "DenseReluDense", FeedForward(c))))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


class T5(nn.Module):
    """Named as the checkpoint is; `bucket` is a table of ours."""

    def __init__(self, c: Config):
        super().__init__()
        self.distance = c.distance
        self.shared = nn.Embedding(c.vocabulary, c.dim)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList(Block(c, i == 0) for i in range(c.layers))
        self.encoder.final_layer_norm = arc.RMSNorm(c.dim, c.eps)
        self.register_buffer("bucket", torch.empty(2 * c.distance + 1, dtype=torch.int64))

    def bias(self, mask: Tensor) -> Tensor:
        """What is added to the scores, f32 [b,h,t,t]: by offset, or -1e30 at keys that are none."""
        at = torch.arange(mask.shape[1])
        offset = (at[None] - at[:, None]).clamp(-self.distance, self.distance) + self.distance
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        near = table(self.bucket[offset]).permute(2, 0, 1)[None]
        return torch.where(mask[:, None, None], near, -1e30)

    def text(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """ids i64 [b,t], mask bool [b,t] -> the last hidden state, f32 [b,t,dim]."""
        x, bias = self.shared(ids), self.bias(mask)
        for block in self.encoder.block:
            x = block(x, bias)
        return {"features": self.encoder.final_layer_norm(x)}


# --- the option ----------------------------------------------------------------------------------


def with_text(model: Model, options: Options, *, width: int, tokens: int, pad: str = "right",
              clean: bool = False) -> Model:
    """The model, with T5 as its submodule `t5` when the option names a folder. Raises ArcError.

    width: of the features the model takes; 0 when it takes none. How the runtime makes them of
    prompts: of at most `tokens` tokens with the end's, after cleaning captions when `clean`, at
    the `pad`ded row's other end.
    """
    if options.get(KEY) is None:
        return model
    if not width:
        raise ArcError(f"option {KEY}: this model draws classes, it reads no text",
                       hint="leave the option out, or give a captioned checkpoint")
    folder = _folder(options[KEY])
    c = config(folder)
    if c.dim != width:
        hint = "published models were trained with google/flan-t5-xl"
        raise ArcError(f"the text encoder makes features of {c.dim} numbers, the model takes "
                       f"{width}", hint=hint)
    net = model.module
    with torch.device("meta"):
        net.t5 = T5(c)
    facts = {"tokens": tokens, "pad": pad, "clean": clean, "end": c.end,
             "vocabulary": c.vocabulary}
    return replace(
        model, entries=[*model.entries, Entry(GRAPH, net.t5.text, {"ids": "i64[b,t]",
                                                                   "mask": "bool[b,t]"})],
        weights=model.weights.plus(_weights(folder, net.t5, c).load),
        info={**model.info, "text": facts}, files={**model.files, TOKENIZER: _tokenizer(folder)},
    )


def config(folder: Path) -> Config:
    """From the folder's config.json. Raises ArcError."""
    said = _json(folder, "config.json")
    kind, forward = said.get("model_type", "t5"), said.get("feed_forward_proj", "relu")
    if kind not in ("t5", "mt5"):
        raise ArcError(f"{folder} holds a {quote(kind)}, not a T5", hint="give google/flan-t5-xl")
    if forward not in FORWARD:
        raise ArcError(f"{folder}: feed_forward_proj {quote(forward)} is not supported",
                       hint=f"it may be {' or '.join(FORWARD)}")
    sizes = (_size(said, k) for k in ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv",
                                      "d_ff"))
    count = _size(said, "relative_attention_num_buckets", 32)
    distance = _size(said, "relative_attention_max_distance", 128)
    if count % 4 or distance <= count // 4:
        raise ArcError(f"{folder}: {count} buckets for distances up to {distance} are impossible",
                       hint="is its config.json that of a T5?")
    eps, end = said.get("layer_norm_epsilon", 1e-6), said.get("eos_token_id", 1)
    if not isinstance(eps, float) or not 0 < eps < 1 or type(end) is not int or end < 0:
        raise ArcError(f"{folder}: impossible layer_norm_epsilon {quote(eps)} or eos_token_id "
                       f"{quote(end)}", hint="is its config.json that of a T5?")
    return Config(*sizes, FORWARD[forward], count, distance, eps, end)


def _size(said: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = said.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 20:
        raise ArcError(f"the config.json of the text encoder has no possible {key}: "
                       f"{quote(value)}", hint="is it the folder of a T5?")
    return value


def _folder(given: Any) -> Path:
    if not isinstance(given, str | os.PathLike) or not (path := Path(given)).is_dir():
        hint = "download one: hf download google/flan-t5-xl --local-dir FOLDER"
        raise ArcError(f"option {KEY}: {quote(str(given))} is not a folder", hint=hint)
    return path


def _json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    with outside(path):
        value = json.loads(contained(path, folder.resolve()).read_bytes())
    if not isinstance(value, dict):
        raise ArcError(f"{path} is not a JSON object", hint="download it again")
    return value


def _weights(folder: Path, net: T5, c: Config) -> Weights:
    """`@t5.name` -> the folder's tensor, checked."""
    tensors, names = open_checkpoint(folder).weights(), state(net, skip=("bucket",))
    tied = "encoder.embed_tokens.weight"
    if "shared.weight" not in tensors and tied in tensors:
        tensors = Tensors(tensors.source, {**tensors, "shared.weight": tensors[tied]})
    match(tensors, names, ignore=IGNORE, what="the T5 of its config.json")
    bound = bind({"t5.": tensors}, dict.fromkeys(f"t5.{k}" for k in names))
    return bound.plus({"@t5.bucket": lambda: buckets(c.buckets, c.distance)})


def _tokenizer(folder: Path) -> Path:
    """tokenizer.json, which is read without SentencePiece."""
    if not (folder / TOKENIZER).exists():
        old = " but spiece.model" if (folder / "spiece.model").exists() else ""
        raise ArcError(f"{folder} has no {TOKENIZER}{old}",
                       hint="save it: transformers.AutoTokenizer.from_pretrained(DIR)"
                            ".save_pretrained(DIR)")
    if not isinstance(_json(folder, TOKENIZER).get("model"), dict):
        raise ArcError(f"{folder / TOKENIZER} describes no tokenizer", hint="download it again")
    return folder / TOKENIZER
