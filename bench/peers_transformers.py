"""Peer transformers: `generate` of its own Janus, eager and through torch.compile."""

from __future__ import annotations

import threading
from typing import Any

import torch

from arcompile.bench import suites
from arcompile.bench.peers import Kind
from arcompile.models.janus import Config, Facts, config, ours

BOS, BOI, PROMPT = 1, 2, 32  # ids of a prompt


class Stop(Exception):
    """Ends a run of `generate` that nobody waits for."""


class Turns:
    """A logits processor that waits for its turn: one token a step of the race."""

    def __init__(self) -> None:
        self.go, self.did = threading.Semaphore(0), threading.Semaphore(0)
        self.over = False

    def __call__(self, ids: Any, scores: Any) -> Any:
        self.did.release()
        self.go.acquire()
        if self.over:
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
    """generate(generation_mode="image"), stopped after every token to let others have a turn."""

    def __init__(self, suite: Any, dtype: torch.dtype):
        source = suites.source(suite)
        own = ours(source.tensors)
        text = type(own)(own.source, {k: e for k, e in own.items() if not k.startswith("vq.")})
        self.suite = suite
        self.model = janus(config(text, Facts(source), {}), dtype)
        self.run: threading.Thread | None = None

    def begin(self, position: int) -> None:
        self.end()
        self.turns, self.failed, self.drawn = Turns(), "", False
        self.run = threading.Thread(target=self._draw, daemon=True)
        self.run.start()
        self._wait()
        for _ in range(position):
            self.step()

    def _draw(self) -> None:
        words = torch.randint(3, 40, (1, PROMPT - 2), generator=torch.Generator().manual_seed(0))
        ids = torch.cat((torch.tensor([[BOS]]), words, torch.tensor([[BOI]])), 1)
        try:
            with torch.inference_mode():
                self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), generation_mode="image",
                    do_sample=True, top_k=self.suite.top_k or None, use_cache=True,
                    guidance_scale=self.suite.guidance, logits_processor=self._processors())
        except Stop:
            return
        except Exception as e:  # of whatever kind: a peer's failure is a result
            self.failed = f"{type(e).__name__}: {e}"
        self.drawn = True
        self.turns.did.release()

    def _processors(self) -> Any:
        from transformers import LogitsProcessorList

        return LogitsProcessorList([self.turns])

    def _wait(self) -> None:
        self.turns.did.acquire()
        if self.failed:
            raise RuntimeError(self.failed)

    def step(self) -> None:
        """From one token's logits to the next one's."""
        if self.drawn:  # the picture is whole: another one
            self.begin(0)
        self.turns.go.release()
        self._wait()

    def end(self) -> None:
        if self.run is not None and self.run.is_alive():
            self.turns.over = True
            self.turns.go.release()
            self.run.join()


SAYS = ("transformers' own Janus, generate(generation_mode='image') with its static cache, "
        "sampling and guidance included")
KINDS = (
    Kind("transformers-f32", lambda s, f: Janus(s, torch.float32), True, SAYS, "janus"),
    Kind("transformers-bf16", lambda s, f: Janus(s, torch.bfloat16), False, SAYS, "janus"),
)
