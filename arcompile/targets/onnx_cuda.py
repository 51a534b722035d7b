"""Lowerings to our CUDA kernels, as custom ops of ONNX Runtime: see kernels/ort_cuda.py.

Each op is a function of the model too, which says the same in standard ops.
"""

from __future__ import annotations

from functools import partial

from arcompile.ir import Node
from arcompile.targets import patterns
from arcompile.targets.onnx_emit import LOWER, Emitter, Lower, Nodes, fill, overlay
from arcompile.targets.onnx_ops import ones
from arcompile.targets.onnx_sampling import _draw, _filter, column

CUDA: dict[str, Lower] = {}
cuda = overlay(CUDA)
SUFFIX = {"f32": "", "f16": "F16", "bf16": "BF16"}
MOST = 50_000  # numbers that the shared memory of a block holds


def table() -> dict[str, Lower]:
    """Every op's lowering, to kernels of ours where there is one."""
    fill()
    return {**LOWER, **CUDA}


@cuda("draw")
def draw(e: Emitter, n: Node, x: list[str]) -> str | list[str]:
    found, size = patterns.chain(e.g, n), n.args[0].type.shape[-1]
    if found is None or not isinstance(size, int) or size > MOST or (
            found.args[0].type.dtype != "f32"):
        return LOWER["draw"](e, n, x)
    return str(e.own("LogitsChain", partial(_chain, size=size), *(e.names[a] for a in found.args)))


def _chain(e: Nodes, logits: str, row: str, null_row: str, scale: str, temperature: str,
           top_k: str, top_p: str, most: str, noise: str, size: int) -> str:
    mine, null = (e.op("Gather", logits, x, axis=0) for x in (row, null_row))
    more = column(e, e.op("Sub", scale, e.float(1.0)))
    guided = e.op("Add", mine, e.op("Mul", more, e.op("Sub", mine, null)))
    return _draw(e, _filter(e, guided, temperature, top_k, top_p, most), noise, temperature, size)


@cuda("add")
def add(e: Emitter, n: Node, x: list[str]) -> str | list[str]:
    found = patterns.modulated(e.g, n)
    if found is None:
        return LOWER["add"](e, n, x)
    norm, scale, shift = found.args
    rows, width = norm.type.shape[0], norm.type.shape[-1]
    alike = all(v.type.shape[0] == rows for v in (scale, shift))
    if not alike or norm.type.dtype not in SUFFIX or not isinstance(width, int) or width > MOST:
        return LOWER["add"](e, n, x)
    one, eps = ones(e, n), e.float([found.attrs["eps"]])
    return str(e.own(f"AdaNorm{SUFFIX[norm.type.dtype]}", partial(_ada, epsilon=found.attrs["eps"]),
                     e.names[norm], one, e.names[scale], e.names[shift], eps))


def _ada(e: Nodes, x: str, one: str, scale: str, shift: str, eps: str, *, epsilon: float) -> str:
    norm = e.op("LayerNormalization", x, one, axis=-1, epsilon=epsilon)
    return str(e.op("Add", e.op("Mul", norm, scale), shift))
