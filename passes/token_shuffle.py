"""Token-Shuffle: s x s neighbours are one token of the transformer.

https://arxiv.org/abs/2504.17789. A model with shuffle layers brings them as two graphs, `shuffle`
f32[r,s*s,d] -> [r,1,d] and `unshuffle` back. This pass puts the first behind the embedding and the
second before the classifier of the step, and draws the tokens of a window at once: s*s times fewer
steps and cache slots. A window turns, in rotary embedding, by the place of its first token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import ArcError
from arcompile.ir import Builder, Graph, Node, Type, Value, merge
from arcompile.pipeline import Pass, register
from arcompile.program import Call, Program, Step
from arcompile.raster import bare, check, square
from arcompile.sampling import sample_graph

GUIDANCE = ("half-linear", "constant")
TABLES = {"rope": (1, 2), "decode_attention": (6, 7)}  # op -> its operands cos and sin


@register("token-shuffle")
class TokenShuffle(Pass):
    """Draw `window` x `window` tokens a step through the model's shuffle layers; 1 changes nothing.

    guidance: `half-linear` grows from none to what is asked for over the first half of the windows,
    as in the paper; `constant` is what is asked for from the start.
    """

    keeps = "quality"
    window: int = 1
    guidance: str = "half-linear"

    def __call__(self, p: Program) -> Program:
        if self.guidance not in GUIDANCE:
            raise ArcError(f"pass {self.name} has no guidance {self.guidance!r}",
                           hint=f"known: {', '.join(GUIDANCE)}")
        if self.window == 1:
            return p
        shuffle, unshuffle = self._layers(p)
        check(p, self.name)
        grid, window = square(p, self.name), self.window
        step, prompt = p.graph(p.steps[0].calls[0].graph), p.steps[0].append
        if not isinstance(prompt, int):
            raise ArcError("pass token-shuffle takes prompts of one fixed length",
                           hint=f"the prompt of {p.name} is as long as the request")
        old = prompt + p.positions
        new = prompt + p.positions // window**2
        at = Spliced(step, unshuffle, grid, window, prompt, {old: new})
        logits = at.graph.result("logits")
        assert logits is not None  # `check` found them
        sample = _sized(sample_graph(int(logits.type.shape[-1])), {"c": window**2})
        feed = _sized(p.graph("feed"), {"c": window**2})
        graphs = {**{g.name: g for g in p.graphs}, step.name: at.graph, sample.name: sample,
                  "feed": merge(feed, shuffle)}
        gone = {"shuffle", "unshuffle"}
        state = tuple((k, _slots(t, {old: new})) for k, t in p.state)
        return replace(p, graphs=tuple(g for k, g in graphs.items() if k not in gone),
                       steps=windows(p, grid, window, self.guidance), state=state)

    def _layers(self, p: Program) -> tuple[Graph, Graph]:
        """The graphs `shuffle` and `unshuffle`. Raises ArcError, and says what is not there."""
        found = {g.name: g for g in p.graphs}
        if not {"shuffle", "unshuffle"} <= found.keys():
            done = any(len(s.commit) > 1 for s in p.steps)
            raise ArcError(f"pass {self.name} needs shuffle layers, and {p.name} has none"
                           + (" left: it draws several tokens a step already" if done else ""),
                           hint="they are trained with the model; see family token-shuffle")
        takes = found["shuffle"].params[0].type.shape[1]
        if takes != self.window**2:
            raise ArcError(f"the shuffle layers of {p.name} take {takes} tokens, not "
                           f"{self.window} x {self.window}",
                           hint=f"give window={math.isqrt(int(takes))}")
        return found["shuffle"], found["unshuffle"]


def windows(p: Program, grid: int, window: int, guidance: str) -> tuple[Step, ...]:
    """A step for each window in raster order, its tokens row by row. Raises ArcError."""
    if grid % window:
        raise ArcError(f"{grid} x {grid} tokens do not divide into windows of {window}",
                       hint="give a window that divides the grid")
    first, side = p.steps[0], grid // window
    calls = (first.calls[0], Call("sample"), Call("feed"))
    steps = []
    for i in range(side * side):
        corner = (i // side * grid + i % side) * window
        here = tuple(corner + y * grid + x for y in range(window) for x in range(window))
        share = min(1.0, 2 * i / (side * side)) if guidance == "half-linear" else 1.0
        asked, factor = first.guide
        # linear in what is asked for: 1 + share * (guide - 1)
        guide = (1 - share + share * asked, share * factor)
        steps.append(Step(here, here, calls, guide, 1))
    steps[0] = replace(steps[0], append=first.append)
    steps[-1] = replace(steps[-1], calls=calls[:2])
    return tuple(steps)


# --- graphs --------------------------------------------------------------------------------------


class Spliced:
    """The step with `unshuffle` before its classifier, on the last slot of its input."""

    def __init__(self, step: Graph, unshuffle: Graph, grid: int, window: int, prompt: int,
                 slots: Mapping[Dim, Dim]):
        step = bare(step)
        if sum(n.op == "tail" for n in step.nodes) != 1:
            raise ArcError(f"pass token-shuffle cannot tell where the classifier of {step.name} "
                           "begins", hint="its input is the arc::tail of the transformer's output")
        self.b = b = Builder(step.name, taken=[v.name for v in step.weights])
        self.shuffled, self.grid, self.window, self.prompt = unshuffle, grid, window, prompt
        self.count: dict[Dim, Dim] = {"c": window**2}
        self.tables: dict[Value, Value] = {}
        self.new = {v: b.param(v.name, _slots(v.type, slots)) for v in step.params
                    if v.name != "noise"}
        self.new.update({w: b.weight(w.name, w.type) for w in step.weights})
        for v in step.params:  # which slots may be seen: later ones all may
            if v.type.dtype == "bool" and v.type.rank == 2 and v.type.shape[1] in slots:
                end = slots[v.type.shape[1]]
                self.new[v] = b.slice(self.new[v], axis=1, start=0, stop=int(end))
        for n in step.nodes:
            b.origin = n.origin
            self.new.update(zip(n.outs, self._node(n), strict=True))
        self.graph = b.graph(**{k: self.new[v] for k, v in step.results})

    def _node(self, n: Node) -> tuple[Value, ...]:
        if n.op == "tail":
            return (self._unshuffled(self.new[n.args[0]]),)
        tables = TABLES.get(n.op, ())
        args = tuple(self._table(self.new[a]) if i in tables else self.new[a]
                     for i, a in enumerate(n.args))
        return self.b.emit(n.op, *args, **_attrs(n.attrs, self.count))

    def _unshuffled(self, x: Value) -> Value:
        """x f32[r,s,d] -> the hidden states of its last slot's window."""
        last = self.b.slice(x, axis=1, start=-1)
        return _inline(self.b, self.shuffled, {self.shuffled.params[0]: last})[0]

    def _table(self, table: Value) -> Value:
        """Rows of prompt + grid * grid slots -> those of the prompt and of the windows' corners."""
        if table not in self.tables:
            b, (rows, width) = self.b, table.type.shape
            side, end = self.grid // self.window, self.prompt + self.grid**2
            if not isinstance(rows, int) or rows < end:
                raise ArcError(f"pass token-shuffle wants a rotary table of {end} rows, not {rows}",
                               hint="a row for each slot of the prompt and of the image")
            x = b.slice(table, axis=0, start=self.prompt, stop=end)
            x = b.reshape(x, shape=(side, self.window, side, self.window, width))
            for axis in (1, 3):
                x = b.slice(x, axis=axis, start=0, stop=1)
            x = b.reshape(x, shape=(side * side, width))
            head = b.slice(table, axis=0, start=0, stop=self.prompt)
            self.tables[table] = b.concat(head, x, axis=0)
        return self.tables[table]


