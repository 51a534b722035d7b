"""Running TensorRT plans: buffers on the GPU, caches updated in place, the rest by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from arcompile import dims
from arcompile.errors import MACHINE, ArcError
from arcompile.ir import Graph, Type, bind
from arcompile.ops.tensor import NUMPY
from arcompile.runtime.runner import Array, AtOnce, Env
from arcompile.targets import ort

BITS = {"bf16": np.uint16}  # how numpy carries what it has no type for


class Buffer:
    """A tensor on the GPU; freed with its last reader."""

    def __init__(self, driver: Any, t: Type, shape: tuple[int, ...]):
        self.driver, self.type, self.dims = driver, t, shape
        self.dtype: np.dtype[Any] = np.dtype(BITS.get(t.dtype, NUMPY[t.dtype]))
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.at = driver.alloc(self.nbytes)

    def shape(self) -> tuple[int, ...]:
        return self.dims

    def write(self, x: Array) -> None:
        self.driver.upload(self.at, x.astype(self.dtype, copy=False))

    def words(self) -> Array:
        """As they are; bf16 as uint16."""
        x = np.empty(self.dims, self.dtype)
        if self.nbytes:
            self.driver.download(x, self.at)
        return x

    def read(self) -> Array:
        x = self.words()
        return x if self.type.dtype != "bf16" else (x.astype(np.uint32) << 16).view(np.float32)

    def first(self, rows: int) -> Buffer:
        """The first rows, as a tensor of their own."""
        made = Buffer(self.driver, self.type, (rows, *self.dims[1:]))
        made.write(self.words()[:rows])
        return made

    def __del__(self) -> None:
        if "at" in self.__dict__:
            self.driver.free(self.at)


class Bound:
    """One plan bound to one run's buffers."""

    def __init__(self, driver: Any, g: Graph, engine: Any):
        self.driver, self.g, self.engine = driver, g, engine
        self.contexts: dict[int, Any] = {}  # by the optimisation profile they are for
        self.known = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        self.state = {n for n, v in g.results if (p := g.param(n)) and p.type == v.type}
        self.host: dict[str, Buffer] = {}
        self.out: dict[str, Buffer] = {}

    def run(self, env: Env) -> Env:
        given = {p.name: self._given(p.name, p.type, env[p.name]) for p in self.g.params}
        sizes = bind([(p.name, p.type) for p in self.g.params],
                     {k: b.dims for k, b in given.items()})
        context = self._context(given)
        for name, b in given.items():
            if name in self.known:
                if not context.set_input_shape(name, b.dims):
                    raise self._refused(name, b)
                context.set_tensor_address(name, b.at)
        made: Env = {}
        for name, v in self.g.results:
            made[name] = given[name] if name in self.state else self._result(name, v.type, sizes)
            context.set_tensor_address(f"out.{name}", made[name].at)
        if not context.execute_async_v3(self.driver.stream):
            raise ArcError(f"TensorRT could not run {self.g.name}", code=MACHINE,
                           hint="rebuild the engine on this machine")
        return made

    def _context(self, given: Mapping[str, Buffer]) -> Any:
        """For the first profile that takes these shapes. The builder drops inputs that nothing
        reads. Raises ArcError."""
        misfit = ""
        for i in range(self.engine.num_optimization_profiles):
            misfit = next((k for k, b in given.items()
                           if k in self.known and not self._fits(k, b.dims, i)), "")
            if not misfit:
                return self._made(i)
        raise self._refused(misfit, given[misfit])

    def _fits(self, name: str, shape: tuple[int, ...], profile: int) -> bool:
        least, _, most = self.engine.get_tensor_profile_shape(name, profile)
        return all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))

    def _made(self, profile: int) -> Any:
        if profile not in self.contexts:
            made = self.contexts[profile] = self.engine.create_execution_context()
            if profile:
                made.set_optimization_profile_async(profile, self.driver.stream)
        return self.contexts[profile]

    def _refused(self, name: str, b: Buffer) -> ArcError:
        return ArcError(f"the plan of {self.g.name} takes no {name} of {list(b.dims)}",
                        hint="draw fewer images at once, or build with --batch N for more")

    def _given(self, name: str, t: Type, value: Any) -> Buffer:
        if isinstance(value, Buffer):
            return value
        shape = np.shape(value)
        b = self.host.get(name)
        if b is None or b.dims != shape:
            b = self.host[name] = Buffer(self.driver, t, shape)
        b.write(np.asarray(value))
        return b

    def _result(self, name: str, t: Type, sizes: Mapping[str, int]) -> Buffer:
        """A new one each time: the loop may hold on to the last."""
        return Buffer(self.driver, t, tuple(dims.value(d, sizes) for d in t.shape))


class Models:
    """Plans, each read when first needed, and ONNX Runtime's sessions for graphs without one."""

    def __init__(self, graphs: Mapping[str, Graph], folder: Path, plans: Mapping[str, str],
                 trt: Any, driver: Any, others: Any):
        self.graphs, self.folder, self.plans = graphs, folder, plans
        self.trt, self.driver, self.others = trt, driver, others
        self.engines: dict[str, Any] = {}
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))

    def engine(self, graph: str) -> Any:
        if graph not in self.engines:
            path = self.folder / self.plans[graph]
            made = self.runtime.deserialize_cuda_engine(path.read_bytes())
            if made is None:
                raise ArcError(f"TensorRT refuses {path.name}", code=MACHINE,
                               hint="rebuild the engine on this machine")
            self.engines[graph] = made
        return self.engines[graph]

    def runner(self) -> Runner:
        self.driver.enter()
        return Runner(self)


class Runner(AtOnce):
    """One run."""

    def __init__(self, models: Models):
        self.models = models
        self.bound: dict[str, Bound] = {}
        self.others = models.others.runner()

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Buffer:
        made = Buffer(self.models.driver, t, tuple(dims.value(d, sizes) for d in t.shape))
        self.models.driver.zero(made.at, made.nbytes)
        return made

    def inputs(self, graph: str) -> list[str]:
        return [p.name for p in self.models.graphs[graph].params]

    def by_row(self, graph: str) -> set[str]:
        return {k for k, v in self.models.graphs[graph].results if v.type.shape[:1] == ("r",)}

    def first(self, value: Any, rows: int) -> Any:
        return value.first(rows) if isinstance(value, Buffer) else value[:rows]

    def run(self, graph: str, env: Env) -> Env:
        if graph in self.models.plans:
            if graph not in self.bound:
                self.bound[graph] = Bound(self.models.driver, self.models.graphs[graph],
                                          self.models.engine(graph))
            return self.bound[graph].run(env)
        mine = {k: self.numpy(env[k]) for k in self.inputs(graph)}
        return {k: self.others.numpy(v) for k, v in self.others.run(graph, mine).items()}

    def keep(self, graphs: set[str]) -> None:
        self.bound = {k: v for k, v in self.bound.items() if k in graphs}
        self.others.keep(graphs)

    def numpy(self, value: Any) -> Array:
        return value.read() if isinstance(value, Buffer) else self.others.numpy(value)


def fallback(folder: Path, threads: int, finish: set[str]) -> ort.Models:
    """ONNX Runtime on the CPU, for graphs without a plan."""
    return ort.Models(folder, "CPUExecutionProvider", threads, finish)
