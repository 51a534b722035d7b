"""Targets `ort-cuda`, `ort-cuda-graphs`, `ort-tensorrt`: ONNX Runtime on an NVIDIA GPU.

The lowering of ort-cpu with another provider. What a run reads and writes lies on the GPU and is
bound once; the host sees tokens, and logits when they are asked for. A session whose products or
attention would fall back to the CPU is refused.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcompile import dims
from arcompile.errors import ArcError
from arcompile.ir import Type
from arcompile.kernels import ort_cuda
from arcompile.ops.tensor import NUMPY
from arcompile.program import Program
from arcompile.runtime.runner import Env
from arcompile.target import target
from arcompile.targets.onnx_emit import DTYPES as ELEMENT
from arcompile.targets.ort import Bound, Models, OrtCpu, Runner, runtime
from arcompile.weights import Store

CPU_ONLY = {"quantize_rows", "matmul_int8", "conv2d_int8", "linear_int8"}  # products of integers
CUDA = {
    "arena_extend_strategy": "kSameAsRequested",  # states and caches are large and few
    "cudnn_conv_algo_search": "HEURISTIC",  # the first picture does not wait for a search
    "use_tf32": "0",  # f32 means f32: the tokens of the other targets
    "do_copy_in_default_stream": "1",
}
NO_GRAPH = "-1"  # the id that turns capture off for a run


class CudaModels(Models):
    """Sessions on a GPU, with our kernels where they are built."""

    def __init__(self, *how: Any):
        super().__init__(*how)
        self.kernels = ort_cuda.library()

    def more(self, graph: str) -> dict[str, Any]:
        return {"options": CUDA}

    def runner(self) -> Runner:
        return CudaRunner(self)


class CudaRunner(Runner):
    """One run; its states lie on the device."""

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Any:
        return zeros_on(self.models, t, tuple(dims.value(d, sizes) for d in t.shape))


def zeros_on(models: Models, t: Type, shape: tuple[int, ...]) -> Any:
    """Zeros on the models' device, made there: numpy has no bf16 to copy from."""
    if t.dtype != "bf16":
        return runtime().OrtValue.ortvalue_from_numpy(np.zeros(shape, NUMPY[t.dtype]),
                                                      models.device, 0)
    made = runtime().OrtValue.ortvalue_from_shape_and_type(shape, ELEMENT[t.dtype],
                                                           models.device, 0)
    session = runtime().InferenceSession(_zeros_model(ELEMENT[t.dtype]),
                                         providers=[models.provider])
    io = session.io_binding()
    io.bind_cpu_input("shape", np.array(shape, np.int64))
    io.bind_ortvalue_output("y", made)
    session.run_with_iobinding(io)
    return made


def _zeros_model(element: int) -> bytes:
    import onnx

    h = onnx.helper
    zero = h.make_tensor("zero", element, [1], [0])
    node = h.make_node("ConstantOfShape", ["shape"], ["y"], value=zero)
    graph = h.make_graph([node], "zeros", [h.make_tensor_value_info("shape", 7, ["n"])],
                         [h.make_tensor_value_info("y", element, None)])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 24)])
    model.ir_version = 10
    return bytes(model.SerializeToString())


# --- CUDA graphs ---------------------------------------------------------------------------------


class Slot:
    """Buffers at fixed addresses for one run at a time, and what was captured over them."""

    def __init__(self) -> None:
        self.busy = False
        self.states: dict[Any, Any] = {}
        self.bound: dict[Any, Bound] = {}


class GraphModels(CudaModels):
    """Sessions that capture a CUDA graph for each set of shapes. A run borrows a slot, so that the
    next one finds the same addresses."""

    def __init__(self, *how: Any):
        super().__init__(*how)
        self.slots: list[Slot] = []
        self.lock = threading.Lock()
        self.graphs = 0  # captured so far; ONNX Runtime knows them by number

    def more(self, graph: str) -> dict[str, Any]:
        on = graph not in self.finish
        return {"options": {**CUDA, "enable_cuda_graph": "1" if on else "0"}}

    def runner(self) -> Runner:
        return GraphRunner(self)

    def borrow(self) -> Slot:
        with self.lock:
            found = next((s for s in self.slots if not s.busy), None)
            if found is None:
                self.slots.append(found := Slot())
            found.busy = True
            return found

    def number(self) -> int:
        with self.lock:
            self.graphs += 1
            return self.graphs


