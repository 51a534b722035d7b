"""Walk an exported torch program and emit our ops, checking every shape against torch's own."""

from __future__ import annotations

import inspect
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.fx import Node as FxNode

from arcompile import dims
from arcompile.dims import Dim
from arcompile.errors import ArcError, IRError
from arcompile.export.aten_nn import ATEN
from arcompile.ir import Builder, Graph, Type, Value, dce, verify

DTYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
          torch.float64: "f64", torch.int64: "i64", torch.int32: "i32", torch.int8: "i8",
          torch.uint8: "u8", torch.bool: "bool"}
TORCH = {v: k for k, v in DTYPES.items()}
MAX_LITERAL = 256  # elements of a tensor made in the forward
EXAMPLES = (6, 3, 5, 7, 11, 13)  # example sizes of symbolic dims: distinct, never 0 or 1
FRAME = re.compile(r'File "([^"]+)", line (\d+)')  # of a stack trace
TORCH_ROOT = Path(torch.__file__).parent


@dataclass(frozen=True)
class Entry:
    """One graph to export: its name, a method of the module, and its inputs as IR types.

    The method takes the inputs by name and returns a dict of tensors.
    """

    name: str
    method: Callable[..., Mapping[str, Any]]
    inputs: Mapping[str, str]


class _Method(torch.nn.Module):
    """A module whose forward is one method of `owner`, over a dict of inputs."""

    def __init__(self, method: Callable[..., Any]):
        super().__init__()
        self.owner = method.__self__  # type: ignore[attr-defined]
        self._method = method

    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(self._method(**inputs))


def call(module: torch.nn.Module, entry: Entry) -> Graph:
    """Export one entry of one of our model modules. Raises ArcError.

    Only the submodule that owns the method is traced: torch spends time on every parameter. An
    owner outside the module is a partial copy of it: its names are the module's.
    """
    method = _Method(entry.method)
    path = next((name for name, m in module.named_modules() if m is method.owner), "")
    return export(method, entry.inputs, name=entry.name, rename=("owner.", f"{path}." * bool(path)))


def export(module: torch.nn.Module, inputs: Mapping[str, str], *, name: str = "step",
           rename: tuple[str, str] = ("", "")) -> Graph:
    """The graph of `module(inputs: dict) -> dict`, or of `module(*inputs)` -> tensor(s).

    inputs: name -> IR type such as "f32[b,3,h,w]"; symbolic sizes stay symbolic. Weights are named
    as in the state dict, with one prefix renamed. Raises ArcError naming every unknown op and the
    module it came from.
    """
    types = {k: Type.parse(t) for k, t in inputs.items()}
    by_dict = isinstance(module, _Method)
    program = _trace(module, types, by_dict)
    g = _Reader(name, program, types, rename, _home(module)).read()
    verify(g)
    return dce(g)


def _trace(module: torch.nn.Module, types: Mapping[str, Type], by_dict: bool) -> Any:
    symbols = sorted({s for t in types.values() for d in t.shape for s in dims.symbols(d)})
    if len(symbols) > len(EXAMPLES):
        raise ArcError(f"{len(symbols)} symbolic sizes; at most {len(EXAMPLES)} are supported")
    sizes = dict(zip(symbols, EXAMPLES, strict=False))
    dim = {s: torch.export.Dim(s, min=1, max=1 << 20) for s in symbols}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    made = {k: torch.zeros([dims.value(d, sizes) for d in t.shape], dtype=TORCH[t.dtype],
                           device=device) for k, t in types.items()}
    dynamic = {
        k: {i: dim[d] for i, d in enumerate(t.shape) if isinstance(d, str)}
        for k, t in types.items()
    }
    args, shapes = ((), {"inputs": dynamic}) if by_dict else (tuple(made.values()), None)
    with warnings.catch_warnings(), torch.no_grad(), device:
        warnings.simplefilter("ignore")
        try:
            found = torch.export.export(
                module.eval(), args, {"inputs": made} if by_dict else None,
                dynamic_shapes=shapes if by_dict else tuple(dynamic.values()),
            )
            return found.run_decompositions({}) if _mutates(found) else found
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as e:
            first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise ArcError(f"torch.export cannot trace {type(module).__name__}: {first}",
                           hint="avoid data-dependent Python control flow") from e


def _mutates(program: Any) -> bool:
    """Are there in-place ops to be made functional? That second trace takes most of the time."""
    schemas = (getattr(n.target, "_schema", None) for n in program.graph.nodes)
    return any(s is not None and s.is_mutable for s in schemas)


def _place(file: str, line: int | str) -> str:
    """A line of somebody's code, without where it lies on this machine."""
    return "/".join(Path(file).parts[-2:]) + f":{line}"


def _home(module: torch.nn.Module) -> str:
    """The line where what is exported begins."""
    code = inspect.unwrap(module._method if isinstance(module, _Method) else module.forward)
    code = getattr(code, "__code__", None)
    return _place(code.co_filename, code.co_firstlineno) if code else ""


def _line(n: FxNode, home: str) -> str:
    """The line of model code that a node comes from: the innermost that is not torch's."""
    frames = FRAME.findall(n.meta.get("stack_trace") or "")
    own = [_place(f, line) for f, line in frames
           if TORCH_ROOT not in Path(f).parents and Path(f) != Path(__file__)]
    return own[-1] if own else home


