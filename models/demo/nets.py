"""The demo's training modules: plain torch, with LlamaGen's tensor names.

Training only; arcompile has its own modules for inference. https://arxiv.org/abs/2406.06525
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------- tokenizer


class Norm(nn.GroupNorm):
    """32 groups, eps 1e-6; in the picture's own type, as mixed types take a slow path on CPU."""

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.weight.to(x), self.bias.to(x), self.eps)


class Res(nn.Module):
    """Two 3x3 convolutions and a shortcut; [b, c_in, h, w] -> [b, c_out, h, w]."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = Norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attn(nn.Module):
    """Single-head attention over all cells; [b, c, h, w] -> same."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = Norm(c)
        self.q, self.k = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.v, self.proj_out = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (f(y).flatten(2).mT[:, None] for f in (self.q, self.k, self.v))  # [b, 1, hw, c]
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y[:, 0].mT.contiguous().view(x.shape))


class Down(nn.Module):
    """Halve both sides: pad right and bottom by one, then a stride-2 convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double both sides: nearest neighbour, then a convolution."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention if asked, then an optional resize."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attn: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(Res(c_in if i == 0 else c_out, c_out) for i in range(blocks))
        self.attn = nn.ModuleList(Attn(c_out) for _ in range(blocks if attn else 0))

    def forward(self, x: Tensor) -> Tensor:
        for i, res in enumerate(self.res):
            x = res(x)
            if self.attn:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


def _mid(c: int) -> nn.ModuleList:
    return nn.ModuleList([Res(c, c), Attn(c), Res(c, c)])


class Encoder(nn.Module):
    """Picture [b, 3, H, W] -> latent [b, z, H/f, W/f]."""

    def __init__(self, ch: int, mult: tuple[int, ...], z: int, blocks: int = 1) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        widths = [ch] + [ch * m for m in mult]
        last = len(mult) - 1
        self.conv_blocks = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks, i == last) for i in range(len(mult)))
        for i in range(last):
            self.conv_blocks[i].downsample = Down(widths[i + 1])
        self.mid = _mid(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.conv_blocks, *self.mid):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latent [b, z, h, w] -> picture [b, 3, h*f, w*f]; level 0 is the lowest resolution."""

    def __init__(self, ch: int, mult: tuple[int, ...], z: int, blocks: int = 1) -> None:
        super().__init__()
        widths = [ch * mult[-1]] + [ch * m for m in reversed(mult)]
        last = len(mult) - 1
        self.conv_in = nn.Conv2d(z, widths[0], 3, padding=1)
        self.mid = _mid(widths[0])
        self.conv_blocks = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks + 1, i == 0) for i in range(len(mult)))
        for i in range(last):
            self.conv_blocks[i].upsample = Up(widths[i + 1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in (*self.mid, *self.conv_blocks):
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Codebook(nn.Module):
    """Unit-length codes [codes, dim], moved by running averages; never by the optimiser."""

    def __init__(self, codes: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        self.embedding.weight.requires_grad_(False)
        self.register_buffer("count", torch.ones(codes), persistent=False)

    def unit(self) -> Tensor:
        return F.normalize(self.embedding.weight.float(), dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        """Code of each unit vector; [n, dim] -> int64 [n]."""
        return (z.float() @ self.unit().T).argmax(-1)

    @torch.no_grad()
    def learn(self, z: Tensor, index: Tensor, decay: float = 0.98) -> None:
        """One running-average step; starving codes move to where the codes fit worst."""
        weight, share = self.embedding.weight, len(z) / len(self.count)
        miss = (z - self.unit()[index]).square().sum(-1) + 1e-6
        hits = torch.bincount(index, minlength=len(weight)).to(z)
        sums = torch.zeros_like(weight).index_add_(0, index, z)
        total = self.count[:, None] * weight * decay + sums * (1 - decay)
        self.count.mul_(decay).add_(hits, alpha=1 - decay)
        weight.copy_(F.normalize(total, dim=-1))
        dead = (self.count < 0.05 * share).nonzero()[:8, 0]
        weight[dead] = z[torch.multinomial(miss, 8)[:len(dead)]]
        self.count[dead] = 0.5 * share


class VQ(nn.Module):
    """The tokenizer: picture in -1..1 <-> a grid of codes.

    With 32 channels a group would hold one channel, and norm_out would wipe out flat colour.
    """

    def __init__(self, ch: int = 64, mult: tuple[int, ...] = (1, 1, 1, 1), z: int = 64,
                 codes: int = 512, dim: int = 8) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(ch, mult, z), Decoder(ch, mult, z)
        self.quantize = Codebook(codes, dim)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, dim, 1), nn.Conv2d(dim, z, 1)

    def latent(self, x: Tensor) -> Tensor:
        """Unit vector of each cell; [b, 3, H, W] -> f32 [b, h, w, dim]."""
        return F.normalize(self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1).float(), dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """[b, 3, H, W] -> codes [b, h, w]."""
        z = self.latent(x)
        return self.quantize.nearest(z.flatten(0, 2)).view(z.shape[:3])

    def picture(self, z: Tensor) -> Tensor:
        """Unit vectors [b, h, w, dim] -> [b, 3, H, W]."""
        # contiguous: group norm is many times slower on a channels-last picture
        return self.decoder(self.post_quant_conv(z.permute(0, 3, 1, 2).contiguous()))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [b, h, w] -> [b, 3, H, W]."""
        return self.picture(self.quantize.unit()[codes])


# -------------------------------------------------------------- transformer


def rope_table(grid: int, head_dim: int, base: float = 10000.0) -> Tensor:
    """(cos, sin) of each slot and pair, [1 + grid*grid, head_dim/2, 2]; the class slot is zero.

    The first half of the pairs turns with the row, the second half with the column.
    """
    freqs = base ** (-torch.arange(0, head_dim // 2, 2).float() / (head_dim // 2))
    angle = torch.arange(grid)[:, None] * freqs  # [grid, head_dim/4]
    rows = angle[:, None].expand(grid, grid, -1)
    columns = angle[None].expand(grid, grid, -1)
    angle = torch.cat([rows, columns], -1).flatten(0, 1)
    table = torch.stack([angle.cos(), angle.sin()], -1)
    return torch.cat([torch.zeros_like(table[:1]), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn adjacent pairs; x [b, h, t, d], table [t, d/2, 2]."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = table.to(x).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)


class Attention(nn.Module):
    """Causal self-attention; wqkv rows are q, then k, then v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv, self.wo = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, table: Tensor, past: list[Tensor] | None) -> Tensor:
        """x [b, t, dim]; `past` is [k, v] of earlier slots, grown in place (one new slot)."""
        q, k, v = self.wqkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, table), rotate(k, table)
        if past is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(past, (k, v), strict=True))
            past[:] = k, v
        # spelt out: the fused kernel's backward is ten times slower at this size on CPU
        score = q @ k.mT * q.shape[-1] ** -0.5
        if past is None:
            later = torch.ones(score.shape[-2:], dtype=torch.bool).triu(1)
            score = score.masked_fill(later, -torch.inf)
        return self.wo((score.softmax(-1).to(v) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    """Attention and feed-forward, each after an RMSNorm, each added back."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(dim, 1e-5), nn.RMSNorm(dim, 1e-5)
        self.attention, self.feed_forward = Attention(dim, heads), FeedForward(dim, hidden)

    def forward(self, x: Tensor, table: Tensor, past: list[Tensor] | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, past)
        return x + self.feed_forward(self.ffn_norm(x))


class ClassEmbedding(nn.Module):
    """One row a class, and a last row for "no class"."""

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class GPT(nn.Module):
    """The class-conditional transformer over a raster of codes."""

    def __init__(self, dim: int = 192, layers: int = 4, heads: int = 6, hidden: int = 512,
                 codes: int = 512, classes: int = 36, grid: int = 8) -> None:
        super().__init__()
        self.cls_embedding = ClassEmbedding(classes, dim)
        self.tok_embeddings = nn.Embedding(codes, dim)
        self.layers = nn.ModuleList(Layer(dim, heads, hidden) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, 1e-5)
        self.output = nn.Linear(dim, codes, bias=False)
        self.register_buffer("table", rope_table(grid, dim // heads), persistent=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, label: Tensor, codes: Tensor) -> Tensor:
        """Teacher forcing: label [b], codes [b, n] -> logits [b, n, codes]."""
        x = torch.cat([self.cls_embedding(label)[:, None], self.tok_embeddings(codes[:, :-1])], 1)
        for layer in self.layers:
            x = layer(x, self.table[:x.shape[1]], None)
        return self.output(self.norm(x))

    def step(self, x: Tensor, slot: int, past: list[list[Tensor]]) -> Tensor:
        """One new slot against the caches: embedded x [b, 1, dim] -> logits [b, codes]."""
        for layer, kv in zip(self.layers, past, strict=True):
            x = layer(x, self.table[slot:slot + 1], kv)
        return self.output(self.norm(x))[:, 0].float()


# -------------------------------------------------------------------- judge


class JudgeNet(nn.Module):
    """Four stride-2 convolutions, one hidden layer: scores of 6 shapes, "none", 6 colours."""

    def __init__(self, widths: tuple[int, ...] = (24, 32, 48, 64), hidden: int = 64) -> None:
        super().__init__()
        fan = (3, *widths)
        self.conv = nn.ModuleList(
            nn.Conv2d(fan[i], fan[i + 1], k, stride=2, padding=k // 2)
            for i, k in enumerate((5, 3, 3, 3)))
        self.hidden = nn.Linear(widths[-1] * 16, hidden)
        self.head = nn.Linear(hidden, 13)

    def forward(self, x: Tensor) -> Tensor:
        """[b, 3, 64, 64] -> [b, 13]."""
        for conv in self.conv:
            x = F.relu(conv(x))
        x = x.permute(0, 2, 3, 1).flatten(1)  # row, column, channel, as the judge flattens
        return self.head(F.relu(self.hidden(x)))
