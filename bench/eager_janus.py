"""Janus as its authors run it (generation_inference.py on transformers' Llama), on the CPU.

Keys and values are concatenated token by token, conditional and unconditional rows lie in turn,
queries, keys and values are three products, guidance and sampling are separate ops.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_vq import VQ, tensors
from arcompile.checkpoint import Weights
from arcompile.family import Source
from arcompile.models.hf_llama import Shape
from arcompile.models.janus import Config, Facts, config, ours


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.empty(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.dim, c.heads * c.head, bias=False)
        self.k_proj = nn.Linear(c.dim, c.kv * c.head, bias=False)
        self.v_proj = nn.Linear(c.dim, c.kv * c.head, bias=False)
        self.o_proj = nn.Linear(c.heads * c.head, c.dim, bias=False)
        self.held: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (p(x).view(b, s, -1, self.c.head).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (y * cos + halves(y) * sin for y in (q, k))
        if self.held is not None:
            k, v = torch.cat((self.held[0], k), dim=2), torch.cat((self.held[1], v), dim=2)
        self.held = k, v
        k, v = (y.repeat_interleave(self.c.heads // self.c.kv, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=s > 1)
        return self.o_proj(y.transpose(1, 2).reshape(b, s, -1))  # type: ignore[no-any-return]


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class MLP(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.gate_proj = nn.Linear(c.dim, c.hidden, bias=False)
        self.up_proj = nn.Linear(c.dim, c.hidden, bias=False)
        self.down_proj = nn.Linear(c.hidden, c.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.input_layernorm = RMSNorm(c.dim, c.eps)
        self.post_attention_layernorm = RMSNorm(c.dim, c.eps)
        self.self_attn, self.mlp = Attention(c), MLP(c)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """The language model, and what feeds codes to it and draws them."""

    def __init__(self, c: Config):
        super().__init__()
        self.c, dim = c, c.text.dim
        self.language_model: Any = nn.Module()
        self.language_model.embed_tokens = nn.Embedding(c.words, dim)
        self.language_model.layers = nn.ModuleList(Layer(c.text) for _ in range(c.text.layers))
        self.language_model.norm = RMSNorm(dim, c.text.eps)
        self.generation_embeddings = nn.Embedding(c.codes, c.width)
        self.generation_aligner: Any = nn.Module()
        self.generation_aligner.fc1 = nn.Linear(c.width, dim)
        self.generation_aligner.hidden_layers = nn.ModuleList(
            nn.Linear(dim, dim) for _ in range(c.aligner - 1))
        self.generation_head: Any = nn.Module()
        self.generation_head.proj_out = nn.Linear(dim, c.head)
        self.generation_head.vision_head = nn.Linear(c.head, c.codes)

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        """x [rows,s,dim] at positions `at` [s] -> logits of the last one."""
        text, m = self.c.text, self.language_model
        inverse = text.theta ** (-torch.arange(0, text.head, 2).float() / text.head)
        angle = (at[:, None].float() * inverse).repeat(1, 2)
        for layer in m.layers:
            x = layer(x, angle.cos(), angle.sin())
        h = self.generation_head
        return h.vision_head(F.gelu(h.proj_out(m.norm(x)[:, -1])))  # type: ignore[no-any-return]

    def embed(self, token: Tensor) -> Tensor:
        a, x = self.generation_aligner, self.generation_embeddings(token)
        x = a.fc1(x)
        for layer in a.hidden_layers:
            x = layer(F.gelu(x))
        return x  # type: ignore[no-any-return]


class Janus:
    """One call a step; the first reads the prompt. Prompts of a batch are of one length."""

    def __init__(self, gpt: Transformer, vq: VQ):
        self.gpt, self.vq = gpt, vq

    @torch.inference_mode()
    def begin(self, cond: Any, guidance: float, temperature: float, top_k: int) -> None:
        m, ids = self.gpt.language_model, torch.as_tensor(cond, dtype=torch.int64)
        self.guidance, self.temperature, self.top_k = guidance, temperature, top_k
        rows = ids.repeat_interleave(2, 0)
        rows[1::2, 1:-1] = self.gpt.c.pad
        self.x, self.at = m.embed_tokens(rows), torch.arange(ids.shape[1])
        for layer in m.layers:
            layer.self_attn.held = None

    @torch.inference_mode()
    def step(self) -> Tensor:
        logits = self.gpt(self.x, self.at)
        given, null = logits[0::2], logits[1::2]
        logits = null + self.guidance * (given - null)
        if self.temperature == 0:
            token = logits.argmax(-1, keepdim=True)
        else:
            if self.top_k > 0:
                least = logits.topk(min(self.top_k, logits.shape[-1]))[0][:, -1:]
                logits = logits.masked_fill(logits < least, -torch.inf)
            token = torch.multinomial((logits / self.temperature).softmax(-1), num_samples=1)
        self.at = self.at[-1:] + 1
        self.x = self.gpt.embed(token.repeat_interleave(2, 0))
        return token

    @torch.inference_mode()
    def finish(self, tokens: Tensor) -> Tensor:
        return self.vq.decode_code(tokens, self.gpt.c.grid)  # type: ignore[no-any-return]


def load(source: Source) -> Janus:
    own = ours(source.tensors)
    gpt, vq = (Weights(own.source, {k.removeprefix("vq."): e for k, e in own.items()
                                    if k.startswith("vq.") is is_vq}) for is_vq in (False, True))
    c = config(gpt, Facts(source), {})
    with torch.device("meta"):
        net = Transformer(c)
    net.load_state_dict(tensors(gpt), assign=True)
    return Janus(net.eval(), VQ(vq))
