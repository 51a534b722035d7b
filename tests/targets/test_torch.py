"""torch-cpu: the interpreter of torch-cuda gives the tokens of ort-cpu, op by op and whole.

With Triton's interpreter, the same plans also run our kernels; what only a GPU can show (launches,
capture) is marked gpu.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import engines
import numpy as np
import pytest
import tiny
from test_ops import CASES

import arcompile
from arcompile.compile import write
from arcompile.errors import MACHINE, ArcError
from arcompile.family import FAMILIES
from arcompile.ir import OPS
from arcompile.kernels import lang
from arcompile.pipeline import parse_pipeline, run
from arcompile.program_text import parse_program
from arcompile.target import TARGETS
from arcompile.targets import torch_attention, torch_kernels, torch_quant
from arcompile.targets.torch_cuda import Models
from arcompile.targets.torch_ops import TORCH
from arcompile.weights import Store

torch = pytest.importorskip("torch")
PASSES = TARGETS["torch-cpu"].passes
KEYS = {"temperature": 0.0, "guidance": 2.0}
assert torch_attention
assert torch_quant


@pytest.mark.parametrize("c", [c for c in CASES if c.op in TORCH], ids=str)
def test_op(c):
    want = OPS[c.op].eval(*c.args, **c.attrs)
    got = TORCH[c.op](torch, *(torch.from_numpy(np.array(a)) for a in c.args), **c.attrs)
    for a, b in zip(got if isinstance(got, tuple | list) else (got,), want, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.numpy(), b, rtol=2e-5, atol=5e-6)


def test_ops_that_are_not_here_are_refused_by_name():
    assert torch_kernels.KERNEL.keys() <= TORCH.keys() <= OPS.keys()
    p = tiny.of("graph g(%x: f32[b,4]) {\n  %0 = nearest(%x) {k=1} : i64[b,1]\n  return y=%0\n}")
    with pytest.raises(ArcError, match="op nearest has no torch form"):
        _plan(p)


def engine(folder, p, target, passes=PASSES):
    p = replace(p, finish=())
    source = tiny.weights(p)
    return arcompile.load(engines.write(folder / target, p, source, 16, target, passes,
                                        info={"classes": 3}),
                          check=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return [engine(folder, tiny.llama(), name) for name in ("torch-cpu", "ort-cpu")]


@pytest.mark.parametrize("how", [
    {"temperature": 0.0}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.0, "guidance": 3.0}], ids=str)
def test_the_same_tokens(pair, how):
    ours, theirs = (e.generate([0, 1, 2], seed=5, **how) for e in pair)
    assert (ours.tokens == theirs.tokens).all()


@pytest.mark.parametrize("name", ["llamagen", "var", "mar"])
def test_families(tmp_path, name):
    """A raster, scales with a state, and a diffusion head: tokens and pixels of ort-cpu."""
    family = FAMILIES[name]
    model = family.model(family.random("tiny"), {})
    made = []
    for target in ("torch-cpu", "ort-cpu"):
        folder = tmp_path / target
        folder.mkdir()
        write(folder, name, model, target, "f32", parse_pipeline(TARGETS[target].passes))
        made.append(arcompile.load(folder, check=False).generate([0, 1], seed=1, temperature=0.0))
    ours, theirs = made
    assert (ours.tokens == theirs.tokens).all()
    a, b = (np.asarray(x.pixels, np.float32) for x in (ours, theirs))
    assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max()


def test_caches_that_are_read_again_are_copied():
    """A graph that appends to a cache and also returns what it held."""
    p = tiny.of("""graph g(%k0: f32[r,2,5,4], %x: f32[r,1,8], %past: i32[r]) {
  %0 = cache_append(%k0, %x, %past) : f32[r,2,5,4]
  %1 = sum(%k0) {axes=(1, 2, 3), keepdims=False} : f32[r]
  return k0=%0, before=%1
}""", state="  state k0: f32[r,2,5,4]\n")
    plan = _plan(p)
    assert [s.copies for s in plan.steps] == [(0,), ()]
    given = {k: torch.from_numpy(v) for k, v in tiny.inputs(p.graphs[0]).items()}
    kept = given["k0"].clone()
    assert torch.equal(plan.run(given)["before"], kept.sum((1, 2, 3)))
    assert torch.equal(given["k0"], kept)


def _plan(p, kernels=False):
    from arcompile.targets.torch_plan import Plan

    g = p.graphs[0]
    store = Store(tiny.weights(p), p.fold)
    held = {w.name: torch.from_numpy(np.array(store[w.name])) for w in g.weights}
    return Plan(g, held, "cpu", kernels, frozenset(k for k, _ in p.state))


def test_half(tmp_path):
    """f16 and bf16 run, and draw nearly what f32 draws."""
    p = tiny.llama()
    full = engine(tmp_path, p, "torch-cpu").generate([0, 1], seed=1, **KEYS)
    for dtype in ("f16", "bf16"):
        e = engine(tmp_path / dtype, p, "torch-cpu", f"{PASSES}, half{{dtype={dtype}}}")
        found = e.generate([0, 1], seed=1, **KEYS)
        assert (found.tokens == full.tokens).mean() >= 0.5
        assert found.tokens.min() >= 0


# --- our kernels ---------------------------------------------------------------------------------


def test_patterns_are_found():
    """The sampling chain becomes one call, and so does a modulated norm."""
    p = run(tiny.llama(), parse_pipeline(PASSES), tiny.weights(tiny.llama()))
    g = p.graph("step")
    calls = torch_kernels.fused(g, [n for n in g.nodes if n.op != "const"])
    names = [c.op for c in calls]
    assert names.count("logits_chain") == 1
    assert not {"draw", "filter_logits"} & {*names}
    one = tiny.of("""graph g(%x: f32[r,s,8], %a: f32[r,1,8], %b: f32[r,1,8]) {
  %0 = layer_norm(%x) {eps=1e-06} : f32[r,s,8]
  %1 = mul(%0, %a) : f32[r,s,8]
  %2 = add(%b, %1) : f32[r,s,8]
  return y=%2
}""").graphs[0]
    assert [c.op for c in torch_kernels.fused(one, one.nodes)] == ["add_norm"]


def test_the_feed_of_a_scale_is_one_call(tmp_path):
    """In both forms that VAR has, and with the pixels it had."""
    family = FAMILIES["var"]
    model = family.model(family.random("tiny"), {})
    folder = tmp_path / "var"
    folder.mkdir()
    write(folder, "var", model, "torch-cpu", "f32", parse_pipeline(PASSES))
    e = arcompile.load(folder, check=False)
    plain = e.generate([0], seed=1, temperature=0.0)
    p = parse_program((folder / "program.arc").read_text())
    for name in ("feed0", "feed1", "feed2"):
        g = p.graph(name)
        calls = torch_kernels.fused(g, [n for n in g.nodes if n.op != "const"])
        assert [c.op for c in calls].count("var_feed") == 1, name
        assert not {"conv2d", "transpose"} & {c.op for c in calls[:3]}
    if lang.interpreting():
        made = Models(folder, e.program, "cpu", kernels=True, capture=False)
        made.plans = {k: v if "feed" in k else e.models.plans[k] for k, v in made.plans.items()}
        e.__dict__["models"] = made
        ours = e.generate([0], seed=1, temperature=0.0)
        assert (ours.tokens == plain.tokens).all()
        assert np.abs(ours.pixels - plain.pixels).max() <= 1e-3 * np.abs(plain.pixels).max()


def test_patterns_that_others_read_are_left():
    """The norm is a result: it cannot vanish into the kernel."""
    g = tiny.of("""graph g(%x: f32[r,s,8], %a: f32[r,1,8], %b: f32[r,1,8]) {
  %0 = layer_norm(%x) {eps=1e-06} : f32[r,s,8]
  %1 = mul(%0, %a) : f32[r,s,8]
  %2 = add(%b, %1) : f32[r,s,8]
  return y=%2, n=%0
}""").graphs[0]
    assert [c.op for c in torch_kernels.fused(g, g.nodes)] == ["layer_norm", "mul", "add"]


@pytest.mark.skipif(not lang.interpreting(), reason="needs Triton's interpreter")
def test_kernels_draw_the_same_tokens(pair):
    """The whole loop with our kernels in Triton's interpreter."""
    ours, theirs = pair
    models = Models(ours.folder, ours.program, "cpu", kernels=True, capture=False)
    ours.__dict__["models"] = models  # instead of the ones that `load` would open
    a, b = (e.generate([1, 2], seed=3, guidance=2.0, top_k=5) for e in (ours, theirs))
    assert (a.tokens == b.tokens).all()
    del ours.__dict__["models"]


