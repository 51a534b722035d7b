"""Target `ort-cpu`: ONNX Runtime, with caches updated in place by IO binding."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcompile import dims, safetensors
from arcompile.errors import MACHINE, ArcError, quoted
from arcompile.ir import Graph, Type, bind
from arcompile.kernels import cpu
from arcompile.ops.tensor import NUMPY
from arcompile.plan import Memory
from arcompile.program import Program
from arcompile.runtime import bundle
from arcompile.runtime.pages import Pages
from arcompile.runtime.runner import Array, AtOnce, Env
from arcompile.target import Event, Target, target
from arcompile.targets import ort_profile
from arcompile.targets.onnx_emit import DTYPES as ELEMENT
from arcompile.targets.ort_place import few_slots, spinning, wide
from arcompile.weights import TURNED, Store, used

DTYPES = {"tensor(float)": "f32", "tensor(float16)": "f16", "tensor(int64)": "i64",
          "tensor(int32)": "i32", "tensor(bool)": "bool", "tensor(double)": "f64",
          "tensor(uint8)": "u8", "tensor(int8)": "i8", "tensor(bfloat16)": "bf16"}

CPU = "CPUExecutionProvider"
HEAVY = {  # what counts no shapes
    "Attention", "Conv", "CumSum", "GatherND", "Gelu", "Gemm", "GroupQueryAttention",
    "InstanceNormalization", "LayerNormalization", "MatMul", "MatMulNBits", "MultiHeadAttention",
    "QLinearConv", "MatMulIntegerToFloat", "QuickGelu", "Resize", "RotaryEmbedding",
    "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax", "TensorScatter",
    "TopK", "Exp", "Erf", "Tanh", "Sigmoid"}

LINE = 64  # bytes of a cache line


def runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ArcError("onnxruntime is not installed", code=MACHINE,
                       hint="pip install 'onnxruntime>=1.28'") from None
    return onnxruntime


class Session:
    """One loaded model. Shared by runs, and never written to.

    once: it runs once an image, and gives its working memory back: the caches of the next image
    would lie next to it. spins: its threads wait for the next run awake. notes: where it notes
    what every kernel takes. options: of the provider; then: providers, with their options, for
    what the first one does not take.
    """

    def __init__(self, path: Path, provider: str, threads: int, kernels: Path | None = None,
                 once: bool = False, spins: bool = True, notes: Path | None = None,
                 options: Mapping[str, str] | None = None, then: Sequence[Any] = ()):
        ort = runtime()
        self.how = ort.RunOptions()
        # onnxruntime's run_with_iobinding asks for this, and an answer costs less than an exception
        self.how.add_run_config_entry("gpu_graph_id", "0")
        if once and provider == CPU:
            self.how.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        how = ort.SessionOptions()
        how.intra_op_num_threads = threads
        how.log_severity_level = 3
        how.enable_mem_pattern = False  # it plans for the largest shapes seen and keeps them
        # activations beside 8-bit weights stay what they are, not rounded to 8 bits in passing
        how.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        how.add_session_config_entry("session.force_spinning_stop", "0" if spins else "1")
        if notes is not None:
            how.enable_profiling = True
            how.profile_file_prefix = str(notes / path.stem)
        if kernels is not None:
            how.register_custom_ops_library(str(kernels))
        if provider != CPU:
            how.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            self.model = ort.InferenceSession(str(path), how, providers=[
                (provider, dict(options or {})), *then])
        except Exception as e:  # onnxruntime's exceptions share no base but Exception
            raise _refused(path, provider, e) from None
        if self.model.get_providers()[0] != provider:
            raise _refused(path, provider, Exception("it fell back to the CPU"))
        if provider != CPU and (lost := misplaced(self.model)):
            raise _refused(path, provider, Exception(f"{', '.join(lost)} would run on the CPU"))
        self.name, self.device = path.stem, device_of(provider)
        self.inputs = {i.name: _type(i) for i in self.model.get_inputs()}
        self.results = {o.name.removeprefix("out."): _type(o) for o in self.model.get_outputs()}
        self.by_row = {k for k, t in self.results.items() if t.shape[:1] == ("r",)}
        self.symbolic = [(k, t) for k, t in self.inputs.items()
                         if any(isinstance(d, str) for d in t.shape)]


def device_of(provider: str) -> str:
    return "cpu" if provider == CPU else "cuda"


def misplaced(model: Any) -> list[str]:
    """Kinds of nodes that the session left to the CPU and that should not be there.

    ONNX Runtime counts shapes on the CPU, and should; an option that forbids all nodes there
    (session.disable_cpu_ep_fallback) refuses those too.
    """
    there = {n.op_type for part in model.get_provider_graph_assignment_info()
             if part.ep_name == CPU for n in part.get_nodes()}
    return sorted(there & HEAVY)


def _type(arg: Any) -> Type:
    return Type(DTYPES[arg.type], tuple(
        d if isinstance(d, int) else dims.parse_dim(d) for d in arg.shape))


def _refused(path: Path, provider: str, e: Exception) -> ArcError:
    first = quoted(e, 300)
    if provider != CPU:
        return ArcError(f"ONNX Runtime cannot run on {provider}: {first}", code=MACHINE,
                        hint="pip install 'onnxruntime-gpu[cuda,cudnn]>=1.28' (in place of "
                             "onnxruntime), or use --target ort-cpu")
    return ArcError(f"ONNX Runtime refuses {path.name}: {first}", code=MACHINE,
                    hint="onnxruntime>=1.28 is needed; then rebuild the engine")


class Bound:
    """A session bound to one run's buffers. Nothing is bound twice that did not change."""

    def __init__(self, session: Session, how: Any = None):
        self.s, self.how = session, how or session.how
        self.io = session.model.io_binding()
        self.last: dict[str, Any] = {}  # what each input is bound to
        self.host: dict[str, tuple[Array, Any]] = {}  # buffers for numpy inputs
        self.out: dict[str, Any] = {}
        self.sizes: dict[str, int] = {}
        # results that bear an input's name and type: written where the input is
        self.state = [n for n, t in session.results.items() if session.inputs.get(n) == t]

    def run(self, env: Env) -> Env:
        """Raises ArcError, whatever ONNX Runtime raises."""
        if lost := [name for name in self.s.inputs if name not in env]:
            raise ArcError(f"graph {self.s.name} reads {lost[0]}, which nothing provides",
                           hint="rebuild the engine")
        try:
            return self._run(env)
        except (RuntimeError, ValueError, TypeError) as e:
            raise ArcError(f"ONNX Runtime failed in {self.s.name}: {quoted(e)}",
                           hint="the inputs, or the engine, are not what they should be") from e

    def _run(self, env: Env) -> Env:
        if self._bind_inputs(env) or not self.out:
            sizes = bind(self.s.symbolic, {k: self._shape(k, env[k]) for k, _ in self.s.symbolic})
            if sizes != self.sizes or not self.out:
                self._bind_outputs(sizes)
        for name in self.state:
            if self.out[name] is not self.last[name]:
                self.out[name] = self.last[name]
                self.io.bind_ortvalue_output(f"out.{name}", self.last[name])
        self.s.model.run_with_iobinding(self.io, self.how)
        return dict(self.out)

    def _bind_inputs(self, env: Env) -> bool:
        """Whether any was bound anew, so that sizes may have changed."""
        anew = False
        for name in self.s.inputs:
            value = env[name]
            if isinstance(value, np.ndarray):
                value = self._host(name, value)
            if self.last.get(name) is not value:
                self.io.bind_ortvalue_input(name, value)
                self.last[name] = value
                anew = True
        return anew

    def _shape(self, name: str, value: Any) -> Any:
        return value.shape if isinstance(value, np.ndarray) else value.shape()

    def _host(self, name: str, value: Array) -> Any:
        """Copy into the buffer bound last time when it fits, else into a new one."""
        dtype = NUMPY[self.s.inputs[name].dtype]
        if name in self.host and self.host[name][0].shape == value.shape:
            buffer, made = self.host[name]
            np.copyto(buffer, value, casting="same_kind")
            if self.s.device != "cpu":
                made.update_inplace(buffer)
            return made
        buffer = np.array(value, dtype, order="C")
        made = runtime().OrtValue.ortvalue_from_numpy(buffer, self.s.device, 0)
        self.host[name] = (buffer, made)
        return made

    def _bind_outputs(self, sizes: dict[str, int]) -> None:
        ort, state = runtime(), set(self.state)
        for name, t in self.s.results.items():
            if name in state:
                self.out[name] = None
                continue
            shape = [dims.value(d, sizes) for d in t.shape]
            made = ort.OrtValue.ortvalue_from_shape_and_type(
                shape, ELEMENT[t.dtype], self.s.device, 0)
            self.io.bind_ortvalue_output(f"out.{name}", made)
            self.out[name] = made
        self.sizes = dict(sizes)


