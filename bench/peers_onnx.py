"""Peers on ONNX Runtime: a plain export of the step, and onnxruntime-genai where it fits."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arcompile.bench.machine import cores
from arcompile.bench.peers import ROWS, Kind, Stepped
from arcompile.bench.peers_torch import transformer
from arcompile.models.llamagen import Config

FILE = "step.onnx"


class Step(nn.Module):
    """The authors' step as a function: caches come in and go out."""

    def __init__(self, gpt: Any):
        super().__init__()
        gpt.setup_caches(ROWS)
        self.gpt = gpt

    def forward(self, token: Tensor, at: Tensor, mask: Tensor, freqs: Tensor,
                *caches: Tensor) -> tuple[Tensor, ...]:
        h, out = self.gpt.tok_embeddings(token), []
        layer: Any
        for i, layer in enumerate(self.gpt.layers):
            a = layer.attention
            a.k_cache, a.v_cache = _Put(caches[2 * i]), _Put(caches[2 * i + 1])
            h = layer(h, freqs, at, mask)
            out += [a.k_cache.now, a.v_cache.now]
        return (self.gpt.output(self.gpt.norm(h)), *out)


class _Put:
    """A cache that is written by assignment, and is another tensor afterwards."""

    def __init__(self, now: Tensor):
        self.now = now

    def __setitem__(self, where: Any, value: Tensor) -> None:
        self.now = torch.index_copy(self.now, 2, where[2], value)

    @classmethod
    def __torch_function__(cls, fn: Any, types: Any, args: Any = (), kw: Any = None) -> Any:
        plain = [a.now if isinstance(a, _Put) else a for a in args]
        return fn(*plain, **(kw or {}))


def example(gpt: Any) -> tuple[Tensor, ...]:
    c, slots = gpt.c, gpt.causal_mask.shape[-1]
    cache = torch.zeros(ROWS, c.heads, slots, c.dim // c.heads)
    return (torch.zeros((ROWS, 1), dtype=torch.int64), torch.tensor([8]),
            gpt.causal_mask[:, None, [8]], gpt.freqs_cis[[8]],
            *(cache.clone() for _ in range(2 * c.layers)))


def exported(suite: Any, folder: Path) -> tuple[Path, Any]:
    """The step by torch.onnx.export as its documentation has it, made once; and the model."""
    gpt = transformer(suite)
    step, path = Step(gpt), folder / FILE
    if not path.exists():
        names = [f"c{i}" for i in range(2 * gpt.c.layers)]
        program = torch.onnx.export(
            step, example(gpt), dynamo=True, input_names=["token", "at", "mask", "freqs", *names],
            output_names=["logits", *(f"out.{n}" for n in names)], verbose=False)
        assert program is not None
        program.save(str(path), external_data=True)
    return path, gpt


class Exported(Stepped):
    """The file in ONNX Runtime, caches bound by reference, outputs reused as inputs."""

    def __init__(self, suite: Any, folder: Path):
        import onnxruntime as ort

        path, gpt = exported(suite, folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = cores()
        options.log_severity_level = 3
        self.gpt, self.ort = gpt, ort
        self.session = ort.InferenceSession(str(path), options,
                                            providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]
        self.results = [o.name for o in self.session.get_outputs()]
        held = [np.ascontiguousarray(t.numpy()) for t in example(gpt)[4:]]
        self.caches = [[self._own(x.copy()) for x in held] for _ in range(2)]

    def _own(self, x: Any) -> Any:
        return self.ort.OrtValue.ortvalue_from_numpy(x, "cpu", 0)

    def begin(self) -> None:
        self.at = 0

    def step(self) -> None:
        at = [min(self.at, self.gpt.causal_mask.shape[-1] - 1)]
        feeds = (np.zeros((ROWS, 1), np.int64), np.array(at),
                 self.gpt.causal_mask[:, None, at].numpy(), self.gpt.freqs_cis[at].numpy())
        io = self.session.io_binding()
        for name, x in zip(self.names[:4], feeds, strict=True):
            io.bind_cpu_input(name, np.ascontiguousarray(x))
        for name, x in zip(self.names[4:], self.caches[0], strict=True):
            io.bind_ortvalue_input(name, x)
        io.bind_output(self.results[0])
        for name, x in zip(self.results[1:], self.caches[1], strict=True):
            io.bind_ortvalue_output(name, x)
        self.session.run_with_iobinding(io)
        self.caches.reverse()
        self.at += 1


# --- onnxruntime-genai: a Llama of the same sizes ------------------------------------------------


def llama(c: Config, folder: Path) -> Path:
    """A Hugging Face Llama of LlamaGen's sizes with random weights: one-dimensional rotation.

    The builder wants a tokenizer too: one of a word for each code.
    """
    path = folder / "llama"
    if not (path / "config.json").exists():
        from transformers import LlamaConfig, LlamaForCausalLM

        LlamaForCausalLM(LlamaConfig(
            vocab_size=c.vocabulary, hidden_size=c.dim, intermediate_size=c.hidden,
            num_hidden_layers=c.layers, num_attention_heads=c.heads,
            num_key_value_heads=c.heads, max_position_embeddings=512, bos_token_id=0,
            eos_token_id=c.vocabulary - 1, tie_word_embeddings=False)).save_pretrained(path)
    if not (path / "tokenizer.json").exists():
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(WordLevel({str(i): i for i in range(c.vocabulary)}, unk_token="0"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(path)
    return path


class GenAI(Stepped):
    """Its builder's model on the CPU, two rows, greedy; no guidance, which it has not."""

    def __init__(self, suite: Any, folder: Path, precision: str):
        import onnxruntime_genai as og

        built = folder / "built"
        if not (built / "genai_config.json").exists():
            from onnxruntime_genai.models import builder

            source = str(llama(transformer(suite).c, folder))
            told = ("", source, str(built), precision, "cpu", str(folder / "cache"))
            with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
                builder.create_model(*told, **builder.parse_extra_options(*told, []))
        self.og, self.model = og, og.Model(str(built))

    def begin(self) -> None:
        how = self.og.GeneratorParams(self.model)
        how.set_search_options(max_length=400, batch_size=ROWS, do_sample=False)
        self.run = self.og.Generator(self.model, how)
        self.run.append_tokens(np.ones((ROWS, 1), np.int32))

    def step(self) -> None:
        self.run.generate_next_token()


KINDS = (
    Kind("onnx-export-f32", Exported, True, "torch.onnx.export of the step on ONNX Runtime, caches "
         "bound in place; without guidance and sampling"),
    Kind("genai-f32", lambda s, f: GenAI(s, f, "fp32"), True, "onnxruntime-genai on a Llama of the "
         "same sizes, greedy, without guidance"),
    Kind("genai-int4", lambda s, f: GenAI(s, f, "int4"), False, "onnxruntime-genai, its int4 "
         "weights, on a Llama of the same sizes, greedy, without guidance"),
)
