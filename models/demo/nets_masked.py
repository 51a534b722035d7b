"""The masked demo's training modules: plain torch. `stored` gives them MAR's names and layout.

Training only; arcompile has its own modules for inference. https://arxiv.org/abs/2406.11838
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arcompile.models.demo.nets_kl import CHANNELS, SIDE
from arcompile.models.demo.nets_mar import Block
from arcompile.models.diffusion import WAVES, sinusoid

CELLS, BUFFER, DIM, HEADS, HIDDEN = SIDE * SIDE, 4, 192, 6, 512
CLASSES, TIMES, KNOWN_TIMES = 36, 1000, 985  # times below KNOWN_TIMES are trained
WIDTH, DEPTH = 192, 3  # of the head
REST = WIDTH - 2 - 2 * CHANNELS  # numbers of the head's stream besides two constants, x and -x
STREAM = CHANNELS + REST
LOUD = 64.0

# -------------------------------------------------------------- transformer


class MAR(nn.Module):
    """An encoder over the known cells, a decoder over all, and the head that denoises a cell."""

    def __init__(self, encoder: int = 1, decoder: int = 3) -> None:
        super().__init__()
        slots = BUFFER + CELLS
        self.class_emb = nn.Embedding(CLASSES + 1, DIM)  # the last is "no class"
        self.mask_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.z_proj, self.z_proj_ln = nn.Linear(CHANNELS, DIM), nn.LayerNorm(DIM, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, DIM))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, DIM))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, CELLS, DIM))
        self.encoder_blocks = nn.ModuleList(Block(DIM, HEADS, HIDDEN) for _ in range(encoder))
        self.encoder_norm = nn.LayerNorm(DIM, eps=1e-6)
        self.decoder_embed = nn.Linear(DIM, DIM)
        self.decoder_blocks = nn.ModuleList(Block(DIM, HEADS, HIDDEN) for _ in range(decoder))
        self.decoder_norm = nn.LayerNorm(DIM, eps=1e-6)
        self.guess = nn.Linear(DIM, CHANNELS)  # of training: it teaches the rest, and is not stored
        self._start()
        self.head = Head()

    def _start(self) -> None:
        """Places and classes as loud as latents, or attention cannot find neighbours for long."""
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        for p, std in ((self.z_proj.weight, 0.125), (self.class_emb.weight, 0.5),
                       (self.encoder_pos_embed_learned, 0.25),
                       (self.decoder_pos_embed_learned, 0.3), (self.mask_token, 0.1),
                       (self.decoder_embed.weight, DIM ** -0.5)):
            nn.init.normal_(p, std=std)
        for block in (*self.encoder_blocks, *self.decoder_blocks):
            nn.init.normal_(block.attn.qkv.weight, std=0.7 * DIM ** -0.5)
            nn.init.normal_(block.mlp.fc1.weight, std=0.7 * DIM ** -0.5)
            nn.init.normal_(block.attn.proj.weight, std=0.4 * DIM ** -0.5)
            nn.init.normal_(block.mlp.fc2.weight, std=0.4 * HIDDEN ** -0.5)

    def forward(self, label: Tensor, x: Tensor, known: Tensor) -> Tensor:
        """What the head is told of every cell when only some are known.

        label [b], CLASSES where there is none; x [b, cells, channels]; known bool [b, cells] ->
        [b, cells, dim]. Unknown cells are masked where inference leaves them out.
        """
        prefix = self.class_emb(label)[:, None].expand(-1, BUFFER, -1)
        known = torch.cat((torch.ones_like(known[:, :BUFFER]), known), 1)
        hidden = torch.zeros(known.shape).masked_fill(~known, -torch.inf)[:, None, None]
        h = torch.cat((prefix, self.z_proj(x)), 1) + self.encoder_pos_embed_learned
        h = self.z_proj_ln(h)
        for block in self.encoder_blocks:
            h = block(h, hidden)
        h = self.decoder_embed(self.encoder_norm(h))
        h = torch.where(known[..., None], h, self.mask_token.to(h.dtype))
        h = h + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            h = block(h)
        return self.decoder_norm(h)[:, BUFFER:] + self.diffusion_pos_embed_learned


# --------------------------------------------------------------------- head


class HeadBlock(nn.Module):
    """What a block adds to the rest of the stream, told by a = silu(time + condition)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(STREAM, WIDTH), nn.Linear(WIDTH, REST)
        self.mod = nn.Linear(WIDTH, 2 * STREAM + REST, bias=False)
        nn.init.normal_(self.mod.weight, std=0.02)

    def forward(self, x: Tensor, rest: Tensor, a: Tensor) -> Tensor:
        shift, scale, gate = self.mod(a).split((STREAM, STREAM, REST), -1)
        h = centred(x, rest) * (1 + scale) + shift
        return rest + gate * self.fc2(F.silu(self.fc1(h)))


