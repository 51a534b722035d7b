"""Target `tensorrt`: plans for NVIDIA GPUs, in-place caches, ONNX beside every plan.

A plan holds for one TensorRT, one system and the GPUs it was built for; `tensorrt.json` in the
engine says which, and why a graph has none. Sampling runs by ONNX Runtime, which draws the tokens
that every other target draws.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from arcompile import safetensors
from arcompile.cache import cache
from arcompile.errors import MACHINE, ArcError
from arcompile.ir import Graph, Node
from arcompile.plan import Memory
from arcompile.program import Program
from arcompile.program_text import parse_program
from arcompile.runtime import bundle
from arcompile.target import Target, target
from arcompile.targets import cuda, onnx_standard, ort, trt_build
from arcompile.targets.onnx_emit import WEIGHTS, emit, few_integers
from arcompile.targets.onnx_standard import SIGN
from arcompile.weights import Store, used

FACTS = "tensorrt.json"
FP8 = 89  # the first compute capability with products of 8-bit floats
FEW = 4  # images at once that every plan takes, and is tuned for one of; --batch asks for more
SORTS = "it sorts a vocabulary, and TensorRT sorts 3840 numbers at most"
NOT = {**dict.fromkeys(("filter_logits", "draw", "law", "verify", "topk"), SORTS),
       **dict.fromkeys(("quantize_rows", "matmul_int8", "conv2d_int8"),
                       "activations would be rounded by scales known only at run time; use "
                       "qdq or int4")}


def reasons(g: Graph) -> list[str]:
    """Why a graph gets no plan: an op that TensorRT cannot take, a cache it cannot update."""
    found = {n.op: f"{n.op}: {NOT[n.op]}" for n in g.nodes if n.op in NOT}
    for n in g.nodes:
        if n.op == "matmul_blocks" and n.attrs["bits"] != 4:
            found[n.op] = (f"{n.op}: of {n.attrs['bits']} bits, whose scales may be negative; "
                           "use qdq or int4")
        at = {"cache_append": 0, "decode_attention": 3}.get(n.op)
        if at is not None and not isinstance(n.args[at].type.shape[2], int):
            found[n.op] = f"{n.op}: the length of its cache, {n.args[at].type.shape[2]}, is not " \
                          "known when the plan is built"
    return list(found.values())


def able(p: Program, capabilities: list[str]) -> list[str]:
    """Those of the GPUs that multiply what the program does. Raises ArcError where none does."""
    if not any(_fp8(n) for g in p.graphs for n in g.nodes):
        return capabilities
    found = [c for c in capabilities if int(c.removeprefix("SM")) >= FP8]
    if not found:
        raise ArcError(f"floats of 8 bits need compute capability 8.9 or later, not "
                       f"{', '.join(capabilities)}", code=MACHINE, hint="use qdq{form='int8'}")
    return found


def _fp8(n: Node) -> bool:
    return n.attrs.get("form") == "fp8" or (
        n.op == "matmul_columns" and n.args[1].type.dtype == "u8")


@target("tensorrt")
class TensorRT(Target):
    """TensorRT, or TensorRT for RTX, on an NVIDIA GPU."""

    passes = ("fold, simplify, cse, qkv, swiglu, norm-silu, residual-norm, rotary-attention, "
              "static-cache, dead-code")
    dtypes: ClassVar[tuple[str, ...]] = ("f16", "bf16")
    needs = ("tensorrt or tensorrt-rtx", "onnx", "onnxruntime")
    memory = Memory(arenas=False, in_place=True)
    sized = True
    device = "cuda"

    def lower(self, program: Program, store: Store, folder: Path,
              progress: Callable[[str, float], None], batch: int = 1) -> None:
        trt = trt_build.module()
        capabilities = able(program, trt_build.capabilities(trt))
        types = ort._aligned({k: v.type for k, v in used(program.graphs).items()})
        offset = onnx_standard.offset(program.graphs)
        safetensors.write(folder / WEIGHTS, types, lambda k: store[k] ^ np.uint8(SIGN)
                          if k in offset else store[k], lambda f: progress("weights", f))
        _, spans = safetensors.layout(types)
        held = {k: store[k] for k in few_integers(types)}
        shapes, table = trt_build.profiles(program, FEW, batch), onnx_standard.table()
        told: dict[str, Any] = {}
        for i, g in enumerate(program.graphs):
            path = folder / f"{g.name}.onnx"
            path.write_bytes(emit(g, spans, values=held, table=table))
            told[g.name] = _plan(path, g, shapes[g.name], trt, capabilities)
            progress("plans", (i + 1) / len(program.graphs))
        facts = {**trt_build.facts(trt), "capabilities": capabilities, "images": max(FEW, batch),
                 "graphs": told}
        (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")

    def open(self, program: Program, folder: Path, threads: int) -> Any:
        from arcompile.targets import trt_run

        facts = bundle.read_json(folder / FACTS, "TensorRT facts")
        driver = cuda.Driver()
        trt = preflight(facts, driver.device())
        whole = parse_program((folder / "program.arc").read_text())
        finish = {c.graph for c in program.finish}
        plans = {k: v["plan"] for k, v in facts["graphs"].items() if "plan" in v}
        return trt_run.Models({g.name: g for g in whole.graphs}, folder, plans, trt, driver,
                              trt_run.fallback(folder, threads, finish))

    def available(self) -> str:
        try:
            trt_build.module()
            cuda.library()
        except ArcError as e:
            return e.what
        return ""


def preflight(facts: Mapping[str, Any], device: cuda.Device) -> Any:
    """The TensorRT that an engine was built by. Raises ArcError, with what to rebuild with."""
    trt = trt_build.module(facts["module"])
    here = {**trt_build.facts(trt), "capabilities": device.capability}
    for key, have in here.items():
        want = facts.get(key)
        fits = have in want if isinstance(want, list) else want is None or have == want
        if not fits:
            said = " or ".join(want) if isinstance(want, list) else want
            raise ArcError(f"the plans are for {key} {said}; this machine has {have}",
                           code=MACHINE, hint="rebuild with arcompile build --target tensorrt here")
    return trt


def _plan(path: Path, g: Graph, shapes: list[dict[str, trt_build.Range]], trt: Any,
          capabilities: list[str]) -> dict[str, Any]:
    """Build the plan beside an ONNX file, or take it from the cache: what to write of it."""
    if why := reasons(g):
        return {"reasons": why}
    plan = path.with_suffix(".plan")
    kept = cache() / "plans" / f"{_key(path, shapes, trt, capabilities)}.plan"
    if not kept.is_file():
        timings = cache() / "plans" / f"{_digest(trt, capabilities)[:24]}.timings"
        built = trt_build.build(path, g, shapes, trt, capabilities, timings)
        if built.reasons:
            return {"reasons": built.reasons}
        trt_build.keep(kept, built.plan)
    shutil.copyfile(kept, plan)
    return {"plan": plan.name}


def _key(path: Path, shapes: list[dict[str, trt_build.Range]], trt: Any, capabilities: list[str]
         ) -> str:
    """Of the model, the weights, the shapes, the TensorRT and the GPUs."""
    parts = [path.read_bytes(), bundle.sha256(path.parent / WEIGHTS).encode(),
             *(str(sorted(each.items())).encode() for each in shapes),
             _digest(trt, capabilities).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _digest(trt: Any, capabilities: list[str]) -> str:
    """Of what a plan depends on besides the graph."""
    return hashlib.sha256(json.dumps([trt_build.facts(trt), capabilities]).encode()).hexdigest()
