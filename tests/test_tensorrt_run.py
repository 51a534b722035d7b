"""Running TensorRT's plans where no GPU is: rehearsed with a driver and a runtime of our own,
whose plans are run by ONNX Runtime.

What stays unproven here: the driver's calls and the plans' arithmetic. `pytest -m gpu` has that.
"""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from engines import signed, write
from tiny import llama, weights

from arcompile.errors import ArcError
from arcompile.ops.tensor import NUMPY
from arcompile.pipeline import parse_pipeline, run
from arcompile.runtime.engine import load
from arcompile.target import TARGETS
from arcompile.targets import cuda, tensorrt, trt_build, trt_run
from arcompile.targets.cuda import Device

PASSES = f"{TARGETS['tensorrt'].passes}, half"


class Memory:
    """The driver: arrays of bytes by made-up addresses."""

    stream = 7

    def __init__(self):
        self.blocks, self.next = {}, 1 << 20

    def enter(self): ...
    def sync(self): ...

    def alloc(self, nbytes):
        self.next += 1 << 12
        self.blocks[self.next] = np.full(max(1, nbytes), 0xCD, np.uint8)
        return self.next

    def free(self, at):
        del self.blocks[at]

    def zero(self, at, nbytes):
        self.blocks[at][:nbytes] = 0

    def upload(self, at, x):
        self.blocks[at][: x.nbytes] = np.frombuffer(np.ascontiguousarray(x).tobytes(), np.uint8)

    def download(self, x, at):
        x[...] = np.frombuffer(self.blocks[at][: x.nbytes].tobytes(), x.dtype).reshape(x.shape)


class Rehearsed:
    """A plan, its engine and its context: runs the ONNX file that lies beside the plan."""

    def __init__(self, memory, session):
        self.memory, self.session = memory, session
        self.names = [i.name for i in (*session.get_inputs(), *session.get_outputs())]
        self.num_io_tensors, self.shapes, self.at = len(self.names), {}, {}
        self.profile = 0

    num_optimization_profiles = 2  # up to four images, and five or six

    def get_tensor_name(self, i):
        return self.names[i]

    def get_tensor_profile_shape(self, name, profile):
        i = next(i for i in self.session.get_inputs() if i.name == name)
        least, most = ((1, 8), (5, 12))[profile]
        return [[n if isinstance(n, int) else side if axis == 0 else min(side, 1)
                 for axis, n in enumerate(i.shape)] for side in (least, most, most)]

    def set_optimization_profile_async(self, profile, stream):
        assert stream == Memory.stream
        self.profile = profile

    def create_execution_context(self):
        return Rehearsed(self.memory, self.session)

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return len(shape) == 0 or shape[0] <= (8, 12)[self.profile]

    def set_tensor_address(self, name, at):
        self.at[name] = at

    def execute_async_v3(self, stream):
        assert stream == Memory.stream
        feed = {}
        for i in self.session.get_inputs():
            dtype = {"tensor(float16)": np.float16, "tensor(float)": np.float32,
                     "tensor(int64)": np.int64, "tensor(int32)": np.int32,
                     "tensor(bool)": np.bool_}[i.type]
            feed[i.name] = np.empty(self.shapes[i.name], dtype)
            self.memory.download(feed[i.name], self.at[i.name])
        for o, x in zip(self.session.get_outputs(), self.session.run(None, feed), strict=True):
            self.memory.upload(self.at[o.name], x)
        return True


def bare():
    """What its decoder makes are no pictures."""
    return replace(llama(), finish=())