class Runner(AtOnce):
    """One run: its own bindings and buffers over the shared sessions."""

    def __init__(self, models: Models):
        self.models = models
        self.bound: dict[str, Bound] = {}
        self.pages = Pages()

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Any:
        return runtime().OrtValue.ortvalue_from_numpy(self.pages.zeros(t, sizes), "cpu", 0)

    def inputs(self, graph: str) -> list[str]:
        return list(self.models.session(graph).inputs)

    def run(self, graph: str, env: Env) -> Env:
        if graph not in self.bound:
            self.bound[graph] = Bound(self.models.session(graph))
        return self.bound[graph].run(env)

    def by_row(self, graph: str) -> set[str]:
        return self.models.session(graph).by_row

    def first(self, value: Any, rows: int) -> Any:
        part, on_cpu = self.numpy(value)[:rows], self.models.device == "cpu"
        return runtime().OrtValue.ortvalue_from_numpy(
            self.pages.copy(part) if on_cpu else np.ascontiguousarray(part), self.models.device, 0)

    def keep(self, graphs: set[str]) -> None:
        self.bound = {k: v for k, v in self.bound.items() if k in graphs}
        self.pages = Pages()  # whose last block would keep what lies in it

    def numpy(self, value: Any) -> Array:
        return value if isinstance(value, np.ndarray) else np.array(value.numpy())


