"""Peer OpenVINO: a Llama of the same sizes in its stateful form, in f32, bf16 and int8 weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arcompile.bench.eager_llamagen import Transformer, rotate
from arcompile.bench.machine import cores
from arcompile.bench.peers import ROWS, Kind, Stepped
from arcompile.bench.peers_torch import transformer

FILE = "step.xml"


class Step(nn.Module):
    """LlamaGen's step with caches that grow: what OpenVINO fuses into its stateful attention."""

    def __init__(self, gpt: Transformer):
        super().__init__()
        self.gpt = gpt

    def forward(self, token: Tensor, freqs: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        h, out = self.gpt.tok_embeddings(token), []
        layer: Any
        for i, layer in enumerate(self.gpt.layers):
            a, x = layer.attention, layer.attention_norm(h)
            b, s, _ = x.shape
            q, k, v = (t.view(b, s, a.heads, a.head) for t in a.wqkv(x).split(
                [a.dim, a.dim, a.dim], dim=-1))
            q, k, v = (t.transpose(1, 2) for t in (rotate(q, freqs), rotate(k, freqs), v))
            k, v = torch.cat((past[2 * i], k), 2), torch.cat((past[2 * i + 1], v), 2)
            out += [k, v]
            y = F.scaled_dot_product_attention(q, k, v)
            h = h + a.wo(y.transpose(1, 2).reshape(b, s, a.dim))
            h = h + layer.feed_forward(layer.ffn_norm(h))
        return (self.gpt.output(self.gpt.norm(h)), *out)


def converted(suite: Any, folder: Path) -> Path:
    """The IR file, stateful; made once."""
    path = folder / FILE
    if path.exists():
        return path
    import openvino as ov
    from openvino import passes

    gpt = transformer(suite)
    gpt.setup_caches(ROWS)
    c = gpt.c
    cache = [torch.zeros(ROWS, c.heads, 3, c.dim // c.heads) for _ in range(2 * c.layers)]
    given = (torch.zeros((ROWS, 1), dtype=torch.int64), gpt.freqs_cis[[3]], cache)
    with torch.no_grad():
        model = ov.convert_model(Step(gpt), example_input=given)
    pairs = {}
    for i, (x, y) in enumerate(zip(model.inputs[2:], model.outputs[1:], strict=True)):
        x.get_node().set_partial_shape(ov.PartialShape([ROWS, c.heads, -1, c.dim // c.heads]))
        x.get_tensor().set_names({f"past{i}"})
        y.get_tensor().set_names({f"now{i}"})
        pairs[f"past{i}"] = f"now{i}"
    model.validate_nodes_and_infer_types()
    manager = passes.Manager()
    manager.register_pass(passes.MakeStateful(pairs))
    manager.run_passes(model)
    ov.save_model(model, path, compress_to_fp16=False)
    return path


def compressed(path: Path, folder: Path) -> Path:
    """The same with int8 weights; made once."""
    made = folder / FILE
    if not made.exists():
        import nncf
        import openvino as ov

        model = ov.Core().read_model(path)
        ov.save_model(nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM), made,
                      compress_to_fp16=False)
    return made


class OpenVINO(Stepped):
    def __init__(self, suite: Any, folder: Path, kind: str):
        import openvino as ov

        shared = folder.parent / "openvino-step"
        shared.mkdir(exist_ok=True)
        path = converted(suite, shared)
        if kind == "int8":
            path = compressed(path, folder)
        gpt = transformer(suite)
        gpt.setup_caches(ROWS)
        self.freqs = gpt.freqs_cis.numpy()
        model = ov.Core().read_model(path)
        how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": cores(),
               "INFERENCE_PRECISION_HINT": "bf16" if kind == "bf16" else "f32"}
        self.request = ov.Core().compile_model(model, "CPU", how).create_infer_request()

    def begin(self) -> None:
        self.request.reset_state()
        self.at = 0

    def step(self) -> None:
        at = min(self.at, len(self.freqs) - 1)
        self.request.infer([np.zeros((ROWS, 1), np.int64), self.freqs[at : at + 1]])
        self.at += 1


def _kind(name: str, says: str) -> Kind:
    return Kind(f"openvino-{name}", lambda s, f: OpenVINO(s, f, name), name == "f32", says)


SAYS = "OpenVINO, stateful, its fused attention, latency hint; without guidance and sampling"
KINDS = (_kind("f32", SAYS), _kind("bf16", SAYS), _kind("int8", f"{SAYS}; int8 weights by nncf"))
