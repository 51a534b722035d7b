"""Partial pictures for next to nothing: a linear map from what is drawn to colours.

An image decoder takes as long as many decode steps. A preview does not need it: the vectors of
codes, or latents, tell the colour of their cell, and a map that is fitted when the engine is built
is a product of a few numbers, as the `latent2rgb` previews of diffusion front ends are. The
picture itself is still the decoder's, once all is drawn.
"""

from __future__ import annotations

import base64
import math
from dataclasses import replace

import numpy as np

from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Value
from arcompile.pipeline import Pass, register
from arcompile.program import Call, Program
from arcompile.raster import codebook
from arcompile.weights import Array, Weights

COLOURS = "@glance.colours"


@register("glance")
class Glance(Pass):
    """Give the program a preview of `side` x `side` colours a cell, smoothed to the image's size.

    map: its numbers, f16 in base64; `arcompile build` fits them on so many `pictures`. Tokens and
    pixels stay as they are; what `on_step` and `--preview` show before the end is another picture.
    """

    side: int = 2
    pictures: int = 8
    map: str = ""

    def __call__(self, p: Program) -> Program:
        held, size = drawn(p, self.name)
        if not self.map:
            raise ArcError("pass glance needs colours, which are fitted when an engine is built",
                           hint="arcompile build CKPT --passes glance")
        if self.colours().shape != (width_of(p, held, self.name) + 1, 3 * self.side**2):
            raise ArcError(f"the map of pass glance is not one of {p.name}",
                           hint="leave map out, and `arcompile build` fits it")
        g = preview(p, held, size, self.side, self.name)
        return replace(p, graphs=(*p.graphs, g), preview=(Call(g.name),))

    def colours(self) -> Array:
        """f32 [d+1, 3 side^2]: what a cell's vector, and a 1, are multiplied by."""
        try:
            flat = np.frombuffer(base64.b64decode(self.map, validate=True), "<f2")
            return flat.reshape(-1, 3 * self.side**2).astype(np.float32)
        except ValueError:
            raise ArcError("the map of pass glance is no map", hint="leave it out") from None

    def brings(self) -> Weights:
        return Weights({COLOURS: self.colours} if self.map else {})


def written(colours: Array) -> str:
    """The `map` of these colours."""
    return base64.b64encode(colours.astype("<f2").tobytes()).decode()


def drawn(p: Program, name: str) -> tuple[Value, tuple[int, int]]:
    """(what the finish makes pixels of, the pixels' height and width). Raises ArcError.

    It is `tokens` i64[b,N], latents f32[b,N,C], or a map f32[b,C,h,w].
    """
    for call in p.finish:
        g = p.graph(call.graph)
        pixels = g.result("pixels")
        if pixels is None or pixels.type.rank != 4 or len(p.finish) > 1 or len(g.params) != 1:
            break
        held, size = g.params[0], pixels.type.shape[2:]
        if all(isinstance(d, int) for d in (*held.type.shape[1:], *size)) and fits(held):
            return held, (int(size[0]), int(size[1]))
    raise ArcError(f"pass glance needs an image decoder that reads tokens or latents of one grid, "
                   f"and {p.name} has none", hint="its previews are by the decoder itself")


def fits(held: Value) -> bool:
    if held.name == "tokens":
        return math.isqrt(int(held.type.shape[1])) ** 2 == held.type.shape[1]
    rank3 = held.type.rank == 3 and math.isqrt(int(held.type.shape[1])) ** 2 == held.type.shape[1]
    return held.type.dtype == "f32" and (rank3 or held.type.rank == 4)


def width_of(p: Program, held: Value, name: str) -> int:
    """Numbers that tell of a cell."""
    if held.name == "tokens":
        return int(codebook(p, name)[1].type.shape[1])
    return int(held.type.shape[2] if held.type.rank == 3 else held.type.shape[1])


def grid(held: Value) -> tuple[int, int]:
    """Cells of the image, down and across."""
    if held.type.rank == 4:
        return int(held.type.shape[2]), int(held.type.shape[3])
    return (math.isqrt(int(held.type.shape[1])),) * 2


def preview(p: Program, held: Value, size: tuple[int, int], side: int, name: str) -> Graph:
    """The graph `glance`: held -> pixels f32[b,3,*size]."""
    (h, w), d = grid(held), width_of(p, held, name)
    b = Builder("glance")
    x = b.param(held.name, held.type)
    if held.name == "tokens":
        x = b.gather(_codes(b, p, name), x, axis=0)
    elif held.type.rank == 4:
        x = b.transpose(b.reshape(x, shape=("b", d, h * w)), perm=(0, 2, 1))
    colours = b.weight(COLOURS, f"f32[{d + 1},{3 * side**2}]")
    told = b.matmul(x, b.slice(colours, axis=0, start=0, stop=d))
    told = b.add(told, b.slice(colours, axis=0, start=d, stop=d + 1))
    told = b.reshape(told, shape=("b", h, w, side, side, 3))
    told = b.reshape(b.transpose(told, perm=(0, 5, 1, 3, 2, 4)), shape=("b", 3, h * side, w * side))
    if size != (h * side, w * side):
        told = b.resize(told, size=size, mode="bilinear")
    return b.graph(pixels=told)


def _codes(b: Builder, p: Program, name: str) -> Value:
    """The vectors [V,d] of codes, of the weights that the decoder makes them of."""
    g, codes = codebook(p, name)
    swap = {w: b.weight(w.name, w.type) for w in g.weights if w is codes} if codes.is_weight else {}
    for n in g.nodes:
        if codes in swap:
            break
        if n.args and all(a in swap or a.is_weight for a in n.args):
            args = tuple(swap.get(a) or b.weight(a.name, a.type) for a in n.args)
            swap.update(zip(n.outs, b.emit(n.op, *args, **n.attrs), strict=True))
    return swap[codes]
