"""KL-16, the autoencoder of MAR and xAR: continuous latents. https://arxiv.org/abs/2112.10752"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from arcompile.checkpoint import Weights as Tensors
from arcompile.checkpoint import match
from arcompile.errors import ArcError
from arcompile.models.ldm import Decoder, Plan, decoder_plan, read_plan
from arcompile.models.parts import state

SCALE = 0.2325  # the transformer's latents are the autoencoder's times this
IGNORE = ("encoder.*", "quant_conv.*", "loss.*")
HINT = "give the autoencoder, such as kl16.ckpt"


class KL(nn.Module):
    """The decoding half."""

    def __init__(self, plan: Plan, channels: int, grid: int):
        super().__init__()
        self.grid, self.factor = grid, plan.factor
        self.post_quant_conv = nn.Conv2d(channels, plan.ends[0], 1)
        self.decoder = Decoder(plan)

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        """latents f32[b,N,C], raster order, scaled -> pixels f32[b,3,H,W], about [-1,1]."""
        z = latents.transpose(1, 2).unflatten(2, (self.grid, self.grid)) / SCALE
        return {"pixels": self.decoder(self.post_quant_conv(z))}


def read(t: Tensors | None, channels: int, grid: int) -> KL | None:
    """The decoder a file holds, if one was given. Raises ArcError unless it takes `channels`."""
    if t is None:
        return None
    shapes = {k: t.shape(k) for k in t}
    own = shapes.get("post_quant_conv.weight", ())
    if len(own) != 4:
        raise ArcError("the decoder file has no post_quant_conv.weight", hint=HINT)
    if own[1] != channels:
        raise ArcError(f"the decoder takes {own[1]} channels but the transformer draws {channels}",
                       hint="give the autoencoder this checkpoint was trained with")
    vae = KL(read_plan(shapes, "decoder"), channels, grid)
    match(t, state(vae), ignore=IGNORE, what="the KL autoencoder")
    return vae


def published(channels: int = 16) -> Mapping[str, Any]:
    """Shapes of KL-16's decoding half; for other channels, of a small one."""
    ch, mult, blocks = (128, (1, 1, 2, 2, 4), 3) if channels == 16 else (32, (1, 1), 1)
    plan = decoder_plan((channels, 3), ch, mult, blocks, middle="split")
    with torch.device("meta"):
        return state(KL(plan, channels, 1))
