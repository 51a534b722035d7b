"""Peer transformers: `generate` of its own Janus, eager and through torch.compile."""

from __future__ import annotations

import contextlib
import time
from itertools import pairwise
from typing import Any

import torch

from arcompile.bench import suites
from arcompile.bench.peers import Kind
from arcompile.models.janus import Config, Facts, config, ours

BOS, BOI, PROMPT = 1, 2, 32  # ids of a prompt


class Stop(Exception):
    """Ends a run of `generate` after the steps that are asked for."""


class Clock:
    """A logits processor that looks at the clock for every token."""

    def __init__(self, steps: int):
        self.steps, self.times = steps, list[float]()

    def __call__(self, ids: Any, scores: Any) -> Any:
        self.times.append(time.perf_counter())
        if len(self.times) > self.steps:
            raise Stop
        return scores


def janus(c: Config, dtype: torch.dtype) -> Any:
    """Its model of these sizes with random weights; the understanding half is tiny."""
    from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig
    from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

    t = c.text
    text = LlamaConfig(
        vocab_size=c.words, hidden_size=t.dim, intermediate_size=t.hidden,
        num_hidden_layers=t.layers, num_attention_heads=t.heads, num_key_value_heads=t.kv,
        head_dim=t.head, max_position_embeddings=c.most + c.positions, rms_norm_eps=t.eps,
        bos_token_id=BOS, eos_token_id=c.words - 1, pad_token_id=c.pad)
    vq = JanusVQVAEConfig(
        embed_dim=c.width, num_embeddings=c.codes, num_patches=c.grid, base_channels=32,
        channel_multiplier=[1, 1], num_res_blocks=1, latent_channels=32,
        image_token_embed_dim=t.dim, projection_dim=t.dim, num_hidden_layers=c.aligner)
    vision = JanusVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                               image_size=16 * c.grid, projection_dim=t.dim, depth=2,
                               mlp_ratio=2.0, num_image_tokens=c.positions)
    made = JanusForConditionalGeneration(JanusConfig(text_config=text, vision_config=vision,
                                                     vq_config=vq))
    g = made.generation_config
    g.bos_token_id, g.pad_token_id, g.eos_token_id = BOS, c.pad, None
    g.generation_kwargs = {"boi_token_id": BOI}
    return made.eval().to(dtype)


class Janus:
    """generate(generation_mode="image"), timed from one token's logits to the next one's."""

    def __init__(self, suite: Any, dtype: torch.dtype):
        source = suites.source(suite)
        own = ours(source.tensors)
        text = type(own)(own.source, {k: e for k, e in own.items() if not k.startswith("vq.")})
        self.suite = suite
        self.model = janus(config(text, Facts(source), {}), dtype)

    def turn(self, steps: int) -> list[float]:
        clock = Clock(steps)
        words = torch.randint(3, 40, (1, PROMPT - 2), generator=torch.Generator().manual_seed(0))
        ids = torch.cat((torch.tensor([[BOS]]), words, torch.tensor([[BOI]])), 1)
        with contextlib.suppress(Stop), torch.inference_mode():
            self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image",
                do_sample=True, top_k=self.suite.top_k or None, use_cache=True,
                guidance_scale=self.suite.guidance, logits_processor=_processors(clock))
        return [b - a for a, b in pairwise(clock.times)]


def _processors(clock: Clock) -> Any:
    from transformers import LogitsProcessorList

    return LogitsProcessorList([clock])


SAYS = ("transformers' own Janus, generate(generation_mode='image') with its static cache, "
        "sampling and guidance included")
KINDS = (
    Kind("transformers-f32", lambda s, f: Janus(s, torch.float32), True, SAYS, "janus"),
    Kind("transformers-bf16", lambda s, f: Janus(s, torch.bfloat16), False, SAYS, "janus"),
)
