"""What products and convolutions meet when a model draws: ranges for the passes that round."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcompile import safetensors
from arcompile.compile import exported
from arcompile.errors import ArcError
from arcompile.family import Model
from arcompile.ir import Builder, Graph, Node, Type, Value
from arcompile.passes.eviction import apart, layers
from arcompile.passes.ranges import CONV, HEADS, INPUT, LOOKED, NORM, SELECTIVITY
from arcompile.pipeline import parse_pipeline, run
from arcompile.quality import condition
from arcompile.runtime import request
from arcompile.runtime.engine import Engine
from arcompile.runtime.loop import Array, Env, Runner
from arcompile.target import TARGETS, Progress
from arcompile.weights import Store

SEEN = "seen."  # results that the watched graphs have more
TOP = 1 / 16  # of the slots of a cache: those that count as the most looked at
HIDDEN = -1e30  # the score of a slot that is not filled, or not to be seen


def calibrate(model: Model, out: Path, pictures: int = 8, target: str = "ort-cpu",
              progress: Progress = lambda stage, share: None) -> dict[str, Array]:
    """Draw pictures at the model's settings and write what was seen; returns it by name.

    `<weight>.input_max` f32[k]: the largest absolute value of each input of a product, and
    `<weight>.input_norm` f32[k]: the root of the sum of all its squares.
    `<weight>.conv_range` f32[4]: -least and largest of what goes into a convolution, and of what
    comes out. `layer.<i>.head_spread` f32[h]: of an attention of scales over a cache, how much a
    head's attention differs from query to query in the last step: over the keys, the sum of its
    variance, as a mean of all pictures (https://arxiv.org/abs/2504.09261). `layer.<i>.selectivity`
    f32[steps]: of the same attention in each step, the share that goes to the slots just appended,
    times the share that the most looked at of those before get (https://arxiv.org/abs/2505.19602).
    Names are those after the target's own passes. Raises ArcError.
    """
    if pictures < 1:
        raise ArcError(f"pictures must be 1 or more, got {pictures}")
    plain = run(exported(model, progress), parse_pipeline(TARGETS[target].passes))
    p = plain.on_graphs(watched)
    if any(s.append != 1 for s in p.steps[1:]):  # scales: many queries in the last step
        p = p.on_graphs(attending)
    facts = {"family": plain.name, "target": target, "dtype": "f32", "files": {},
             "info": dict(model.info), "defaults": dict(model.defaults),
             "vocabulary": int(model.info.get("vocabulary", 0))}
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        TARGETS[target].lower(p, Store(model.weights, p.fold), Path(scratch),
                              lambda stage, share: progress(f"lowering {stage}", share))
        engine = Engine(Path(scratch), facts, p, (), 0)
        seen: dict[str, Array] = {}
        for i in range(pictures):
            _draw(engine, i, seen, pictures)
            progress("drawing", (i + 1) / pictures)
    seen = {k: np.sqrt(a) if k.endswith(NORM) else a for k, a in seen.items()}
    types = {k: Type("f32", a.shape) for k, a in sorted(seen.items())}
    safetensors.write(out, types, seen.__getitem__)
    return seen


def _draw(engine: Engine, i: int, seen: dict[str, Array], pictures: int) -> None:
    d = engine.defaults
    q = request.make(engine, condition(engine, i, 1), i, 1, d["guidance"], None, d["temperature"],
                     int(d["top_k"]), d["top_p"], {})
    loop = engine._loop(q)
    watch = Watch(loop.runner, seen)
    loop.runner = watch
    loop.run()
    for key, found in watch.looked.items():
        own = found[-1] if key.endswith(HEADS) else np.stack(found)
        seen[key] = seen.get(key, np.zeros_like(own)) + own / np.float32(pictures)


class Watch:
    """A runner that keeps the largest of all that is seen, or its sum, and hands on the rest. Of
    attentions it keeps what was seen in the conditional row, run by run."""

    def __init__(self, inner: Runner, seen: dict[str, Array]):
        self.inner, self.seen = inner, seen
        self.looked: dict[str, list[Array]] = {}

    def run(self, graph: str, env: Env) -> Env:
        out = self.inner.run(graph, env)
        for name in [k for k in out if k.startswith(SEEN)]:
            found, key = self.inner.numpy(out.pop(name)), name.removeprefix(SEEN)
            if key.endswith(LOOKED):
                self.looked.setdefault(key, []).append(found[0])
                continue
            both = np.add if key.endswith(NORM) else np.maximum
            self.seen[key] = both(self.seen[key], found) if key in self.seen else found
        return out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def watched(g: Graph) -> Graph:
    """The graph with further results for each product and convolution by a weight."""
    b = Builder(g.name, taken=[v.name for v in g.values()])
    more: dict[str, Value] = {}
    for n in g.nodes:
        for kind, look in WATCHED.get(n.op, {}).items():
            if n.args[1].is_weight:
                name, here = f"{SEEN}{n.args[1].name[1:]}{kind}", look(b, n)
                both = b.add if kind == NORM else b.maximum
                more[name] = both(more[name], here) if name in more else here
    nodes = (*g.nodes, *b.take())
    return g.with_nodes(nodes, (*g.results, *more.items())) if more else g


def attending(g: Graph) -> Graph:
    """The graph with two results for each attention over a cache: the spread of its heads, [r,h],
    and its selectivity, [r]."""
    whole = apart(g)
    b = Builder(g.name, taken=[v.name for v in whole.values()])
    more: dict[str, Value] = {}
    for i, layer in enumerate(layers(whole)):
        told = dict(zip(layer.node.attrs["extra"], layer.node.args[3:], strict=True))
        paid, new = _paid(b, layer.node, layer.heads, layer.kv_heads, told["past"])
        more[f"{SEEN}layer.{i}{HEADS}"] = _spread(b, paid)
        slots = paid.type.shape[3]
        if isinstance(slots, int):
            most = max(1, int(TOP * slots))
            more[f"{SEEN}layer.{i}{SELECTIVITY}"] = _selectivity(b, paid, new, most)
    return whole.with_nodes((*whole.nodes, *b.take()), (*whole.results, *more.items())) if (
        more) else g


def _paid(b: Builder, n: Node, heads: int, kv_heads: int, past: Value) -> tuple[Value, Value]:
    """(what each query pays each slot of the cache [r,h,s,S], which slots are new [r,1,1,S])."""
    q, keys = n.args[:2]
    width, slots = keys.type.shape[3], keys.type.shape[2]
    each = b.transpose(b.reshape(q, shape=("r", "s", heads, width)), perm=(0, 2, 1, 3))
    if heads != kv_heads:  # queries of a group share their keys
        group = heads // kv_heads
        spread = b.expand(b.reshape(keys, shape=("r", kv_heads, 1, slots, width)),
                          shape=("r", kv_heads, group, slots, width))
        keys = b.reshape(spread, shape=("r", heads, slots, width))
    scores = b.mul(b.matmul(each, b.transpose(keys, perm=(0, 1, 3, 2))),
                   b.const(dtype="f32", value=n.attrs["scale"]))
    first = b.reshape(past, shape=("r", 1, 1, 1))
    at = b.add(first, b.reshape(b.arange(dtype="i32", shape=("s",)), shape=(1, 1, "s", 1)))
    last = at if n.attrs["mask"] == "causal" else b.max(at, axes=(2,), keepdims=True)
    slot = b.arange(dtype="i32", shape=(slots,))
    seen = b.where(b.less_equal(slot, last), scores, b.const(dtype="f32", value=HIDDEN))
    return b.softmax(seen, axis=3), b.less_equal(first, slot)


def _spread(b: Builder, paid: Value) -> Value:
    """Over the keys, the sum of the variance over the queries: [r,h]."""
    mean = b.mean(paid, axes=(2,))
    found: Value = b.sum(b.sub(b.mean(b.mul(paid, paid), axes=(2,)), b.mul(mean, mean)), axes=(2,))
    return found


def _selectivity(b: Builder, paid: Value, new: Value, most: int) -> Value:
    """What goes to new slots, times what the `most` looked at of the others get: both are means
    over heads and queries."""
    none = b.const(dtype="f32", value=0.0)
    top, _ = b.emit("topk", b.where(new, none, paid), k=most, axis=3)
    here, before = (b.mean(b.sum(x, axes=(3,)), axes=(1, 2))
                    for x in (b.where(new, paid, none), top))
    found: Value = b.mul(here, before)
    return found


def _inputs(b: Builder, n: Node) -> Value:
    x = n.args[0]
    found: Value = b.max(b.abs(x), axes=tuple(range(x.type.rank - 1)))
    return found


def _squares(b: Builder, n: Node) -> Value:
    x = n.args[0]
    found: Value = b.sum(b.mul(x, x), axes=tuple(range(x.type.rank - 1)))
    return found


def _range(b: Builder, n: Node) -> Value:
    every = tuple(range(4))
    ends = [end for v in (n.args[0], n.outs[0])
            for end in (b.neg(b.min(v, axes=every)), b.max(v, axes=every))]
    found: Value = b.concat(*(b.reshape(v, shape=(1,)) for v in ends), axis=0)
    return found


Look = Callable[[Builder, Node], Value]
WATCHED: Mapping[str, Mapping[str, Look]] = {
    "matmul": {INPUT: _inputs, NORM: _squares}, "conv2d": {CONV: _range}}
