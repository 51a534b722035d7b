"""NAR: next-neighbour prediction, one anti-diagonal of the grid a step. https://arxiv.org/abs/2503.10696

LlamaGen with one more layer and a second head: the layer before the last tells the token to the
right of a cell, the last layer the one below it. A cell with both neighbours known takes the mean
of the two predictions, so that a grid of n x n takes 2n-1 steps.
Upstream's cfg_interval counts the first token too: it is one more than our guidance_interval.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import ClassVar

from torch import Tensor, nn

from arcompile import nn as arc
from arcompile.checkpoint import Weights as Tensors
from arcompile.errors import ArcError
from arcompile.export import Entry
from arcompile.family import Family, Model, Options, Source, family
from arcompile.models import llamagen, t5
from arcompile.models.llamagen import MORE, Config, Net, assemble, entries, hidden, info, invent
from arcompile.program import Program, diagonals

# name -> (width, layers, heads); one more layer is the second head's
SIZES = {"B": (768, 12, 12), "M": (1024, 18, 16), "L": (1024, 24, 16), "XL": (1280, 36, 20),
         "XXL": (1536, 48, 24)}
_TOP = {"cls_embedding", "tok_embeddings", "layers", "norm", "output", "freqs_cis", "medusa_norm",
        "medusa_output"}


class Transformer(llamagen.Transformer):
    """Two heads: `output` for the right neighbour, `medusa_output` for the one below."""

    def __init__(self, c: Config):
        super().__init__(c)
        self.medusa_norm = arc.RMSNorm(c.dim, 1e-5)
        self.medusa_output = nn.Linear(c.dim, c.vocabulary, bias=False)

    def step(self, x: Tensor, past: Tensor, left: Tensor, above: Tensor, share: Tensor,
             keep: Tensor | None = None, **cache: Tensor) -> dict[str, Tensor]:
        """x [r,s,dim]: the diagonal before -> logits [r,c,V] of this one's cells.

        left, above i64[c]: which of the s slots is a cell's neighbour; share f32[c]: the weight
        of the left one's word.
        """
        out, h = {}, x
        for i, block in enumerate(self.layers):
            h, kv = x, (cache[f"k{i}"], cache[f"v{i}"])
            x, out[f"k{i}"], out[f"v{i}"] = block(x, kv, past, self.rope, keep)
        right = self.output(self.norm(h.index_select(1, left)))
        below = self.medusa_output(self.medusa_norm(x.index_select(1, above)))
        share = share[:, None]
        return {"logits": right * share + below * (1 - share), **out}


@family("nar")
class NAR(Family):
    """Anti-diagonal order; a diagonal sees those before it and itself."""

    order = "anti-diagonals"
    licence = "MIT"
    verified = ("greedy tokens of upstream on a tiny class-conditional checkpoint; logits after "
                "captions of a plain transcription")
    sizes = SIZES
    options: ClassVar = llamagen.LlamaGen.options

    def claims(self, t: Tensors) -> bool:
        own = "tok_embeddings.weight" in t and "medusa_output.weight" in t
        return own and {k.split(".")[0] for k in t} <= _TOP

    def random(self, size: str, seed: int = 0) -> Source:
        """Random weights of a published size at 256 px, with the VQ-16 tokenizer; or "tiny"."""
        c = Config(64, 3, 2, 128, 64, 4, classes=5)
        if size != "tiny":
            dim, layers, heads = SIZES[size]
            c = Config(dim, layers + 1, heads, hidden(dim), 16384, 16, classes=1000)
        return invent(c, Transformer, seed)

    def model(self, source: Source, options: Options) -> Model:
        c = llamagen.config(source, options, SIZES, extra=1)
        c = replace(c, mask="full" if c.prompt == 1 else "prefix")
        if c.layers < 2:
            raise ArcError("a NAR transformer has at least two layers, this one has one",
                           hint="is it a NAR checkpoint?")
        order = [*range(c.prompt), *(c.prompt + p for p in positions(c.grid))]
        net, bound = assemble(source, c, Transformer, self.name, order)
        run = program(c, hasattr(net, "vq"))
        made = Model(net, steps_of(net, c), run, bound, info(net, c, SIZES, extra=1))
        return t5.with_text(made, options, width=c.features, tokens=c.prompt, pad="left",
                            clean=True)


def positions(grid: int) -> list[int]:
    """Raster cells in the order in which they are drawn, which is that of the cache."""
    return list(chain.from_iterable(s.commit for s in diagonals(grid, grid)))


def steps_of(net: Net, c: Config) -> list[Entry]:
    """LlamaGen's graphs, with a step that is told where neighbours are."""
    found = entries(net, c)
    at = next(i for i, e in enumerate(found) if e.name == "step")
    inputs = {k: t for k, t in found[at].inputs.items() if k != "noise"}
    where = {"left": "i64[c]", "above": "i64[c]", "share": "f32[c]"}
    found[at] = replace(found[at], inputs={**inputs, **where})
    return found


def program(c: Config, decodes: bool) -> Program:
    """Each step feeds the diagonal before, and draws the next."""
    steps, fed = [], ()
    for s in diagonals(c.grid, c.grid):
        where = _neighbours(s.commit, fed, c.grid) if fed else _first(c.prompt)
        steps.append(replace(s, calls=MORE, append=len(fed) or c.prompt, set=where))
        fed = s.commit
    steps[-1] = replace(steps[-1], calls=MORE[:2])
    return llamagen.loop("nar", c, steps, decodes)


def _first(prompt: int) -> tuple:
    """Both heads of the last prompt slot foretell the first cell."""
    return ("left", (prompt - 1,)), ("above", (prompt - 1,)), ("share", (0.5,))


def _neighbours(cells: tuple[int, ...], fed: tuple[int, ...], grid: int) -> tuple:
    """Where in `fed` each cell's neighbours are; one that is off the grid has no share."""
    at = {cell: i for i, cell in enumerate(fed)}
    left = [at[cell - 1] if cell % grid else None for cell in cells]
    above = [at[cell - grid] if cell >= grid else None for cell in cells]
    share = [0.0 if x is None else 1.0 if y is None else 0.5
             for x, y in zip(left, above, strict=True)]
    return (("left", tuple(x or 0 for x in left)), ("above", tuple(y or 0 for y in above)),
            ("share", tuple(share)))
