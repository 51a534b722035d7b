"""Target `onnx-loop`: everything in one ONNX file, for plain ONNX Runtime in any language.

The decode loop, the sampling and the decoder are one graph. It is slower than an engine: a Loop
copies its caches in every step, and every picture runs an unconditional twin.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arcompile.errors import ArcError
from arcompile.ir import Type
from arcompile.program import Program
from arcompile.target import Target, target
from arcompile.weights import Store, used

FILE = "model.onnx"
MOST = (1 << 31) - (1 << 20)  # bytes of a protobuf message, with room for the nodes


@target("onnx-loop")
class OnnxLoop(Target):
    """One ONNX file that draws pictures by itself.

    Inputs: those of the program; noise by the names of its draws, f32 [b,N,width] (with the rows
    of a table before them where it is drawn in a loop); and, each with a value of its own,
    guidance, temperature, top_k and top_p. Outputs: images u8 [b,H,W,3] and tokens i64 [b,N].
    """

    passes = "fold, simplify, cse, qkv, swiglu, residual-norm, rotary-attention, fuse-sampling, " \
             "dead-code"
    needs = ("onnxruntime", "onnx")

    def lower(self, program: Program, store: Store, folder: Path,
              progress: Callable[[str, float], None], batch: int = 1) -> None:
        (folder / FILE).write_bytes(model(program, store))
        progress("graphs", 1.0)

    def open(self, program: Program, folder: Path, threads: int) -> Any:
        raise ArcError("an engine of target onnx-loop is not run by arcompile",
                       hint=f"give {folder / FILE} to ONNX Runtime, or build for ort-cpu")


def model(program: Program, store: Store) -> bytes:
    """The ONNX model of a whole program. Raises ArcError where it cannot be one graph."""
    import onnx

    from arcompile.targets.onnx_emit import DTYPES, IR_VERSION, OPSET, emit
    from arcompile.targets.onnx_whole import KNOBS, Whole

    h = onnx.helper
    types = {k: v.type for k, v in used(program.graphs).items()}
    size = sum(t.nbytes() for t in types.values())
    if size > MOST:
        raise ArcError(f"weights of {size} bytes do not fit into one ONNX file",
                       hint="build with --target ort-cpu")
    spans = dict.fromkeys(types, (0, 0))
    graphs = {g.name: onnx.load_from_string(emit(g, spans, wide=_wide(program, g.name)))
              for g in program.graphs}
    whole = Whole(program, graphs, _vocabulary(program))
    nodes, outs = whole.nodes()
    inits = [_held(onnx, i, types, store) for i in whole.inits.values()]
    defaults = {"guidance": 1.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    knobs = [onnx.numpy_helper.from_array(np.asarray(v, KNOBS[k]), k) for k, v in defaults.items()]

    def info(name: str, t: Type) -> Any:
        shape = [d if isinstance(d, int) else str(d) for d in t.shape]
        return h.make_tensor_value_info(name, DTYPES[t.dtype], shape)

    inputs = [info(n, t) for n, t in whole.inputs()]
    inputs += [h.make_tensor_value_info(k.name, k.data_type, []) for k in knobs]
    nodes += [h.make_node("Identity", [made], [name]) for name, (made, _) in outs.items()]
    graph = h.make_graph(nodes, program.name, inputs, [info(n, t) for n, (_, t) in outs.items()],
                         [*inits, *knobs])
    opsets = [h.make_opsetid("", OPSET), h.make_opsetid("com.microsoft", 1)]
    made = h.make_model(graph, opset_imports=opsets, producer_name="arcompile")
    made.ir_version = IR_VERSION
    return bytes(made.SerializeToString())


def _held(onnx: Any, tensor: Any, types: dict[str, Type], store: Store) -> Any:
    """A weight with its numbers inside, in place of a reference to a file."""
    if tensor.name not in types:
        return tensor
    import numpy as np

    made = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type)
    made.dims.extend(tensor.dims)
    made.raw_data = np.ascontiguousarray(store[tensor.name]).tobytes()
    return made


def _vocabulary(p: Program) -> int:
    found = [v for g in p.graphs if (v := g.result("logits")) is not None]
    return int(found[0].type.shape[-1]) if found else 0


def _wide(p: Program, graph: str) -> bool:
    from arcompile.targets.ort_place import wide

    return wide(p, graph)
