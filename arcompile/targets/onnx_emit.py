"""Write one Graph as an ONNX model whose weights stay in a shared safetensors file."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import numpy as np

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import ArcError
from arcompile.ir import Graph, Node, Type, Value
from arcompile.ops.tensor import NUMPY

OPSET, IR_VERSION = 24, 10  # ONNX Runtime 1.28 takes IR <= 13 and guarantees opset <= 26
WEIGHTS = "weights.safetensors"
SHARED = 8  # numbers of the longest constant that ONNX Runtime shares
DOMAIN = "arcompile"  # of our own ops
DTYPES = {"f32": 1, "u8": 2, "i8": 3, "i32": 6, "i64": 7, "bool": 9, "f16": 10, "f64": 11,
          "bf16": 16}
Lower = Callable[["Emitter", Node, list[str]], "str | list[str]"]
Body = Callable[..., "str | list[str]"]  # of the nodes, and of names of inputs
LOWER: dict[str, Lower] = {}


def overlay(table: dict[str, Lower]) -> Callable[..., Callable[[Lower], Lower]]:
    """A decorator that declares lowerings in a table: functions of the emitter, the node and its
    inputs."""

    def lowers(*names: str) -> Callable[[Lower], Lower]:
        def declare(fn: Lower) -> Lower:
            table.update(dict.fromkeys(names, fn))
            return fn

        return declare

    return lowers


lowers = overlay(LOWER)


class Nodes:
    """Collects ONNX nodes: of a graph, or of a function."""

    def __init__(self) -> None:
        import onnx

        self.onnx = onnx
        self.nodes: list[Any] = []
        self.memo: dict[Any, str] = {}
        self.count = 0
        self.where = ""

    def fresh(self, hint: str) -> str:
        self.count += 1
        return f"{hint}.{self.count}"

    def op(self, kind: str, *inputs: str, domain: str = "", outs: int = 1, **attrs: Any) -> Any:
        """Emit a node; its output name, or names when there are several.

        Outputs bear the node's name too: a runtime that fuses nodes names what it makes by them.
        """
        name = f"{self.where}#{len(self.nodes)}"
        made = [self.fresh(name if self.where else kind) for _ in range(outs)]
        self.nodes.append(self.onnx.helper.make_node(
            kind, list(inputs), made, name=name, domain=domain, **attrs))
        return made[0] if outs == 1 else made

    def ms(self, kind: str, *inputs: str, outs: int = 1, **attrs: Any) -> Any:
        """A contrib op of ONNX Runtime."""
        return self.op(kind, *inputs, domain="com.microsoft", outs=outs, **attrs)

    def once(self, key: Any, make: Callable[[], str]) -> str:
        """The same small subgraph for every layer that needs it."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        return self.once(("const", array.dtype.str, array.shape, array.tobytes()),
                         lambda: self._const(array))

    def _const(self, array: Any) -> str:
        value = self.onnx.numpy_helper.from_array(array)
        return str(self.op("Constant", value=value))

    def float(self, value: Any) -> str:
        return self.const(value, np.float32)

    def number(self, value: Any, dtype: str) -> str:
        """A constant of one of our dtypes."""
        if dtype != "bf16":
            return self.const(value, NUMPY[dtype])
        wide = self.float(value)
        return self.once(("bf16", wide), lambda: str(self.op("Cast", wide, to=DTYPES["bf16"])))

    def kernel(self, name: str, body: Body, *inputs: str) -> Any:
        """What `body(nodes, *inputs)` emits."""
        return body(self, *inputs)


