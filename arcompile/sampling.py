"""The sampling chain as a graph: guidance, temperature, top-k, top-p, draw."""

from __future__ import annotations

from arcompile.ir import Builder, Graph, Value


def sample_graph(vocabulary: int, name: str = "sample") -> Graph:
    """logits f32[r,c,V] -> token i64[b,c]; every other input is one the runtime provides.

    Guidance is c + (scale - 1)(c - u), which is the usual u + scale (c - u) and exactly c where
    the scale is 1. An image without an unconditional row has its own row as `null_row`.
    """
    b = Builder(name)
    logits = b.param("logits", f"f32[r,c,{vocabulary}]")
    row, null_row = b.param("row", "i64[b]"), b.param("null_row", "i64[b]")
    scale = b.param("scale", "f32[b]")
    temperature = b.param("temperature", "f32[b]")
    top_k, top_p = b.param("top_k", "i64[b]"), b.param("top_p", "f32[b]")
    most, noise = b.param("most", "i64[1]"), b.param("noise", "f32[b,c,2]")
    guided = _guided(b, logits, row, null_row, scale)
    law = b.filter_logits(guided, temperature, top_k, top_p, most)
    return b.graph(token=b.draw(law, noise, temperature))


def greedy_graph(vocabulary: int, name: str = "greedy") -> Graph:
    """logits f32[r,c,V] -> token i64[b,c]: the likeliest after guidance, whatever the request.

    For steps that a family's authors never leave to chance.
    """
    b = Builder(name)
    logits = b.param("logits", f"f32[r,c,{vocabulary}]")
    row, null_row = b.param("row", "i64[b]"), b.param("null_row", "i64[b]")
    guided = _guided(b, logits, row, null_row, b.param("scale", "f32[b]"))
    return b.graph(token=b.argmax(guided, axis=2))


def confidence_graph(vocabulary: int, name: str = "confidence") -> Graph:
    """logits f32[r,c,V], token i64[b,c] -> confidence f32[b,c]: how likely each token was."""
    b = Builder(name)
    logits, token = b.param("logits", f"f32[r,c,{vocabulary}]"), b.param("token", "i64[b,c]")
    row, null_row = b.param("row", "i64[b]"), b.param("null_row", "i64[b]")
    guided = _guided(b, logits, row, null_row, b.param("scale", "f32[b]"))
    temperature = b.param("temperature", "f32[b]")
    top_k, top_p = b.param("top_k", "i64[b]"), b.param("top_p", "f32[b]")
    law = b.filter_logits(guided, temperature, top_k, top_p, b.param("most", "i64[1]"))
    share = b.take_along(b.softmax(law, axis=2), b.reshape(token, shape=("b", "c", 1)), axis=2)
    return b.graph(confidence=b.reshape(share, shape=("b", "c")))


def _guided(b: Builder, logits: Value, row: Value, null_row: Value, scale: Value) -> Value:
    cond, null = b.gather(logits, row, axis=0), b.gather(logits, null_row, axis=0)
    extra = b.reshape(b.sub(scale, b.const(dtype="f32", value=1.0)), shape=("b", 1, 1))
    return b.add(cond, b.mul(extra, b.sub(cond, null)))


GRAPHS = {"sample": sample_graph, "greedy": greedy_graph,
          "confidence": confidence_graph}  # what a step may call by name