def test_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    reason = TARGETS["torch-cuda"].available()
    assert "CUDA" in reason or "GPU" in reason


def test_refuses_without_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    e = engine(tmp_path, tiny.llama(), "torch-cuda")
    with pytest.raises(ArcError) as refused:
        e.generate([0], seed=1)
    assert refused.value.code == MACHINE
    assert "\n" not in refused.value.what
    assert refused.value.hint


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_on_a_gpu(tmp_path, dtype):
    """Kernels, and steps captured as CUDA graphs: the tokens of torch-cpu."""
    p = tiny.llama()
    passes = PASSES if dtype == "f32" else f"{PASSES}, half{{dtype={dtype}}}"
    cpu, gpu = (engine(tmp_path, p, name, passes) for name in ("torch-cpu", "torch-cuda"))
    sizes = (3, 3, 3, 1, 3, 3, 3)  # the third run of a size replays what was captured
    for seed, n in enumerate(sizes):
        a, b = (e.generate([0, 1, 2][:n], seed=seed, **KEYS) for e in (cpu, gpu))
        assert (a.tokens == b.tokens).mean() >= (1 if dtype == "f32" else 0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("name", ["llamagen", "var", "mar"])
def test_captures_on_a_gpu(tmp_path, name):
    """Replayed, and by two threads at once: what the first image of an engine of its own is."""
    family = FAMILIES[name]
    model = family.model(family.random("tiny"), {})
    write(tmp_path, name, model, "torch-cuda", "f32", parse_pipeline(PASSES))
    ours, fresh = (arcompile.load(tmp_path, check=False) for _ in range(2))
    fresh.models.capture = False
    want = [fresh.generate([0], seed=i, temperature=0.0, guidance=2.0) for i in range(4)]
    for _ in range(2):
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda i: ours.generate([0], seed=i, temperature=0.0,
                                                          guidance=2.0), range(4)))
        for a, b in zip(found, want, strict=True):
            assert (a.tokens == b.tokens).all()
            assert np.abs(a.pixels - b.pixels).max() <= 1e-4
    assert any(x.recorded for room in ours.models.idle for x in room.bound.values())
