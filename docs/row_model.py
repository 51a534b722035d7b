"""A family of your own in one file: a small model that draws an image row by row.

Run it: `python docs/row_model.py`. To have `arcompile build` find it, install the file with an
entry point of the group `arcompile.plugins`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import arcompile
from arcompile import nn as arc
from arcompile.export import Entry
from arcompile.family import Family, Model, family
from arcompile.ir import Type
from arcompile.models.parts import bind, state
from arcompile.program import Call, Draw, Program, groups

SIDE, CODES, DIM, HEADS, CLASSES = 8, 32, 64, 4, 5


class RowModel(nn.Module):
    """All cells of a row at once, from the row above; every row sees those before it."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(CLASSES + 1, DIM)  # the last row is the null class
        self.code = nn.Embedding(CODES, DIM)
        self.place = nn.Parameter(torch.empty(SIDE, SIDE, DIM))
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, CODES)

    def prompt(self, cond: Tensor, image: Tensor, is_null: Tensor) -> dict[str, Tensor]:
        label = torch.where(is_null, torch.full_like(image, CLASSES), cond.index_select(0, image))
        return {"x": self.label(label)[:, None] + self.place[0]}

    def step(self, x: Tensor, past: Tensor, noise: Tensor, k: Tensor,
             v: Tensor) -> dict[str, Tensor]:
        q, new_k, new_v = self.qkv(self.norm(x)).chunk(3, -1)
        k, v = arc.cache_append(k, new_k, past), arc.cache_append(v, new_v, past)
        seen = arc.attention(q, k, v, HEADS, HEADS, (DIM // HEADS) ** -0.5, "full", past)
        return {"logits": self.head(x + self.out(seen)), "k": k, "v": v}

    def feed(self, token: Tensor, below: Tensor, image: Tensor) -> dict[str, Tensor]:
        x = self.code(token) + self.place.index_select(0, below)
        return {"x": x.index_select(0, image)}


@family("rows")
class Rows(Family):
    """An example: rows of a grid, each drawn at once."""

    order = "rows"

    def claims(self, t):
        return {"place", "qkv.weight"} <= set(t)

    def model(self, source, options):
        with torch.device("meta"):
            net = RowModel()
        cache = f"f32[r,{HEADS},{SIDE * SIDE},{DIM // HEADS}]"
        x = f"f32[r,{SIDE},{DIM}]"
        entries = [
            Entry("prompt", net.prompt, {"cond": "i64[b]", "image": "i64[r]",
                                         "is_null": "bool[r]"}),
            Entry("step", net.step, {"x": x, "past": "i32[r]", "noise": "f32[b,c,2]",
                                     "k": cache, "v": cache}),
            Entry("feed", net.feed, {"token": f"i64[b,{SIDE}]", "below": "i64[1]",
                                     "image": "i64[r]"}),
        ]
        return Model(net, entries, program(cache), bind({"": source.tensors}, state(net)),
                     info={"vocabulary": CODES, "classes": CLASSES})


def program(cache: str) -> Program:
    calls = (Call("step"), Call("sample"), Call("feed"))
    rows = [replace(s, calls=calls, set=(("below", (i + 1,)),))
            for i, s in enumerate(groups([SIDE] * SIDE))]
    rows[-1] = replace(rows[-1], calls=calls[:2], set=())  # nothing comes below the last row
    return Program("rows", SIDE * SIDE, tuple(rows), prompt=(Call("prompt"),), mask="full",
                   inputs=(("cond", Type.parse("i64[b]")),),
                   state=(("k", Type.parse(cache)), ("v", Type.parse(cache))),
                   draws=(Draw("noise", "uniform", 2),))


def main(folder: Path) -> arcompile.Engine:
    """Save a model with random weights, build it like any checkpoint, and draw."""
    torch.manual_seed(0)
    net = RowModel()
    nn.init.normal_(net.place)
    torch.save(net.state_dict(), folder / "rows.pt")
    engine = arcompile.build(folder / "rows.pt", family="rows", out=folder / "engine")
    print(engine.generate(2, seed=1, guidance=2.0).tokens.reshape(SIDE, SIDE))
    return engine


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(made))