class Models:
    """The engine's sessions, each loaded when first needed.

    finish: graphs that make pixels of what was drawn. loop: graphs of the steps.
    """

    def __init__(self, folder: Path, provider: str, threads: int, finish: set[str],
                 loop: Set[str] = frozenset(), notes: Path | None = None):
        self.folder, self.provider, self.threads = folder, provider, threads
        self.notes, self.finish = notes, finish
        self.sessions: dict[str, Session] = {}
        self.device = device_of(provider)
        self.kernels = cpu.library() if self.device == "cpu" else None
        self.light = bundle.words(folder / bundle.LIGHT, "light graphs")
        self.spins = spinning(loop - set(self.light))

    def session(self, graph: str) -> Session:
        if graph not in self.sessions:
            path = self.folder / f"{graph}.onnx"
            threads = 1 if graph in self.light else self.threads
            self.sessions[graph] = Session(path, self.provider, threads, self.kernels,
                                           graph in self.finish, graph in self.spins, self.notes,
                                           **self.more(graph))
        return self.sessions[graph]

    def more(self, graph: str) -> dict[str, Any]:
        """Further options of its session."""
        return {}

    def events(self) -> list[Event]:
        """What the kernels took since the models were opened to be profiled."""
        return [e for name, s in self.sessions.items() for e in ort_profile.events(name, s.model)]

    def runner(self) -> Runner:
        return Runner(self)


