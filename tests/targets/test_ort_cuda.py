"""ort-cuda and its kin, as far as a CPU can tell: options, refusals, f16, slots of captured runs.

What needs a GPU is marked so; `pytest -m gpu` runs it.
"""

from __future__ import annotations

from dataclasses import replace

import engines
import numpy as np
import pytest
import tiny

import arcompile
from arcompile.errors import MACHINE, ArcError
from arcompile.ir import Type
from arcompile.target import TARGETS
from arcompile.targets import ort
from arcompile.targets.ort_cuda import CUDA, CudaModels, GraphModels, TensorrtModels, zeros_on

onnxruntime = pytest.importorskip("onnxruntime")
NAMES = ("ort-cuda", "ort-cuda-graphs", "ort-tensorrt")
HAVE = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def engine(folder, target, dtype="f32"):
    p = replace(tiny.llama(), finish=())
    passes = TARGETS[target].passes + ("" if dtype == "f32" else f", half{{dtype={dtype}}}")
    return arcompile.load(engines.write(folder / target, p, tiny.weights(p), 16, target, passes,
                                        info={"classes": 3}), check=False)


class OnCpu(GraphModels):
    """The slots and captures of a GPU's models, on the provider that is here."""

    def more(self, graph):
        return {}


def opened(e, kind=OnCpu):
    made = kind(e.folder, ort.CPU, 1, set())
    made.kernels = None  # those that nvcc may have built are for a GPU
    e.__dict__["models"] = made  # what `open` would have made on a GPU
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(HAVE, reason="there is a CUDA provider")
def test_refused_without_the_provider(tmp_path, name):
    e = engine(tmp_path, name)
    with pytest.raises(ArcError, match=TARGETS[name].provider) as refused:
        e.generate([0], seed=1)
    assert refused.value.code == MACHINE
    assert refused.value.hint


def test_the_same_tokens_from_a_slot(tmp_path):
    """Runs after one another use one slot, its buffers and its graphs; runs at once do not."""
    e, plain = engine(tmp_path, "ort-cuda-graphs"), engine(tmp_path, "ort-cpu")
    models = opened(e)
    for seed in range(3):
        a, b = (x.generate([0, 1], seed=seed, guidance=2.0) for x in (e, plain))
        assert (a.tokens == b.tokens).all()
        if seed == 0:
            first = models.graphs
    assert len(models.slots) == 1
    assert models.graphs == first > 0
    one, two = models.runner(), models.runner()
    assert one.slot is not two.slot
    del one
    assert models.runner().slot is models.slots[0]
    del two


def test_states_start_as_zeros_again(tmp_path):
    runner = opened(engine(tmp_path, "ort-cuda-graphs")).runner()
    t = Type("f32", ("r", 3))
    first = runner.state("k", t, {"r": 2})
    first.update_inplace(np.ones((2, 3), np.float32))
    again = runner.state("k", t, {"r": 2})
    assert again is first
    assert not again.numpy().any()
    assert runner.state("k", t, {"r": 1}) is not first


@pytest.mark.parametrize(("dtype", "code"), [("f16", 10), ("bf16", 16), ("f32", 1)])
def test_zeros(tmp_path, dtype, code):
    made = zeros_on(opened(engine(tmp_path, "ort-cuda")), Type(dtype, ("r", 2)), (3, 2))
    assert (made.element_type(), list(made.shape())) == (code, [3, 2])


def test_no_attention_reads_lengths_on_the_host(tmp_path):
    """GroupQueryAttention would, where a captured graph does not look again."""
    onnx = pytest.importorskip("onnx")

    def kinds(target):
        e = engine(tmp_path, target)
        model = onnx.load(e.folder / "step.onnx", load_external_data=False)
        return {n.op_type for n in model.graph.node}

    assert {"TensorScatter", "Attention"} <= kinds("ort-cuda-graphs")
    assert "GroupQueryAttention" not in kinds("ort-cuda-graphs")


def test_half_agrees(tmp_path):
    """What is lowered for a GPU in f16 runs on the CPU too, and draws nearly the same."""
    full, half = (engine(tmp_path / d, "ort-cuda", d) for d in ("f32", "f16"))
    for e in (full, half):
        opened(e, type("Plain", (CudaModels,), {"more": lambda self, graph: {}}))
    a, b = (e.generate([0, 1, 2], seed=2, temperature=0.0) for e in (full, half))
    assert (a.tokens == b.tokens).mean() >= 0.5
    types = {s.results["k0"].dtype for s in half.models.sessions.values() if "k0" in s.results}
    assert types == {"f16"}


def test_what_falls_back_is_seen(tmp_path):
    """Of a session that is all on the CPU: its products and attention, but not its shapes."""
    e = engine(tmp_path, "ort-cuda")
    how = onnxruntime.SessionOptions()
    how.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model = onnxruntime.InferenceSession(str(e.folder / "step.onnx"), how, providers=[ort.CPU])
    lost = ort.misplaced(model)
    assert {"MatMul", "QuickGelu"} <= {*lost}
    assert not {"Shape", "Concat", "Range", "Cast", "Gather"} & {*lost}


def test_options(tmp_path):
    """f32 means f32; captures only in the loop; TensorRT keeps its engines by the engine."""
    assert CUDA["use_tf32"] == "0"
    models = GraphModels(tmp_path, "CUDAExecutionProvider", 1, {"decode"})
    assert models.device == "cuda"
    assert models.more("step")["options"]["enable_cuda_graph"] == "1"
    assert models.more("decode")["options"]["enable_cuda_graph"] == "0"
    trt = TensorrtModels(tmp_path, "TensorrtExecutionProvider", 1, set()).more("step")
    assert trt["options"]["trt_engine_cache_path"] == str(tmp_path / "tensorrt")
    assert trt["then"][0][0] == "CUDAExecutionProvider"


@pytest.mark.gpu
@pytest.mark.skipif(not HAVE, reason="no CUDA provider")
@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_on_a_gpu(tmp_path, name, dtype):
    e, plain = engine(tmp_path, name, dtype), engine(tmp_path, "ort-cpu")
    for seed in range(4):  # later runs replay what was captured
        a, b = (x.generate([0, 1, 2], seed=seed, temperature=0.0) for x in (e, plain))
        assert (a.tokens == b.tokens).mean() >= (1 if dtype == "f32" else 0.5)
