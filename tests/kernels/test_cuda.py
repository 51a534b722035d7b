"""CUDA C++ kernels: built by nvcc for sm_80 and sm_90, and emulated thread by thread without it.

That they compute what they should is tests/kernels/test_triton.py's business, for every version.
"""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest

from arcompile.errors import MACHINE, ArcError
from arcompile.kernel import KERNELS, case
from arcompile.kernels import check, cuda

NAMES = sorted(p.stem for p in cuda.SOURCES.glob("*.cu"))
needs_nvcc = pytest.mark.skipif(not cuda.nvcc(), reason="nvcc is not installed")
needs_emulation = pytest.mark.skipif(
    bool(cuda.missing()) or not cuda.emulated(), reason="nothing is emulated here")

# A kernel per mistake: half of the block never reaches the barrier; shared memory is read before
# it is written; neighbours read each other's lanes.
PROBE = r"""
#include "arc.cuh"
__global__ void half_waits(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void unwritten(int* out) {
  ARC_SHARED(memory);
  out[threadIdx.x] = memory[threadIdx.x];
}
__global__ void neighbours(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 1);
}
__global__ void sums(float* out) {
  __shared__float(room);
  out[threadIdx.x] = arc_block_sum(static_cast<float>(threadIdx.x), room);
}
ARC_EXPORT int probe(int which, int* out) {
  if (which == 0) return arc_launch(half_waits, dim3(1), 64, 0, nullptr, out);
  if (which == 1) return arc_launch(unwritten, dim3(1), 64, 64, nullptr, out);
  return arc_launch(neighbours, dim3(1), 64, 0, nullptr, out);
}
ARC_EXPORT int probe_sum(float* out) { return arc_launch(sums, dim3(2), 96, 128, nullptr, out); }
""".replace("__shared__float(room)", "ARC_SHARED(memory);\n  float* room = "
            "reinterpret_cast<float*>(memory)")


@pytest.fixture(scope="module")
def probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.cu").write_text(PROBE)
    made = folder / "probe.so"
    subprocess.run([cuda.compiler(), *cuda.HOST, "-shared", f"-I{cuda.SOURCES}",
                    str(folder / "probe.cu"), "-o", str(made)], check=True)
    return ctypes.CDLL(str(made))


@needs_emulation
def test_the_emulation_sees_mistakes(probe):
    out = np.zeros(64, np.int32)
    at = out.ctypes.data_as(ctypes.c_void_p)
    assert probe.probe(0, at) == 719  # what a GPU would hang on
    assert probe.probe(1, at) == 0
    assert (out == 0xA5).all()
    assert probe.probe(2, at) == 0
    assert (out == np.arange(64) ^ 1).all()


@needs_emulation
def test_sums_of_a_block(probe):
    out = np.zeros(96, np.float32)
    assert probe.probe_sum(out.ctypes.data_as(ctypes.c_void_p)) == 0
    assert (out == 96 * 95 / 2).all()


# Kernels in a source, and the registers they may use: by 32 two blocks of 1024 threads fit a
# processor, by 80 six of 128, by 128 two of 256 or one of 512, by 192 two of 128.
BOUNDS = {"few_linear": (6, 128), "flash_decode": (24, 128), "group_norm_silu": (6, 48),
          "logits_chain": (12, 128), "range_attention": (5, 192)}


@needs_nvcc
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", NAMES)
def test_builds(name, arch):
    """For the dtypes it takes; nothing spills."""
    found, (count, most) = cuda.resources(name, arch), BOUNDS.get(name, (3, 32))
    assert len(found) == count
    assert all(r["spilled"] == 0 and 0 < r["registers"] <= most for r in found.values()), found


@needs_emulation
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("name", "shape"), [
    ("range_attention", {"r": 1, "s": 70, "t": 200, "h": 2, "g": 1, "e": 128, "mask": "scales"}),
    ("range_attention", {"r": 1, "s": 70, "t": 99, "h": 1, "e": 40, "mask": "window", "page": 32}),
    ("range_attention", {"r": 1, "s": 9, "t": 200, "h": 2, "e": 64, "mask": "blocks", "short": 90}),
    ("flash_decode", {"r": 2, "h": 2, "g": 1, "e": 72, "slots": 300}),
    ("flash_decode", {"r": 1, "h": 1, "e": 16, "slots": 700}),
    ("flash_decode", {"r": 1, "h": 2, "e": 64, "slots": 200, "kv": "int8"}),
    ("flash_decode", {"r": 1, "h": 1, "e": 128, "slots": 90, "kv": "int4", "interleaved": False}),
    ("group_norm_silu", {"n": 2, "c": 6, "groups": 2, "hw": 7000}),
    ("few_linear", {"rows": 5, "k": 4304, "n": 6, "has": "up weight y"}),
    ("few_linear", {"rows": 1, "k": 1288, "n": 37, "has": "y"}),
    ("add_norm", {"n": 2, "d": 96}), ("logits_chain", {"b": 2, "c": 1, "v": 300})])
