"""Token-Shuffle: a Llama that reads and draws s x s visual tokens at a time.

https://arxiv.org/abs/2504.17789. Around a raster model like LlamaGen stand two pairs of layers:
*shuffle* squeezes each of the s x s tokens of a window to a part of the width, puts them side by
side and mixes them; *unshuffle* turns what the transformer says of a window into s x s hidden
states, which one classifier reads in parallel. Prompts pass neither. No official weights are
published: the names here are LlamaGen's, and `shuffle.*` and `unshuffle.*` next to them.

What a checkpoint holds is the plain raster model and the layers; the pass `token-shuffle` puts
them in. The engine of a checkpoint has them, unless `window=1` asks for the plain model.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family, positive
from arcompile.models import llamagen, t5
from arcompile.models.llamagen import assemble, entries, hidden, info, invent, program
from arcompile.models.parts import count, shape

SIZES = {"2.7B": (3072, 20, 24)}  # name -> (width, layers, heads); of heads nothing is published
PROMPT, FEATURES = 120, 2048  # of random weights; published text tokens are Llama's own
_SQUEEZE = "shuffle.compress.weight"


@dataclass(frozen=True)
class Config(llamagen.Config):
    window: int = 2
    mlp: int = 128  # width inside the residual blocks
    blocks: tuple[int, int] = (2, 2)  # of shuffle and of unshuffle


class Residual(nn.Module):
    """x + fc2(gelu(fc1(norm(x))))"""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.norm = arc.RMSNorm(dim, 1e-5)
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class Shuffle(nn.Module):
    """[r,s*s,dim], a window's tokens row by row -> [r,1,dim]"""

    def __init__(self, c: Config):
        super().__init__()
        self.compress = nn.Linear(c.dim, c.dim // c.window**2)
        self.blocks = nn.ModuleList(Residual(c.dim, c.mlp) for _ in range(c.blocks[0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.compress(x).flatten(1)[:, None]
        for block in self.blocks:
            x = block(x)
        return x


class Unshuffle(nn.Module):
    """[r,1,dim], what the transformer says of a window -> [r,s*s,dim]"""

    def __init__(self, c: Config):
        super().__init__()
        self.blocks = nn.ModuleList(Residual(c.dim, c.mlp) for _ in range(c.blocks[1]))
        self.expand = nn.Linear(c.dim, c.dim * c.window**2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        y = self.expand(x)
        return y.view(y.shape[0], -1, x.shape[-1])


class Transformer(llamagen.Transformer):
    def __init__(self, c: Config):
        super().__init__(c)
        self.shuffle, self.unshuffle = Shuffle(c), Unshuffle(c)

    def squeeze(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": self.shuffle(x)}

    def spread(self, x: Tensor) -> dict[str, Tensor]:
        return {"x": self.unshuffle(x)}


@family("token-shuffle")
class TokenShuffle(Family):
    """Raster order over windows of s x s tokens, a window's drawn at once."""

    order = "windows"
    licence = "none published"
    verified = "logits and tokens of a plain transcription of the paper, on random weights"
    sizes = SIZES
    options: ClassVar = {
        **llamagen.LlamaGen.options,
        "window": "tokens per side of a window: what the layers take (the default), or 1 for the "
                  "plain model without them",
    }

    def claims(self, t: Tensors) -> bool:
        own = {"tok_embeddings.weight", _SQUEEZE, "unshuffle.expand.weight"}
        return own <= {*t} and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of the paper's size at 256 px, with the VQ-16 tokenizer; or "tiny"."""
        c = Config(64, 2, 2, 128, 64, 4, classes=5, mlp=32)
        if size != "tiny":
            dim, layers, heads = SIZES[size]
            c = Config(dim, layers, heads, hidden(dim), 16384, 16, features=FEATURES,
                       prompt=PROMPT, mlp=dim)
        return invent(c, Transformer, seed)

    def model(self, source: Source, options: Options) -> Model:
        c = config(source, options)
        window = positive(options, "window", c.window, "the tokens per side of a window")
        if window not in (1, c.window):
            raise ArcError(f"the shuffle layers take windows of {c.window}, not {window}",
                           hint=f"give window={c.window}, or 1 for the plain model")
        net, bound = assemble(source, c, Transformer, self.name)
        x = f"f32[r,{c.window**2},{c.dim}]"
        found = [*entries(net, c), Entry("shuffle", net.gpt.squeeze, {"x": x}),
                 Entry("unshuffle", net.gpt.spread, {"x": f"f32[r,1,{c.dim}]"})]
        run = replace(program(c, hasattr(net, "vq")), name=self.name)
        told = {**info(net, c, SIZES), "window": window}
        made = Model(net, found, run, bound, told,
                     passes=f"token-shuffle{{window={window}}}" if window > 1 else "")
        return t5.with_text(made, options, width=c.features, tokens=c.prompt, pad="left",
                            clean=True)


_TOP = {"cls_embedding", "tok_embeddings", "layers", "norm", "output", "freqs_cis", "shuffle",
        "unshuffle"}


def config(source: Source, options: Options) -> Config:
    """LlamaGen's, and the window and blocks that the layers' shapes tell."""
    t, base = source.tensors, llamagen.config(source, options, SIZES)
    part, dim = shape(t, _SQUEEZE, 2)
    window = math.isqrt(dim // part) if part else 0
    if dim != base.dim or window * window * part != dim:
        raise ArcError(f"{_SQUEEZE} is {part} x {dim}, which does not squeeze {base.dim} numbers "
                       "for a square window", hint="is it a Token-Shuffle checkpoint?")
    if base.grid % window:
        raise ArcError(f"a grid of {base.grid} tokens does not divide into windows of {window}",
                       hint=f"give --option grid=N, a multiple of {window}")
    blocks = (count(t, "shuffle.blocks."), count(t, "unshuffle.blocks."))
    mlp = next((t.shape(k)[0] for k in t if k.endswith("shuffle.blocks.0.fc1.weight")), 1)
    return Config(**asdict(base), window=window, mlp=mlp, blocks=blocks)