def _inline(b: Builder, g: Graph, new: dict[Value, Value]) -> list[Value]:
    """Emit g's nodes on the given operands -> its results."""
    new.update({w: b.weight(w.name, w.type) for w in g.weights})
    for n in g.nodes:
        b.origin = n.origin
        new.update(zip(n.outs, b.emit(n.op, *(new[a] for a in n.args), **n.attrs), strict=True))
    return [new[v] for _, v in g.results]


def _sized(g: Graph, known: Mapping[Dim, Dim]) -> Graph:
    """The graph with numbers for some of its symbolic sizes."""
    b = Builder(g.name, taken=[v.name for v in g.weights])
    new = {v: b.param(v.name, Type(v.type.dtype, _dims(v.type.shape, known))) for v in g.params}
    new.update({w: b.weight(w.name, w.type) for w in g.weights})
    for n in g.nodes:
        b.origin = n.origin
        out = b.emit(n.op, *(new[a] for a in n.args), **_attrs(n.attrs, known))
        new.update(zip(n.outs, out, strict=True))
    return b.graph(**{k: new[v] for k, v in g.results})


def _attrs(attrs: Mapping[str, Any], known: Mapping[Dim, Dim]) -> dict[str, Any]:
    return {k: _dims(v, known) if k == "shape" else v for k, v in attrs.items()}


def _dims(shape: tuple[Dim, ...], known: Mapping[Dim, Dim]) -> tuple[Dim, ...]:
    if any(d not in known and dims.symbols(d) & known.keys() for d in shape):
        raise ArcError("pass token-shuffle cannot fix the number of tokens of "
                       f"[{','.join(map(str, shape))}]", hint="apply it before other passes")
    return tuple(known.get(d, d) for d in shape)


def _slots(t: Type, slots: Mapping[Dim, Dim]) -> Type:
    """The type of a cache [r,heads,slots,e] with other slots; any other type as it is."""
    if t.rank != 4 or t.shape[0] != "r" or t.shape[2] not in slots:
        return t
    return Type(t.dtype, (*t.shape[:2], slots[t.shape[2]], t.shape[3]))
