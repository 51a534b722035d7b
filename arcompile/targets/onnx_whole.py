"""A whole Program as one ONNX graph: the decode loop as Loop nodes, noise as inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import ArcError
from arcompile.ir import Type
from arcompile.ops.tensor import NUMPY
from arcompile.program import Call, Program
from arcompile.program_text import to_data
from arcompile.targets.onnx_emit import DTYPES, Nodes

KNOBS = {"guidance": np.float32, "temperature": np.float32, "top_k": np.int64, "top_p": np.float32}


class Scope(Nodes):
    """The nodes of one ONNX graph: the whole, or a Loop's body, which sees what is around it."""

    def __init__(self, whole: Whole, env: Mapping[str, str]):
        super().__init__()
        self.whole, self.env = whole, dict(env)

    def fresh(self, hint: str) -> str:
        self.whole.count += 1
        return f"{hint}.{self.whole.count}"

    def scalar(self, value: Any, dtype: Any = np.int64) -> str:
        return self.const(np.asarray(value, dtype), dtype)

    # --- calls ---

    def call(self, name: str) -> None:
        """Inline a graph: its inputs are read from the environment, its results written to it."""
        graph, prefix = self.whole.models[name].graph, self.fresh(name) + "/"
        kept = {i.name for i in graph.initializer}
        names: dict[str, str] = {"": ""}
        for i in graph.input:
            if i.name not in self.env:
                raise ArcError(f"graph {name} reads {i.name}, which nothing provides")
            names[i.name] = self.env[i.name]

        def of(x: str) -> str:
            return self.whole.constant(name, x) if x in kept else names.get(x, prefix + x)

        for node in graph.node:
            made = type(node)()
            made.CopyFrom(node)
            made.name = prefix + node.name
            made.input[:] = map(of, node.input)
            made.output[:] = [x and prefix + x for x in node.output]
            self.nodes.append(made)
        self.env.update({o.name.removeprefix("out."): prefix + o.name for o in graph.output})

    def run(self, calls: Sequence[Call], start: str | None = None, c: int = 0) -> None:
        """The calls of a step whose first position is `start`, of c; or of prompt and finish."""
        for call in calls:
            if call.loop:
                self.turns(call, start, c)
            else:
                self.call(call.graph)
            graph = self.whole.p.graph(call.graph)
            if start is not None and any(k == "token" for k, _ in graph.results):
                self.commit(start, c)

    def commit(self, start: str, c: int) -> None:
        at = self.op("Add", start, self.const(list(range(c))))
        shape = self.op("Concat", self.whole.size("b"), self.const([c]), axis=0)
        where = self.op("Expand", at, shape)
        self.env["tokens"] = self.op("ScatterElements", self.env["tokens"], where,
                                     self.env["token"], axis=1)
        self.whole.drew = True

    def turns(self, call: Call, start: str | None, c: int) -> None:
        """A graph once per row of a table."""
        columns = self.whole.p.tables[call.loop]
        count = len(next(iter(columns.values())))

        def body(inner: Scope, i: str) -> None:
            for name, values in columns.items():
                held = inner.const(values, _dtype(values))
                inner.env[name] = inner.op("Gather", held, i, axis=0)
            for d in self.whole.p.draws:
                if d.when == "loop":
                    turn = inner.op("Gather", d.name, i, axis=0)
                    inner.env[d.name] = inner.span(turn, start, c) if start else turn
            inner.call(call.graph)

        self.loop(count, [call], body)

    def span(self, x: str, start: str, c: int) -> str:
        """Positions start..start+c of [b,N,...]."""
        return str(self.op("Slice", x, start, self.op("Add", start, self.const([c])),
                           self.const([1])))

    # --- loops ---

    def loop(self, count: int, calls: Sequence[Call], body: Callable[[Scope, str], None],
             also: Sequence[str] = ()) -> None:
        """Run `body` count times. What it writes over is carried, and nothing else outlives it."""
        h, inner = self.onnx.helper, Scope(self.whole, self.env)
        types = {n: v.type for c in calls for n, v in self.whole.p.graph(c.graph).results}
        types |= {"tokens": Type("i64", ("b", "N")), "past": Type("i32", ("r",))}
        written = {n for c in calls for n, _ in self.whole.p.graph(c.graph).results} | {*also}
        carried = sorted(n for n in written if n in self.env)
        entry = {n: self.fresh(n) for n in carried}
        inner.env.update(entry)
        i, go = self.fresh("i"), self.fresh("go")
        body(inner, i)
        still = inner.op("Identity", go)
        ends = [inner.op("Identity", inner.env[n]) for n in carried]

        def info(name: str, dtype: int, shape: Sequence[Any] | None = None) -> Any:
            return h.make_tensor_value_info(name, dtype, shape)

        params = [info(i, DTYPES["i64"], []), info(go, DTYPES["bool"], [])]
        params += [info(entry[n], DTYPES[types[n].dtype]) for n in carried]
        results = [info(still, DTYPES["bool"], [])]
        results += [info(e, DTYPES[types[n].dtype]) for e, n in zip(ends, carried, strict=True)]
        graph = h.make_graph(inner.nodes, self.fresh("body"), params, results)
        outs = [self.fresh(n) for n in carried]
        self.nodes.append(h.make_node(
            "Loop", [self.scalar(count), self.scalar(True, bool), *(self.env[n] for n in carried)],
            outs, name=self.fresh("Loop"), body=graph))
        self.env.update(zip(carried, outs, strict=True))


