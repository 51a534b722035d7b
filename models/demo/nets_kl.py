"""The masked demo's autoencoder: plain torch, training only, on the first demo's latents."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from arcompile.models.demo.nets import VQ, Attn, Decoder, Down, Norm, Res

CHANNELS, SIDE = 16, 4  # of the masked demo's latents


class Squeeze(nn.Module):
    """The first demo's latents [b, 8, 8, 8] -> [b, 16, 4, 4], each channel of unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(8, 64, 3, padding=1), Res(64, 64), Attn(64), Res(64, 64), Down(64),
            Res(64, 128), Attn(128), Res(128, 128), Norm(128), nn.SiLU(),
            nn.Conv2d(128, CHANNELS, 1))
        self.bn = nn.BatchNorm2d(CHANNELS, affine=False, momentum=0.02)
        self.bn.register_buffer("num_batches_tracked", None)

    def forward(self, f: Tensor) -> Tensor:
        return self.bn(self.net(f).float())


class Autoencoder(nn.Module):
    """`Squeeze` and a decoder of five levels, whose upper four start as the first demo's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Squeeze()
        self.post_quant_conv = nn.Conv2d(CHANNELS, 64, 1)
        self.decoder = Decoder(64, (1,) * 5, 64)
        self.decoder.conv_blocks[1].attn = nn.ModuleList(Attn(64) for _ in range(2))

    def start(self, vq: VQ) -> None:
        """Take over what the first demo's decoder does from 8 x 8 cells upwards."""
        for i in range(4):
            self.decoder.conv_blocks[i + 1].load_state_dict(
                vq.decoder.conv_blocks[i].state_dict())
        for name in ("norm_out", "conv_out"):
            getattr(self.decoder, name).load_state_dict(getattr(vq.decoder, name).state_dict())

    def lower(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features [b, 64, 8, 8] after the new level, and after the blocks of the next."""
        x = self.decoder.conv_in(self.post_quant_conv(z))
        for block in (*self.decoder.mid, self.decoder.conv_blocks[0]):
            x = block(x)
        return x, blocks(self.decoder.conv_blocks[1], x)

    def picture(self, z: Tensor) -> Tensor:
        """Latent [b, 16, 4, 4] -> [b, 3, 64, 64]."""
        return self.decoder(self.post_quant_conv(z))


def blocks(level: nn.Module, x: Tensor) -> Tensor:
    """A level without its resize."""
    for res, attn in zip(level.res, level.attn, strict=True):
        x = attn(res(x))
    return x


@torch.no_grad()
def wanted(vq: VQ, f: Tensor) -> tuple[Tensor, Tensor]:
    """What `Autoencoder.lower` should make: the first demo's own features."""
    x = vq.decoder.conv_in(vq.post_quant_conv(f))
    for block in vq.decoder.mid:
        x = block(x)
    return x, blocks(vq.decoder.conv_blocks[0], x)