def test_real_heads_and_bf16(name, shape, dtype):
    """Several tiles of keys and sizes of heads beyond those of test_triton.py, and bf16, which
    Triton's interpreter does not take."""
    k = KERNELS[name]
    last = [v for v in k.versions.values() if "nvcc" in v.needs][-1]
    if dtype not in last.dtypes:
        pytest.skip(last.refusal(case(dtype, **shape)))
    found = check.check(k, last, case(dtype, **shape))
    assert (found.reason, found.wrong) == ("", "")


@needs_emulation
@pytest.mark.parametrize("warps", [8, 16])
def test_warps_that_share_a_row(warps):
    """Of few_linear, whatever their number: rows shorter than a load of all lanes, and longer than
    all that is on its way at once."""
    k = KERNELS["few_linear"]
    for size in (40, 2056, 5000):
        given = k.inputs(case("f16", rows=2, k=size, n=11, has="up weight y"),
                         np.random.default_rng(warps))
        given = {n: v.astype(np.float16) if isinstance(v, np.ndarray) else v
                 for n, v in given.items()}
        want = k.reference(**{n: v.astype(np.float32) if isinstance(v, np.ndarray) else v
                              for n, v in given.items()})
        got = k.versions["v2"].run(**check.tensors(k, given, "f16", "cpu"), warps=warps)
        assert check.compare(got, want, 2e-3)[1] == "", size


@needs_emulation
@pytest.mark.parametrize("v", [3000, 9001, 20000])
@pytest.mark.parametrize("kind", ["ties", "flat", "outliers", "gone", "signed zeros"])
def test_tokens_of_logits_of_all_kinds(kind, v):
    """Many tokens at the k-th value, one value, values far off and at -inf; four and eight blocks a
    warp in registers, and in shared memory."""
    rng = np.random.default_rng(v)
    logits = 3 * rng.standard_normal((8, 1, v), np.float32)
    if kind == "ties":
        logits = np.round(logits)
    elif kind == "flat":
        logits[:] = 1.5
    elif kind == "outliers":
        logits[..., ::7] = -1e9
    elif kind == "gone":
        logits[:4, ..., ::2] = -np.inf
    else:
        logits = np.round(logits / 9) * np.where(rng.random(logits.shape) < 0.5, -1, 1)
    arguments = {
        "logits": logits.astype(np.float32), "row": np.arange(4), "null_row": np.arange(4, 8),
        "scale": np.full(4, 2, np.float32), "temperature": np.array([1, 0.7, 1, 0], np.float32),
        "top_k": np.array([v // 3, 0, 7, 0]), "top_p": np.array([0.9, 0.95, 1, 1], np.float32),
        "most": np.array([v]), "noise": rng.integers(0, 1 << 23, (4, 1, 2)).astype(np.float32)}
    arguments["noise"] /= 1 << 23
    k = KERNELS["logits_chain"]
    got = k.versions["v2"].run(**check.tensors(k, arguments, "f32", "cpu"))
    assert (got.numpy() == k.reference(**arguments)).all()


@needs_emulation
@pytest.mark.parametrize(("splits", "warps"), [(1, 4), (3, 4), (2, 16)])
def test_parts_of_a_cache(splits, warps):
    """Of flash_decode: however many blocks and warps share the keys."""
    k = KERNELS["flash_decode"]
    given = k.inputs(case(r=2, h=2, g=1, e=40, slots=190), np.random.default_rng(warps))
    want = k.reference(**{n: v.copy() if isinstance(v, np.ndarray) else v
                          for n, v in given.items()})
    got = k.versions["v3"].run(**check.tensors(k, given, "f32", "cpu"), splits=splits, warps=warps)
    assert check.compare(got, want, 2e-5)[1] == ""


def test_a_kernel_each():
    """Every source belongs to a registered kernel, with a version that needs nvcc."""
    for name in NAMES:
        assert any("nvcc" in v.needs for v in KERNELS[name].versions.values()), name


def test_wrong_sources_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "SOURCES", tmp_path)
    monkeypatch.setenv("ARC_CACHE", str(tmp_path / "cache"))
    if cuda.missing():
        pytest.skip(cuda.missing())
    (tmp_path / "broken.cu").write_text("int main( {")
    with pytest.raises(ArcError, match="cannot build a CUDA kernel") as e:
        cuda.built("broken")
    assert e.value.code == MACHINE


def test_what_does_not_fit():
    v = KERNELS["add_norm"].versions["v3"]
    assert "do not fit shared memory" in v.refusal(case(n=1, d=60_000))
    assert "do not fit shared memory" in KERNELS["logits_chain"].versions["v2"].refusal(
        case(b=1, c=1, v=60_000))
    v = KERNELS["few_linear"].versions["v2"]
    assert "9 rows, it takes 8" in v.refusal(case("f16", rows=9, k=8, n=1))
    assert "its lanes read 8 at once" in v.refusal(case("f16", rows=1, k=20, n=1))
    assert v.refusal(case("bf16", rows=8, k=8192, n=1)) == ""
    v = KERNELS["flash_decode"].versions["v3"]
    assert "its lanes hold 8 numbers each" in v.refusal(case(r=1, h=1, e=20, slots=8))
    v = KERNELS["range_attention"].versions["v2"]
    assert "multiples of 8 up to 128 in f16" in v.refusal(case("f16", r=1, s=1, t=1, h=1, e=136))
    assert v.refusal(case(r=1, s=1, t=1, h=1, e=136)) == ""
