"""PAR: parallelized autoregressive generation of one token per region. https://arxiv.org/abs/2412.15119

LlamaGen over a grid cut into g regions. The g top-left tokens are drawn one after another, then a
step draws the next token of every region at once: the first such step is fed g-1 learned special
tokens, later ones the group before. The tokens of an engine are in raster order, as those of every
family; upstream's own are in the order of `order(grid, g)`.
"""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import ClassVar

import torch
from torch import Tensor, nn

from arcompile.checkpoint import Weights as Tensors
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family
from arcompile.models import llamagen
from arcompile.models.llamagen import MORE, Config, assemble, entries, hidden, info, invent
from arcompile.program import Call, Program, Step

SIZES = {k: llamagen.SIZES[k] for k in ("XL", "XXL", "3B")}  # name -> (width, layers, heads)
GRID = 24  # of every published checkpoint: 384 px
_SPECIAL = "spe_tok_embeddings.special_embeddings.weight"
_TOP = {"cls_embedding", "tok_embeddings", "layers", "norm", "output", "freqs_cis",
        "spe_tok_embeddings"}


class Transformer(llamagen.Transformer):
    def __init__(self, c: Config):
        super().__init__(c)
        self.spe_tok_embeddings = nn.Module()
        self.spe_tok_embeddings.special_embeddings = nn.Embedding(c.special, c.dim)

    def special(self, x: Tensor) -> dict[str, Tensor]:
        """x [r,1,dim], the last lone token -> with the special tokens, the first group's input."""
        more = self.spe_tok_embeddings.special_embeddings.weight
        return {"x": torch.cat((x, more[None].expand(x.shape[0], -1, -1)), 1)}


@family("par")
class PAR(Family):
    """The first token of every region, then a group of one token a region each step."""

    order = "regions"
    licence = "none published"
    verified = "logits of a plain transcription of upstream's facts, on random weights"
    sizes = SIZES
    options: ClassVar = {**llamagen.LlamaGen.options,
                         "grid": f"tokens per side; {GRID} for every published checkpoint"}

    def claims(self, t: Tensors) -> bool:
        own = "tok_embeddings.weight" in t and _SPECIAL in t
        return own and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size at 384 px, with the VQ-16 tokenizer; or "tiny"."""
        c = Config(64, 2, 2, 128, 64, 4, classes=5, special=3)
        if size != "tiny":
            dim, layers, heads = SIZES[size]
            c = Config(dim, layers, heads, hidden(dim), 16384, GRID, classes=1000, special=3)
        return invent(c, Transformer, seed)

    def model(self, source: Source, options: Options) -> Model:
        told = {} if "grid" in source.metadata else {"grid": GRID}
        c = llamagen.config(source, {**told, **options}, SIZES)
        c = replace(c, special=specials(source.tensors, c), mask="full")
        cells = order(c.grid, c.special + 1)
        rows = [1 + p for p in cells]  # of the rope table; the class and special tokens have zeros
        rows[c.special + 1 : c.special + 1] = [-1] * c.special
        net, bound = assemble(source, c, Transformer, self.name, [0, *rows])
        found = entries(net, c)
        found.append(Entry("special", net.gpt.special, {"x": f"f32[r,1,{c.dim}]"}))
        run = program(c, cells, hasattr(net, "vq"))
        return Model(net, found, run, bound, info(net, c, SIZES))


def specials(t: Tensors, c: Config) -> int:
    """How many special tokens there are: one less than regions, of which there are n x n."""
    rows = t.shape(_SPECIAL)[0] if _SPECIAL in t else 0
    side = isqrt(rows + 1)
    if side < 2 or side * side != rows + 1:
        raise ArcError(f"{rows} special tokens are not one less than a square number of regions",
                       hint="name the family with --family")
    if c.grid % side:
        raise ArcError(f"a grid of {c.grid} does not divide into {side} x {side} regions",
                       hint=f"give --option grid=N, a multiple of {side}")
    if not c.classes:
        raise ArcError("a PAR transformer has a class table, this one has none",
                       hint="is it a PAR checkpoint?")
    return rows


def order(grid: int, regions: int) -> list[int]:
    """The raster cell of each token: token p is cell p // g of region p % g."""
    side = isqrt(regions)
    inner = grid // side
    found = []
    for p in range(grid * grid):
        (row, column), (y, x) = divmod(p // regions, inner), divmod(p % regions, side)
        found.append((y * inner + row) * grid + x * inner + column)
    return found


def program(c: Config, cells: list[int], decodes: bool) -> Program:
    """The first g tokens alone, then groups of g."""
    g = c.special + 1
    alone = [Step((p,), (p,), MORE, append=1) for p in cells[:g]]
    alone[-1] = replace(alone[-1], calls=(*MORE, Call("special")))
    groups = [tuple(cells[i : i + g]) for i in range(g, len(cells), g)]
    steps = [*alone, *(Step(x, x, MORE, append=g) for x in groups)]
    steps[-1] = replace(steps[-1], calls=MORE[:2])
    return llamagen.loop("par", c, steps, decodes)