class _Reader:
    def __init__(self, name: str, program: Any, types: Mapping[str, Type],
                 rename: tuple[str, str], home: str = ""):
        self.b, self.program, self.prefix, self.home = Builder(name), program, rename, home
        self.types = types
        self.env: dict[str, Any] = {}
        self.symbols: dict[str, str] = {}
        self.unknown: list[tuple[str, str]] = []  # op, module path
        self.lost: set[str] = set()  # nodes that depend on an unknown op

    def read(self) -> Graph:
        spec = {s.arg.name: s for s in self.program.graph_signature.input_specs}
        names = iter(self.types.items())
        outputs: list[Any] = []
        for n in self.program.graph.nodes:
            if n.op == "placeholder":
                self._placeholder(n, spec[n.name], names)
            elif n.op == "call_function":
                self._call(n)
            elif n.op == "output":
                outputs = list(n.args[0])
        if self.unknown:
            ops = sorted({op for op, _ in self.unknown})
            raise ArcError(
                f"{len(ops)} torch ops have no meaning here: {', '.join(ops)}",
                hint="write them with supported ops, or add them to arcompile/export/aten_nn.py",
                details="\n".join(f"{op} in {where}" for op, where in self.unknown),
            )
        keys = self._result_names(len(outputs))
        return self.b.graph(**{k: self.env[o.name] for k, o in zip(keys, outputs, strict=True)})

    def _result_names(self, count: int) -> list[str]:
        spec = self.program.call_spec.out_spec
        if spec.type is dict:
            return [str(k) for k in spec.context]
        return [f"out{i}" if count > 1 else "out" for i in range(count)]

    def _placeholder(self, n: FxNode, spec: Any, names: Any) -> None:
        shape = n.meta["val"].shape
        dtype = DTYPES[n.meta["val"].dtype]
        if spec.kind is InputKind.USER_INPUT:
            name, t = next(names)
            for d, s in zip(t.shape, shape, strict=True):
                if isinstance(d, str) and isinstance(s, torch.SymInt):
                    self.symbols[str(s.node.expr)] = d
            self.env[n.name] = self.b.param(name, t)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            self.env[n.name] = self._constant(str(spec.target), dtype)
        else:
            key = self._named(str(spec.target))
            self.env[n.name] = self.b.weight(key, Type(dtype, tuple(int(s) for s in shape)))

    def _constant(self, name: str, dtype: str) -> Value:
        """A tensor made in the forward, which no state dict holds."""
        value = self.program.constants[name]
        if value.is_meta or value.numel() > MAX_LITERAL:
            raise ArcError(f"the constant {name}, {dtype}{list(value.shape)}, is made in forward",
                           hint="make it in __init__ with register_buffer")
        return self.b.const(dtype=dtype, value=value.tolist())

    def _named(self, name: str) -> str:
        old, new = self.prefix
        if name == old.rstrip("."):
            return new.rstrip(".")
        return new + name.removeprefix(old) if name.startswith(old) else name

    def _dim(self, s: Any) -> Dim:
        if isinstance(s, int):
            return s
        text = str(s.node.expr.expand())
        text = re.sub(r"[A-Za-z_]\w*", lambda m: self.symbols.get(m[0], m[0]), text)
        try:
            return dims.parse_dim(text.replace(" ", ""))
        except IRError:
            raise ArcError(f"the size {text} is not a sum of products of the input sizes",
                           hint="make that size static") from None

    def _arg(self, a: Any) -> Any:
        if isinstance(a, FxNode):
            val = a.meta.get("val")
            if isinstance(val, int | torch.SymInt):
                return self._dim(val)
            return self.env.get(a.name)
        if isinstance(a, torch.dtype):
            return DTYPES.get(a, str(a))
        return [self._arg(x) for x in a] if isinstance(a, list | tuple) else a

    def _call(self, n: FxNode) -> None:
        val = n.meta.get("val")
        if isinstance(val, int | float | bool | torch.SymInt) or "sym_" in str(n.target):
            return
        op = str(n.target)
        if "assert" in op or "sym_constrain" in op:
            return
        stack = list((n.meta.get("nn_module_stack") or {}).values())
        module = self._named(stack[-1][0] if stack else "") or "(top)"
        self.b.origin = f"{module}@{_line(n, self.home)}"
        if any(a.name in self.lost for a in n.all_input_nodes):
            self.lost.add(n.name)
            return
        if n.target is operator.getitem:
            source: Any = n.args[0]
            self.env[n.name] = self.env[source.name][n.args[1]]
            return
        fn = ATEN.get(op)
        if fn is None:
            self.lost.add(n.name)
            self.unknown.append((op.removesuffix(".default"), self.b.origin))
            return
        self.env[n.name] = self._checked(n, self._meaning(fn, n, op), op)

    def _meaning(self, fn: Callable[..., Any], n: FxNode, op: str) -> Any:
        args = [self._arg(a) for a in n.args]
        kwargs = {k: self._arg(a) for k, a in n.kwargs.items()}
        try:
            return fn(self.b, *args, **kwargs)
        except ArcError as e:
            e.add_note(f"{op} in {self.b.origin}")
            raise
        except (TypeError, ValueError, LookupError, AttributeError) as e:
            raise ArcError(f"{op} in {self.b.origin}, used this way, has no meaning here: {e}",
                           hint="write it with supported ops") from e

    def _checked(self, n: FxNode, out: Any, op: str) -> Any:
        """Our type rule and torch's must agree on every shape."""
        val = n.meta.get("val")
        if isinstance(out, Value) and isinstance(val, torch.Tensor):
            want = Type(DTYPES[val.dtype], tuple(self._dim(s) for s in val.shape))
            if out.type != want:
                raise ArcError(f"{op} at {self.b.origin}: torch says {want}, we infer {out.type}",
                               hint="this is a bug in arcompile/export/aten")
        return out