class GraphRunner(CudaRunner):
    """One run on a borrowed slot, which goes back when the run is let go."""

    models: GraphModels

    def __init__(self, models: GraphModels):
        super().__init__(models)
        self.slot = models.borrow()

    def __del__(self) -> None:
        self.slot.busy = False

    def state(self, name: str, t: Type, sizes: Mapping[str, int]) -> Any:
        shape = tuple(dims.value(d, sizes) for d in t.shape)
        key = (name, t.dtype, shape)
        if key not in self.slot.states:
            self.slot.states[key] = zeros_on(self.models, t, shape)
        elif t.dtype == "bf16":  # numpy has none, but zeros are zeros
            self.slot.states[key].update_inplace(np.zeros(shape, np.uint16))
        else:
            self.slot.states[key].update_inplace(np.zeros(shape, NUMPY[t.dtype]))
        return self.slot.states[key]

    def first(self, value: Any, rows: int) -> Any:
        """In a buffer of the slot, for the next run to find where it was."""
        part, key = np.ascontiguousarray(self.numpy(value)[:rows]), ("first", id(value), rows)
        if key in self.slot.states:
            self.slot.states[key].update_inplace(part)
        else:
            self.slot.states[key] = runtime().OrtValue.ortvalue_from_numpy(
                part, self.models.device, 0)
        return self.slot.states[key]

    def run(self, graph: str, env: Env) -> Env:
        """A capture for each set of shapes and addresses: what other graphs of the slot made lies
        where it lay, and what comes from the host is copied to a buffer of the capture."""
        session = self.models.session(graph)
        key = (graph, *(_place(env[k]) for k in session.inputs if k in env))
        bound = self.slot.bound.get(key)
        if bound is None:
            how = runtime().RunOptions()
            once = graph in self.models.finish
            how.add_run_config_entry("gpu_graph_id",
                                     NO_GRAPH if once else str(self.models.number()))
            bound = self.slot.bound[key] = Bound(session, how)
        return bound.run(env)

    def keep(self, graphs: set[str]) -> None:
        """The slot keeps its buffers for the next run."""


def _place(value: Any) -> tuple[Any, ...]:
    return value.shape if isinstance(value, np.ndarray) else (id(value), *value.shape())


# --- targets -------------------------------------------------------------------------------------


@target("ort-cuda")
class OrtCuda(OrtCpu):
    """ONNX Runtime on an NVIDIA GPU."""

    device = "cuda"
    provider = "CUDAExecutionProvider"
    dtypes: ClassVar[tuple[str, ...]] = ("f32", "f16", "bf16")
    kernels = False  # those of the CPU
    models: type[Models] = CudaModels
    needs: ClassVar[tuple[str, ...]] = ("onnxruntime-gpu[cuda,cudnn]", "onnx")
    passes = ("fold, simplify, cse, qkv, swiglu, norm-silu, residual-norm, rotary-attention, "
              "fuse-sampling, dead-code")

    def lower(self, program: Program, store: Store, folder: Path,
              progress: Callable[[str, float], None], batch: int = 1) -> None:
        for op in sorted({n.op for g in program.graphs for n in g.nodes} & CPU_ONLY):
            raise ArcError(f"ONNX Runtime has no CUDA kernel for {op}",
                           hint="products by groups of weights run there: int8{block=128}, int4")
        super().lower(program, store, folder, progress, batch)

    def table(self) -> Mapping[str, Any]:
        from arcompile.targets import onnx_cuda

        return onnx_cuda.table()

    def prepare(self, progress: Callable[[str, float], None]) -> None:
        progress("kernels", 0.0)
        ort_cuda.build()
        progress("kernels", 1.0)

    def open(self, program: Program, folder: Path, threads: int) -> Models:
        with contextlib.suppress(AttributeError):
            runtime().preload_dlls()
        return super().open(program, folder, threads)


@target("ort-cuda-graphs")
class OrtCudaGraphs(OrtCuda):
    """ONNX Runtime on an NVIDIA GPU, each step's shape captured as a CUDA graph.

    GroupQueryAttention reads the length of the past on the host, where a captured graph would not
    look again; steps use TensorScatter and Attention, which read it on the device.
    """

    models = GraphModels

    def wide(self, program: Program, graph: str) -> bool:
        return True


class TensorrtModels(CudaModels):
    """TensorRT's provider for what it takes, CUDA's for the rest; engines are kept."""

    def more(self, graph: str) -> dict[str, Any]:
        kept = str(self.folder / "tensorrt")
        return {"options": {"trt_engine_cache_enable": "1", "trt_engine_cache_path": kept,
                            "trt_timing_cache_enable": "1", "trt_timing_cache_path": kept},
                "then": [("CUDAExecutionProvider", CUDA)]}


@target("ort-tensorrt")
class OrtTensorrt(OrtCuda):
    """TensorRT inside ONNX Runtime; of 1.31 its provider wants TensorRT 10."""

    provider = "TensorrtExecutionProvider"
    models = TensorrtModels
    dtypes = ("f32", "f16")
    needs = ("onnxruntime-gpu[cuda,cudnn]", "onnx", "tensorrt-cu13<11")

    def wide(self, program: Program, graph: str) -> bool:
        return True