def centred(x: Tensor, rest: Tensor) -> Tensor:
    """The stream less its mean, to which x and -x add nothing."""
    return torch.cat((x, rest), -1) - rest.sum(-1, keepdim=True) / WIDTH


class Head(nn.Module):
    """The noise in noisy cells: x [..., channels], times [...], conditions [..., dim].

    MAR's network takes the noisy cell in, and normalises. Its sampler multiplies an error of the
    noise by 20,000 at the noisiest time, where the right answer is x itself, so the way from x to
    the answer must be exact. Here x is never touched: blocks read it and write to the `rest`. When
    `stored`, two constants LOUD times louder than x make the norms linear, -x stands next to x to
    keep their mean, and times above KNOWN_TIMES silence all modulation, which leaves x.
    """

    def __init__(self) -> None:
        super().__init__()
        self.t1, self.t2 = nn.Linear(WAVES, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.cond = nn.Linear(DIM, WIDTH)
        self.blocks = nn.ModuleList(HeadBlock() for _ in range(DEPTH))
        self.mod = nn.Linear(WIDTH, 2 * STREAM, bias=False)
        nn.init.normal_(self.mod.weight, std=0.02)
        self.read = nn.Linear(REST, CHANNELS, bias=False)
        waves = torch.from_numpy(sinusoid(range(TIMES)))
        self.register_buffer("waves", waves, persistent=False)

    def forward(self, x: Tensor, time: Tensor, cond: Tensor) -> Tensor:
        a = F.silu(self.t2(F.silu(self.t1(self.waves[time]))) + self.cond(cond))
        rest = x.new_zeros((*x.shape[:-1], REST)).to(a.dtype)
        for block in self.blocks:
            rest = block(x, rest, a)
        shift, scale = self.mod(a).split(STREAM, -1)
        h = centred(x, rest) * (1 + scale) + shift
        return h[..., :CHANNELS] + self.read(h[..., CHANNELS:])


# ------------------------------------------------------------- MAR's layout

X = slice(2, 2 + CHANNELS)  # where the stored stream holds x
R = slice(WIDTH - REST, WIDTH)  # and the rest
AT = torch.cat([torch.arange(WIDTH)[X], torch.arange(WIDTH)[R]])  # of what blocks read


def stored(model: MAR, share: float) -> dict[str, Tensor]:
    """The tensors of a MAR checkpoint; `share` in -1..1 mixes the sampler's two variances."""
    out = {k: v.detach() for k, v in model.state_dict().items()
           if not k.startswith(("guess.", "head.", "class_emb."))}
    table = model.class_emb.weight.detach()
    out |= {"class_emb.weight": table[:CLASSES], "fake_latent": table[CLASSES:]}
    net = {**_times(model.head), **_ends(model.head, share)}
    net |= {f"cond_embed.{k}": v.detach() for k, v in model.head.cond.state_dict().items()}
    for i, block in enumerate(model.head.blocks):
        net |= {f"res_blocks.{i}.{k}": v for k, v in _block(block).items()}
    return {**out, **{f"diffloss.net.{k}": v for k, v in net.items()}}


def _placed(shape: tuple[int, ...], rows: Tensor | slice, columns: Tensor | slice,
            value: Tensor) -> Tensor:
    out = torch.zeros(shape)
    lines = torch.arange(shape[0])[rows]
    out[lines[:, None], torch.arange(shape[1])[columns]] = value.detach()
    return out


def _block(b: HeadBlock) -> dict[str, Tensor]:
    whole, loud = slice(None), torch.zeros(WIDTH)
    loud[AT] = LOUD
    bias = torch.zeros(WIDTH)
    bias[R] = b.fc2.bias.detach()
    rows = torch.cat([AT, WIDTH + AT, 2 * WIDTH + torch.arange(WIDTH)[R]])
    return {
        "in_ln.weight": loud, "in_ln.bias": torch.zeros(WIDTH),
        "mlp.0.weight": _placed((WIDTH, WIDTH), whole, AT, b.fc1.weight),
        "mlp.0.bias": b.fc1.bias.detach(),
        "mlp.2.weight": _placed((WIDTH, WIDTH), R, whole, b.fc2.weight), "mlp.2.bias": bias,
        "adaLN_modulation.1.weight": _placed((3 * WIDTH, WIDTH), rows, whole, b.mod.weight),
        "adaLN_modulation.1.bias": torch.zeros(3 * WIDTH)}


def _ends(head: Head, share: float) -> dict[str, Tensor]:
    """The way of x in and out, and the constants that make the norms linear."""
    eye, level = torch.eye(CHANNELS), LOUD * math.sqrt(WIDTH / 2)
    first, bias = torch.zeros(WIDTH, CHANNELS), torch.zeros(WIDTH)
    first[X], first[2 + CHANNELS:2 + 2 * CHANNELS] = eye, -eye
    bias[:2] = torch.tensor([level, -level])
    last = torch.zeros(2 * CHANNELS, WIDTH)
    last[:CHANNELS, X], last[:CHANNELS, R] = LOUD * eye, LOUD * head.read.weight.detach()
    rows, mod = torch.cat([AT, WIDTH + AT]), head.mod.weight.detach().clone()
    mod[:STREAM] /= LOUD  # shifts come behind the norm
    return {
        "input_proj.weight": first, "input_proj.bias": bias,
        "final_layer.linear.weight": last,
        "final_layer.linear.bias": torch.cat([torch.zeros(CHANNELS),
                                              torch.full((CHANNELS,), share)]),
        "final_layer.adaLN_modulation.1.weight":
            _placed((2 * WIDTH, WIDTH), rows, slice(None), mod),
        "final_layer.adaLN_modulation.1.bias": torch.zeros(2 * WIDTH)}


def _times(head: Head) -> dict[str, Tensor]:
    """The time embedding, with one hidden unit made over: it fires at times from KNOWN_TIMES on,
    and sends every number of the embedding far below zero, where silu is 0."""
    w1, b1, w2, b2 = (t.detach().clone() for t in (
        head.t1.weight, head.t1.bias, head.t2.weight, head.t2.bias))
    made = F.silu(head.waves[:KNOWN_TIMES] @ w1.T + b1)
    unit = int((made.std(0) * w2.norm(dim=0)).argmin())  # the one that says least
    b2 += w2[:, unit] * made[:, unit].mean()
    alike = head.waves @ head.waves[-1]  # 128 at the noisiest time, falling with the distance
    w1[unit], b1[unit] = 8 * head.waves[-1], -8 * float(alike[KNOWN_TIMES])
    w2[:, unit] = -8.0
    return {"time_embed.mlp.0.weight": w1, "time_embed.mlp.0.bias": b1,
            "time_embed.mlp.2.weight": w2, "time_embed.mlp.2.bias": b2}