@target("ort-cpu")
class OrtCpu(Target):
    """ONNX Runtime on the CPU."""

    passes = ("fold, simplify, cse, qkv, swiglu, norm-silu, channels-last, residual-norm, "
              "rotary-attention, fuse-sampling, dead-code")
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx")
    memory = Memory(70_000_000, 550_000, 20_000, arenas=True, waste=1.6, in_place=True)  # measured
    provider = CPU
    models: type[Models] = Models
    kernels = True  # our own, where they are built

    def lower(self, program: Program, store: Store, folder: Path,
              progress: Callable[[str, float], None], batch: int = 1) -> None:
        from arcompile import light
        from arcompile.targets.onnx_emit import WEIGHTS, emit, few_integers
        from arcompile.targets.onnx_few import turned

        few = [g for g in program.graphs if few_slots(program, g.name)] if self.kernels else []
        many = used(g for g in program.graphs if g not in few)
        columns = turned(few) - many.keys()
        types = _aligned({
            k: Type(v.type.dtype, v.type.shape[::-1] if k in columns else v.type.shape)
            for k, v in used(program.graphs).items()})
        _, spans = safetensors.layout(types, notes := {TURNED: json.dumps(sorted(columns))})

        def read(name: str) -> Array:
            return np.ascontiguousarray(store[name].T) if name in columns else store[name]

        values = {k: read(k) for k in few_integers(types)}
        for i, g in enumerate(program.graphs):
            model = emit(g, spans, values=values, wide=self.wide(program, g.name),
                         turned=columns, kernels=self.kernels, table=self.table())
            (folder / f"{g.name}.onnx").write_bytes(model)
            progress("graphs", (i + 1) / len(program.graphs))
        safetensors.write(folder / WEIGHTS, types, read, lambda f: progress("weights", f), notes)
        light.write(program, folder)

    def table(self) -> Mapping[str, Any]:
        """The lowerings."""
        from arcompile.targets.onnx_emit import LOWER

        return LOWER

    def wide(self, program: Program, graph: str) -> bool:
        """Does attention of this graph take several query slots over a past?"""
        return wide(program, graph)

    def prepare(self, progress: Callable[[str, float], None]) -> None:
        if self.kernels:
            progress("kernels", 0.0)
            cpu.build()
            progress("kernels", 1.0)

    def open(self, program: Program, folder: Path, threads: int) -> Models:
        return self._models(program, folder, threads)

    def profile(self, program: Program, folder: Path, threads: int, notes: Path) -> Models:
        return self._models(program, folder, threads, notes)

    def _models(self, program: Program, folder: Path, threads: int,
                notes: Path | None = None) -> Models:
        reason = self.available()
        if reason:
            raise ArcError(reason, code=MACHINE, hint="arcompile doctor tells what is missing")
        finish = {c.graph for c in program.finish}
        loop = {c.graph for s in program.steps for c in s.calls}
        return self.models(folder, self.provider, threads or _cores(), finish, loop, notes)

    def available(self) -> str:
        try:
            ort = runtime()
        except ArcError as e:
            return e.what
        if tuple(map(int, ort.__version__.split(".")[:2])) < (1, 28):
            return f"onnxruntime {ort.__version__} is too old (cached attention is wrong): >= 1.28"
        if self.provider not in ort.get_available_providers():
            return f"this onnxruntime has no {self.provider}"
        return ""


def _aligned(types: Mapping[str, Type]) -> dict[str, Type]:
    """Odd sizes last: the other weights then all start at a multiple of a cache line."""
    return dict(sorted(types.items(), key=lambda x: x[1].nbytes() % LINE != 0))


def _cores() -> int:
    """Physical cores we may run on: hyper-threads only get in each other's way."""
    try:
        return max(1, len(os.sched_getaffinity(0)))
    except AttributeError:
        return os.cpu_count() or 1


__all__ = ["Bound", "Graph", "Models", "OrtCpu", "Runner", "Session"]