@pytest.fixture
def rehearsal(tmp_path, monkeypatch):
    """A tiny Llama built with the real builder, opened with ours; its memory is `.memory`."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tensorrt_rtx", reason="no tensorrt-rtx here")
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    info = {"classes": 3}
    folder = write(tmp_path / "trt", bare(), weights(llama()), 16, "tensorrt", PASSES, info=info)
    (folder / "program.arc").write_text(str(run(bare(), parse_pipeline(PASSES))))
    signed(folder)
    plain = write(tmp_path / "ort", bare(), weights(llama()), 16, "ort-cpu", PASSES, info=info)
    memory = Memory()
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    trt = SimpleNamespace(Runtime=lambda logger: runtime,
                          Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda s, x: None}))

    class Models(trt_run.Models):
        def engine(self, graph):
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # it copies caches where a plan would not
            path = str(folder / f"{graph}.onnx")
            return Rehearsed(memory, onnxruntime.InferenceSession(path, options))

    monkeypatch.setattr(cuda, "Driver", lambda: SimpleNamespace(
        device=lambda: Device("made up", "SM86", 13000)))
    monkeypatch.setattr(tensorrt, "preflight", lambda facts, device: trt)
    monkeypatch.setattr(trt_run, "Models", lambda g, f, p, t, d, o: Models(g, f, p, t, memory, o))
    return SimpleNamespace(folder=folder, plain=plain, memory=memory, models=Models)


@pytest.mark.ort
def test_the_same_tokens(rehearsal):
    """As ONNX Runtime draws from the same 16-bit graphs, greedy and sampled, guided and not."""
    a, b = load(rehearsal.folder, check=False), load(rehearsal.plain)
    for how in ({"temperature": 0}, {"seed": [3, 4], "guidance": [2.0, 1.0]}):
        x, y = (e.generate([1, 2], **how) for e in (a, b))
        assert np.array_equal(x.tokens, y.tokens)
    tokens = np.array([[3, 1, 4, 1]])
    for x, y in zip(a.logits([1], tokens), b.logits([1], tokens), strict=True):
        assert np.allclose(x, y, atol=2e-2)


@pytest.mark.ort
def test_caches_stay_where_they_are_and_all_is_freed(rehearsal):
    import gc

    engine = load(rehearsal.folder, check=False)
    seen = set()
    real = Rehearsed.set_tensor_address

    def watch(self, name, at):
        real(self, name, at)
        if name in ("k0", "out.k0"):
            seen.add(at)

    Rehearsed.set_tensor_address = watch
    try:
        engine.generate([1], temperature=0)
    finally:
        Rehearsed.set_tensor_address = real
    assert len(seen) == 1
    gc.collect()
    assert rehearsal.memory.blocks == {}


@pytest.mark.ort
def test_too_many_images_are_refused(rehearsal):
    with pytest.raises(ArcError, match=r"the plan of \w+ takes no") as e:
        load(rehearsal.folder, check=False).generate([1] * 7, guidance=2.0)
    assert e.value.hint == "draw fewer images at once, or build with --batch N for more"


@pytest.mark.ort
def test_more_images_take_another_profile(rehearsal):
    a, b = load(rehearsal.folder, check=False), load(rehearsal.plain)
    for how in ({"guidance": 2.0}, {"guidance": [2.0, 1.0] * 3}):
        x, y = (e.generate([1, 2] * 3, seed=5, **how).tokens for e in (a, b))
        assert np.array_equal(x, y)


def test_bf16_buffers_widen():
    b = trt_run.Buffer(Memory(), SimpleNamespace(dtype="bf16"), (2,))
    b.write(np.array([0x3FC0, 0xC000], np.uint16))
    assert b.read().tolist() == [1.5, -2.0]
    assert b.first(1).read().tolist() == [1.5]
    assert NUMPY["bf16"] is np.float32


@pytest.mark.ort
def test_plans_are_kept(rehearsal, tmp_path, monkeypatch):
    """A second build of the same graphs and weights takes them from the cache."""
    monkeypatch.setattr(trt_build, "build", lambda *args: trt_build.Built(reasons=["asked again"]))
    told = json.loads((rehearsal.folder / tensorrt.FACTS).read_text())
    monkeypatch.setattr(trt_build, "capabilities", lambda trt: told["capabilities"])
    again = write(tmp_path / "again", bare(), weights(llama()), 16, "tensorrt", PASSES)
    told = json.loads((again / tensorrt.FACTS).read_text())
    assert told["graphs"]["step"] == {"plan": "step.plan"}
    assert (again / "step.plan").read_bytes() == (rehearsal.folder / "step.plan").read_bytes()


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    """The real thing: greedy tokens of the ort-cpu engine of the same 16-bit graphs."""
    if why := TARGETS["tensorrt"].available():
        pytest.skip(why)
    info = {"classes": 3}
    found = [load(write(tmp_path / t, bare(), weights(llama()), 16, t, PASSES, info=info))
             for t in ("tensorrt", "ort-cpu")]
    x, y = (e.generate([1, 2], temperature=0, guidance=2.0).tokens for e in found)
    assert np.array_equal(x, y)
