"""Building TensorRT plans: optimisation profiles from a Program's own shapes, and what is refused.

API: https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api. `tensorrt` and
`tensorrt_rtx` have the same classes; networks are strongly typed in both.
"""

from __future__ import annotations

import importlib
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from arcompile import dims
from arcompile.errors import MACHINE, ArcError
from arcompile.ir import Graph
from arcompile.program import Program
from arcompile.targets import cuda
from arcompile.walk import walk

MODULES = ("tensorrt", "tensorrt_rtx")
HINT = "pip install tensorrt-rtx (GeForce and RTX), or tensorrt (data centres)"
PORTABLE = ("SM80", "SM86", "SM89", "SM120")  # tensor cores that know bf16
Shape = tuple[int, ...]


def module(name: str = "") -> Any:
    """TensorRT: the named module, or the first that is installed. Raises ArcError."""
    for each in [name] if name else MODULES:
        try:
            return importlib.import_module(each)
        except (ImportError, OSError):  # a wheel whose libraries are missing raises either
            continue
    raise ArcError(f"{name or 'TensorRT'} is not installed", code=MACHINE, hint=HINT)


@dataclass(frozen=True)
class Range:
    """The shapes of one input: smallest, commonest, largest."""

    least: Shape
    usual: Shape
    most: Shape


def ranges(p: Program, images: int, least: int = 1) -> dict[str, dict[str, Range]]:
    """For every graph and input, over all steps of runs of `least` to `images` images; of graphs
    that no step runs (an encoder), for one image. The commonest are those of one guided image, or
    of as many as there can be."""
    seen: dict[str, dict[str, Counter[Shape]]] = {}
    common = 1 if least == 1 else images
    for batch, guided, told in product(sorted({least, images}), (True, False), _told(p)):
        for turn in walk(p, batch, guided, known=told):
            for run in turn.runs:
                at = seen.setdefault(run.graph.name, {})
                for v in run.graph.params:
                    shape = tuple(dims.value(d, run.sizes) for d in v.type.shape)
                    usual = run.times if batch == common and guided and not told else 0
                    at.setdefault(v.name, Counter())[shape] += usual
    for g in p.graphs:
        if g.name not in seen:
            shapes = {v.name: tuple(dims.value(d, p.sizes()) for d in v.type.shape)
                      for v in g.params}
            seen[g.name] = {name: Counter({shape: 1}) for name, shape in shapes.items()}
    return {g: {name: _range(shapes) for name, shapes in inputs.items()}
            for g, inputs in seen.items()}


def _told(p: Program) -> list[dict[str, int]]:
    """Sizes that only a request tells: common ones, the least and the largest."""
    most = {s: n for s, n in p.longest().items() if s not in ("b", "r")}
    return [{}, dict.fromkeys(most, 1), most] if most else [{}]


def profiles(p: Program, few: int, batch: int) -> dict[str, list[dict[str, Range]]]:
    """Of every graph the ranges that a plan is tuned for: up to `few` images, and more of them up
    to `batch` where those differ."""
    found: dict[str, list[dict[str, Range]]] = {g.name: [] for g in p.graphs}
    for least, most in [(1, few), (few + 1, batch)][: 1 + (batch > few)]:
        for name, shapes in ranges(p, most, least).items():
            if shapes not in found[name]:
                found[name].append(shapes)
    return found


def _range(shapes: Counter[Shape]) -> Range:
    each = [sorted(sizes) for sizes in zip(*shapes, strict=True)]
    return Range(tuple(s[0] for s in each), max(shapes, key=lambda s: shapes[s]),
                 tuple(s[-1] for s in each))


@dataclass
class Built:
    """A plan, or the reasons there is none."""

    plan: bytes = b""
    reasons: list[str] = field(default_factory=list)


def _logger(trt: Any, heard: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR:
                heard.append(text.strip().splitlines()[0][:300])

    return Logger()


def capabilities(trt: Any) -> list[str]:
    """Of the GPUs to build for: this machine's, or all that TensorRT for RTX can build for without
    one. Raises ArcError where a GPU is needed."""
    try:
        return [cuda.Driver().device().capability]
    except ArcError as e:
        if not hasattr(trt, "ComputeCapability"):
            raise ArcError(f"{trt.__name__} builds plans on a GPU only: {e.what}", code=MACHINE,
                           hint="build on the machine it is for, or with tensorrt-rtx") from None
    return [c for c in PORTABLE if c in trt.ComputeCapability.__members__]


def build(path: Path, g: Graph, shapes: Sequence[Mapping[str, Range]], trt: Any,
          capabilities: Sequence[str] = (), timings: Path | None = None) -> Built:
    """The plan of one ONNX file, for GPUs of these capabilities, such as SM86.

    shapes: of each optimisation profile. timings: the file in which TensorRT keeps what kernels
    took, so that the next plan need not measure them again; TensorRT for RTX, which chooses kernels
    when a plan first runs, has none.
    """
    heard: list[str] = []
    builder = trt.Builder(_logger(trt, heard))
    strict = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strict)
    parser = trt.OnnxParser(network, _logger(trt, heard))
    if not parser.parse_from_file(str(path)):
        said = [parser.get_error(i) for i in range(parser.num_errors)]
        return Built(reasons=[f"{s.node_operator() or 'the model'}: {s.desc().strip()[:300]}"
                              for s in said] or heard)
    _decomposable(trt, network)
    config = builder.create_builder_config()
    for each in shapes:
        config.add_optimization_profile(_profile(builder, g, each))
    _capable(trt, config, capabilities)
    if timings is not None and not hasattr(trt, "IRuntimeCache"):
        _remember(config, timings)
    plan = builder.build_serialized_network(network, config)
    if plan is not None and timings is not None and not hasattr(trt, "IRuntimeCache"):
        keep(timings, bytes(config.get_timing_cache().serialize()))
    return Built(reasons=heard or ["the builder gave no plan"]) if plan is None else (
        Built(bytes(plan)))


def _remember(config: Any, timings: Path) -> None:
    """Begin with the timings that are kept, or with none where TensorRT does not take them."""
    held = timings.read_bytes() if timings.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(held), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
        f.write(data)
    os.replace(f.name, path)


def _decomposable(trt: Any, network: Any) -> None:
    """Let attention of shapes that have no fused kernel be products and a softmax."""
    ends = trt.LayerType.__members__.get("ATTENTION_OUTPUT")
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if ends is not None and layer.type == ends:
            layer.__class__ = trt.IAttentionOutputLayer  # how its Python API casts downwards
            layer.attention.decomposable = True


def _profile(builder: Any, g: Graph, shapes: Mapping[str, Range]) -> Any:
    profile = builder.create_optimization_profile()
    for v in g.params:
        if any(not isinstance(d, int) for d in v.type.shape):
            r = shapes[v.name]
            profile.set_shape(v.name, r.least, r.usual, r.most)
    return profile


def _capable(trt: Any, config: Any, names: Sequence[str]) -> None:
    """Of TensorRT for RTX: which GPUs the plan is for."""
    if not names or not hasattr(config, "set_compute_capability"):
        return
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(names)
    for i, name in enumerate(names):
        if name not in known:
            raise ArcError(f"{trt.__name__} {trt.__version__} builds for no {name}", code=MACHINE,
                           hint=f"it builds for {', '.join(known)}")
        config.set_compute_capability(known[name], i)


def facts(trt: Any) -> dict[str, str]:
    """What a plan depends on besides the graph."""
    return {"module": trt.__name__, "version": trt.__version__, "system": platform.system(),
            "machine": platform.machine()}
