"""Lowerings that keep to standard ONNX ops, for runtimes that have none of ONNX Runtime's own."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from arcompile.ir import Graph, Node
from arcompile.targets import onnx_attention, onnx_quant
from arcompile.targets.onnx_emit import LOWER, Emitter, Lower, fill, overlay

STANDARD: dict[str, Lower] = {}
standard = overlay(STANDARD)


def table() -> dict[str, Lower]:
    """Every op's lowering, standard ops alone."""
    fill()
    return {**LOWER, **STANDARD}


@standard("silu")
def silu(e: Emitter, n: Node, x: list[str]) -> str:
    return _silu(e, x[0])


def _silu(e: Emitter, x: str) -> str:
    return str(e.op("Swish", x))


@standard("swiglu")
def swiglu(e: Emitter, n: Node, x: list[str]) -> str:
    return e.op("Mul", _silu(e, x[0]), x[1])


def _ones(e: Emitter, n: Node) -> str:
    t = n.args[0].type
    return e.number(np.ones(t.shape[-1]), t.dtype)


@standard("rms_norm")
def rms_norm(e: Emitter, n: Node, x: list[str]) -> str:
    weight = x[1] if len(x) > 1 else _ones(e, n)
    return e.op("RMSNormalization", x[0], weight, axis=-1, epsilon=n.attrs["eps"])


@standard("residual_norm")
def residual_norm(e: Emitter, n: Node, x: list[str]) -> list[str]:
    total = e.op("Add", *x[:2])
    weight = x[2] if len(x) > 2 else _ones(e, n)
    return [e.op("RMSNormalization", total, weight, axis=-1, epsilon=n.attrs["eps"]), total]


@standard("group_norm", "group_norm_silu")
def group_norm(e: Emitter, n: Node, x: list[str]) -> str:
    y = e.op("GroupNormalization", *x, num_groups=n.attrs["groups"], epsilon=n.attrs["eps"])
    return _silu(e, y) if n.op == "group_norm_silu" else str(y)


SIGN = 0x88  # of two 4-bit integers in a byte: flips them from counting from 8 to signed


def offset(graphs: Iterable[Graph]) -> set[str]:
    """Weights of 4-bit groups: their bytes are to be flipped by SIGN when they are written."""
    return {n.args[1].name for g in graphs for n in g.nodes
            if n.op == "matmul_blocks" and n.attrs["bits"] == 4}


@standard("matmul_blocks")
def matmul_blocks(e: Emitter, n: Node, x: list[str]) -> str:
    """4-bit weights widened group by group, then a product: runtimes fuse the two. The weights must
    be signed, see `offset`."""
    columns, groups, _ = n.args[1].type.shape
    assert isinstance(groups, int)
    t = next(t for t in e.inits if t.name == x[1])
    t.data_type = e.onnx.TensorProto.INT4
    t.dims[:] = [columns, groups * n.attrs["block"]]
    w = e.op("DequantizeLinear", x[1], x[2], axis=1, block_size=n.attrs["block"])
    return e.op("MatMul", x[0], e.op("Transpose", w, perm=[1, 0]))


@standard("gather")
def gather(e: Emitter, n: Node, x: list[str]) -> str:
    """Rows of 8-bit tables, which are widened next: TensorRT takes 8 bits before a DequantizeLinear
    only, so they are widened by a scale of one, and the cast behind finds floats."""
    table = n.args[0]
    if table.is_weight and table.type.dtype == "i8" and _cast_alone(e.g, n):
        x = [e.op("DequantizeLinear", x[0], e.float(1.0)), x[1]]
    return str(e.op("Gather", *x, axis=n.attrs["axis"]))


def _cast_alone(g: Graph, n: Node) -> bool:
    readers = g.users.get(n.outs[0], ())
    return bool(readers) and all(r.op == "cast" for r in readers) and (
        n.outs[0] not in [v for _, v in g.results])


@standard("fake_quantize")
def fake_quantize(e: Emitter, n: Node, x: list[str]) -> str:
    return onnx_quant.pair(e, n, x)


@standard("decode_attention")
def decode_attention(e: Emitter, n: Node, x: list[str]) -> list[str]:
    return onnx_attention.scatter(e, n, x)


@standard("attention")
def attention(e: Emitter, n: Node, x: list[str]) -> str:
    return onnx_attention.attend(e, n, x, contrib=False)