class Whole:
    """Builds the graph of a program whose graphs are `models`, ONNX models by name."""

    def __init__(self, program: Program, models: Mapping[str, Any], vocabulary: int):
        self.p, self.models, self.vocabulary = program, models, vocabulary
        self.count = 0
        self.drew = False
        self.inits: dict[str, Any] = {}
        self.top = Scope(self, {})
        self.sizes: dict[str, str] = {}
        _check(program)

    def constant(self, graph: str, name: str) -> str:
        """A graph's constant or weight, held once."""
        full = name if name.startswith("@") else f"{graph}:{name}"
        if full not in self.inits:
            held = next(i for i in self.models[graph].graph.initializer if i.name == name)
            made = type(held)()
            made.CopyFrom(held)
            made.name = full
            self.inits[full] = made
        return full

    # --- sizes ---

    def size(self, d: Dim) -> str:
        """i64[1] holding a size of the run. Made where everything can see it."""
        if isinstance(d, int):
            return self.top.const([d])
        if d in self.sizes:
            return self.sizes[d]
        total = None
        for names, coefficient in dims._terms(d):
            term = self.top.const([coefficient])
            for n in names:
                if n not in self.sizes:
                    raise ArcError(f"size {n!r} is not told by any input")
                term = self.top.op("Mul", term, self.sizes[n])
            total = term if total is None else self.top.op("Add", total, term)
        return total or self.top.const([0])

    def _measure(self) -> None:
        for name, t in self.p.inputs:
            for axis, d in enumerate(t.shape):
                if isinstance(d, str) and d.isidentifier() and d not in self.sizes:
                    self.sizes[d] = self.top.op("Shape", name, start=axis, end=axis + 1)
        read = {v.name for g in self.p.graphs for v in g.params}
        self.twins = bool(read & {"null_row", "is_null"})
        b = self.sizes["b"]
        self.sizes["r"] = self.top.op("Mul", b, self.top.const([2])) if self.twins else b
        self.sizes["N"] = self.top.const([self.p.positions])

    # --- the environment ---

    def _begin(self) -> None:
        top, env = self.top, self.top.env
        env.update({name: name for name, _ in self.p.inputs})
        self._measure()
        b, r, rows = self.sizes["b"], self.sizes["r"], top.const([0])
        zero, one = top.scalar(0), top.scalar(1)
        each = top.op("Range", zero, top.op("Squeeze", b, rows), one)
        env["row"], env["image"], env["null_row"] = each, each, each
        every = top.op("Range", zero, top.op("Squeeze", r, rows), one)
        if self.twins:
            env["image"] = top.op("Concat", each, each, axis=0)
            env["null_row"] = top.op("Add", each, b)
        env["is_null"] = top.op("GreaterOrEqual", every, b)
        for name in ("temperature", "top_k", "top_p"):
            env[name] = top.op("Expand", name, b)
        env["most"] = self._most()
        env["past"] = self._zeros(Type("i32", ("r",)))
        env["tokens"] = top.op("Sub", self._zeros(Type("i64", ("b", "N"))), one)
        env.update({name: self._zeros(t) for name, t in self.p.state})
        env.update({d.name: d.name for d in self.p.draws if d.when == "start"})

    def _zeros(self, t: Type) -> str:
        shape = self.top.op("Concat", *map(self.size, t.shape), axis=0)
        value = self.top.onnx.numpy_helper.from_array(np.zeros(1, NUMPY[t.dtype]))
        return str(self.top.op("ConstantOfShape", shape, value=value))

    def _most(self) -> str:
        """Sorted logits that the filters need."""
        top, v = self.top, max(self.vocabulary, 1)
        asked = top.op("Min", "top_k", top.scalar(v))
        free = top.op("Where", top.op("Less", "top_p", top.scalar(1, np.float32)),
                      top.scalar(v), top.scalar(1))
        most = top.op("Where", top.op("Greater", "top_k", top.scalar(0)), asked, free)
        return str(top.op("Reshape", most, top.const([1])))

    # --- steps ---

    def _steps(self) -> None:
        at = 0
        for run in to_data(self.p)["steps"]:
            calls = tuple(map(Call.parse, run["calls"]))
            if not isinstance(run["commit"], int):
                raise ArcError("positions that are no neighbours have no place in one graph",
                               hint="build with --target ort-cpu")
            self._run(run, calls, at)
            at += run["times"] * run["commit"]

    def _run(self, run: Mapping[str, Any], calls: tuple[Call, ...], at: int) -> None:
        c, top = run["commit"], self.top
        scale = top.op("Max", top.op("Add", top.float(run["guide"][0]), top.op(
            "Mul", top.float(run["guide"][1]), "guidance")), top.float(1.0))
        fixed = {"scale": top.op("Expand", scale, self.sizes["b"])}
        fixed |= {k: top.const(v, _dtype(v)) for k, v in run["set"].items()}
        more = top.op("Cast", self.size(run["append"]), to=DTYPES["i32"])

        def body(s: Scope, start: str) -> None:
            s.env.update(fixed)
            for d in self.p.draws:
                if d.when in ("step", "place"):
                    s.env[d.name] = s.span(d.name, start, c)
            s.run(calls, start, c)
            s.env["past"] = s.op("Add", s.env["past"], more)

        def turn(s: Scope, i: str) -> None:
            start = s.op("Add", s.op("Mul", i, s.scalar(c)), s.const([at]))
            body(s, s.op("Reshape", start, s.const([1])))

        if run["times"] == 1:
            body(top, top.const([at]))
        else:
            top.loop(run["times"], calls, turn, ("past", "tokens"))

    # --- the whole ---

    def nodes(self) -> tuple[list[Any], dict[str, tuple[str, Type]]]:
        """The nodes, and the outputs: name -> (tensor, type)."""
        self._begin()
        top = self.top
        top.run(self.p.prompt)
        self._steps()
        outs = {}
        if self.drew:
            outs["tokens"] = (top.env["tokens"], Type("i64", ("b", self.p.positions)))
        if "latents" in top.env:
            outs["latents"] = (top.env["latents"], Type("f32", ("b", "n", "c")))
        if self.p.finish:
            top.run([Call(c.graph, c.loop) for c in self.p.finish])
            outs["images"] = (self._bytes(top.env["pixels"]), Type("u8", ("b", "h", "w", 3)))
        return top.nodes, outs

    def _bytes(self, pixels: str) -> str:
        """[B,3,H,W] in [-1,1] -> uint8 [B,H,W,3]."""
        top = self.top
        x = top.op("Mul", top.op("Add", pixels, top.float(1.0)), top.float(127.5))
        x = top.op("Round", top.op("Clip", x, top.float(0.0), top.float(255.0)))
        return str(top.op("Transpose", top.op("Cast", x, to=DTYPES["u8"]), perm=[0, 2, 3, 1]))

    def inputs(self) -> Iterator[tuple[str, Type]]:
        """Conditions and noise. Knobs come after them, with values of their own."""
        yield from self.p.inputs
        for d in self.p.draws:
            if d.kind == "order":
                yield d.name, Type("i64", ("b", self.p.positions))
                continue
            shape: tuple[Dim, ...] = ("b", self.p.positions, d.width)
            if d.when == "loop":
                turns = {len(next(iter(t.values()))) for t in self.p.tables.values()}
                shape = (*turns, *shape)
            yield d.name, Type("f32", shape)


def _check(p: Program) -> None:
    if p.accept != "all":
        raise ArcError(f"accept={p.accept} has no place in one graph",
                       hint="build with --target ort-cpu")
    if any(d.when == "loop" for d in p.draws) and len(p.tables) != 1:
        raise ArcError(f"noise of {len(p.tables)} tables has no place in one graph",
                       hint="build with --target ort-cpu")


def _dtype(value: Any) -> Any:
    while isinstance(value, list | tuple):
        value = value[0] if value else 0.0
    return np.float32 if isinstance(value, float) else np.int64
