"""HMAR as its authors run it (models/hmar.py), on the CPU.

VAR's blocks without a history: each pass is over one scale, and every block computes its own
modulation. Some scales are drawn again where the first draw was least sure.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_var import Block, Tokenizer, opened
from arcompile.family import Source
from arcompile.models.hmar import Config, config

TOP_P = 0.99


class Transformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c, d = c, c.dim
        self.pos_start = nn.Parameter(torch.empty(1, c.patch_nums[0] ** 2, d))
        self.pos_1LC = nn.Parameter(torch.empty(1, c.positions, d))
        self.lvl_embed, self.class_emb = nn.Embedding(len(c.patch_nums), d), nn.Embedding(
            c.classes + 1, d)
        self.word_embed = nn.Linear(c.width, d, bias=False)
        self.word_embed_bias = nn.Parameter(torch.empty(d))
        self.mask_embed = nn.Embedding(1, d)
        for name, count in (("base", c.base), ("ns", c.layers - c.base), ("mask", c.refine)):
            self.add_module(f"{name}_blocks", nn.ModuleList(Block(c) for _ in range(count)))
        for name in ("ns", "mask"):
            norm: Any = nn.Module()
            norm.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))
            self.add_module(f"{name}_head_nm", norm)
            self.add_module(f"{name}_head", nn.Linear(d, c.vocabulary))

    def forward(self, x: Tensor, cond: Tensor, stack: str) -> Tensor:
        """Logits of the next scale (`ns`), or of a scale drawn again (`mask`)."""
        blocks: Any = (*self.get_submodule("base_blocks").children(),
                       *self.get_submodule(f"{stack}_blocks").children())
        for block in blocks:
            block.attn.k = block.attn.v = None
            x = block(x, cond)
        norm: Any = self.get_submodule(f"{stack}_head_nm")
        scale, shift = norm.ada_lin(cond).view(-1, 1, 2, self.c.dim).unbind(2)
        normed = F.layer_norm(x, (self.c.dim,), eps=1e-6).mul(scale.add(1)).add_(shift)
        return self.get_submodule(f"{stack}_head")(normed)  # type: ignore[no-any-return]


def draw(logits: Tensor, temperature: float, top_k: int) -> tuple[Tensor, Tensor]:
    """logits [B,l,V], filtered in place -> tokens [B,l] and their probabilities.

    Temperature 0, which upstream has not: the likeliest, of which it is sure.
    """
    b, cells, v = logits.shape
    if top_k > 0:
        least = logits.topk(min(top_k, v), sorted=False)[0].amin(-1, keepdim=True)
        logits.masked_fill_(logits < least, -torch.inf)
    ordered, at = logits.sort(dim=-1)
    out = ordered.softmax(-1).cumsum_(-1) <= 1 - TOP_P
    out[..., -1:] = False
    logits.masked_fill_(out.scatter(-1, at, out), -torch.inf)
    if temperature == 0:
        token = logits.argmax(-1)
        return token, torch.ones_like(token, dtype=torch.float32)
    law = (logits / temperature).softmax(-1)
    token = torch.multinomial(law.view(-1, v), 1).view(b, cells)
    return token, law.gather(-1, token[..., None])[..., 0]


class Hmar:
    """One pass of the network a step, as the engine has it: scales, and what is drawn again."""

    def __init__(self, gpt: Transformer, vae: Tokenizer):
        self.gpt, self.vae = gpt, vae

    @torch.inference_mode()
    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        g, label = self.gpt, torch.as_tensor(cond, dtype=torch.int64)
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        self.b, self.scale, self.turn, self.at = len(label), 0, 0, 0
        self.cond = g.class_emb(torch.cat((label, torch.full_like(label, g.c.classes))))
        levels = torch.repeat_interleave(torch.arange(len(g.c.patch_nums)),
                                         torch.tensor([n * n for n in g.c.patch_nums]))
        self.place = g.lvl_embed(levels)[None] + g.pos_1LC
        first, side = g.c.patch_nums[0] ** 2, g.c.patch_nums[-1]
        self.x = self.cond[:, None].expand(-1, first, -1) + g.pos_start + self.place[:, :first]
        self.f_hat = torch.zeros(self.b, g.c.width, side, side)

    @torch.inference_mode()
    def step(self) -> Tensor:
        """The tokens of the scale as they stand: its last step commits them."""
        sides, row = self.gpt.c.patch_nums, self.gpt.c.rows[self.scale]
        if self.turn:
            t = self.guidance * 1e-6
            new, sure = self._draw(self.gpt(self.x, self.cond, "mask"), t)
            self.token = torch.where(self.mask, new, self.token)
            self.sure = torch.where(self.mask, sure, self.sure)
        else:
            t = self.guidance * self.scale / max(len(sides) - 1, 1)
            self.token, self.sure = self._draw(self.gpt(self.x, self.cond, "ns"), t)
            self.mask = torch.ones_like(self.token, dtype=torch.bool)
        self.turn += 1
        if self.turn < len(row):
            self._again(sum(row[self.turn :]))
            return torch.zeros(self.b, 0, dtype=torch.int64)
        self._commit()
        return self.token

    def _draw(self, logits: Tensor, t: float) -> tuple[Tensor, Tensor]:
        given, null = logits.chunk(2)
        return draw((1 + t) * given - t * null, self.temperature, self.top_k)

    def _area(self, f: Tensor) -> Tensor:
        n = self.gpt.c.patch_nums[self.scale]
        small = F.interpolate(f, size=(n, n), mode="area").flatten(2).transpose(1, 2)
        return self.gpt.word_embed(small)  # type: ignore[no-any-return]

    def _here(self) -> Tensor:
        n = self.gpt.c.patch_nums[self.scale] ** 2
        return self.gpt.word_embed_bias + self.place[:, self.at : self.at + n]

    def _again(self, left: int) -> None:
        """Mask the `left` cells that were least sure; what the refinement sees."""
        low = self.sure.masked_fill(~self.mask, torch.inf).argsort(dim=-1, stable=True)[:, :left]
        self.mask = torch.zeros_like(self.mask).scatter(1, low, True)
        drawn = self._area(self._map())
        drawn = torch.where(self.mask[..., None], self.gpt.mask_embed.weight[None], drawn)
        self.x = (self._area(self.f_hat) + drawn + self._here()).repeat(2, 1, 1)

    def _map(self) -> Tensor:
        sides = self.gpt.c.patch_nums
        n, side = sides[self.scale], sides[-1]
        h = self.vae.quantize.embedding(self.token).transpose(1, 2).reshape(self.b, -1, n, n)
        if n != side:
            h = F.interpolate(h, size=(side, side), mode="bicubic")
        return self.vae.phi(self.scale / max(len(sides) - 1, 1))(h)  # type: ignore[no-any-return]

    def _commit(self) -> None:
        self.f_hat = self.f_hat + self._map()
        self.at += self.gpt.c.patch_nums[self.scale] ** 2
        self.scale, self.turn = self.scale + 1, 0
        if self.scale < len(self.gpt.c.patch_nums):
            self.x = (self._area(self.f_hat) + self._here()).repeat(2, 1, 1)

    @torch.inference_mode()
    def finish(self, tokens: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.post_quant_conv(self.f_hat))  # type: ignore[no-any-return]


def load(source: Source) -> Hmar:
    c = config(source, {})
    return Hmar(*opened(source, lambda: Transformer(c)))