class Emitter(Nodes):
    """One graph.

    values: weights to write into the model itself; the others lie in the weights file. wide: a
    step queries several slots of a cache. turned: matrices stored column by column, for our
    products of few rows. kernels: whether our own kernels may run it. table: the lowerings.
    """

    def __init__(self, g: Graph, spans: Mapping[str, tuple[int, int]], *, wide: bool = False,
                 turned: Container[str] = (), kernels: bool = False,
                 values: Mapping[str, Any] | None = None,
                 table: Mapping[str, Lower] = LOWER):
        super().__init__()
        self.table = table
        self.g, self.wide, self.turned, self.kernels = g, wide, turned, kernels
        self.inits: list[Any] = []
        self.functions: dict[str, Any] = {}
        self.names: dict[Value, str] = {p: p.name for p in g.params}
        for w in g.weights:
            self.names[w] = w.name
            held = (values or {}).get(w.name)
            self.inits.append(self._external(w, spans[w.name]) if held is None
                              else self.onnx.numpy_helper.from_array(held, w.name))

    def _const(self, array: Any) -> str:
        name = self.fresh("const")
        self.inits.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def kernel(self, name: str, body: Body, *inputs: str) -> Any:
        """An op of kernels/cpu.py, or what `body` says where those may not run."""
        return self.own(name, body, *inputs) if self.kernels else body(self, *inputs)

    def own(self, name: str, body: Body, *inputs: str) -> Any:
        """An op of our kernels, which `body(nodes, *inputs)` also says in standard ops: a function
        of the model, for runtimes that have no such kernel."""
        function = self._function(name, body, len(inputs))
        if self.functions.setdefault(name, function) != function:
            return body(self, *inputs)  # a function has one meaning in a model
        return self.op(name, *inputs, domain=DOMAIN, outs=len(function.output))

    def branch(self, condition: str, yes: Callable[[], list[str]], no: Callable[[], list[str]],
               outs: int) -> list[str]:
        """What one of two functions emits, by a bool[]; both give so many results."""
        made = [self.fresh("If") for _ in range(outs)]
        graphs = {"then_branch": self._subgraph(yes), "else_branch": self._subgraph(no)}
        self.nodes.append(self.onnx.helper.make_node(
            "If", [condition], made, name=f"{self.where}#{len(self.nodes)}", **graphs))
        return made

    def _subgraph(self, emit: Callable[[], list[str]]) -> Any:
        """Nodes that read what stands before them, and whose names nobody outside may read."""
        nodes, memo = self.nodes, self.memo
        self.nodes, self.memo = [], dict(memo)
        made = emit()
        inner, self.nodes, self.memo = self.nodes, nodes, memo
        own = {name for n in inner for name in n.output}
        for i, name in enumerate(made):
            if name not in own:  # a branch must make what it gives
                made[i] = self.fresh("Identity")
                inner.append(self.onnx.helper.make_node("Identity", [name], [made[i]]))
        outs = [self.onnx.helper.make_empty_tensor_value_info(name) for name in made]
        return self.onnx.helper.make_graph(inner, self.fresh("branch"), [], outs)

    def _function(self, name: str, body: Body, inputs: int) -> Any:
        inner, formal = Nodes(), [f"in{i}" for i in range(inputs)]
        made = body(inner, *formal)
        return self.onnx.helper.make_function(
            DOMAIN, name, formal, [made] if isinstance(made, str) else made, inner.nodes,
            self._opsets()[:2])

    def _opsets(self) -> list[Any]:
        versions = {"": OPSET, "com.microsoft": 1, DOMAIN: 1}
        return [self.onnx.helper.make_opsetid(k, v) for k, v in versions.items()]

    def _external(self, w: Value, span: tuple[int, int]) -> Any:
        t = self.onnx.TensorProto(name=w.name, data_type=DTYPES[w.type.dtype])
        t.dims.extend(w.type.shape[::-1] if w.name in self.turned else w.type.shape)
        t.data_location = self.onnx.TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS), ("offset", span[0]), ("length", span[1])):
            t.external_data.add(key=key, value=str(value))
        return t

    # --- sizes ---

    def dim(self, d: Dim) -> str:
        """i64[1] holding a size: a constant, or read off the inputs' shapes."""
        return self.once(("dim", d), lambda: self._dim(d))

    def _dim(self, d: Dim) -> str:
        if isinstance(d, int):
            return self.const([d])
        if d.isidentifier():
            for p in self.g.params:
                if d in p.type.shape:
                    i = p.type.shape.index(d)
                    return self.op("Shape", p.name, start=i, end=i + 1)
            raise ArcError(f"the size {d} of graph {self.g.name} is not the size of any input")
        total = None
        for names, coefficient in dims._terms(d):
            term = self.const([coefficient])
            for n in names:
                term = self.op("Mul", term, self.dim(n))
            total = term if total is None else self.op("Add", total, term)
        return total or self.const([0])

    def shape(self, shape: tuple[Dim, ...]) -> str:
        """i64[rank] holding a shape."""
        if all(isinstance(d, int) for d in shape):
            return self.const(list(shape))
        return self.once(("shape", shape),
                         lambda: self.op("Concat", *map(self.dim, shape), axis=0))

    def reshape(self, x: str, have: tuple[Dim, ...], want: tuple[Dim, ...]) -> str:
        """Reshape by a constant where ONNX's 0 (copy) and one -1 can say it."""
        code: list[int] = []
        for i, d in enumerate(want):
            same = i < len(have) and have[i] == d
            code.append(d if isinstance(d, int) else 0 if same else -1)
        if code.count(-1) > 1:
            return self.op("Reshape", x, self.shape(want))
        return self.op("Reshape", x, self.const(code))

    # --- the whole ---

    def model(self) -> bytes:
        for n in self.g.nodes:
            if n.op not in self.table:
                raise ArcError(f"op {n.op} has no ONNX form", hint="use --target reference")
            self.where = f"{n.origin or '(top)'}/{n.op}:{n.outs[0].name}"  # profiles read it
            made = self.table[n.op](self, n, [self.names[a] for a in n.args])
            made = [made] if isinstance(made, str) else made
            self.names.update(zip(n.outs, made, strict=True))
        outs = self._outputs()
        self._sweep()
        h = self.onnx.helper
        graph = h.make_graph(self.nodes, self.g.name,
                             [self._info(p.name, p.type) for p in self.g.params], outs,
                             self.inits)
        opsets = self._opsets() if self.functions else self._opsets()[:2]
        model = h.make_model(graph, opset_imports=opsets, producer_name="arcompile",
                             functions=list(self.functions.values()))
        model.ir_version = IR_VERSION
        return bytes(model.SerializeToString())

    def _sweep(self) -> None:
        """Drop what nobody reads: what was lowered again, together with what follows it."""
        read = {f"out.{name}" for name, _ in self.g.results}
        kept = []
        for n in reversed(self.nodes):
            if read.intersection(n.output):
                read.update(_reads(n))
                kept.append(n)
        self.nodes = kept[::-1]

    def _outputs(self) -> list[Any]:
        """Results are named `out.x`, since a state bears its input's name.

        Where it can, the node that makes a result is made to write it: a state is then updated in
        place, which a copy behind it would prevent.
        """
        made = {name for n in self.nodes for name in n.output}
        direct: dict[str, str] = {}
        for name, v in self.g.results:
            if self.names[v] in made and self.names[v] not in direct:
                direct[self.names[v]] = f"out.{name}"
            else:
                self.nodes.append(self.onnx.helper.make_node(
                    "Identity", [self.names[v]], [f"out.{name}"], name=f"out/{name}"))
        for n in self.nodes:
            n.input[:] = [direct.get(x, x) for x in n.input]
            n.output[:] = [direct.get(x, x) for x in n.output]
        return [self._info(f"out.{name}", v.type) for name, v in self.g.results]

    def _info(self, name: str, t: Type) -> Any:
        shape = [d if isinstance(d, int) else str(d) for d in t.shape]
        return self.onnx.helper.make_tensor_value_info(name, DTYPES[t.dtype], shape)


def few_integers(types: Mapping[str, Type]) -> list[str]:
    """Weights that must be in the model: ONNX Runtime takes a constant for another one of the same
    few integers, and then cannot tell a shape when that one lies in a file."""
    return [k for k, t in types.items() if t.dtype[0] in "iu" and t.size() <= SHARED]


def _reads(n: Any) -> Iterator[str]:
    """Names that a node reads, or the branches inside it."""
    yield from n.input
    for a in n.attribute:
        for inner in a.g.node:
            yield from _reads(inner)


def emit(g: Graph, spans: Mapping[str, tuple[int, int]], **how: Any) -> bytes:
    """The ONNX model of `g`. spans: weight name -> (offset, bytes) in the weights file; how: see
    Emitter."""
    fill()
    return Emitter(g, spans, **how).model()


MODULES = ("onnx_ops", "onnx_few", "onnx_attention", "onnx_channels_last", "onnx_kv",
           "onnx_kv_formats", "onnx_linear", "onnx_quant", "onnx_sampling", "onnx_speculation")


def fill() -> None:
    """Load every module that declares lowerings."""
    for name in MODULES:
        importlib.import_module(f"arcompile.targets.{name}")
